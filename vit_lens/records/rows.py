"""Choosing rows of a record: those of one input and reading, and one for each site over the noise seeds."""

__all__ = ["over_seeds", "select"]

import pandas as pd

from vit_lens.errors import RecordError
from vit_lens.records.named_readings import Reading
from vit_lens.records.record import Record

_SITE = ["input", "site", "reading"]
_DRAWN = ("cos_input", "faithfulness")


def select(
    record: Record, *, input: int = 0, lens: str | None = None, control: str = "", types: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Return the rows of one input and one reading.

    Args:
        record: The record that holds them.
        input: The index of the input.
        lens: Id or label of a reading, the beginning of a label if only one fits, or the name of its lens; None takes
            the first lens that is not ``diffusion``, or the first when there is no other.
        control: The kind of the reading: empty for sites, ``random`` for their controls.
        types: Site types to keep (``head``, ``attn``, ``mlp``, ``resid_post``); empty keeps all.

    Raises:
        RecordError: There is no such input or reading, or ``lens`` fits several.

    >>> lenses = ["dsl:alpha=10", "diffusion"]
    >>> record = vl.sweep(model, None, images, lens=lenses, sites=["L7H0", "L7.resid_post"], out=tmp / "select")
    >>> vl.records.select(record, input=1)[["input_name", "site"]].values.tolist()
    [['2_heart.png', 'L7H0']]
    >>> vl.records.select(record, lens="diffusion")["site"].tolist()
    ['L7H0', 'L7.resid_post']
    """
    table = record.table
    if input not in set(table["input"]):
        raise RecordError(f"no input {input} in this record; it has {sorted(set(table['input']))}")
    rows = table.loc[table["input"] == input]
    if types:
        rows = rows.loc[rows["site_type"].isin(types)]
    known = [record.readings[name] for name in dict.fromkeys(rows["reading"])]
    known = [reading for reading in known if reading.control == control]
    if not known:
        what = f"{control} controls" if control else "sites"
        raise RecordError(f"input {input} has no {what} of type {' or '.join(types) or 'any'} in this record")
    if lens is None:
        wanted = next((reading for reading in known if reading.lens != "diffusion"), known[0])
    else:
        wanted = _one(known, lens)
    return rows.loc[rows["reading"] == wanted.id]


def _one(known: list[Reading], lens: str) -> Reading:
    tests = (
        lambda r: lens in (r.id, r.label, r.of), lambda r: r.label.startswith(lens), lambda r: r.lens == lens
    )  # fmt: skip
    found = next(filter(None, ([reading for reading in known if fits(reading)] for fits in tests)), [])
    if len(found) == 1:
        return found[0]
    said = [f"{reading.label} ({reading.id})" for reading in known]
    raise RecordError(f"lens {lens!r} names {len(found)} of the readings in this record; choose one of {said}")


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with one row for each input, site and reading: numbers of pictures are means over noise seeds.

    ``faithfulness_low`` and ``faithfulness_high`` are the lowest and highest seed, ``n_seeds`` counts the seeds that
    were drawn (0 in a record without pictures). Everything else, the picture included, is that of the first seed.

    Args:
        table: The table of a record, or rows of it.

    >>> twice = vl.Drawing(settings=decoder.settings(steps=1), seeds=[0, 1], batch_size=1)
    >>> record = vl.sweep(
    ...     model, decoder, images[:1], lens="dsl:alpha=10", sites="L7H0", drawing=twice, out=tmp / "seeds"
    ... )
    >>> vl.records.over_seeds(record.table)[["site", "n_seeds"]].values.tolist()
    [['L7H0', 2]]
    """
    if table.empty:
        return table.assign(faithfulness_low=[], faithfulness_high=[], n_seeds=[])
    groups = table.groupby(_SITE, sort=False)
    found = {name: groups[name].transform("mean") for name in _DRAWN}
    spread = {"faithfulness_low": "min", "faithfulness_high": "max", "n_seeds": "count"}
    found |= {name: groups["faithfulness"].transform(how) for name, how in spread.items()}
    found["n_seeds"] = found["n_seeds"].astype("int64")
    return table.assign(**found).loc[~groups.cumcount().astype(bool)]
