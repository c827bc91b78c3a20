"""Image encoders with a known truth, drawn anew for each seed: one head tells an attribute, two only look as if."""

__all__ = ["HOSTED", "ImagePlant", "Plants"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.interventions import ablate_each
from vit_lens.lenses import JacobianLens
from vit_lens.mini import world
from vit_lens.models import HookedViT
from vit_lens.reference import Jacobians, ReferenceMeans
from vit_lens.studies import LabelledAttribute, Plant, Soil, direct_shares, random_weights, write_attribute
from vit_lens.texts import TextBank

HOSTED = "mini"
"""The encoder that everything is planted in."""
N_REFERENCE, N_TEST = 128, 48
_BAR = 0.5  # R2 with which a head can tell an attribute
_LOUD = 4.0  # what a decoy writes, by the largest of all heads
_SPEAKS, _ALONE = 0.5, 0.1  # of the contrast: the planted head at least, any other at most
_TRIES = 60
_N_JACOBIAN = 8  # reference images that Jacobians are fitted on
_N_ABLATED = 12  # images of each class in which heads are ablated
_ANYTHING, _HELD_OUT = False, True
PAIRS = tuple(
    (name, first, second)
    for name in world.PROBES
    for first in range(len(world.prompts(name)))
    for second in range(first + 1, len(world.prompts(name)))
)
"""Every two values of every attribute of the world."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ImagePlant:
    """One attribute, with the encoders that are made for it.

    Decoys carry the attribute, or something loud, along the one direction that every later norm removes: whatever they
    write, the encoder's output is the same.

    Attributes:
        host: The encoder without a plant.
        plant: The encoder in which one head tells the attribute, with the size that the head had; without decoys.
        model: The same with decoys.
        barren: The encoder in which nothing tells the attribute, with the decoys.
        blank: An encoder with random weights in which nothing tells the attribute.
        decoys: The decoys' heads: one that carries the attribute, one that is loud.
        named: A head of ``blank`` that could tell the attribute, and does not.
        pixels: The images that are tested.
        reference: The images that anything may be learnt from.
    """

    host: HookedViT
    texts: TextBank
    plant: Plant
    model: HookedViT
    barren: HookedViT
    blank: HookedViT
    decoys: tuple[Site, Site]
    named: Site
    pixels: Float[Tensor, "image channel height width"]
    reference: Float[Tensor, "reference channel height width"]
    seed: tuple[int, ...]

    @property
    def attribute(self) -> LabelledAttribute:
        """What is planted, with the class of every image."""
        return self.plant.attribute

    @property
    def label(self) -> Int[np.ndarray, " image"]:
        """The class of the images that are tested."""
        return self.attribute.test

    @property
    def heads(self) -> list[Site]:
        """All heads."""
        return Site.heads(self.host)

    def at(self, *sites: Site) -> Bool[np.ndarray, " head"]:
        """Return True at some heads."""
        return np.array([site in sites for site in self.heads])

    def generator(self, stream: int) -> torch.Generator:
        """Return random numbers of the plant's own, by stream."""
        return torch.Generator().manual_seed(int(np.random.default_rng([*self.seed, stream]).integers(2**62)))

    def contrast(self, embeds: Float[Tensor, "*batch d_embed"]) -> Float[np.ndarray, "*batch"]:
        """Return the logit of the second class's caption minus that of the first."""
        away, toward = (self.texts.index(caption) for caption in self.attribute.captions)
        logits = self.texts.logits(embeds)
        return (logits[..., toward] - logits[..., away]).double().cpu().numpy()

    def gap(
        self, contrasts: Float[np.ndarray, "image *axes"], label: Int[np.ndarray, " image"] | None = None
    ) -> Float[np.ndarray, "*axes"]:
        """Return the mean over images of class 1 minus that over images of class 0."""
        label = self.label if label is None else label
        return np.asarray(contrasts[label == 1].mean(0) - contrasts[label == 0].mean(0))

    def means(self, model: HookedViT) -> ReferenceMeans:
        """Return the means of one of the encoders over the reference images, made once."""
        return self._once("means", model, lambda: ReferenceMeans.from_images(model, self.reference, batch_size=64))

    def jacobians(self, model: HookedViT) -> Jacobians:
        """Return the averaged Jacobians of one of the encoders over a few of the reference images, made once."""
        few = self.reference[-_N_JACOBIAN:]
        return self._once("jacobians", model, lambda: JacobianLens.fit(model, few, batch_size=8).jacobians)

    @cached_property
    def _held(self) -> dict[tuple[str, int], Any]:
        return {}

    def _once(self, what: str, model: HookedViT, make: Callable[[], Any]) -> Any:
        if (what, id(model)) not in self._held:
            self._held[what, id(model)] = make()
        return self._held[what, id(model)]

    @cached_property
    @torch.no_grad()
    def apart(self) -> float:
        """How far the classes lie apart in the encoder without a plant."""
        return float(self.gap(self.contrast(self.host(self.pixels))))

    @cached_property
    @torch.no_grad()
    def effects(self) -> Float[np.ndarray, " head"]:
        """What mean ablation of each head takes from the gap between the classes, in the encoder without a plant."""
        means = ReferenceMeans.from_images(self.host, self.reference, positions="all", batch_size=64)
        rows = np.concatenate([np.flatnonzero(self.label == value)[:_N_ABLATED] for value in (0, 1)])
        told = ablate_each(
            self.host, self.pixels[torch.from_numpy(rows)], lambda embeds: torch.from_numpy(self.contrast(embeds)),
            "heads", replacement=means,
        )  # fmt: skip
        return -self.gap(np.moveaxis(told.effect[:, 0].double().numpy(), 0, 1), self.label[rows])


class Plants:
    """The plants of some seeds, each made when it is first asked for, and kept.

    Args:
        seeds: The seeds.
        n: How many plants each has.

    >>> plants = Plants([0], n=1)
    >>> one = plants.images[0]
    >>> one.attribute.captions, str(one.plant.site), [str(site) for site in one.decoys]
    (('...', '...'), 'L...', ['L...', 'L...'])
    """

    def __init__(self, seeds: Sequence[int], n: int = 6):
        if not seeds or n < 1 or len(set(seeds)) < len(seeds):
            raise StudyError(f"seeds={list(seeds)}, n={n}: give one seed or several different ones, and a plant each")
        self.seeds, self.n = tuple(seeds), n

    @property
    def numbers(self) -> list[tuple[int, int]]:
        """The seed and the number of every plant."""
        return [(seed, number) for seed in self.seeds for number in range(self.n)]

    @cached_property
    def images(self) -> list[ImagePlant]:
        """The image encoders."""
        host = HookedViT.from_pretrained(HOSTED).requires_grad_(False)
        texts = TextBank.mini()
        return [_grown(host, texts, seed) for seed in self.numbers]

    def kept(self, name: str, make: Callable[[], list]) -> list:
        """Return what a task plants for itself, made once."""
        held = self.__dict__.setdefault("_kept", {})
        if name not in held:
            held[name] = make()
        return held[name]


@torch.no_grad()
def _grown(host: HookedViT, texts: TextBank, seed: tuple[int, int]) -> ImagePlant:
    generator = np.random.default_rng([*seed, 51])
    for _ in range(_TRIES):
        name, *values = PAIRS[generator.integers(len(PAIRS))]
        attribute, reference, pixels = _drawn(host, name, values, generator)
        try:
            soil = Soil.of(host, texts, attribute, reference)
        except StudyError:
            continue  # the encoder does not tell these two apart
        able = _able(soil)
        if len(able) < 3:
            continue
        site, *decoys = (able[i] for i in generator.permutation(len(able))[:3])
        plant = soil.plant(site, "quiet", bar=_BAR)
        shares = np.abs(direct_shares(plant, texts, pixels, attribute.test))
        at = Site.heads(host).index(site)
        if shares[at] < _SPEAKS or np.delete(shares, at).max() > _ALONE:
            continue
        blank = Soil.of(
            random_weights(host, seed=int(generator.integers(2**31))), texts, attribute, reference, told=False
        )
        could = _able(blank) or sorted(Site.heads(host), key=blank.r_squared)[-3:]
        disguise = _disguise(soil, decoys, generator)
        return ImagePlant(
            host=host, texts=texts, plant=plant, model=disguise(plant.model), barren=disguise(soil.bare),
            blank=blank.bare, decoys=(decoys[0], decoys[1]), named=could[generator.integers(len(could))],
            pixels=pixels, reference=reference, seed=seed,
        )  # fmt: skip
    raise StudyError(f"nothing could be planted in {_TRIES} draws of seed {seed[0]}; take another seed")


def _drawn(
    host: HookedViT, name: str, values: Sequence[int], generator: np.random.Generator
) -> tuple[LabelledAttribute, Tensor, Tensor]:
    """Return an attribute with its images: half of each class; test scenes are held out from training."""
    labels, pixels = [], []
    for n, held_out in ((N_REFERENCE, _ANYTHING), (N_TEST, _HELD_OUT)):
        codes = world.sample_codes(n * 60, generator, held_out=held_out)
        told = world.labels(codes, name)
        rows = np.concatenate([np.flatnonzero(told == value)[: n // 2] for value in values])
        rows = generator.permutation(rows)
        labels.append((told[rows] == values[1]).astype(np.int64))
        pixels.append(host.preprocess(list(world.render_codes(codes[rows]))))
    first, second = (world.prompts(name)[value] for value in values)
    attribute = LabelledAttribute(name=name, captions=(first, second), anchor=labels[0], test=labels[1])
    return attribute, pixels[0], pixels[1]


def _able(soil: Soil) -> list[Site]:
    return [site for site in Site.heads(soil.bare) if soil.r_squared(site) >= _BAR]


def _disguise(soil: Soil, decoys: Sequence[Site], generator: np.random.Generator) -> Callable[[HookedViT], HookedViT]:
    """Return what puts two decoys into a model, along what norms remove: one carries the attribute, one anything."""
    bare = soil.bare
    d_head, d_model = bare.cfg.d_head, bare.cfg.d_model
    blind = np.full(d_model, d_model**-0.5)
    loudest = _LOUD * max(_size(soil, site) for site in Site.heads(bare))
    readings = []
    for site, of_attribute in zip(decoys, (True, False), strict=True):
        z = soil.z[:, site.layer, site.head]
        ones = np.column_stack([z, np.ones(len(z))])
        reading = np.linalg.lstsq(ones, soil.sign, rcond=None)[0][:-1]
        if not of_attribute:
            reading = generator.normal(size=d_head)
        readings.append(reading * loudest / float((z @ reading).std()))

    def put(model: HookedViT) -> HookedViT:
        for site, reading in zip(decoys, readings, strict=True):
            model = write_attribute(model, site, blind, reading, keep=1.0, constant=0.0)
        return model

    return put


def _size(soil: Soil, site: Site) -> float:
    """Return the root mean square of how far what a head writes lies from its mean."""
    written = soil.z[:, site.layer, site.head] @ soil.bare.attention_of(site).W_O[site.head].double().cpu().numpy()
    return float(np.sqrt(((written - written.mean(0)) ** 2).sum(1).mean()))
