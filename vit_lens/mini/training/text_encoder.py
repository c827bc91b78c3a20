"""Train a text encoder of the small world: in CLIP's format, or of another kind of the chain from CLIP towards T5."""

__all__ = [
    "MAX_TOKENS", "TextEncoder", "TextSettings", "build_text_encoder", "build_text_tokenizer", "text_answers",
    "text_ends", "tokenise", "train_text",
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
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from vit_lens.mini import still_life
from vit_lens.mini.second_judge import ANSWERS
from vit_lens.mini.still_life import Lexicon, Sentence
from vit_lens.mini.text_kinds import FACTORS, TextKind
from vit_lens.mini.training.progress import cosine, run_steps, start_step
from vit_lens.mini.training.relative_text import build_relative_encoder, hide_words

MAX_TOKENS = 20
TextEncoder = CLIPTextModel | T5EncoderModel


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Sizes of the text encoder, and of the training run.

    The last two are of the kinds in T5's format alone: the rate of its biases by position, and the share of words that
    a denoising one must restore.
    """

    width: int = 128
    n_layers: int = 8
    n_heads: int = 8
    batch: int = 128
    n_steps: int = 700
    pairs: float = 0.6
    named: float = 0.5
    lr: float = 2e-3
    lr_muon: float = 0.02
    lr_places: float = 0.15
    masked: float = 0.3


_DEFAULTS = TextSettings()


def build_text_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the world's words; texts are padded with their end, as Stable Diffusion 1 does."""
    words = ("<start>", *still_life.words_of_the_world(), "<unk>", "<end>")
    vocabulary = {word: index for index, word in enumerate(words)}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.normalizer = Lowercase()
    model.pre_tokenizer = WhitespaceSplit()
    ends = [(name, vocabulary[name]) for name in ("<start>", "<end>")]
    model.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    special = dict(bos_token="<start>", eos_token="<end>", unk_token="<unk>", pad_token="<end>")
    return PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=MAX_TOKENS, **special)


def build_text_encoder(settings: TextSettings, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> CLIPTextModel:
    """Build an untrained text encoder whose initial weights depend on ``seed`` alone."""
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=settings.width, intermediate_size=4 * settings.width,
        num_hidden_layers=settings.n_layers, num_attention_heads=settings.n_heads, max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModel(CLIPTextConfig(**sizes))
        embeddings = getattr(model, "text_model", model).embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=0.5)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.2)
    return model.train()


def tokenise(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Int[Tensor, "text token"]:
    """Return the ids of texts, each padded to the encoder's length."""
    return tokenizer(list(texts), padding="max_length", return_tensors="pt").input_ids


def train_text(
    out: Path,
    *,
    seed: int,
    settings: TextSettings = _DEFAULTS,
    kind: TextKind = "clip",
    stop_after: int | None = None,
) -> tuple[TextEncoder, nn.Linear]:
    """Train a text encoder in ``out``, going on with what is there; return it and the probe that it was trained with.

    The probe reads the end of the text, behind the final norm: layout, then colour, texture and shape of the object at
    each place. What a sentence leaves unsaid is not asked. The probe of a denoising encoder reads every hidden word's
    position instead, and says which word of the vocabulary it was.
    """
    tokenizer, lexicon, factors = build_text_tokenizer(), Lexicon(seed), FACTORS[kind]
    model: TextEncoder = build_text_encoder(settings, tokenizer, seed=seed)
    if factors.positions == "relative":
        model = build_relative_encoder(
            tokenizer, width=settings.width, n_layers=settings.n_layers, n_heads=settings.n_heads,
            causal=factors.attention == "causal", seed=seed,
        )  # fmt: skip
    denoises = factors.objective == "denoising"
    probe = nn.Linear(settings.width, len(tokenizer) if denoises else sum(ANSWERS.values()))
    for parameter in probe.parameters():
        nn.init.zeros_(parameter)
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2 and (".layers." in n or ".block." in n)}
    # All that T5 knows of order are biases on its scores; at the rate of the others they would stay too small to bind.
    places = [p for name, p in matrices.items() if "relative_attention_bias" in name]
    # It divides no scores by the root of a head's width. Slower queries are divided ones, as far as training can tell.
    queries = [p for name, p in matrices.items() if "SelfAttention.q." in name]
    apart = {id(p) for p in (*places, *queries)}
    blocks = [p for p in matrices.values() if id(p) not in apart]
    inner = {id(p) for p in matrices.values()}
    rest = [p for p in (*model.parameters(), *probe.parameters()) if id(p) not in inner]
    muon = torch.optim.Muon(blocks, lr=settings.lr_muon, weight_decay=0.01)
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
    rates: dict[torch.optim.Optimizer, float] = {muon: settings.lr_muon, adamw: settings.lr}
    parts: dict[str, Any] = {"model": model, "probe": probe, "muon": muon, "adamw": adamw}
    if places:
        slow = settings.lr_muon / (settings.width // settings.n_heads) ** 0.5
        parts["queries"] = torch.optim.Muon(queries, lr=slow, weight_decay=0.01)
        parts["places"] = torch.optim.AdamW(places, lr=settings.lr_places, betas=(0.9, 0.98), weight_decay=0.0)
        rates |= {parts["queries"]: slow, parts["places"]: settings.lr_places}

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 4, index])
        sentences = still_life.sample(settings.batch, generator, lexicon, pairs=settings.pairs, named=settings.named)
        start_step(rates, cosine(index, settings.n_steps, warm_up=50))
        ids = tokenise(tokenizer, [s.text for s in sentences])
        if denoises:
            shown, hidden = hide_words(ids, tokenizer, generator, settings.masked)
            words = probe(model(shown).last_hidden_state).flatten(0, 1)
            losses = {"hidden words": functional.cross_entropy(words, hidden.flatten(), ignore_index=-1)}
        else:
            losses = _losses(probe(text_ends(model, ids)), text_answers(sentences))
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in rates:
            optimizer.step()
        return losses

    done = run_steps(
        step, parts, n_steps=settings.n_steps, checkpoint=out / "text.pt",
        settings={"seed": seed, **_told(settings, kind)}, stop_after=stop_after,
    )  # fmt: skip
    if done == settings.n_steps:
        model.save_pretrained(out / "text_encoder")
        tokenizer.save_pretrained(out / "tokenizer")
        save_file(probe.state_dict(), out / "probe.safetensors")
    return model.eval(), probe


def text_ends(model: TextEncoder, ids: Int[Tensor, "text token"]) -> Float[Tensor, "text d_model"]:
    """Return the state at the end of each text, behind the final norm."""
    if isinstance(model, CLIPTextModel):
        return model(ids).pooler_output
    end: Any = model.config.eos_token_id
    return model(ids).last_hidden_state[torch.arange(len(ids)), ids.eq(end).int().argmax(1)]


def _told(settings: TextSettings, kind: TextKind) -> dict[str, Any]:
    """Return what a checkpoint says of its run; those in CLIP's format know no kinds, nor what is of others alone."""
    if kind != "clip":
        return asdict(settings) | {"kind": kind}
    return {name: value for name, value in asdict(settings).items() if name not in ("lr_places", "masked")}


def text_answers(sentences: Sequence[Sentence]) -> Int[Tensor, "sentence question"]:
    """Return what the probe should say to each question; -1 where a sentence leaves it open."""
    answers = still_life.codes([sentence.scene for sentence in sentences])
    for row, sentence in zip(answers, sentences, strict=True):
        says = [True, *(said for mention in sentence.mentions for said in mention.says)]
        row[: len(says)][~np.array(says)] = -1
    return torch.from_numpy(answers)


def _losses(logits: Float[Tensor, "sentence logit"], answers: Int[Tensor, "sentence question"]) -> dict[str, Tensor]:
    groups = logits.split(list(ANSWERS.values()), dim=1)
    return {
        name: functional.cross_entropy(group, answer, ignore_index=-1)
        for name, group, answer in zip(ANSWERS, groups, answers.T, strict=True)
    }
