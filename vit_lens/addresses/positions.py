"""Positions: what stands behind ``@`` in an address."""

__all__ = ["FLAGS", "NUMBER", "WORD", "Position", "PositionKind", "given_text", "read_position", "take", "written"]

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vit_lens.errors import UnknownSiteError, expect, nearest

PositionKind = Literal["index", "cls", "eos", "pad", "patches", "registers", "patch", "register", "place", "word"]
NUMBER, WORD = r"\d{1,18}", r'"(?:[^"\\]|\\.)*"'
FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL
_POSITION = re.compile(
    rf"(?P<index>{NUMBER})|(?P<group>cls|eos|pad|patches|registers)|(?P<kind>patch|register)\s*(?P<number>{NUMBER})"
    rf"|\(\s*(?P<row>{NUMBER})\s*,\s*(?P<column>{NUMBER})\s*\)|(?P<word>{WORD})",
    FLAGS,
)


@dataclass(frozen=True)
class Position:
    r"""Where on the token axis: a number, a token by its role, a patch, or a word of the prompt.

    Attributes:
        kind: The kind of position: ``index`` for a place on the axis, ``place`` for a patch as (row, column), ``word``
            for a word of the prompt, else as it is written (``cls``, ``patch``).
        value: The number, counted from 0, the (row, column) or the word; None for ``cls``, ``eos``, ``pad``,
            ``patches``, ``registers``.

    Raises:
        UnknownSiteError: There is no such kind, or the value is not one of that kind.

    >>> Position.parse("(3, 7)")
    Position(kind='place', value=(3, 7))
    >>> str(Position("patch", 17)), str(Position("word", 'a "star"'))
    ('patch17', '"a \\"star\\""')
    """

    kind: PositionKind
    value: int | tuple[int, int] | str | None = None

    def __post_init__(self) -> None:
        take(self, read_position(written(self)))

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read ``4``, ``cls``, ``eos``, ``pad``, ``patch17``, ``register2``, ``(3,7)``, ``"star"``, ``patches``...

        Raises:
            UnknownSiteError: The text is none of these.

        >>> Position.parse("register2")
        Position(kind='register', value=2)
        >>> Position.parse("class")
        Traceback (most recent call last):
        vit_lens.errors.UnknownSiteError: no position 'class'; nearest: 'cls'. A position is ...
        """
        if (found := read_position(text)) is None:
            known = ("cls", "eos", "pad", "patches", "registers", "patch17", "register2", "(3,7)", '"word"')
            raise UnknownSiteError(
                f"no position {text!r}; nearest: {nearest(text, known)}. A position is a number, 'cls', 'eos', 'pad', "
                "'patch17', 'register2', a patch '(row,column)', a word of the prompt in double quotes, 'patches' or "
                "'registers'"
            )
        return cls(**found)

    def __str__(self) -> str:
        if self.kind == "word":
            return json.dumps(str(self.value), ensure_ascii=False)
        value = "" if self.value is None else str(self.value).replace(" ", "")
        return value if self.kind in ("index", "place") else f"{self.kind}{value}"


def read_position(text: str) -> dict[str, Any] | None:
    """Return the attributes of the position that a text is; None if it is none."""
    if (m := _POSITION.fullmatch(given_text(text).strip())) is None:
        return None
    if m["word"]:
        try:
            word = json.loads(m["word"], strict=False)
            word.encode()
        except ValueError:  # an escape that JSON has not, or half a character
            return None
        return {"kind": "word", "value": word}
    if m["row"]:
        return {"kind": "place", "value": (int(m["row"]), int(m["column"]))}
    number = m["index"] or m["number"]
    kind = (m["group"] or m["kind"] or "index").lower()
    return {"kind": kind, "value": None if number is None else int(number)}


def written(self: object) -> str:
    """Return an address or position as text, which attributes of other kinds cannot be.

    Raises:
        UnknownSiteError: They cannot.
    """
    try:
        return str(self)
    except (RuntimeError, TypeError, ValueError) as error:
        said = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        raise UnknownSiteError(f"{said} is no {type(self).__name__.lower()}: {error}") from error


def take(self: object, read: Mapping[str, Any] | None) -> None:
    """Hold what reads back: indices of Python, not of numpy or torch.

    Raises:
        UnknownSiteError: What is written does not read as what was given.
    """
    if read is None or any(read[name] != value for name, value in vars(self).items()):
        said = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        raise UnknownSiteError(f"{said or 'nothing'} is no {type(self).__name__.lower()}: it would be written '{self}'")
    for name, value in read.items():
        object.__setattr__(self, name, value)


def given_text(given: object) -> str:
    """Return what was given as a text.

    Raises:
        UnknownSiteError: It is none.
    """
    expect(given, str, "an address", UnknownSiteError, "a text such as 'L3H4', 'L3.mlp@cls' or 'heads'")
    return str(given)
