"""Anchors: other inputs of the same tower, run once, from which a lens starts."""

__all__ = ["Anchors"]

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vit_lens.errors import LensError, ReferenceMismatchError
from vit_lens.identity import fingerprint, forget_fingerprints
from vit_lens.images import to_display
from vit_lens.models import HookedViT, several
from vit_lens.towers import (
    Tower,
    ViTActivationCache,
    check_model,
    other_preprocessing,
    other_weights,
    preprocessing_of,
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Anchors:
    """What every part of a tower holds and writes for a few inputs, where the embedding is read from.

    Attributes:
        encoder_id: The id of the model.
        fingerprint: Digits that identify the model's weights by content, rounded to bfloat16.
        weights: What identifies them to the last bit.
        preprocess: How images became pixels, as plain values; empty where that is not known, or of prompts.
        names: A name for each anchor, all different.
        cache: The cache of their run, at the read-out rows or at all.
        embeds: Their embeddings, not normalised.
        pictures: What the model saw of each, for people to look at; none where pixels or prompts were given.

    >>> anchors = vl.lenses.Anchors.of(model, images)
    >>> anchors, anchors.at(1).names
    (Anchors('vit_lens/mini', '1_star.png', '2_heart.png'), ('2_heart.png',))
    >>> vl.lenses.Anchors.of(text_model, ["a red star"]).embeds.shape
    torch.Size([1, 128])
    """

    encoder_id: str
    fingerprint: str
    weights: str
    preprocess: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...]
    cache: ViTActivationCache
    embeds: Float[Tensor, "anchor *pos d_embed"]
    pictures: tuple[Image.Image, ...] = ()

    @classmethod
    @torch.no_grad()
    def of(cls, model: Tower, inputs: Any, *, names: Sequence[str] | None = None, rows: str = "readout") -> "Anchors":
        """Run a tower over anchors, all at once: three or four are enough.

        Args:
            model: The tower, without hooks.
            inputs: For a model that sees images paths, PIL images, arrays or preprocessed pixels; for a text encoder
                prompts.
            names: A name for each, all different; None takes files' names and prompts, or ``anchor 0``, ...
            rows: ``readout``, or ``all`` for lenses that say ``rows = "all"``.

        Raises:
            LensError: There is no anchor, two are the same, there is another number of names, or ``rows`` is neither.
            ImageError: An image cannot be read.
            TextError: A prompt is not one that the tower reads.
        """
        check_model(model)
        if rows not in ("readout", "all"):
            raise LensError(f"rows={rows!r}; expected 'readout' or 'all'")
        given = [inputs] if isinstance(inputs, (str, Path)) else several(inputs)
        if not len(given):
            raise LensError("no anchors: give at least one other image (of a text encoder, another prompt)")
        names = _names(given) if names is None else names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise LensError(f"names={names!r}; expected a list with a text for each anchor")
        if len(names) != len(given) or len(set(names)) < len(names):
            raise LensError(f"{len(given)} anchors have the names {list(names)}: give one for each, all different")
        model.refuse_hooks("anchors")
        forget_fingerprints(model)
        ready, seen = given, []
        if isinstance(model, HookedViT) and not isinstance(given, Tensor):
            seen = to_display(list(given), model.preprocess_spec)
            ready = model.preprocess(seen)
        if rows == "readout":
            embeds, cache = model.run_with_cache(ready, rows="readout")
        else:
            embeds, cache = model.run_with_cache(ready, names_filter=model.is_readout_part)
        made = cls(
            encoder_id=model.encoder_id, fingerprint=model.fingerprint, weights=model.exact_fingerprint(),
            preprocess=preprocessing_of(model, given), names=tuple(names), cache=cache, embeds=embeds,
            pictures=tuple(seen),
        )  # fmt: skip
        for place in range(1, len(names)):
            twins = made.equal(made.at(place).cache)[0, :place].nonzero()
            if len(twins):
                raise LensError(f"anchors {names[int(twins[0])]!r} and {names[place]!r} are the same; give one of them")
        return made

    def __len__(self) -> int:
        return len(self.names)

    def at(self, place: int) -> "Anchors":
        """Return one anchor alone."""
        whole = slice(place, place + 1)
        cache = self.cache.apply_slice_to_batch_dim(whole)
        own = {"names": self.names[whole], "embeds": self.embeds[whole], "pictures": self.pictures[whole]}
        return replace(self, cache=cache, **own)

    def check(self, model: Tower) -> "Anchors":
        """Return the anchors if they are the model's own.

        Raises:
            ReferenceMismatchError: They were run through other weights, or are of another preprocessing.
        """
        check_model(model)
        told = other_weights(self, model)
        if not told and (differ := other_preprocessing(self.preprocess, model)):
            told = f"preprocessed with {differ}"
        if told:
            raise ReferenceMismatchError(
                f"these anchors ({', '.join(self.names)}) were {told}. Make the model's own: Anchors.of(model, images)"
            )
        return self

    def equal(self, cache: ViTActivationCache) -> Bool[Tensor, "batch anchor"]:
        """Return which anchors are which inputs of a run themselves, told by the end of their residual stream.

        Args:
            cache: The cache of a run of the same tower.
        """
        own, other = (one.model.streams[-1].last(one).flatten(1).double().cpu() for one in (self.cache, cache))
        if own.shape[1] != other.shape[1]:  # of another number of positions
            return torch.zeros(len(other), len(own), dtype=torch.bool)
        # Half of the digits: a run of another batch size, or in bfloat16, differs in the others.
        allowed = torch.finfo(cache.model.dtype).eps ** 0.5 * own.norm(dim=-1)
        return torch.cdist(other, own, compute_mode="donot_use_mm_for_euclid_dist") <= allowed

    @property
    def content(self) -> tuple[str, ...]:
        """Sixteen digits for each anchor, which identify it by its embedding."""
        return tuple(fingerprint({"embed": embed}) for embed in self.embeds)

    def __repr__(self) -> str:
        return f"Anchors({self.encoder_id!r}, {', '.join(map(repr, self.names))})"


def _names(given: Any) -> list[str]:
    said = [
        Path(one).name if isinstance(one, Path) or (isinstance(one, str) and Path(one).suffix) else one for one in given
    ]
    names = [one if isinstance(one, str) else f"anchor {place}" for place, one in enumerate(said)]
    twice = {name for name in names if names.count(name) > 1}
    return [
        str(one) if name in twice and isinstance(one, (str, Path)) else name
        for name, one in zip(names, given, strict=True)
    ]
