"""What the figures of a model would take, by a few seconds of each kind of work."""

__all__ = ["Cost", "cost_of"]

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vit_lens.dictionaries import ActivationSource, Dictionary, Semantics, TopK, random_dictionary
from vit_lens.dictionaries import fit as learn
from vit_lens.engine import duration_words, size_words
from vit_lens.studies.paper.shabalin_bench import Bench, Recipe
from vit_lens.studies.paper.shabalin_figure import PaperFigure

_INPUTS, _DRAWN, _TRIED, _PURSUED = 8, 2, 4096, 512


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is run, learnt and kept.

    Attributes:
        sites: The hook points whose tokens are read and kept.
        recipes: The dictionaries that are learnt.
        n_inputs: How many inputs the model runs on, at all hook points together.
        n_bytes: How large the kept activations are.
        n_pictures: How many pictures are drawn.
        seconds: About how long it takes here.
    """

    sites: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    n_inputs: int
    n_bytes: int
    n_pictures: int
    seconds: float

    @property
    def words(self) -> str:
        """Say it in a sentence."""
        return (
            f"{self.n_inputs:,} inputs run ({len(self.sites)} hook points), {len(self.recipes)} dictionaries, "
            f"{size_words(self.n_bytes)} of activations, {self.n_pictures:,} pictures; about "
            f"{duration_words(self.seconds)} (by a few seconds of each that were timed)"
        )


def cost_of(bench: Bench, figures: Sequence[PaperFigure]) -> Cost:
    """Return what figures would take; a few inputs are run, and a small dictionary is learnt from noise."""
    sites = tuple(dict.fromkeys(site for one in figures for site in one.sites(bench)))
    recipes = tuple(dict.fromkeys(recipe for one in figures for recipe in one.recipes(bench)))
    n_held, n = len(bench.inputs) - bench.train_inputs, len(bench.inputs)
    runs = n * len(sites) + sum(one.runs(bench) for one in figures)
    per_run = _timed(lambda: bench.live.reader.read(list(range(min(n, _INPUTS))))) / min(n, _INPUTS)
    noise = torch.randn(_TRIED, bench.d, generator=torch.Generator().manual_seed(0))
    sizes = bench.sizes
    trainer = TopK(n_features=sizes.width, k=sizes.k, n_tokens=_TRIED, device=sizes.device)
    source = ActivationSource.of_array(noise)
    per_step = _timed(lambda: learn((source, source), trainer)) / _TRIED / sizes.width
    plain = random_dictionary(bench.d, sizes.width, k=sizes.k)
    pursued = Dictionary(W_dec=plain.W_dec, b_dec=plain.b_dec, semantics=Semantics.plain("pursuit", sizes.k))
    per_code = _timed(lambda: pursued.encode(noise[:_PURSUED])) / _PURSUED / sizes.width / sizes.k
    seconds = runs * per_run
    held = n_held * bench.per_input
    for recipe in recipes:
        if recipe.kind == "topk":
            seconds += sizes.n_tokens * recipe.width * per_step
            seconds += 2 * held * recipe.width * recipe.k * per_code  # of data points, and of TopK by pursuit
        else:
            n_tokens = min(sizes.n_tokens, bench.train_inputs * bench.per_input)
            seconds += (n_tokens / 2 + 2 * held) * recipe.width * recipe.k * per_code  # atoms grow from none
    n_bytes = 4 * n * sum(map(bench.numbers_at, sites))
    if n_pictures := sum(one.pictures(bench) for one in figures):
        few = list(range(min(n, _DRAWN)))
        seconds += n_pictures * _timed(lambda: bench.draw(few)) / len(few)
    return Cost(
        sites=sites, recipes=recipes, n_inputs=runs, n_bytes=n_bytes, n_pictures=n_pictures, seconds=seconds
    )  # fmt: skip


def _timed(work) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
