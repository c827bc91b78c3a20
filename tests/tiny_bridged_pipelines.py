"""Stock pipelines whose text encoders go through TransformerLens' bridge, with few random parameters."""

import torch
from tiny_pipelines import PROMPTS, WORDS, perturbed, t5, vae  # noqa: F401

_CHAT = (
    "{% for one in messages %}<{{ one.role }}> {% for part in one.content %}{{ part.text }} {% endfor %}{% endfor %}"
)
_PLAIN_CHAT = "{% for one in messages %}<{{ one.role }}> {{ one.content }} {% endfor %}<assistant>"
_SIZES = dict(hidden_size=32, intermediate_size=44, num_attention_heads=4, num_key_value_heads=2, head_dim=12)
_PAD = "<pad>"


def words_tokenizer(*, bos=True, side="right", template=None):
    """One token a word, and an unknown one; Gemma's begins with a token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [_PAD, "<eos>", "<bos>", "<unk>"]
    vocab = {word: index for index, word in enumerate([*special, "<system>", "<user>", "<assistant>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        made.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])])
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=_PAD, eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        padding_side=side, chat_template=template, model_max_length=512,
    )  # fmt: skip
    return found, len(vocab)


def letters_tokenizer():
    """One token a byte, so that a template is longer than what is dropped of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([_PAD, "<|im_start|>", "<|im_end|>", *letters])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=_PAD, eos_token="<|im_end|>"), len(vocab)


def bert_tokenizer():
    from transformers import BertTokenizer

    vocab = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return BertTokenizer(vocab=vocab, model_max_length=77), len(vocab)


def bert():
    import transformers

    tokenizer, n = bert_tokenizer()
    sizes = dict(hidden_size=32, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4)
    return perturbed(transformers.BertModel(transformers.BertConfig(vocab_size=n, **sizes))), tokenizer


def gemma2(n_layers=4):
    """Layers with windows and without; soft caps that bite."""
    import transformers

    tokenizer, n = words_tokenizer(side="left")
    config = transformers.Gemma2Config(
        vocab_size=n, num_hidden_layers=n_layers, query_pre_attn_scalar=12, sliding_window=16,
        attn_logit_softcapping=2.0, max_position_embeddings=512, **_SIZES,
    )  # fmt: skip
    model = perturbed(transformers.Gemma2Model(config))
    model.set_attn_implementation("eager")  # what later versions of transformers allow alone
    return model, tokenizer


def qwen2_5_vl():
    import transformers

    tokenizer, n = letters_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    sizes = {key: value for key, value in _SIZES.items() if key != "head_dim"}
    vision = dict(depth=1, hidden_size=16, intermediate_size=20, num_heads=2, out_hidden_size=32, patch_size=4,
                  fullatt_block_indexes=[0])  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=dict(vocab_size=n + 4, num_hidden_layers=3, rope_parameters=rope, **sizes), vision_config=vision,
        image_token_id=n, video_token_id=n + 1, vision_start_token_id=n + 2, vision_end_token_id=n + 3,
    )  # fmt: skip
    return perturbed(transformers.Qwen2_5_VLForConditionalGeneration(config)), tokenizer


def mistral3(n_layers=32):
    import transformers

    tokenizer, n = words_tokenizer(side="left", template=_CHAT)
    vision = dict(model_type="pixtral", hidden_size=16, intermediate_size=20, num_hidden_layers=1,
                  num_attention_heads=2, image_size=16, patch_size=4, head_dim=8)  # fmt: skip
    config = transformers.Mistral3Config(
        text_config=dict(model_type="mistral", vocab_size=n + 1, num_hidden_layers=n_layers, **_SIZES),
        vision_config=vision, image_token_index=n,
    )  # fmt: skip
    return perturbed(transformers.Mistral3ForConditionalGeneration(config)), tokenizer


def qwen3(n_layers=29):
    import transformers

    tokenizer, n = words_tokenizer(bos=False, template=_PLAIN_CHAT)
    config = transformers.Qwen3Config(vocab_size=n, num_hidden_layers=n_layers, **_SIZES)
    return perturbed(transformers.Qwen3ForCausalLM(config)), tokenizer


def _deep_vae():
    """Eight pixels for each latent, as some pipelines take for granted."""
    return vae((8, 8, 8, 8), shift_factor=0.06, scaling_factor=1.5)


def _flow():
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def _hunyuandit():
    import diffusers

    first, second = bert(), t5(40, length=256)
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=4, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        hidden_size=24, cross_attention_dim=32, cross_attention_dim_t5=40, pooled_projection_dim=16,
    )  # fmt: skip
    return diffusers.HunyuanDiTPipeline(
        vae=_deep_vae(), text_encoder=first[0], tokenizer=first[1], text_encoder_2=second[0], tokenizer_2=second[1],
        transformer=perturbed(transformer), scheduler=diffusers.DDPMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sana():
    import diffusers

    encoder, tokenizer = gemma2()
    blocks = dict.fromkeys(["encoder_block_types", "decoder_block_types"], ("ResBlock", "EfficientViTBlock"))
    blocks |= dict.fromkeys(["encoder_block_out_channels", "decoder_block_out_channels"], (8, 8))
    blocks |= dict.fromkeys(["encoder_qkv_multiscales", "decoder_qkv_multiscales"], ((), (5,)))
    blocks |= dict.fromkeys(["encoder_layers_per_block", "decoder_layers_per_block"], (1, 1))
    coder = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, downsample_block_type="conv", upsample_block_type="interpolate",
        scaling_factor=0.41, **blocks,
    )  # fmt: skip
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
        sample_size=16,
    )  # fmt: skip
    return diffusers.SanaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=perturbed(coder), transformer=perturbed(transformer),
        scheduler=_flow(),
    )  # fmt: skip


def _lumina2():
    import diffusers

    encoder, tokenizer = gemma2()
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), cap_feat_dim=32,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=perturbed(transformer), scheduler=_flow(), vae=_deep_vae(), text_encoder=encoder,
        tokenizer=tokenizer,
    )  # fmt: skip


def _qwenimage():
    import diffusers

    encoder, tokenizer = qwen2_5_vl()
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    coder = diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.2, 1.0],
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=_flow(), vae=perturbed(coder), text_encoder=encoder, tokenizer=tokenizer,
        transformer=perturbed(transformer),
    )  # fmt: skip


def _flux2_parts(width, guidance_embeds):
    import diffusers

    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=width, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )  # fmt: skip
    coder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=32,
    )  # fmt: skip
    coder.bn.running_mean.normal_()
    return dict(scheduler=_flow(), vae=perturbed(coder), transformer=perturbed(transformer))


def _flux2():
    import diffusers

    encoder, tokenizer = mistral3()
    return diffusers.Flux2Pipeline(text_encoder=encoder, tokenizer=tokenizer, **_flux2_parts(96, True))


def _flux2klein(**options):
    import diffusers

    encoder, tokenizer = qwen3()
    parts = _flux2_parts(96, False)
    return diffusers.Flux2KleinPipeline(text_encoder=encoder, tokenizer=tokenizer, **parts, **options)


_MAKERS = {
    "hunyuandit": _hunyuandit, "sana": _sana, "lumina2": _lumina2, "qwenimage": _qwenimage, "flux2": _flux2,
    "flux2klein": _flux2klein, "distilled": lambda: _flux2klein(is_distilled=True),
}  # fmt: skip


def make(name):
    """Build a pipeline: hunyuandit, sana, lumina2, qwenimage, flux2, flux2klein, or the last as it was distilled."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        pipe = _MAKERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
