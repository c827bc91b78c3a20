"""Results that print in one line."""

__all__ = ["Brief"]

from collections.abc import Mapping

from torch import Tensor

_FEW = 3  # entries that a repr spells out


class Brief:
    """A dataclass whose repr says the sizes of what it holds, not all the numbers.

    >>> vl.attribution.split_embedding(cache)
    EmbeddingParts(components=<83>, values=[83, 2, 128])
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={_brief(value)}' for name, value in vars(self).items())})"


def _brief(value: object) -> str:
    if isinstance(value, Tensor) or hasattr(value, "columns"):  # a table of pandas
        return str([*value.shape])  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, (tuple, list, Mapping)) and len(value) > _FEW:
        return f"<{len(value)}>"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_brief(one)}' for key, one in value.items())}}}"
    return repr(value)
