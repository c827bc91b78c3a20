"""The weights of a decoder by content, hashed again only where one of them was changed."""

__all__ = ["KnownWeights"]

from collections.abc import Mapping
from typing import Any

from torch import nn

from vit_lens.decoders.edited_parts import unsaved_buffers
from vit_lens.identity import exact_fingerprint


class KnownWeights:
    """Remembers what identified the trained parts of a decoder when they were last looked at."""

    def __init__(self) -> None:
        self._last: tuple[Any, str] = None, ""

    def forget(self) -> None:
        """Hash the weights anew the next time."""
        self._last = None, ""

    def fingerprint(self, parts: Mapping[str, nn.Module]) -> str:
        """Return sixteen digits that identify weights to the last bit; changes through ``.data`` go unseen."""
        held = [tensor for part in parts.values() for tensor in (*part.parameters(), *part.buffers())]
        versions = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in held]
        if self._last[0] != versions:
            named = {
                f"{part}.{name}": value for part, one in parts.items()
                for name, value in {**one.state_dict(), **unsaved_buffers(one)}.items()
            }  # fmt: skip
            self._last = versions, exact_fingerprint(named)
        return self._last[1]
