"""Tables and notes of the content study."""

__all__ = ["matrix_rows", "notes_of", "site_rows", "strength"]

from typing import Any

import numpy as np
from jaxtyping import Float

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.studies.content.agreement import Reading, cross_agreement
from vit_lens.studies.content.effects import Changes
from vit_lens.studies.content.pair_readings import Chosen, Whole
from vit_lens.studies.content.pairs import AttributePairs
from vit_lens.studies.seen_pictures import Judge
from vit_lens.studies.statistics import finite


def strength(total: Changes) -> Float[np.ndarray, " site"]:
    """Return the sum over attributes of what each site changes, in shares of the full changes, without sign.

    Raises:
        StudyError: An attribute has no pair.
    """
    shares = total.shares()
    if shares is None:
        raise StudyError("an attribute has no pair; give one for every attribute")
    return np.abs(shares).sum(1)


def site_rows(
    sites: list[Site], causal: dict[str, Changes], chosen: Chosen, readings: list[Reading]
) -> list[dict[str, Any]]:
    """Give each site, the size of its total effect, and how far each reading agrees with it across attributes."""
    sizes = strength(causal["total effect"])
    rows: list[dict[str, Any]] = [
        {"site": str(site), "total effect": float(sizes[i]), "drawn as": chosen.why.get(i)}
        for i, site in enumerate(sites)
    ]
    for one in readings:
        found, true = one.changes.shares(), one.causal["total effect"].shares()
        if found is not None and true is not None:
            own = np.diagonal(cross_agreement(found, true))
            for place, number in enumerate(_numbers(one, chosen, len(sites))):
                rows[number][f"{one.spec}, {one.level}"] = finite(own[place])
    return [{**dict.fromkeys(_columns(rows)), **row} for row in rows]


def matrix_rows(
    sites: list[Site], attributes: list[str], causal: dict[str, Changes], chosen: Chosen, readings: list[Reading]
) -> list[dict[str, Any]]:
    """Give the causal and the picture matrices: a row for each site and attribute, in shares of the full change."""
    columns: dict[str, dict[int, Any]] = {}
    for name, changes in causal.items():
        shares = changes.shares()
        columns[name] = {} if shares is None else dict(enumerate(shares))
    for one in readings:
        shares = one.changes.shares()
        if shares is not None:
            numbers = _numbers(one, chosen, len(sites))
            columns[f"{one.spec}, {one.level}"] = dict(zip(numbers, shares, strict=True))
    return [
        {
            "site": str(site), "drawn as": chosen.why.get(i), "attribute": name,
            **{key: round(float(found[i][k]), 5) if i in found else None for key, found in columns.items()},
        }
        for i, site in enumerate(sites) for k, name in enumerate(attributes)
    ]  # fmt: skip


def _numbers(reading: Reading, chosen: Chosen, n_sites: int) -> list[int]:
    return chosen.drawn if reading.level == "decoded" else list(range(n_sites))


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def notes_of(pairs: AttributePairs, whole: Whole, judge: Judge | None) -> tuple[str, ...]:
    """Say what a reader must know."""
    left_out = [row for row in whole.table if not row["kept"]]
    donors = pairs.donors()
    alike = {
        pairs.attribute[pair]
        for pair, donor in enumerate(donors)
        if {pairs.caption[pair], pairs.partner_caption[pair]} == {pairs.caption[donor], pairs.partner_caption[donor]}
    }
    notes = [
        "agreement: Spearman's correlation, across attributes and within each site, of what the lens shows to change "
        "with what the site changes; the mean over sites. The size of a site cancels. Intervals: jackknife over bases.",
        "embedding level: lens embeddings are read with the encoder's own captions, which is circular: for a "
        "mean-anchored lens it is close to the direct effect by construction. Only the decoded level, read by the "
        "judge, says what a picture shows.",
        "shuffled sites: a site's readings against another site's effects (what all sites share). equal-norm placebo: "
        "an independent random direction for base and partner; before decoding all sites, decoded one draw for every "
        "drawn site.",
        "same site, other image: each pair's captions read off the two pictures of another base's pair in the same "
        "attribute, which may share a caption with it, so that this control need not lie at 0"
        + (f"; in {', '.join(sorted(alike))} there may be no pair with other captions, so this control keeps part of "
           "the content" if alike else "") + ".",
        "sites are chosen by their total effects alone; top sites by total effect act largely through later layers, "
        "which no lens of single sites can show: see the direct effect.",
    ]  # fmt: skip
    notes += [f"attribute {row['attribute']} is left out: it {row['why']}." for row in left_out]
    if judge is None:
        notes.append("No decoder was given: nothing is said about pictures.")
    return tuple(notes)
