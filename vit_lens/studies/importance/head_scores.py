"""Scores of every head by lens and without one, for what was measured and for each null, a batch at a time."""

__all__ = ["CONTROL_WORLDS", "SIMILARITIES", "HeadScores", "Key", "read_heads"]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import Site
from vit_lens.controls import MIN_SAMPLES
from vit_lens.lenses import Lens, site_outputs
from vit_lens.models import HookedViT
from vit_lens.studies.importance.head_effects import Effect, direct_effects
from vit_lens.studies.importance.head_outputs import (
    Origins,
    Written,
    covariance,
    measured,
    no_content,
    other_image,
    placebo,
)
from vit_lens.studies.similarities import caches, centred_similarity, similarity
from vit_lens.studies.study_setup import StudySetup

SIMILARITIES = ("raw similarity", "centred similarity")

Key = tuple[str, str]  # a kind of score, and a lens or baseline
_Worlds = dict[tuple[str, int], Written]
_MOST_SAMPLES = 64  # anchor images of which covariances are taken
CONTROL_WORLDS = {"random": "placebo", "other": "other", "covariance": "covariance"}
"""Worlds in which a control stands in for every head, by the control's name."""
_NUMBERS = 2**23  # of the outputs that are held at once


@dataclass(kw_only=True)
class HeadScores:
    """Scores by (kind, reading), and direct effects.

    Attributes:
        real: As measured.
        direct: Direct effects, as measured.
        other: Means over images, each head's output taken from another image.
        placebo: Means over images for each draw of the equal-norm placebo.
        covariance: The same for each draw of the covariance-matched placebo; empty for too few anchor images.
        centred: Centred similarities of each control by its name, image by image: means over its draws.
        no_content: The same for heads made of noise.
        no_content_direct: Their direct effects.
    """

    real: dict[Key, Float[np.ndarray, "image head"]] = field(default_factory=dict)
    direct: dict[Effect, Float[np.ndarray, "image head"]] = field(default_factory=dict)
    other: dict[Key, Float[np.ndarray, "1 head"]] = field(default_factory=dict)
    placebo: dict[Key, Float[np.ndarray, "draw head"]] = field(default_factory=dict)
    covariance: dict[Key, Float[np.ndarray, "draw head"]] = field(default_factory=dict)
    centred: dict[str, dict[Key, Float[np.ndarray, "image head"]]] = field(default_factory=dict)
    no_content: dict[Key, Float[np.ndarray, "draw head"]] = field(default_factory=dict)
    no_content_direct: dict[Effect, Float[np.ndarray, "draw head"]] = field(default_factory=dict)


@dataclass
class _Centres:
    """What all images share, of lens embeddings in one world and of the inputs: means over the anchor images."""

    lenses: dict[str, Tensor] = field(default_factory=dict)
    clean: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, written: Written, lenses: Mapping[str, Lens], n: int) -> None:
        self.clean = self.clean.to(written.clean) + written.clean.sum(0) / n
        for spec, lens in lenses.items():
            share = written.embed(lens).sum(0) / n
            self.lenses[spec] = self.lenses.get(spec, torch.zeros_like(share)) + share


@torch.no_grad()
def read_heads(
    setup: StudySetup, heads: list[Site], donors: Int[Tensor, " image"], *, draws: int, label: str = "lenses"
) -> HeadScores:
    """Score every head under every lens, in the measured world and in those of the nulls.

    Centred similarities use means over the anchor images, made in the same world: a placebo's are a placebo's.

    Args:
        setup: Model, images, means and lenses.
        heads: Of blocks.
        donors: From which image another one's outputs come.
        draws: Of each null; 0 for none.
        label: Of the bar.
    """
    source, ablation = _Source(setup, heads), setup.ablation.at_readout(setup.model)
    means = torch.stack([ablation.output(setup.model, head) for head in heads])
    centres: dict[str, _Centres] = {}
    n_anchor = len(setup.anchor_pixels)
    samples = source.samples() if draws else None
    for written, other, origins in source.batches(setup.anchor_pixels, torch.arange(n_anchor).roll(-1), label):
        worlds, _ = _worlds(written, other, origins, source.generators(min(draws, 1), "anchor"), samples)
        for (world, _), made in worlds.items():
            centres.setdefault(world, _Centres()).add(made, setup.lenses, n_anchor)
    sums = _Sums(len(setup.pixels))
    generators = source.generators(draws, "test")
    for written, other, origins in source.batches(setup.pixels, donors, label):
        worlds, foreign = _worlds(written, other, origins, generators, samples)
        sums.add_effects("real", 0, direct_effects(written, other, means))
        for (world, draw), made in worlds.items():
            sums.add_scores(world, draw, _scores(made, setup.lenses, centres[world], origins))
            if world == "no content":
                sums.add_effects(world, draw, direct_effects(made, foreign[draw], means))
    return sums.scores()


class _Source:
    """Batches of measured outputs, and the random numbers of nulls."""

    def __init__(self, setup: StudySetup, heads: list[Site]):
        self.setup, self.heads, self._generators = setup, heads, {}

    def generators(self, draws: int, purpose: str) -> list[torch.Generator]:
        stream = {"anchor": 21, "test": 22}[purpose]
        seeds = np.random.default_rng([self.setup.seed, stream]).integers(2**62, size=draws)
        return [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def samples(self) -> Float[Tensor, "sample head row d_model"] | None:
        """Return what the heads write for the anchor images; None for too few of them for a covariance."""
        pixels = self.setup.anchor_pixels[:_MOST_SAMPLES]
        if len(pixels) < MIN_SAMPLES:
            return None
        size = _batch_size(self.setup.model, len(self.heads))
        return torch.cat([site_outputs(cache, self.heads) for cache in caches(self.setup.model, pixels, size)])

    def batches(
        self, pixels: Float[Tensor, "image channel height width"], donors: Int[Tensor, " image"], label: str
    ) -> Iterator[tuple[Written, Float[Tensor, "image head row d_model"], Origins]]:
        model, size = self.setup.model, _batch_size(self.setup.model, len(self.heads))
        pairs = zip(caches(model, pixels, size), caches(model, pixels[donors], size), pixels.split(size), strict=True)
        with tqdm(total=len(pixels), desc=label, unit="image", disable=not self.setup.progress) as bar:
            for cache, other, some in pairs:
                origins = Origins.of(self.setup.anchor, cache, self.heads)
                yield measured(cache, self.heads, model(some)), site_outputs(other, self.heads), origins
                bar.update(len(some))


def _batch_size(model: HookedViT, n_heads: int) -> int:
    rows = max(1, len(model.readout.positions(model.cfg.n_ctx)))
    return max(1, min(64, _NUMBERS // (n_heads * rows * model.cfg.d_model)))


def _worlds(
    written: Written, other: Tensor, origins: Origins, generators: list[torch.Generator], samples: Tensor | None
) -> tuple[_Worlds, list[Tensor]]:
    found: _Worlds = {("real", 0): written}
    foreign = []
    if generators:
        found["other", 0] = other_image(written, other, origins)
    for draw, generator in enumerate(generators):
        alike = torch.Generator().manual_seed(generator.initial_seed() + 1)
        found["placebo", draw] = placebo(written, origins, generator)
        if samples is not None:
            found["covariance", draw] = covariance(written, samples, origins, alike)
        found["no content", draw], noise = no_content(written, origins, generator)
        foreign.append(noise)
    return found, foreign


def _scores(
    written: Written, lenses: Mapping[str, Lens], centres: _Centres, origins: Origins
) -> dict[Key, Float[Tensor, "image head"]]:
    found = {("no lens", name): value for name, value in written.baselines(origins.heads).items()}
    for spec, lens in lenses.items():
        embeds = written.embed(lens)
        raw = similarity(embeds, written.clean).nan_to_num(0.0)
        centred = centred_similarity(embeds, written.clean, centres.lenses[spec][None], centres.clean)
        found |= {(kind, spec): value for kind, value in zip(SIMILARITIES, (raw, centred), strict=True)}
    return found


class _Sums:
    """Whole tables of what was measured, and means over images of everything else."""

    def __init__(self, n: int):
        self._n = n
        self._found: dict[tuple[str, str], dict[tuple[str, str], dict[int, list[Tensor]]]] = {}
        self._centred: dict[str, dict[Key, dict[int, list[Tensor]]]] = {}

    def add_scores(self, world: str, draw: int, found: Mapping[Key, Tensor]) -> None:
        self._add(world, "scores", draw, found)
        for key, value in found.items() if world in CONTROL_WORLDS.values() else ():
            if key[0] == SIMILARITIES[1]:
                by_draw = self._centred.setdefault(world, {}).setdefault(key, {})
                by_draw.setdefault(draw, []).append(value.double().cpu())

    def add_effects(self, world: str, draw: int, found: Mapping[Effect, Tensor]) -> None:
        self._add(world, "effects", draw, found)

    def _add(self, world: str, what: str, draw: int, found: Mapping[tuple[str, str], Tensor]) -> None:
        table = self._found.setdefault((world, what), {})
        for key, value in found.items():
            kept = table.setdefault(key, {}).setdefault(draw, [])
            kept.append(value.double().cpu() if world == "real" else value.double().cpu().sum(0, keepdim=True))

    def scores(self) -> HeadScores:
        return HeadScores(
            real=self._whole("real", "scores"), direct=self._whole("real", "effects"),
            other=self._means("other", "scores"), placebo=self._means("placebo", "scores"),
            covariance=self._means("covariance", "scores"), centred=self._of_images(),
            no_content=self._means("no content", "scores"), no_content_direct=self._means("no content", "effects"),
        )  # fmt: skip

    def _of_images(self) -> dict[str, dict[Key, np.ndarray]]:
        return {
            kind: {
                key: torch.stack([torch.cat(parts) for parts in by_draw.values()]).mean(0).numpy()
                for key, by_draw in self._centred[world].items()
            }
            for kind, world in CONTROL_WORLDS.items()
            if world in self._centred
        }

    def _whole(self, world: str, what: str) -> dict[tuple[str, str], np.ndarray]:
        return {key: torch.cat(by[0]).numpy() for key, by in self._found[world, what].items()}

    def _means(self, world: str, what: str) -> dict[tuple[str, str], np.ndarray]:
        table = self._found.get((world, what), {})
        return {
            key: np.stack([torch.cat(x).sum(0).numpy() for x in by.values()]) / self._n for key, by in table.items()
        }
