"""Tensors that take long to make, kept in files, so that an interrupted study goes on where it stopped."""

__all__ = ["kept"]

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from vit_lens.errors import StudyError
from vit_lens.files import open_tensors, save_tensors


def kept(path: Path, form: str, what: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors in a file; where there is none, make and keep them.

    Args:
        path: Of the file, whose name says all that they follow from.
        form: Its format.
        what: It holds, for messages.
        make: Makes them.

    Raises:
        StudyError: The file is damaged or something else.
    """
    if not path.exists():
        found = make()
        save_tensors(found, path, {"format": form})
        return found
    with open_tensors(path, (form,), what=what, error=StudyError, advice="remove it") as (file, _):
        return {name: file.get_tensor(name) for name in file.keys()}
