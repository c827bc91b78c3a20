"""Methods that say which words are there; each is a file of its own."""

__all__ = ["METHODS", "Method", "chosen_methods"]

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from vit_lens.errors import StudyError, nearest
from vit_lens.studies.compare.cross_attention import CrossAttention
from vit_lens.studies.compare.erased import Erased, Scores
from vit_lens.studies.compare.logit_lens import LogitLens
from vit_lens.studies.compare.maximisation import ActivationMaximisation
from vit_lens.studies.compare.pictures import LensPictures
from vit_lens.studies.compare.probes import Probe, TunedProbe
from vit_lens.studies.compare.rollout import AttentionRollout


@runtime_checkable
class Method(Protocol):
    """What the study asks of a method.

    Attributes:
        name: What it is called, on the command line too.
        level: ``decoded`` if it reads what a denoiser draws, else ``embedding``.
        words: A sentence on what it reads.
    """

    @property
    def name(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def words(self) -> str: ...

    def score(self, erased: Erased) -> Scores:
        """Return for every item a number that is the larger, the more the method says that the word is there."""
        ...

    def cost(self, erased: Erased) -> str:
        """Say what it takes: pictures, runs, steps."""
        ...


_EVERY: tuple[Method, ...] = (
    LensPictures(), CrossAttention(), AttentionRollout(), LogitLens(), TunedProbe(), ActivationMaximisation(),
    Probe(position="end of the text"), Probe(position="mean of all positions"),
)  # fmt: skip
METHODS: Mapping[str, Method] = {one.name: one for one in _EVERY}
"""The methods by name."""


def chosen_methods(names: Sequence[str] = (), skip: Sequence[str] = ()) -> list[Method]:
    """Return the methods of these names, all by default, without those that are left out.

    Raises:
        StudyError: There is no such method, one comes twice, or none is left.
    """
    for name in (*names, *skip):
        if name not in METHODS:
            raise StudyError(f"no method {name!r}; nearest: {nearest(name, METHODS)}")
    if len(set(names)) < len(names):
        raise StudyError(f"methods {', '.join(names)}: give each once")
    found = [METHODS[name] for name in names or METHODS if name not in skip]
    if not found:
        raise StudyError("no method is left; skip fewer")
    return found
