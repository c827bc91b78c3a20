"""From captions to embeddings: the text towers of open_clip and Hugging Face, and tokens that say all of a caption."""

__all__ = ["TextTower", "Tokenizer", "embed_captions", "text_tower"]

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from vit_lens.errors import TextError
from vit_lens.numerics import without_autocast
from vit_lens.texts.tokenising import HFTokens, check_open_clip_tokens, hf_tokens

Tokenizer = Callable[..., Any]

_BATCH = 256
_HF_KINDS = ("CLIPModel", "SiglipModel")


@dataclass(frozen=True)
class TextTower:
    """How a CLIP turns texts into embeddings, and cosines into logits.

    Attributes:
        encode: Embeds a list of texts, without normalising.
        tokenise: Returns what the tower reads of each text, without padding to the longest.
        logit_scale: Factor of the cosines.
        logit_bias: Of the logits, or None.
    """

    encode: Callable[[list[str]], Tensor]
    tokenise: Callable[[list[str]], list[list[int]]]
    logit_scale: float
    logit_bias: float | None


def text_tower(clip: nn.Module, tokenizer: Tokenizer) -> TextTower:
    """Find the text side of a whole CLIP or SigLIP in memory.

    Raises:
        TextError: It is neither open_clip's nor one of Hugging Face's ``CLIPModel`` and ``SiglipModel``.
    """
    packages = {cls.__module__.split(".")[0] for cls in type(clip).__mro__}
    kinds = {cls.__name__ for cls in type(clip).__mro__}
    module: Any = clip
    if "open_clip" in packages and hasattr(clip, "encode_text"):
        encode, tokens = _encode_open_clip, lambda texts: tokenizer(texts).tolist()
    elif "transformers" in packages and kinds.intersection(_HF_KINDS):
        encode, tokens = _encode_hf, lambda texts: tokenizer(texts, verbose=False)["input_ids"]
    else:
        raise TextError(
            f"a {type(clip).__name__} from {type(clip).__module__} has no text tower that is known; hand over the "
            f"whole open_clip model, or Hugging Face's {' or '.join(_HF_KINDS)}"
        )
    bias = getattr(module, "logit_bias", None)
    return TextTower(
        encode=partial(encode, module, tokenizer),
        tokenise=tokens,
        logit_scale=float(module.logit_scale.detach().double().exp()),
        logit_bias=None if bias is None else float(bias.detach().double()),
    )


@without_autocast()
def embed_captions(
    tower: TextTower, captions: Sequence[str], templates: Sequence[str] = (), *, progress: bool = False
) -> Float[Tensor, "caption d_embed"]:
    """Embed captions as they stand, or, with templates, as open_clip's zero-shot classifier does.

    That classifier (``open_clip.build_zero_shot_classifier``) scales the embedding of every prompt to length 1,
    averages over the templates and scales the mean to length 1.

    Raises:
        TextError: A caption has unknown words or is cut, two are the same to the tower, or a template has no ``{}``.
    """
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise TextError(f"the template {template!r} has no {{}} where the caption goes")
    prompts = [template.replace("{}", caption) for caption in captions for template in templates or ("{}",)]
    parts = []
    for start in tqdm(range(0, len(prompts), _BATCH), desc="captions", disable=not progress):
        with torch.no_grad():
            parts.append(tower.encode(prompts[start : start + _BATCH]))
    embeds = torch.cat(parts)
    _refuse_same(captions, tower.tokenise(prompts[:: len(templates) or 1]))  # behind encode, which knows unknown words
    if not templates:
        return embeds
    unit = embeds / embeds.norm(dim=-1, keepdim=True)
    mean = unit.unflatten(0, (len(captions), len(templates))).mean(1)
    return mean / mean.norm(dim=-1, keepdim=True)


def _refuse_same(captions: Sequence[str], tokens: list[list[int]]) -> None:
    first: dict[tuple[int, ...], str] = {}
    for caption, row in zip(captions, tokens, strict=True):
        if (same := first.setdefault(tuple(row), caption)) != caption:
            raise TextError(
                f"the captions {same!r} and {caption!r} are the same tokens to the text tower; leave one out"
            )


def _encode_open_clip(clip: Any, tokenizer: Tokenizer, texts: list[str]) -> Float[Tensor, "text d_embed"]:
    tokens = tokenizer(texts)
    check_open_clip_tokens(tokenizer, texts, tokens, getattr(clip, "vocab_size", None))
    with _evaluating(clip):
        return clip.encode_text(tokens.to(clip.logit_scale.device), normalize=False)


def _encode_hf(clip: Any, tokenizer: Tokenizer, texts: list[str]) -> Float[Tensor, "text d_embed"]:
    projection = getattr(clip, "text_projection", None)
    config = clip.text_model.config
    tokens: HFTokens = hf_tokens(
        tokenizer, texts, config.max_position_embeddings, vocabulary=config.vocab_size,
        to_longest=projection is not None,
    )  # fmt: skip
    with _evaluating(clip):
        pooled = clip.text_model(**{name: ids.to(clip.logit_scale.device) for name, ids in tokens.items()})[1]
        return pooled if projection is None else projection(pooled)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
