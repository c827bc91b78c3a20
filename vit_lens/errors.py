"""Every error that vit_lens raises on purpose; each message says what came, what was expected and what to do."""

__all__ = [
    "BatchAxisError", "CheckpointError", "ContractError", "DecoderError", "DictionaryError", "ExplanationError",
    "GalleryError",
    "HookShapeError", "ImageError", "InterventionError", "LensError", "OutputError", "PreprocessError", "RecordError",
    "ReferenceMismatchError", "StudyError", "TextError", "UnfiredHookError", "UnknownHookError", "UnknownSiteError",
    "UnsupportedTowerError", "VitLensError", "expect", "nearest",
]  # fmt: skip

import difflib
from collections.abc import Iterable
from typing import Any


class VitLensError(ValueError):
    """Base of all errors below; the command line prints its message as one line and exits with 2."""

    def __init__(self, message: object = "") -> None:
        # A file's name may hold bytes that are no text, which no terminal prints.
        super().__init__(str(message).encode(errors="backslashreplace").decode())


class UnknownHookError(VitLensError, KeyError):
    """No hook point has this name, or a filter matches none."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class BatchAxisError(VitLensError, AssertionError):
    """A cache has another number of images than a method needs, or no batch axis (TransformerLens asserts this)."""


class UnfiredHookError(VitLensError):
    """A hook was added whose point did not, or could not, fire in this call."""


class HookShapeError(VitLensError):
    """A hook function returned another shape, dtype or type than it was given."""


class UnknownSiteError(VitLensError):
    """A site cannot be parsed, or its layer or head is out of the model's range."""


class UnsupportedTowerError(VitLensError):
    """The tower is not one that HookedViT reproduces exactly."""


class CheckpointError(VitLensError):
    """A checkpoint is truncated, or has missing, extra or misshapen tensors."""


class ImageError(VitLensError):
    """A file or array is not an image that can be read whole."""


class PreprocessError(VitLensError):
    """Pixels cannot be prepared: no preprocessing is known, or values are out of range or not finite."""


class LensError(VitLensError):
    """A lens was asked for something it does not define."""


class StudyError(VitLensError):
    """A study cannot be made: too few or overlapping images, no judge or captions, a result of another kind."""


class InterventionError(VitLensError):
    """An intervention has no effect, or asks for activations or positions that are not there."""


class ReferenceMismatchError(VitLensError):
    """Reference means belong to another model."""


class TextError(VitLensError):
    """Captions cannot be embedded, or a text bank is unreadable or another encoder's."""


class GalleryError(VitLensError):
    """A gallery of images is unreadable, unfinished, too small or another model's."""


class ContractError(VitLensError):
    """An embedding was handed to a decoder that was not made for its encoder."""


class DecoderError(VitLensError):
    """A decoder cannot be loaded or run with these settings."""


class DictionaryError(VitLensError):
    """A dictionary cannot be learnt, read or spliced in: its parts do not fit, or it is another model's or site's."""


class ExplanationError(VitLensError):
    """What units fire on cannot be said or tested: too few images, no such unit, or no usable reply of a model."""


class RecordError(VitLensError):
    """A record on disk is unreadable, unfinished or another sweep's."""


class OutputError(VitLensError):
    """Output cannot be written."""


def expect(value: object, kind: type | tuple[Any, ...], name: str, error: type[VitLensError], advice: str) -> None:
    """Raise unless an argument is of the type that it should be.

    Args:
        value: The argument.
        kind: The type that it should be of, or several.
        name: The argument's name, for the message.
        error: The error to raise.
        advice: What to give instead, for the message.

    Raises:
        VitLensError: ``error``: the argument is of another type.

    >>> expect(3, str, "name", VitLensError, "a model's name")
    Traceback (most recent call last):
    vit_lens.errors.VitLensError: name is of type int; expected str: a model's name
    """
    if not isinstance(value, kind):
        told = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise error(f"{name} is of type {type(value).__name__}; expected {told}: {advice}")


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return a readable list of the known names that look most like ``name``.

    Args:
        name: What was given.
        known: The names that there are.
        n: How many to list at most; where none looks alike, the first of them.

    >>> nearest("atn", ["attn", "mlp", "resid_post"])
    "'attn'"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.4) or known[:n]
    return ", ".join(repr(k) for k in close)
