"""What models replied, kept word for word, so that nothing is asked twice."""

__all__ = ["Replies"]

import hashlib
import json
import os
from collections.abc import Callable
from typing import TypeVar

from vit_lens.errors import ExplanationError
from vit_lens.files import append, as_path, make_directory, parse_json, write_atomic

_ADVICE = "remove the file, and everything is asked anew"
_KEYS = {"key", "asked", "reply"}
T = TypeVar("T")


class Replies:
    """Replies of models by what they were asked, one line of a file each; an interruption loses the one it falls in.

    A reply is found by the hash of all that it depends on: who is asked, in which words, about which pixels.

    Args:
        path: The file; None keeps replies in memory alone.

    Raises:
        ExplanationError: The file is damaged.

    >>> replies = Replies(tmp / "replies.jsonl")
    >>> replies.ask(["my model", "is it red?"], lambda: "yes", str.upper)
    'YES'
    >>> Replies(tmp / "replies.jsonl").ask(["my model", "is it red?"], lambda: "no", str.upper)
    'YES'
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self.path = None if path is None else as_path(path, ExplanationError)
        self._known: dict[str, str] = {} if self.path is None else self._read()

    def __len__(self) -> int:
        return len(self._known)

    def _read(self) -> dict[str, str]:
        path, known = self.path, {}
        if path is None or not path.exists():
            return known
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:  # a line that an interruption cut
            write_atomic(path, whole)
        for number, line in enumerate(whole.splitlines(), 1):
            said = parse_json(line, f"{path}, line {number},", ExplanationError, _ADVICE)
            if set(said) != _KEYS or not (isinstance(said["key"], str) and isinstance(said["reply"], str)):
                raise ExplanationError(f"{path}, line {number}, holds {sorted(said)}, no reply; {_ADVICE}")
            known[said["key"]] = said["reply"]
        return known

    def ask(self, asked: list[str], get: Callable[[], str], read: Callable[[str], T]) -> T:
        """Return what a reply says, from the file or from whoever is asked; what cannot be read is not kept.

        Args:
            asked: All that the reply depends on, in words.
            get: Gets the reply.
            read: Makes of the reply what it says, or raises.

        Raises:
            OutputError: The file cannot be written.
        """
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
        if key in self._known:
            return read(self._known[key])
        found = read(reply := get())
        if self.path is not None:
            make_directory(self.path.parent)
            append(self.path, json.dumps({"key": key, "asked": asked, "reply": reply}).encode() + b"\n")
        self._known[key] = reply
        return found
