"""Where attributes are planted: an encoder from which one was removed, and what its heads could tell of it."""

__all__ = ["KINDS", "Kind", "Plant", "Soil"]

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.models import HookedViT
from vit_lens.studies.planted.labelled import LabelledAttribute
from vit_lens.studies.planted.planted_weights import readout_direction, remove_direction, write_attribute
from vit_lens.studies.similarities import caches
from vit_lens.texts import TextBank

Kind = Literal["loud", "quiet"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False, kw_only=True)
class Plant:
    """An encoder with a known truth.

    Attributes:
        attribute: What is planted.
        site: The head that alone tells it.
        kind: ``loud`` or ``quiet``; see :meth:`Soil.plant`.
        model: The planted encoder, under the id of the one that it was made of, whose embedding space it keeps.
        r_squared: Of the head's probe, on images that it was not fitted on.
    """

    attribute: LabelledAttribute
    site: Site
    kind: Kind
    model: HookedViT
    r_squared: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Soil:
    """An encoder from which an attribute was removed, ready to have it planted.

    Attributes:
        attribute: What was removed.
        bare: The encoder without it.
        direction: Along which the contrast of the captions is read.
        z: What the heads of ``bare`` attend to at the class token, for the labelled anchor images.
        sign: -1 and 1 for the two classes.
        levels: Mean of the last residual along the direction, for each class, in the encoder that it was taken from.
        constant: The same in ``bare``, where images do not differ.
    """

    attribute: LabelledAttribute
    bare: HookedViT
    direction: Float[np.ndarray, " d_model"]
    z: Float[np.ndarray, "image layer head d_head"]
    sign: Float[np.ndarray, " image"]
    levels: tuple[float, float]
    constant: float

    @classmethod
    def of(
        cls,
        host: HookedViT,
        texts: TextBank,
        attribute: LabelledAttribute,
        pixels: Float[Tensor, "anchor channel height width"],
        *,
        told: bool = True,
    ) -> "Soil":
        """Remove an attribute from an encoder.

        Args:
            host: The encoder.
            texts: Its captions.
            attribute: What to remove.
            pixels: The anchor images that the attribute labels.
            told: Whether the encoder has to tell it; one with random weights, in which nothing is planted, need not.

        Raises:
            StudyError: The tower does not read the class token, or the captions do not tell the classes apart in it.
        """
        direction = readout_direction(host, texts, attribute.captions)
        bare = remove_direction(host, direction)
        known = attribute.anchor >= 0
        pixels = pixels[torch.from_numpy(known)]
        label = attribute.anchor[known]
        before, after = (_along(model, pixels, direction) for model in (host, bare))
        levels = (float(before[label == 0].mean()), float(before[label == 1].mean()))
        if told and levels[1] <= levels[0]:
            raise StudyError(
                f"attribute {attribute.name!r}: in {host.encoder_id} images of class 1 do not lean toward "
                f"{attribute.captions[1]!r}, so there is nothing to take from it and plant; give captions that it reads"
            )
        return cls(
            attribute=attribute, bare=bare, direction=direction, z=_attended(bare, pixels),
            sign=np.where(label == 1, 1.0, -1.0), levels=levels, constant=float(after.mean()),
        )  # fmt: skip

    def r_squared(self, site: Site) -> float:
        """Return how well a head's ``z`` tells the classes: R2 of a linear probe, on the half it was not fitted on."""
        x = self.z[:, site.layer, site.head]
        order = np.argsort(self.sign, kind="stable")  # so that both halves hold both classes
        halves = (order[::2], order[1::2])
        wrong = 0.0
        for fit, held in (halves, halves[::-1]):
            weight, constant = _probe(x[fit], self.sign[fit])
            wrong += float(((x[held] @ weight + constant - self.sign[held]) ** 2).sum())
        return 1 - wrong / float(((self.sign - self.sign.mean()) ** 2).sum())

    def plant(self, site: Site, kind: Kind, *, bar: float | int) -> Plant:
        """Let one head write the attribute.

        A ``loud`` plant tells it as strongly as all parts of the encoder together did, so that the two classes' mean
        levels along the direction become those of the encoder, and keeps what else the head writes. Its size gives it
        away. A ``quiet`` plant has the size that the head had, to which plant and former output contribute equally.
        In both, a constant in the layer's ``b_O``, which is no head's, keeps the middle between the two classes where
        it was.

        Raises:
            StudyError: The head's probe tells less of the attribute than ``bar``.
        """
        found = self.r_squared(site)
        if found < bar:
            raise StudyError(
                f"head {site} tells {self.attribute.name!r} with R2 = {found:.2f}, below the bar of {bar}: what is "
                "planted in it would not be the attribute; take another head"
            )
        x = self.z[:, site.layer, site.head]
        weight, _ = _probe(x, self.sign)
        told = x @ weight
        low, high = float(told[self.sign < 0].mean()), float(told[self.sign > 0].mean())
        keep, strength = 1.0, (self.levels[1] - self.levels[0]) / (high - low)
        if kind == "quiet":
            keep = 0.5**0.5
            strength = keep * self._size(site) / float(told.std())
        constant = sum(self.levels) / 2 - strength * (low + high) / 2 - self.constant
        model = write_attribute(self.bare, site, self.direction, strength * weight, keep=keep, constant=constant)
        return Plant(attribute=self.attribute, site=site, kind=kind, model=model, r_squared=found)

    def _size(self, site: Site) -> float:
        """Return the root mean square of a head's deviation from its mean."""
        weight = self.bare.attention_of(site).W_O[site.head].detach().double().cpu().numpy()
        written = self.z[:, site.layer, site.head] @ weight
        deviation = written - written.mean(0)
        deviation -= deviation.mean(1, keepdims=True)  # LayerNorm is blind to it
        return float(np.sqrt((deviation**2).sum(1).mean()))


def _along(
    model: HookedViT, pixels: Float[Tensor, "image channel height width"], direction: Float[np.ndarray, " d_model"]
) -> Float[np.ndarray, " image"]:
    rows = [model.streams[0].last(cache)[:, 0].double().cpu().numpy() for cache in caches(model, pixels)]
    return np.concatenate(rows) @ direction


def _attended(
    model: HookedViT, pixels: Float[Tensor, "image channel height width"]
) -> Float[np.ndarray, "image layer head d_head"]:
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    parts = [torch.stack([cache.readout(name)[:, 0] for name in names], 1) for cache in caches(model, pixels)]
    return torch.cat(parts).double().cpu().numpy()


def _probe(
    x: Float[np.ndarray, "image d_head"], sign: Float[np.ndarray, " image"]
) -> tuple[Float[np.ndarray, " d_head"], float]:
    found = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), sign, rcond=None)[0]
    return found[:-1], float(found[-1])
