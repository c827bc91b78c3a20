"""Tables that anybody may have written, read as CSV with the number of every line."""

__all__ = ["Line", "read_table"]

import csv
import io
import os
from collections.abc import Sequence
from typing import NamedTuple

from vit_lens.errors import StudyError
from vit_lens.files import as_path
from vit_lens.records import csv_text

_MOST_BYTES = 64 * 2**20


class Line(NamedTuple):
    """One line of a table: where it stands, for messages, and its cells by column."""

    where: str
    cells: dict[str, str]


def read_table(
    path: str | os.PathLike[str], *, needed: Sequence[str], optional: Sequence[str] | None = ()
) -> tuple[list[str], list[Line]]:
    """Read a table with a first line that names the columns; return the columns and the lines.

    A ``'`` that stands before what a spreadsheet would take for a formula is taken off again.

    Args:
        path: The file, in UTF-8; a byte order mark, as spreadsheets write it, is no text.
        needed: Columns that must be there.
        optional: Columns that may be there; None allows any.

    Raises:
        StudyError: There is no such file, it is too large or no table, or its columns are others.
    """
    path = as_path(path, StudyError)
    if not path.is_file():
        raise StudyError(f"{path}: no such file; expected a table (CSV) with the columns {', '.join(needed)}")
    if path.stat().st_size > _MOST_BYTES:
        raise StudyError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB; give a table of annotations")
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        columns, lines = [name.strip() for name in next(reader, [])], []
        for cells in reader:
            if not cells:
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(columns):
                raise StudyError(f"{where} has {len(cells)} cells, and the first line names {len(columns)} columns")
            lines.append(Line(where, dict(zip(columns, map(csv_text, cells), strict=True))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path} cannot be read as CSV in UTF-8 ({error}); save it as such") from error
    allowed = columns if optional is None else [*needed, *optional]
    missing, strange = ([x for x in a if x not in b] for a, b in ((needed, columns), (columns, allowed)))
    if missing or strange or len(set(columns)) < len(columns):
        more = f", and maybe {', '.join(optional)}" if optional else ""
        raise StudyError(
            f"{path}: the columns are {', '.join(columns) or 'none'}; expected {', '.join(needed)}{more}, each once, "
            "with commas between them"
        )
    return columns, lines
