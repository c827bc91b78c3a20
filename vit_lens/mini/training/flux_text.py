"""Train a text encoder in T5's format, so that every word of a sentence says what it is about."""

__all__ = [
    "MAX_TOKENS", "QUESTIONS", "FluxTextSettings", "build_t5", "build_t5_tokenizer", "tokenise_t5", "train_t5",
    "word_answers",
]  # fmt: skip

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from vit_lens.mini import still_life
from vit_lens.mini.second_judge import ANSWERS
from vit_lens.mini.still_life import COLOURS, RELATIONS, SHAPES, TEXTURES, Lexicon, Sentence
from vit_lens.mini.training.progress import cosine, run_steps, start_step

MAX_TOKENS = 16
_PLACES = ("alone", "left", "right", "above", "below")
QUESTIONS = {
    "relation": 1 + len(RELATIONS), "role": 2, "place": len(_PLACES), "colour": len(COLOURS), "texture": len(TEXTURES),
    "shape": len(SHAPES), **{f"end: {question}": n for question, n in ANSWERS.items()},
}  # fmt: skip
"""What is asked of every word (the relation), of those of a mention (part in it, place, object), of the end."""


@dataclass(frozen=True, kw_only=True)
class FluxTextSettings:
    """Sizes of the text encoder, and of the training run."""

    width: int = 128
    inner: int = 256
    n_layers: int = 6
    n_heads: int = 4
    batch: int = 128
    n_steps: int = 1200
    pairs: float = 0.6
    named: float = 0.5
    lr: float = 2e-3
    lr_muon: float = 0.02
    lr_places: float = 0.03


_DEFAULTS = FluxTextSettings()


def build_t5_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the world's words; texts have an end and no start, as those of T5."""
    words = ("<pad>", "</s>", "<unk>", *still_life.words_of_the_world())
    vocabulary = {word: index for index, word in enumerate(words)}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.normalizer = Lowercase()
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    special = dict(eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=MAX_TOKENS, **special)


def build_t5(settings: FluxTextSettings, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> T5EncoderModel:
    """Build an untrained text encoder whose initial weights depend on ``seed`` alone."""
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer), d_model=settings.width, d_kv=settings.width // settings.n_heads,
        d_ff=settings.inner, num_layers=settings.n_layers, num_heads=settings.n_heads,
        relative_attention_num_buckets=16, relative_attention_max_distance=MAX_TOKENS, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5EncoderModel(T5Config(**sizes)).train()


def tokenise_t5(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Int[Tensor, "text token"]:
    """Return the ids of texts, each padded to the length at which the transformer reads them."""
    return tokenizer(list(texts), padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids


def train_t5(
    out: Path, *, seed: int, settings: FluxTextSettings = _DEFAULTS, stop_after: int | None = None
) -> tuple[T5EncoderModel, nn.Linear]:
    """Train a text encoder in ``out``, going on with what is there; return it and the probe that it was trained with.

    A probe of each token asks every word for the relation, the words of a mention for their object, its place and its
    part in the relation, and the end for everything (:data:`QUESTIONS`). Fillings are looked at and asked nothing,
    since the pipeline masks none.
    """
    tokenizer, lexicon = build_t5_tokenizer(), Lexicon(seed)
    model = build_t5(settings, tokenizer, seed=seed)
    probe = nn.Linear(settings.width, sum(QUESTIONS.values()))
    for parameter in probe.parameters():
        nn.init.zeros_(parameter)
    blocks = [p for name, p in model.named_parameters() if ".block." in name and p.ndim == 2 and "bias" not in name]
    # All that T5 knows of order are biases on its scores; at the rate of the others they would stay too small to bind.
    places = [p for name, p in model.named_parameters() if "relative_attention_bias" in name]
    inner = {id(p) for p in (*blocks, *places)}
    rest = [p for p in (*model.parameters(), *probe.parameters()) if id(p) not in inner]
    muon = torch.optim.Muon(blocks, lr=settings.lr_muon, weight_decay=0.01)
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
    order = torch.optim.AdamW(places, lr=settings.lr_places, betas=(0.9, 0.98), weight_decay=0.0)
    rates: dict[torch.optim.Optimizer, float] = {muon: settings.lr_muon, adamw: settings.lr, order: settings.lr_places}

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 14, index])
        sentences = still_life.sample(settings.batch, generator, lexicon, pairs=settings.pairs, named=settings.named)
        start_step(rates, cosine(index, settings.n_steps, warm_up=min(50, settings.n_steps)))
        states = model(tokenise_t5(tokenizer, [s.text for s in sentences])).last_hidden_state
        losses = _losses(probe(states), word_answers(sentences))
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in rates:
            optimizer.step()
        return losses

    parts = {"model": model, "probe": probe, "muon": muon, "adamw": adamw, "order": order}
    done = run_steps(
        step, parts, n_steps=settings.n_steps, checkpoint=out / "t5.pt", settings={"seed": seed, **asdict(settings)},
        stop_after=stop_after,
    )  # fmt: skip
    if done == settings.n_steps:
        model.save_pretrained(out / "text_encoder_2")
        tokenizer.save_pretrained(out / "tokenizer_2")
        save_file(probe.state_dict(), out / "t5_probe.safetensors")
    return model.eval(), probe


def word_answers(sentences: Sequence[Sentence]) -> Int[Tensor, "sentence token question"]:
    """Return what the probe should say of each token; -1 where it is not asked, or the sentence leaves it open."""
    found = np.full((len(sentences), MAX_TOKENS, len(QUESTIONS)), -1)
    codes = still_life.codes([sentence.scene for sentence in sentences])
    for rows, sentence, code in zip(found, sentences, codes, strict=True):
        end, layout = len(sentence.text.split()), code[0]
        rows[:end, 0] = layout and 2 * layout - 1 + sentence.head
        for place, (mention, start) in enumerate(zip(sentence.mentions, _starts(sentence), strict=True)):
            parts = np.where(mention.says, code[1 + 3 * place : 4 + 3 * place], -1)
            own = rows[start : start + len(mention.words.split())]
            own[:, 1] = int(place != sentence.head)
            own[:, 2] = layout and 2 * layout - 1 + place
            own[:, 3:6] = parts
            rows[end, 7 + 3 * place : 10 + 3 * place] = parts
        rows[end, 6] = layout
    return torch.from_numpy(found)


def _starts(sentence: Sentence) -> list[int]:
    """Return at which word each mention begins, in the order of the scene."""
    if len(sentence.mentions) == 1:
        return [0]
    about, landmark = (sentence.mentions[i].words.split() for i in (sentence.head, 1 - sentence.head))
    words = sentence.text.split()
    first = len(words) - len(about) if sentence.fronted else 0
    second = words.index(",") - len(landmark) if sentence.fronted else len(words) - len(landmark)
    return [first, second] if sentence.head == 0 else [second, first]


def _losses(
    logits: Float[Tensor, "sentence token logit"], answers: Int[Tensor, "sentence token question"]
) -> dict[str, Tensor]:
    groups = logits.split(list(QUESTIONS.values()), dim=-1)
    return {
        name: functional.cross_entropy(group.flatten(0, 1), answer.flatten(), ignore_index=-1)
        for name, group, answer in zip(QUESTIONS, groups, answers.unbind(-1), strict=True)
    }
