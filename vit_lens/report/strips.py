"""What prompts become layer by layer, as rows of a page that is about images."""

__all__ = ["Strip", "strips_of"]

from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_lens.errors import RecordError
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
    """Return the residual stream of every prompt, and its controls, as the first lens drew them with the first seed.

    Raises:
        RecordError: The record has no residual stream.
    """
    table = record.table
    first = next(one for one in record.readings.values() if not one.control)
    shown = [first, *(one for one in record.readings.values() if one.control and one.of == first.id)]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]
    stream = [row for row in rows if row["site_type"] == "resid_post" or row["site"] == "L0.resid_pre"]
    stream = [row for row in stream if row["seed"] == rows[0]["seed"]]
    if not stream:
        raise RecordError(f"{record.path} has no layer of the residual stream; sweep its prompts at resid_post, too")
    pictures = inline_pictures(record.picture, [int(row["row"]) for row in stream], _BUDGET)
    names = {int(one["index"]): str(one["name"]) for one in record.manifest["inputs"] if not has_picture(one)}
    return [
        Strip(
            name if not reading.control else f"control: {reading.control}", reading.control,
            [
                _cell(row, pictures.get(int(row["row"]), ""))
                for row in stream if row["input"] == index and row["reading"] == reading.id
            ],
        )
        for index, name in names.items()
        for reading in shown
    ]  # fmt: skip


def _cell(row: Mapping[str, Any], picture: str) -> Cell:
    n_blocks = int(row["layer"]) + (row["site_type"] == "resid_post")
    heading = "embedding" if n_blocks == 0 else f"{n_blocks} block{'s' if n_blocks > 1 else ''}"
    return Cell(heading, picture, str(row["site"]), float(row["cos_lens_clean"]))
