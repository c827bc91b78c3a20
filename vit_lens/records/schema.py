"""What a record holds: the keys of its manifest, and the columns of its table with their types.

Format 2, a folder:

===================================== ==================================================================================
``record.json``                       the manifest: :data:`MANIFEST_KEYS`
``table.csv``                         a line for each row, with the columns that the manifest declares
``embeddings/NAME/000000.safetensors`` conditions of so many rows each: ``lens`` and ``reencoded`` by row, ``clean`` by
                                      input, ``negative`` one; parts ``pooled``, ``tokens``, ``mask``
``second/``                           the record of a second decoder, row for row, which says in ``beside.judge`` who
                                      compared the pictures, and holds what it saw, ``judged`` and ``judged_first``;
                                      none of it is listed here
``pictures/000000.png``               by row; those of a budget's first pass in ``pictures/coarse``
``inputs/0000.png``                   what the model saw of an image, by its index
``anchors/DIGITS.png``                what the model saw of another image that a reading starts from
``files.csv``                         every file but the manifest and itself: path, size, sha256, media type; while
                                      a record is written, a line is added before a file is
===================================== ==================================================================================

In the manifest: ``readings`` say what a row was read with (:class:`vit_lens.records.Reading`), and rows name theirs by
its id. ``inputs`` have a ``kind`` (``image``, ``text``), an ``index`` over all parts of a divided sweep, a name and a
content hash; a text has its ``text``, no picture, and no ``reencoded``. ``machine`` (kind of device), ``versions`` and
``threads`` are what bits depend on beside the plan. ``content`` is the SHA-256 of everything else in it.
``batch_plan`` says which rows are drawn together. ``shard`` says which of the whole sweep's rows a part holds.
"""

__all__ = [
    "COLUMNS", "DRAWN", "FORMAT", "IDENTITY_KEYS", "LISTED", "LIVE_FILE", "MANIFEST_KEYS", "PLAN_COLUMNS",
    "READOUTS_FILE", "Kind", "check_manifest", "csv_rows", "csv_to_table", "differing", "expected_files", "has_picture",
    "input_name", "json_bytes", "lengths", "looks_again", "part_name", "picture_name", "table_to_csv", "to_table",
]  # fmt: skip

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from vit_lens.controls import CONTROLS
from vit_lens.errors import RecordError
from vit_lens.metrics import control_columns
from vit_lens.records.cells import csv_bytes, csv_text
from vit_lens.records.second import JUDGED, JUDGED_FIRST

FORMAT = 2
Kind = Literal["int", "int or empty", "float", "text"]
DTYPES: dict[Kind, str] = {"int": "int64", "int or empty": "Int64", "float": "float64", "text": "string"}
COLUMNS: dict[str, Kind] = {
    "row": "int", "input": "int", "input_name": "text", "seed": "int or empty",
    "reading": "text", "site": "text", "site_type": "text", "layer": "int or empty", "head": "int or empty",
    "norm_h": "float", "cos_lens_clean": "float", "S_lens_clean": "float",
    **{column: "float" for name in CONTROLS for column in control_columns(name)},
    "faithfulness": "float", "cos_input": "float", "label": "text",
    "picture": "text", "drawn": "text", "same_as": "int or empty",
}  # fmt: skip
"""Columns of a sweep; a record declares its own in its manifest."""
DRAWN = ("", "coarse", "full")
"""How a row's picture was drawn: not yet, with the few steps of a budget's first pass, with the sweep's settings."""
PLAN_COLUMNS = tuple(COLUMNS)[: tuple(COLUMNS).index("norm_h")]
NEEDED_COLUMNS = (*PLAN_COLUMNS, "picture", "drawn", "same_as")
"""What every record has, whatever it adds."""
IDENTITY_KEYS = (
    *("format", "model", "decoder", "readings", "inputs", "columns", "seeds", "shard", "versions", "machine"),
    *("batch_plan", "beside", "controls"),
)
"""What must be equal for a sweep to go on in a directory."""
MANIFEST_KEYS = (*IDENTITY_KEYS, "threads", "conditions", "files", "command", "notes", "complete")
LISTED = ("path", "size", "sha256", "media_type")
"""Columns of ``files.csv``."""
READOUTS_FILE, LIVE_FILE = "readouts.safetensors", "live.safetensors"
CONDITIONS = ("lens", "reencoded", "clean", "negative", JUDGED, JUDGED_FIRST)
_COUNT, _SIZE = range(10**9), range(1, 2**22)
# What readers of a manifest rely on: types, ranges of whole numbers, [of a list], and alternatives; the rest is free.
_FORM: dict[str, Any] = {
    "model": {"encoder_id": str}, "decoder": (None, {"decoder_id": str, "words": str}), "readings": [dict],
    "inputs": [{"index": _COUNT, "name": str}], "columns": {"*": str}, "seeds": {"decoder": (None, [int])},
    "machine": (None, str), "versions": {"*": str}, "threads": (None, _SIZE, [_SIZE]),
    "batch_plan": {
        "n_rows": _COUNT, "batch_size": (None, _SIZE),
        "budget": (None, {"same_above": (int, float), "coarse": (None, {"words": str})}),
        "changes": (None, [{"row": _COUNT, "pass": str, "batch_size": _SIZE, "why": str}]),
    },
    "shard": (None, {"index": _COUNT, "of": range(1, 1_000_001), "n_rows": _COUNT, "rows": [[_COUNT]]}),
    "beside": (None, dict),
    "conditions": (None, {"shapes": dict.fromkeys(CONDITIONS, (None, {"*": [_SIZE]})), "rows_per_part": _SIZE}),
    "files": (None, {"n": _COUNT, "sha256": str}), "budgets": (None, [str]), "command": (None, str), "notes": [str],
    "complete": bool,
}  # fmt: skip


def picture_name(row: int, drawn: str = "full") -> str:
    """Return where the picture of a row lies, relative to the record; those of the coarse pass lie apart.

    Args:
        row: The number of the row.
        drawn: ``full``, or ``coarse`` for the first pass of a budget.

    >>> vl.records.picture_name(12), vl.records.picture_name(12, "coarse")
    ('pictures/000012.png', 'pictures/coarse/000012.png')
    """
    return f"pictures/{'coarse/' if drawn == 'coarse' else ''}{row:06d}.png"


def input_name(index: int) -> str:
    """Return where what the model saw of an image lies, relative to the record.

    >>> vl.records.input_name(3)
    'inputs/0003.png'
    """
    return f"inputs/{index:04d}.png"


def has_picture(entry: Mapping[str, Any]) -> bool:
    """Whether an input is one that the model saw as a picture; a text is none.

    >>> vl.records.has_picture({"kind": "text", "index": 0, "name": "a red star"})
    False
    """
    return entry.get("kind") != "text"


def looks_again(manifest: Mapping[str, Any]) -> bool:
    """Whether the pictures of a record are read again by the encoder of its inputs: an encoder of texts reads none.

    >>> vl.records.looks_again({"decoder": {"decoder_id": "vit_lens/mini"}, "inputs": [{"kind": "text"}]})
    False
    """
    return bool(manifest["decoder"]) and any(map(has_picture, manifest["inputs"]))


def lengths(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows each kind of condition of a record has."""
    n_rows = int(manifest["batch_plan"]["n_rows"])
    return dict(zip(CONDITIONS, (n_rows, n_rows, len(manifest["inputs"]), 1, n_rows, n_rows), strict=True))


def part_name(name: str, part: int) -> str:
    """Return where some rows of a kind of condition lie, relative to the record."""
    return f"embeddings/{name}/{part:06d}.safetensors"


def expected_files(manifest: Mapping[str, Any]) -> list[str]:
    """Return the files that a complete record must have, whatever else it has."""
    n_rows = manifest["batch_plan"]["n_rows"]
    if not n_rows:
        return ["table.csv"]
    held: dict[str, Any] = manifest["conditions"] or {"shapes": {}, "rows_per_part": n_rows}
    names = {"lens", "clean", *(["reencoded"] if looks_again(manifest) else []), *held["shapes"]}
    return [
        "table.csv", *(input_name(entry["index"]) for entry in manifest["inputs"] if has_picture(entry)),
        *(picture_name(row) for row in range(n_rows) if manifest["decoder"]),
        *(
            part_name(name, part) for name, n in lengths(manifest).items() if name in names
            for part in range(-(-n // held["rows_per_part"]))
        ),
    ]  # fmt: skip


def json_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return the manifest as JSON text; RecordError if it holds what JSON cannot."""
    try:
        text = json.dumps(dict(manifest), indent=1, allow_nan=False, ensure_ascii=False)
        return f"{text}\n".encode("utf-8", "replace")  # half a character, of a name that is no UTF-8, is none of JSON
    except (TypeError, ValueError) as error:
        raise RecordError(
            f"the manifest cannot be written as JSON ({error}); give plain numbers, texts and lists"
        ) from error


def check_manifest(manifest: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the manifest if it has the format and keys of this version; RecordError otherwise."""
    if manifest.get("format") != FORMAT:
        raise RecordError(
            f"{where}: record format {manifest.get('format')!r}, this version reads formats 1 and {FORMAT}; "
            "use the version of vit_lens that wrote it, or sweep again"
        )
    if missing := [key for key in MANIFEST_KEYS if key not in manifest]:
        raise RecordError(f"{where}: the manifest lacks {', '.join(missing)}; the record is damaged, sweep again")
    if wrong := _misfit(manifest, _FORM, "the manifest"):
        raise RecordError(f"{where}: {wrong}; the record is damaged: remove its folder, or sweep into another")
    if missing := [name for name in NEEDED_COLUMNS if manifest["columns"].get(name) != COLUMNS[name]]:
        raise RecordError(
            f"{where}: the columns lack {', '.join(missing)} in the kind that every record has; the record is damaged, "
            "sweep again"
        )
    if unknown := [name for name in (manifest["conditions"] or {"shapes": {}})["shapes"] if name not in CONDITIONS]:
        raise RecordError(f"{where}: conditions {unknown[0]!r}; expected some of {', '.join(CONDITIONS)}")
    if unknown := sorted({str(kind) for kind in manifest["columns"].values()} - set(DTYPES)):
        raise RecordError(f"{where}: a column is of the kind {unknown[0]!r}, expected one of {', '.join(DTYPES)}")
    return manifest


def to_table(rows: pd.DataFrame | Sequence[Mapping[str, Any]], columns: Mapping[str, Kind] = COLUMNS) -> pd.DataFrame:
    """Return rows as a table with every column, typed; what is not given is left empty.

    Args:
        rows: The rows by column, numbered 0, 1, 2, ... in the column ``row``.
        columns: The kind of every column; by default those of a sweep.

    Raises:
        RecordError: A column is unknown, a number of every row is missing, or a value is not of its column's kind.

    >>> table = vl.records.to_table([{"row": 0, "input": 0, "site": "L7H0", "layer": 7}])
    >>> table[["site", "layer", "head"]].values.tolist()
    [['L7H0', 7, <NA>]]
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), dtype=object)
    n_rows, given = len(frame), {str(name): list(frame[name]) for name in frame.columns}
    if unknown := [name for name in given if name not in columns]:
        raise RecordError(f"unknown table columns {', '.join(unknown)}; known: {', '.join(columns)}")
    missing = [name for name, kind in columns.items() if kind == "int" and name not in given]
    if n_rows and missing:
        raise RecordError(f"the table lacks {', '.join(missing)}; every row says its row and input")
    typed = {name: _typed(given.get(name, [None] * n_rows), name, kind) for name, kind in columns.items()}
    if list(typed["row"]) != list(range(n_rows)):
        raise RecordError("rows are not numbered 0, 1, 2, ... in order; number them by their place in the table")
    return pd.DataFrame(typed)


def table_to_csv(table: pd.DataFrame, columns: Mapping[str, Kind] = COLUMNS) -> bytes:
    """Return the table as CSV; floats are written so that they read back to the same bits, missing ones empty."""
    return csv_bytes(table.reindex(columns=list(columns)))


def csv_to_table(data: bytes, where: str, columns: Mapping[str, Kind] = COLUMNS) -> pd.DataFrame:
    """Read what `table_to_csv` wrote; RecordError where a line is cut short or a value cannot be read."""
    rows = csv_rows(data, where, list(columns))
    return to_table([{name: csv_text(cell) for name, cell in row.items()} for row in rows], columns)


def csv_rows(data: bytes, where: str, columns: list[str]) -> list[dict[str, str]]:
    """Return the lines of a table by column; RecordError where one is cut short or the columns are others."""
    try:
        text = data.decode()
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{where}: not a readable table ({error}); the record is damaged, sweep again") from error
    if not lines or lines[0] != columns:
        raise RecordError(f"{where}: the first line does not name the columns of the manifest; sweep again")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise RecordError(
                f"{where}: record {number} has {len(line)} fields, not {len(columns)}; the table is truncated"
            )
    if not text.endswith("\n"):
        raise RecordError(f"{where}: the last line is cut short; the table is truncated, sweep again")
    return [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def differing(old: Any, new: Any, key: str, where: tuple[str, str] = ("on disk", "now")) -> str:
    """Say where and how two manifests differ, and which is where; empty if they do not."""
    inner = None
    if isinstance(old, dict) and isinstance(new, dict):
        inner = (differing(old.get(k), new.get(k), f"{key}.{k}", where) for k in dict.fromkeys([*old, *new]))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inner = (differing(a, b, f"{key}[{i}]", where) for i, (a, b) in enumerate(zip(old, new, strict=True)))
    if inner is not None:
        return next(filter(None, inner), "")
    key = {"batch_plan.n_rows": "the number of rows (other sites, inputs or seeds)"}.get(key, key)
    if old == new:
        return ""
    if _short(old) == _short(new) and isinstance(old, list) and isinstance(new, list):  # they begin alike
        return f"{key} is a list of {len(old)} {where[0]}, of {len(new)} {where[1]}"
    return f"{key} is {_short(old)} {where[0]}, {_short(new)} {where[1]}"


def _misfit(value: Any, form: Any, where: str) -> str:
    """Say where a value of JSON is not of its form, and how; empty if it is."""
    if isinstance(form, tuple):
        wrong = [_misfit(value, one, where) for one in form]
        return wrong[-1] if all(wrong) else ""
    if isinstance(form, range):
        fits, expected = type(value) is int and value in form, f"a whole number from {form[0]} to {form[-1]}"
    else:
        kind = form if isinstance(form, type) else type(form)
        fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        expected = {dict: "an object", list: "a list", str: "a text"}.get(kind, kind.__name__)
    if not fits:
        return f"{where} is {_short(value)}, expected {expected}"
    inner = []
    if isinstance(value, list) and isinstance(form, list):
        inner = [(f"{where}[{i}]", one, form[0]) for i, one in enumerate(value)]
    elif isinstance(value, dict) and isinstance(form, dict):
        named = {key: form["*"] for key in value} if "*" in form else form
        inner = [(f"{where}.{key}", value.get(key), one) for key, one in named.items()]
    return next(filter(None, (_misfit(one, of, at) for at, one, of in inner)), "")


def _typed(values: list[Any], name: str, kind: Kind) -> pd.Series:
    try:
        if kind == "text":
            return pd.Series(["" if pd.isna(v) else _printable(v) for v in values], dtype="string", name=name)
        if kind == "float":
            cells = [float("nan") if _empty(v) else float(v) for v in values]
        else:
            cells = [pd.NA if _empty(v) and kind == "int or empty" else int(v) for v in values]
        return pd.Series(cells, dtype=DTYPES[kind], name=name)
    except (TypeError, ValueError) as error:
        raise RecordError(f"column {name!r} holds a value that is not {kind} ({error})") from error


def _empty(value: Any) -> bool:
    return value == "" if isinstance(value, str) else bool(pd.isna(value))


def _printable(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
