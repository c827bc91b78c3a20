"""Two decoders on the same sites: what their pictures have in common, above what pictures of other sites have."""

__all__ = [
    "AGREES", "DISAGREES", "JUDGED", "JUDGED_FIRST", "LEAST", "SECOND", "WHOLLY", "agreement_table",
    "agreement_words", "judge_words", "remove_second", "write_agreement",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vit_lens.files import write_atomic
from vit_lens.records.cells import csv_bytes

SECOND = "second"
"""The folder in a record that holds the record of the second decoder, row for row."""
AGREES, DISAGREES, WHOLLY, LEAST = 0.05, 0.5, 0.5, 19
"""Ranks up to which two decoders agree, at least in part, and from which they disagree; the share of the way from the
null to 1 from which they agree not only in part; the mismatched sites below which nothing is said."""
JUDGED, JUDGED_FIRST = "judged", "judged_first"
"""What a judge sees in the second decoder's pictures, and in the first's, in the second's record."""


def remove_second(path: Path) -> str:
    """Say what to do where the second decoder's record in a record's folder cannot be gone on with.

    >>> remove_second(Path("out"))
    "remove out/second, and run the same sweep again: the second decoder's pictures alone are drawn anew"
    """
    return f"remove {path / SECOND}, and run the same sweep again: the second decoder's pictures alone are drawn anew"


def agreement_table(
    table: pd.DataFrame,
    first: Float[Tensor, "row d"],
    second: Float[Tensor, "row d"],
    asked: Float[Tensor, "row numbers"],
) -> pd.DataFrame:
    """Return how alike two decoders' pictures of each row are, and how alike pictures of mismatched sites are.

    A mismatched site is another of the same input, reading and noise seed, as the second decoder drew it. Rows that
    asked for the very same embedding are the same picture, and no mismatch.

    Args:
        table: The rows of the record.
        first: What the judge sees in the first decoder's picture of each row.
        second: The same of the second decoder's.
        asked: What both were asked for.

    Returns:
        By row: ``row``, ``agreement``, the cosine of the two pictures; ``agreement_null``, its mean over mismatched
        sites, ``agreement_mismatched`` of them; ``agreement_p``, the share of all these cosines, this row's included,
        that are at least this row's. What is not drawn, or has no mismatched sites, is nan.

    >>> table = pd.DataFrame({"row": [0, 1], "input": 0, "reading": "dsl", "seed": 0})
    >>> first, second = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    >>> agreement_table(table, first, second, torch.eye(2)).round(2).values.tolist()
    [[0.0, 0.6, 0.0, 1.0, 0.5], [1.0, 1.0, 0.8, 1.0, 0.5]]
    """
    n = len(table)
    found = {name: np.full(n, np.nan) for name in ("agreement", "agreement_null", "agreement_p")}
    mismatched = np.zeros(n, dtype=np.int64)
    one, two = (normalize(part.double(), dim=-1) for part in (first, second))
    for _, some in table.groupby(["input", "reading", "seed"], dropna=False, sort=False):
        rows = some["row"].to_numpy(copy=True)
        own, others = one[rows], two[rows]
        drawn = (own.isfinite().all(-1) & others.isfinite().all(-1)).numpy()
        rows, own, others = rows[drawn], own[drawn], others[drawn]
        if not len(rows):
            continue
        cosines = (own @ others.T).clamp(-1, 1).numpy()
        alike = torch.unique(asked[rows], dim=0, return_inverse=True)[1].numpy()
        is_other = alike[:, None] != alike[None, :]
        count, matched = is_other.sum(1), np.diagonal(cosines).copy()
        reach = ((cosines >= matched[:, None]) & is_other).sum(1)
        known = count > 0
        found["agreement"][rows], mismatched[rows] = matched, count
        sums = np.where(is_other, cosines, 0.0).sum(1)
        found["agreement_null"][rows[known]] = sums[known] / count[known]
        found["agreement_p"][rows[known]] = (1 + reach[known]) / (1 + count[known])
    named = {"row": table["row"].to_numpy(), "agreement": found["agreement"], "agreement_null": found["agreement_null"]}
    return pd.DataFrame({**named, "agreement_mismatched": mismatched, "agreement_p": found["agreement_p"]})


def write_agreement(record: Any) -> None:
    """Write the agreement of a record's rows beside the second decoder's record, as ``second/agreement.csv``.

    The record is a :class:`vit_lens.Record`; where it has no agreement, nothing is written.
    """
    found = record.agreement
    if found is not None:
        said = record.table[["row", "input_name", "seed", "reading", "site"]]
        data, file = csv_bytes(said.merge(found, on="row")), record.path / SECOND / "agreement.csv"
        if not file.is_file() or file.read_bytes() != data:
            write_atomic(file, data)


def agreement_words(table: pd.DataFrame, controls: Sequence[bool] | None = None) -> str:
    """Say at how many rows two decoders agree, agree in part, and disagree; of controls, apart from the sites.

    The rank decides: at most .05, which takes nineteen mismatched sites, they agree, and at least .5, where half of the
    mismatched sites have pictures as alike, they disagree. Of the first they agree in part where their pictures come
    less than half of the way from the null to one and the same picture.

    Args:
        table: As :func:`agreement_table` returns it.
        controls: Which rows are of controls; None for none.

    >>> found = pd.DataFrame({"agreement": [0.9, 0.5, 0.2, 0.1, 0.9], "agreement_null": [0.3, 0.3, 0.1, 0.2, 0.1]})
    >>> found["agreement_p"], found["agreement_mismatched"] = [0.04, 0.04, 0.2, 0.9, 0.5], [24, 24, 24, 24, 1]
    >>> agreement_words(found)
    'two decoders agree at 1 of 4 pictures, in part at 1, and disagree at 1; at 1 there are too few ... to tell'
    >>> agreement_words(found[:4], controls=[False, False, True, True])
    'two decoders agree at 1 of 2 pictures, ..., and disagree at 0; of controls, two decoders agree at 0 of 2 ...'
    """
    if controls is not None and any(controls):
        held = np.asarray(controls)
        own, others = (agreement_words(table.loc[rows]) for rows in (~held, held))
        return f"{own}; of controls, {others}"
    told = table[table["agreement_mismatched"] >= LEAST]
    above = (told["agreement"] - told["agreement_null"]) / (1 - told["agreement_null"])
    agrees, n_few = told["agreement_p"] <= AGREES, len(table) - len(told)
    if not len(told):
        return f"two decoders: at all {n_few} pictures there are too few mismatched sites to tell whether they agree"
    words = f"two decoders agree at {(agrees & (above >= WHOLLY)).sum()} of {len(told)} pictures, in part at "
    words += f"{(agrees & (above < WHOLLY)).sum()}, and disagree at {(told['agreement_p'] >= DISAGREES).sum()}"
    return words + (f"; at {n_few} there are too few mismatched sites to tell" if n_few else "")


def judge_words(manifest: Mapping[str, Any]) -> str:
    """Say who compared the pictures, of the manifest of the second decoder's record.

    >>> judge_words({"model": {"encoder_id": "vit_lens/mini"}, "beside": None})
    'the encoder itself, vit_lens/mini, for which both decoders were made'
    """
    judge = (manifest["beside"] or {}).get("judge")
    if judge is None:
        return f"the encoder itself, {manifest['model']['encoder_id']}, for which both decoders were made"
    return f"{str(judge['encoder_id']).partition('@')[0]}, for which neither decoder was made"
