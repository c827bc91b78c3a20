"""How a record shows itself in a notebook: its inputs and best pictures, in one self-contained piece of HTML."""

__all__ = ["record_html"]

import html
from collections.abc import Callable
from typing import Any

import pandas as pd
import PIL.Image

from vit_lens.errors import RecordError
from vit_lens.records.encoding import thumbnail_uri
from vit_lens.records.schema import has_picture

N_INPUTS, N_PICTURES = 3, 8


def record_html(record: Any) -> str:  # a Record, whose file imports this one
    """Return a small table: one line for each of the first inputs, then its pictures most like the input."""
    manifest = record.manifest
    decoder = manifest["decoder"]["decoder_id"] if manifest["decoder"] else "no decoder"
    state = "" if manifest["complete"] else ", unfinished"
    head = f"{manifest['model']['encoder_id']} / {decoder}: {len(record.table)} rows{state}"
    lines = [_line(record, entry) for entry in manifest["inputs"][:N_INPUTS]]
    left = len(manifest["inputs"]) - len(lines)
    more = f"<p>and {left} more inputs</p>" if left > 0 else ""
    return (
        f'<div class="vit-lens-record"><p><b>{html.escape(head)}</b></p>'
        f"<table><tbody>{''.join(lines)}</tbody></table>{more}</div>"
    )


def _line(record: Any, entry: dict[str, Any]) -> str:
    table = record.table
    sites = [reading.id for reading in record.readings.values() if not reading.control]
    rows = table.loc[(table["input"] == entry["index"]) & table["reading"].isin(sites)]
    by = "cos_input" if rows["cos_input"].notna().any() else "cos_lens_clean"
    best = rows.sort_values(by, ascending=False, kind="stable").head(N_PICTURES)
    name = str(entry["name"])
    cells = [_figure(_uri(record.input, entry["index"]), name, "input") if has_picture(entry) else _text(name)]
    for row in best.to_dict("records"):
        title = f"{row['site']}: {record.readings[row['reading']].label}"
        number = "" if pd.isna(row[by]) else f" {row[by]:.2f}"
        cells.append(_figure(_uri(record.picture, row["row"]), title, f"{row['site']}{number}"))
    return f"<tr>{''.join(cells)}</tr>"


def _text(words: str) -> str:
    return f'<td style="max-width:12em">{html.escape(words)}</td>'


def _figure(uri: str, title: str, caption: str) -> str:
    words, text = html.escape(title, quote=True), html.escape(caption)
    picture = f'<img src="{uri}" alt="{words}" title="{words}" width="80">' if uri else "(no picture)"
    return f'<td style="text-align:center">{picture}<br><small>{text}</small></td>'


def _uri(read: Callable[[int], PIL.Image.Image], index: int) -> str:
    try:
        return thumbnail_uri(read(index))
    except RecordError:
        return ""
