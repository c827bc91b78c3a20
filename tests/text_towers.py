"""Text encoders of other libraries, in float64, with random weights and biases; nothing is a round number."""

LETTERS = "abcdefghijklmnopqrstuvwxyz,!"
WORDS = ("a", "red", "star", "of", "blue")
PROMPTS = ("a red star", "a blue, starry star of red", "")


def clip_tokenizer(**changes):
    """A byte-pair tokenizer that has a few whole words; its end is its filling."""
    from transformers import CLIPTokenizer

    vocab = {piece: i for i, piece in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS)])}
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocab.setdefault(parts[0], len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=19, **changes)


def t5_tokenizer():
    """A tokenizer of sentence pieces: a few words and every letter."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0), ("</s>", 0), ("<unk>", 0), *((f"\u2581{word}", -2) for word in WORDS), ("\u2581", -3)]
    return T5Tokenizer(vocab=[*pieces, *((letter, -5) for letter in LETTERS)], extra_ids=0, model_max_length=19)


def clip_config(**changes):
    """Sizes of a CLIP text tower: three heads of width ten, 19 positions."""
    from transformers import CLIPTextConfig

    n_vocab = len(clip_tokenizer())
    sizes = dict(
        vocab_size=n_vocab, hidden_size=30, intermediate_size=41, num_hidden_layers=3, num_attention_heads=3,
        max_position_embeddings=19, projection_dim=13, hidden_act="quick_gelu", bos_token_id=n_vocab - 2,
        eos_token_id=n_vocab - 1, pad_token_id=n_vocab - 1,
    )  # fmt: skip
    return CLIPTextConfig(**(sizes | changes))


def clip_text(randomize, *, projected=True, **changes):
    """Hugging Face's causal CLIP text encoder, with a projection or without."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return randomize(kind(clip_config(**changes)).double()).eval().requires_grad_(False)


def t5_config(*, gated, **changes):
    """Sizes of a T5 encoder: heads together are wider than the stream."""
    from transformers import T5Config

    sizes = dict(
        vocab_size=len(t5_tokenizer()), d_model=30, d_kv=14, d_ff=41, num_layers=3, num_heads=3, dropout_rate=0.0,
        feed_forward_proj="gated-gelu" if gated else "relu", relative_attention_num_buckets=8,
        relative_attention_max_distance=20, is_encoder_decoder=False, tie_word_embeddings=False, n_positions=23,
    )  # fmt: skip
    return T5Config(**(sizes | changes))


def t5_encoder(randomize, *, gated, **changes):
    """Hugging Face's T5 encoder, of version 1.1 (gated) or 1.0."""
    from transformers import T5EncoderModel

    return randomize(T5EncoderModel(t5_config(gated=gated, **changes)).double()).eval().requires_grad_(False)


def exact_t5_norms(monkeypatch):
    """Let the source take mean squares in the dtype of its weights; it takes them in float32, whatever these are."""
    import torch
    from transformers.models.t5 import modeling_t5

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(modeling_t5.T5LayerNorm, "forward", forward)


def open_clip_text(randomize, **changes):
    """A text tower of open_clip's, LayerScale included."""
    from open_clip.transformer import TextTransformer

    sizes = dict(
        context_length=11, vocab_size=23, width=30, heads=3, layers=3, mlp_ratio=1.4, output_dim=13, ls_init_value=0.1,
    )  # fmt: skip
    return randomize(TextTransformer(**(sizes | changes)).double().eval()).requires_grad_(False)
