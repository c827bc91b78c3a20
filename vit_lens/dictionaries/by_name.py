"""Dictionaries by name: those that ship with the package, and those on the Hugging Face Hub."""

__all__ = ["EMBEDDED", "find_dictionary"]

import re
from pathlib import Path

from vit_lens.errors import DictionaryError, nearest
from vit_lens.files import as_path
from vit_lens.sources import fetch_snapshot

_FOLDER = Path(__file__).parents[1] / "mini" / "dictionaries"
EMBEDDED = ("mini-itda", "mini-topk", "mini-flux-itda", "mini-flux-topk", "mini-sd-itda", "mini-sd-topk")
"""The dictionaries that ship: of which embedded model, and what learnt it."""
_PATTERNS = ("*.json", "*.safetensors", "*.pt", "*.pth")  # of every layout that is read
_HUB_ID = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?::([\w./-]+))?")


def find_dictionary(name: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return where a dictionary lies; of the Hub, its folder is fetched and nothing below it.

    Args:
        name: One of :data:`EMBEDDED`; a file or folder; or a Hub id, ``owner/name`` or ``owner/name:folder``.
        revision: The branch, tag or commit of a Hub id.
        cache_dir: Where downloads are kept.

    Raises:
        DictionaryError: There is none of that name, or it cannot be fetched.

    >>> find_dictionary("mini-topk").name
    'mini-topk.safetensors'
    """
    place = as_path(name, DictionaryError)
    if place.exists():
        return place
    if str(name) in EMBEDDED:
        return _FOLDER / f"{name}.safetensors"
    found = _HUB_ID.fullmatch(str(name)) if isinstance(name, str) else None
    folder = (found.group(2) or "").strip("/") if found else ""
    if found is None or ".." in folder.split("/"):
        raise DictionaryError(
            f"no dictionary {str(name)[:200]!r}: it is no file or folder; expected one, a Hub id such as "
            f"'owner/name:folder', or one that ships, nearest: {nearest(str(name), EMBEDDED)}"
        )
    wanted = [f"{folder}/{pattern}" if folder else pattern for pattern in _PATTERNS]
    fetched = fetch_snapshot(
        found.group(1), wanted, "dictionary", DictionaryError, revision=revision, cache_dir=cache_dir
    )
    return fetched / folder
