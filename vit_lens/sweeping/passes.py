"""The passes of a sweep: with which settings rows are drawn, and which together. An ordinary sweep has one pass."""

__all__ = ["Pass", "find_twins", "make_passes", "refining_groups"]

from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.decoders import DecodeSettings

_READING = ["image", "site", "lens", "definition", "alpha", "share", "anchor"]
_BLOCK = 256

Batch = tuple[int, list[int]]
"""A noise seed, and the rows that are drawn with it."""


@dataclass(frozen=True)
class Pass:
    """All rows that are drawn at the same settings.

    Attributes:
        drawn: What the table calls it.
        settings: How to decode.
        rounds: Batches, in order; those of one round are drawn all or not at all when a budget ends.
    """

    drawn: Literal["coarse", "full"]
    settings: DecodeSettings
    rounds: list[list[Batch]]


def make_passes(
    table: pd.DataFrame,
    seeds: list[int],
    batch_size: int,
    settings: DecodeSettings,
    coarse: DecodeSettings | None,
    *,
    by_information: bool,
) -> list[Pass]:
    """Return the passes of a sweep: one in the order of its rows, or with a budget a coarse one and one that refines.

    Args:
        table: Rows with their numbers before decoding; those that share another's picture are not drawn.
        seeds: Noise seeds, in order.
        batch_size: Rows of a batch.
        settings: How to decode.
        coarse: Of a first pass, in the order of the rows; None for none.
        by_information: Whether the pass at full settings follows :func:`refining_groups`.
    """
    own = table.index[table["same_as"].isna()].tolist()
    in_order = [[batch] for seed in seeds for batch in _batches(table, own, seed, batch_size)]
    if not by_information:
        return [Pass("full", settings, in_order)]
    rounds: list[list[int]] = []
    for group in refining_groups(table):
        if rounds and len(rounds[-1]) + len(group) <= batch_size * len(seeds):
            rounds[-1] += group
        else:
            rounds.append(list(group))
    refined = [[batch for seed in seeds for batch in _batches(table, rows, seed, batch_size)] for rows in rounds]
    first = [] if coarse is None else [Pass("coarse", coarse, in_order)]
    return [*first, Pass("full", settings, refined)]


def refining_groups(table: pd.DataFrame) -> list[list[int]]:
    """Return the rows that are drawn, in groups that are refined together, the most informative first.

    A site goes with its controls and with all noise seeds, since pictures at two settings cannot be compared; and with
    the sites that share a picture with one of these. Residual readings come first. Then a site is as informative as its
    cosine with the input differs from the mean cosine of random directions of equal norm, ``|cos_lens_clean -
    cos_lens_control|``: what the site's content adds, which docs/trust.md finds to be what scores are worth. Ties go to
    the larger ``norm_h``, then to the first row.

    Args:
        table: Rows with their numbers before decoding.
    """
    unit = table.groupby([table[name].astype("string").fillna("") for name in _READING], sort=False).ngroup().tolist()
    parent = list(range(len(table)))  # of units: a forest, whose trees are the groups

    def root(of: int) -> int:
        while parent[of] != of:
            of = parent[of]
        return of

    for row, same in table["same_as"].dropna().items():
        parent[root(unit[int(same)])] = root(unit[int(str(row))])
    adds = (table["cos_lens_clean"] - table["cos_lens_control"]).abs().fillna(-1.0).tolist()
    residual = table["site_type"].str.startswith("resid").tolist()
    keys = zip([not r for r in residual], [-a for a in adds], [-n for n in table["norm_h"]], table["row"], strict=True)
    groups: dict[int, list[int]] = {}
    best: dict[int, tuple] = {}
    for row, key in enumerate(keys):
        group = root(unit[row])
        best[group] = min(best.get(group, key), key)
        groups.setdefault(group, [])
        if pd.isna(table["same_as"].iloc[row]):
            groups[group].append(row)
    return [groups[group] for group in sorted(groups, key=best.__getitem__)]


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
    unit = embeds.double() / norms[:, None]  # nan where there is no direction, which equals nothing
    same: list[int | None] = [None] * len(embeds)
    drawn = torch.zeros(len(embeds), dtype=torch.bool)
    for start in range(0, len(embeds), _BLOCK):
        rows = slice(start, start + _BLOCK)
        before = torch.arange(min(start + _BLOCK, len(embeds)))
        near = unit[before] @ unit[rows].T >= same_above
        ratio = norms[before, None] / norms[rows]
        near &= (torch.minimum(ratio, 1 / ratio) >= same_above) & (seeds[before, None] == seeds[rows])
        for place, row in enumerate(range(start, before[-1] + 1)):
            first = (near[:row, place] & drawn[:row]).nonzero()
            if len(first):
                same[row] = int(first[0])
            else:
                drawn[row] = True
    return same


def _batches(table: pd.DataFrame, rows: list[int], seed: int, size: int) -> list[Batch]:
    own = [row for row in rows if table.at[row, "seed"] == seed]
    return [(seed, own[start : start + size]) for start in range(0, len(own), size)]
