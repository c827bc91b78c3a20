"""Tables as CSV in which no spreadsheet finds a formula."""

__all__ = ["csv_bytes", "csv_text"]

import re
from typing import Any

import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_bytes(table: pd.DataFrame) -> bytes:
    r"""Return a table as CSV in which no spreadsheet finds a formula: a ``'`` stands before what would be one.

    Floats are written so that they read back to the same bits; what is missing is empty.

    >>> import pandas as pd
    >>> vl.records.csv_bytes(pd.DataFrame({"caption": ["=1+1", "a cup"], "cosine": [-0.5, 0.25]}))
    b"caption,cosine\n'=1+1,-0.5\na cup,0.25\n"
    """
    texts = table.select_dtypes(exclude=["number", "bool"]).map(_no_formula)
    return table.assign(**{str(name): texts[name] for name in texts}).to_csv(index=False, lineterminator="\n").encode()


def csv_text(cell: str) -> str:
    """Return the text that :func:`csv_bytes` wrote as a cell.

    >>> vl.records.csv_text("'=1+1"), vl.records.csv_text("'tis a cup")
    ('=1+1', "'tis a cup")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
