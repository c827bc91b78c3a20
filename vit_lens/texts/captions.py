"""Captions that can name rows, and those that ship with the embedded pair."""

__all__ = ["check_captions", "mini_captions"]

from vit_lens.errors import TextError
from vit_lens.identity import MINI_FILES


def check_captions(captions: tuple[str, ...]) -> tuple[str, ...]:
    """Return captions that can name rows.

    Raises:
        TextError: There are none, one is empty or no text, or two are alike.
    """
    if not captions:
        raise TextError("no captions; give at least one text")
    seen: set[str] = set()
    for number, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip():
            raise TextError(f"caption {number} is {caption!r}; expected a text")
        if caption in seen:
            raise TextError(f"the caption {caption!r} occurs twice; leave one out: list(dict.fromkeys(captions))")
        seen.add(caption)
    return captions


def mini_captions() -> tuple[str, ...]:
    """Return every prompt of the embedded pair's world, in the world's order."""
    return tuple((MINI_FILES / "captions.txt").read_text(encoding="utf-8").splitlines())
