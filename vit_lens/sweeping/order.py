"""Which rows are drawn together, and in which order: batches of the whole sweep, divided among its parts."""

__all__ = [
    "Batch", "Pass", "batches_in_order", "find_twins", "legacy_batches", "refining_groups", "rounds_by_information",
    "share_of",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.controls import CONTROLS
from vit_lens.metrics import control_columns

Batch = tuple[int, list[int]]
"""A noise seed, and the rows that are drawn with it."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pass:
    """All rows that are drawn at the same settings.

    Attributes:
        drawn: What the table calls it.
        settings: How to decode.
        rounds: Batches, in order; those of one round are drawn all or not at all when a budget ends.
    """

    drawn: Literal["coarse", "full"]
    settings: Any
    rounds: list[list[Batch]]


def share_of(items: Sequence[_T], shard: tuple[int, int] | None) -> list[_T]:
    """Return what a part of a sweep does of a list: every n-th from the i-th on."""
    return list(items) if shard is None else list(items[shard[0] :: shard[1]])


def batches_in_order(n_inputs: int, seeds: Sequence[int], n_rows: int, size: int) -> list[Batch]:
    """Return the batches of a sweep without a budget: seed by seed, in the order of its rows.

    Rows are numbered by input, then seed, then reading and site: ``n_rows`` for each input and seed.
    """
    found: list[Batch] = []
    for turn, seed in enumerate(seeds):
        own = [(index * len(seeds) + turn) * n_rows + row for index in range(n_inputs) for row in range(n_rows)]
        found += [(seed, own[start : start + size]) for start in range(0, len(own), size)]
    return found


def legacy_batches(n_inputs: int, n_pictures: int, n_sites: Sequence[int], seed: int) -> list[Batch]:
    """Return the batches of legacy noise, in each of which one generator is consumed: one for an input and a reading.

    Args:
        n_inputs: The number of inputs.
        n_pictures: How many pictures of a site stand beside each other.
        n_sites: How many sites each reading has.
        seed: Of the generator.
    """
    per_input, found = sum(n_sites), []
    for index in range(n_inputs):
        starts = [(index * n_pictures + turn) * per_input for turn in range(n_pictures)]
        for reading, n in enumerate(n_sites):
            before = sum(n_sites[:reading])
            found.append((seed, [start + before + site for site in range(n) for start in starts]))
    return found


def rounds_by_information(
    table: pd.DataFrame, of: Mapping[str, str], seeds: Sequence[int], size: int
) -> list[list[Batch]]:
    """Return the rounds of a budget: groups of :func:`refining_groups`, as many as fill a batch of every seed."""
    rounds: list[list[int]] = []
    for group in refining_groups(table, of):
        if rounds and len(rounds[-1]) + len(group) <= size * len(seeds):
            rounds[-1] += group
        else:
            rounds.append(list(group))
    seed_of = table["seed"].tolist()
    return [
        [
            (seed, own[start : start + size])
            for seed in seeds
            for own in [[row for row in rows if seed_of[row] == seed]]
            for start in range(0, len(own), size)
        ]
        for rows in rounds
    ]


def refining_groups(table: pd.DataFrame, of: Mapping[str, str]) -> list[list[int]]:
    """Return the rows that are drawn, in groups that are drawn together, evenly over the inputs.

    A site goes with its controls and with all noise seeds, since pictures at two settings cannot be compared; and with
    the sites that share a picture with one of these. Residual readings come first, then the sites; of either the most
    informative of each input in turn, then the next of each. A site is as informative as its cosine with the input
    differs from that of the control that is nearest to it, of those that were measured (``|cos_lens_clean -
    cos_lens_control|``, ``|cos_lens_clean - cos_lens_other|``, ...): what the site's content adds, which docs/trust.md
    finds to be what scores are worth. Against random directions alone a site with massive activations would come first
    that says the same of every image. Ties go to the larger ``norm_h``, then to the first row.

    Args:
        table: Rows with their numbers before decoding.
        of: For every reading the one that it is the control of, or itself.
    """
    unit = table.groupby([table["input"], table["site"], table["reading"].map(of)], sort=False).ngroup().tolist()
    parent = list(range(len(table)))  # of units: a forest, whose trees are the groups

    def root(of: int) -> int:
        while parent[of] != of:
            of = parent[of]
        return of

    for row, same in table["same_as"].dropna().items():
        parent[root(unit[int(same)])] = root(unit[int(str(row))])
    controls = [column for name in CONTROLS if (column := control_columns(name).cosine) in table]
    adds = table[controls].sub(table["cos_lens_clean"], axis=0).abs().min(axis=1).fillna(-1.0).tolist()
    residual = table["site_type"].str.startswith("resid").tolist()
    keys = zip([not r for r in residual], [-a for a in adds], [-n for n in table["norm_h"]], table["row"], strict=True)
    groups: dict[int, list[int]] = {}
    best: dict[int, tuple] = {}
    shared, of_input = table["same_as"].isna().tolist(), table["input"].tolist()
    for row, key in enumerate(keys):
        group = root(unit[row])
        best[group] = min(best.get(group, key), key)
        groups.setdefault(group, [])
        if shared[row]:
            groups[group].append(row)
    turns: dict[tuple[int, bool], int] = {}
    order: list[tuple[tuple[bool, int, int], int]] = []
    for group in sorted(groups, key=best.__getitem__):
        is_site, first = best[group][0], of_input[best[group][3]]
        turn = turns[first, is_site] = turns.get((first, is_site), -1) + 1
        order.append(((is_site, turn, first), group))
    return [groups[group] for _, group in sorted(order)]


def find_twins(
    embeds: Float[Tensor, "row d_embed"], seeds: Int[Tensor, " row"], same_above: float | int
) -> list[int | None]:
    """Return, for every row, the first row whose picture it can share: None if that is its own.

    Two rows are all but equal if they have one noise seed, their cosine is at least ``same_above``, and their norms
    differ by at most ``1 - same_above`` of the larger. A row that shares a picture lends none, so that nothing drifts.

    Args:
        embeds: Lens embeddings.
        seeds: Noise seeds.
        same_above: The bound.
    """
    norms = embeds.double().norm(dim=1)
    order = norms.argsort(stable=True)  # rows of about one length are neighbours, and no others are compared
    sorted_norms, sorted_seeds, rows = norms[order].numpy(), seeds[order].numpy(), order.numpy()
    unit = (embeds.double() / norms[:, None])[order].numpy()  # nan where there is no direction, which equals nothing
    least = same_above - 1e-12  # to rounding
    lows, highs = (np.searchsorted(sorted_norms, norms.numpy() * bound) for bound in (least - 1e-9, 1 / least + 1e-9))
    drawn = np.zeros(len(embeds), dtype=bool)
    same: list[int | None] = []
    for place, low, high in zip(order.argsort().tolist(), lows, highs, strict=True):
        near = low + np.flatnonzero(drawn[low:high] & (sorted_seeds[low:high] == sorted_seeds[place]))
        ratio = sorted_norms[near] / sorted_norms[place]
        is_same = (unit[near] @ unit[place] >= least) & (np.minimum(ratio, 1 / ratio) >= least)
        same.append(min(rows[near[is_same]].tolist(), default=None))
        drawn[place] = same[-1] is None
    return same
