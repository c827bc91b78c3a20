"""Captions that can name rows, and those that ship with the embedded pair."""

__all__ = ["check_captions", "mini_captions", "read_captions"]

from pathlib import Path

from vit_lens.errors import TextError, expect
from vit_lens.files import as_path
from vit_lens.identity import MINI_FILES


def check_captions(captions: tuple[str, ...]) -> tuple[str, ...]:
    """Return captions that can name rows.

    Raises:
        TextError: There are none, one is empty or no text, or two are alike.
    """
    expect(captions, (tuple, list), "captions", TextError, "several texts")
    if not len(captions):
        raise TextError("no captions; give at least one text")
    seen: set[str] = set()
    for number, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip() or not _is_text(caption):
            raise TextError(f"caption {number} is {caption!r}; expected a text")
        if caption in seen:
            raise TextError(f"the caption {caption!r} occurs twice; leave one out: list(dict.fromkeys(captions))")
        seen.add(caption)
    return captions


def _is_text(caption: str) -> bool:
    return caption.encode(errors="replace").decode() == caption  # no half characters


def read_captions(path: str | Path) -> tuple[str, ...]:
    r"""Read a file of captions, one a line, each once; blank lines do not count.

    Raises:
        TextError: There is no such file, or it is no text in UTF-8, or in UTF-16 with a byte order mark.

    >>> (tmp / "captions.txt").write_text("a red star\n\na blue ring\na red star\n") > 0
    True
    >>> read_captions(tmp / "captions.txt")
    ('a red star', 'a blue ring')
    """
    path = as_path(path, TextError)
    if not path.is_file():
        raise TextError(f"no file of captions at {path}; expected a text file with one caption a line")
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise TextError(f"{path} cannot be read as UTF-8 ({error}); save it as a text file in UTF-8") from error
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def mini_captions() -> tuple[str, ...]:
    """Return every prompt of the embedded pair's world, in the world's order."""
    return tuple((MINI_FILES / "captions.txt").read_text(encoding="utf-8").splitlines())
