"""What prompts become layer by layer, as rows of a page that is about images."""

__all__ = ["Strip", "strips_of"]

from typing import NamedTuple

import pandas as pd

from vit_lens.records import Record, has_picture
from vit_lens.report.thumbs import inline_pictures

_BUDGET = 1_000_000  # bytes of thumbnails; what has more prompts has a page of its own


class Cell(NamedTuple):
    """One layer's picture: its heading, the picture as a data URI, its site, and its cosine to the prompt."""

    heading: str
    picture: str
    site: str
    cosine: float


class Strip(NamedTuple):
    """One row: the prompt, or the control that stands below it."""

    name: str
    control: str
    cells: list[Cell]


def strips_of(record: Record) -> list[Strip]:
    """Return the residual stream of every prompt, and its controls, as the first lens drew them with the first seed."""
    table = record.table
    first = next(one for one in record.readings.values() if not one.control)
    shown = [first, *(one for one in record.readings.values() if one.control and one.of == first.id)]
    stream = table[
        ((table["site_type"] == "resid_post") | (table["site"] == "L0.resid_pre"))
        & (table["seed"] == table["seed"].iloc[0])
    ]
    pictures = inline_pictures(record.picture, [int(row) for row in stream["row"]], _BUDGET)
    names = {int(one["index"]): str(one["name"]) for one in record.manifest["inputs"] if not has_picture(one)}
    return [
        Strip(
            name if not reading.control else f"control: {reading.control}", reading.control,
            [
                _cell(row, pictures.get(int(row["row"]), ""))
                for _, row in stream[(stream["input"] == index) & (stream["reading"] == reading.id)].iterrows()
            ],
        )
        for index, name in names.items()
        for reading in shown
    ]  # fmt: skip


def _cell(row: pd.Series, picture: str) -> Cell:
    n_blocks = int(row["layer"]) + (row["site_type"] == "resid_post")
    heading = "embedding" if n_blocks == 0 else f"{n_blocks} block{'s' if n_blocks > 1 else ''}"
    return Cell(heading, picture, str(row["site"]), float(row["cos_lens_clean"]))
