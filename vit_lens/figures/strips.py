"""Strips of pictures: rows of directions, columns of doses."""

__all__ = ["picture_strips"]

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from PIL import Image

from vit_lens.errors import OutputError
from vit_lens.figures.dressing import tile_figure

_SIDE = 128


def picture_strips(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str], title: str) -> go.Figure:
    """Draw rows of pictures that belong together, such as one prompt steered by several directions at several doses.

    Args:
        rows: The pictures of each row, by its name.
        columns: The name of each column.
        title: The title.

    Raises:
        OutputError: There is no row, or one has not a picture for each column.

    >>> from PIL import Image
    >>> pictures = [Image.open(path) for path in images]
    >>> figure = vl.figures.picture_strips({"feature 3": pictures, "random": pictures}, ["0", "0.4"], "A feature")
    >>> [note.text for note in figure.layout.annotations][:2]
    ['feature 3<br>0', 'feature 3<br>0.4']
    """
    if not rows or any(len(row) != len(columns) for row in rows.values()):
        counts = {name: len(row) for name, row in rows.items()}
        raise OutputError(f"pictures by row {counts}, and {len(columns)} columns; expected one for each")
    tiles = [
        (picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), f"{html.escape(name)}<br>{html.escape(column)}")
        for name, row in rows.items()
        for picture, column in zip(row, columns, strict=True)
    ]
    return tile_figure(tiles, html.escape(title), len(columns))
