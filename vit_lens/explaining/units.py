"""``Units``: features, neurons or directions, and how much each fires on images and on their patches."""

__all__ = ["Units"]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries import ActivationSource, Dictionary
from vit_lens.errors import ExplanationError, nearest

_TOKENS_AT_ONCE = 4096  # codes of all units are held for so many tokens
_CUT_FROM = 65_536  # tokens at most that a cut is taken from, for a bound of memory


@dataclass(frozen=True, eq=False, repr=False)
class Units:
    """Units of one kind. One fires on an image as much as on its strongest patch, and is silent where that is 0.

    What they do is read once, when it is first asked for, and held where it is above 0. Images are counted as the
    source gives them. Of a diffusion model an image is a picture that it draws: its patches are the positions of the
    image, and a unit fires at one as much as at the strongest of the steps that were read.

    Attributes:
        name: What results call the kind.
        source: The patches of the images, or the image tokens of pictures that are drawn.
        encode: What the units do on tokens [token d]: [token unit], 0 where a unit is silent, above where it fires.
        directions: What each unit writes, by which neighbours are found.

    Raises:
        ExplanationError: An input is read twice.

    >>> source = vl.ActivationSource.of_model(model, images, "L5.resid_post", tokens="patches")
    >>> units = Units.of_dictionary(vl.Dictionary.from_pretrained("mini-topk"), source)
    >>> units, units.strongest().shape
    (Units(512 of dictionary on 2 images), (2, 512))
    """

    name: str
    source: ActivationSource
    encode: Callable[[Tensor], Tensor]
    directions: Float[Tensor, "unit d"]

    def __post_init__(self) -> None:
        if len(set(self.source.inputs)) < len(self.source.inputs):
            raise ExplanationError(f"{self.source!r} reads an input twice; give each once")

    @classmethod
    def of_dictionary(cls, dictionary: Dictionary, source: ActivationSource, *, name: str = "dictionary") -> "Units":
        """Return the features of a dictionary; codes of either sign count by their size.

        Args:
            dictionary: The dictionary.
            source: Tokens of where it belongs.
            name: What results call the kind.
        """

        def encode(tokens: Tensor) -> Tensor:
            return dictionary.encode(tokens.to(dictionary.W_dec.device)).abs().cpu()

        return cls(name, source, encode, dictionary.W_dec.float().cpu())

    @classmethod
    def cut(
        cls, name: str, project: Callable[[Tensor], Tensor], directions: Float[Tensor, "unit d"],
        source: ActivationSource, rate: float, inputs: Sequence[int],
    ) -> "Units":  # fmt: skip
        """Return dense units that fire as often as a sparse one: each above a cut of its own, and above 0.

        Args:
            name: What results call the kind.
            project: What the units do on tokens [token d], before they are cut: [token unit].
            directions: What each writes.
            source: The tokens.
            rate: The share of tokens above the cut.
            inputs: The images on whose tokens the cuts are found.

        Raises:
            ExplanationError: The share is none above 0 and below 1.

        >>> source = vl.ActivationSource.of_array(torch.randn(50, 4, 3))
        >>> units = Units.cut("axes", lambda tokens: tokens, torch.eye(3), source, 0.1, range(50))
        >>> units.rates(range(50)).round(2).tolist()
        [0.1, 0.1, 0.1]
        """
        if not 0 < rate < 1:
            raise ExplanationError(f"rate={rate!r}; expected the share of tokens that fire, above 0 and below 1")
        found = [project(tokens).cpu() for tokens, _ in _read(source, list(inputs))]
        values = torch.cat(found)
        values = values[:: max(1, -(-len(values) // _CUT_FROM))]
        cuts = torch.from_numpy(np.quantile(values.numpy(), 1 - rate, axis=0)).to(values).clamp(min=0)

        def encode(tokens: Tensor) -> Tensor:
            given = project(tokens).cpu()
            return given * (given > cuts)

        return cls(name, source, encode, directions.float().cpu())

    def __repr__(self) -> str:
        return f"Units({len(self.directions)} of {self.name} on {len(self.source.inputs)} images)"

    def unit(self, given: int) -> int:
        """Return the number of a unit, of Python.

        Raises:
            ExplanationError: There is no such unit.
        """
        count = len(self.directions)
        if (found := as_index(given)) is None or not 0 <= found < count:
            known = map(str, range(count)) if found is None or found < 0 else [str(count - 1)]
            raise ExplanationError(
                f"no unit {given!r} of {self.name}: there are {count}, counted from 0; nearest: "
                f"{nearest(str(given), known, 1)}"
            )
        return found

    def strongest(self) -> Float[np.ndarray, "image unit"]:
        """Return how much every unit fires on every image: on its strongest patch, at its strongest step."""
        rows = np.zeros((len(self.source.inputs), len(self.directions)), dtype=np.float32)
        held = self._held
        np.maximum.at(rows, (held.image[held.token], held.unit), held.value)
        return rows

    def rates(self, inputs: Sequence[int]) -> Float[np.ndarray, " unit"]:
        """Return the share of the tokens of some images on which every unit fires."""
        held, wanted = self._held, np.zeros(len(self.source.inputs), dtype=bool)
        wanted[list(inputs)] = True
        fired = np.bincount(held.unit[wanted[held.image[held.token]]], minlength=len(self.directions))
        return fired / max(1, int(wanted[held.image].sum()))

    def map(self, unit: int, image: int) -> Float[Tensor, " patch"]:
        """Return how much a unit fires at each patch of an image, in their order: at the strongest of the steps."""
        held = self._held
        own = slice(held.starts[unit], held.starts[unit + 1])
        first, last = held.first[image], held.first[image + 1]
        part = slice(*np.searchsorted(held.token[own], np.array([first, last])))
        n_patches = (last - first) // self._n_steps
        found = np.zeros(n_patches, dtype=np.float32)
        np.maximum.at(found, (held.token[own][part] - first) % n_patches, held.value[own][part])
        return torch.from_numpy(found)

    @property
    def _n_steps(self) -> int:
        """How many steps an image was read at, one behind the other."""
        return len(self.source.provenance.at_steps or (None,))

    @cached_property
    def _held(self) -> "_Codes":
        """Every code above 0, read once."""
        parts, images, start = [], [], 0
        for tokens, of in _read(self.source, range(len(self.source.inputs))):
            images.append(of.numpy())
            for first in range(0, len(tokens), _TOKENS_AT_ONCE):
                with torch.no_grad():
                    codes = self.encode(tokens[first : first + _TOKENS_AT_ONCE]).float().numpy()
                token, unit = np.nonzero(codes > 0)
                parts.append((start + first + token, unit.astype(np.int32), codes[token, unit]))
            start += len(tokens)
        token, unit, value = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(unit, kind="stable")  # and within a unit by token
        image, unit = np.concatenate(images), unit[order]
        starts = np.searchsorted(unit, np.arange(len(self.directions) + 1, dtype=unit.dtype))
        first = np.searchsorted(image, np.arange(len(self.source.inputs) + 1))
        return _Codes(image, first, token[order], unit, value[order], starts)


class _Codes(NamedTuple):
    image: Int[np.ndarray, " token"]  # of each token, which image it is of
    first: Int[np.ndarray, " image_and_end"]  # the first token of each image
    token: Int[np.ndarray, " code"]
    unit: Int[np.ndarray, " code"]
    value: Float[np.ndarray, " code"]
    starts: Int[np.ndarray, " unit_and_end"]  # the first code of each unit


@torch.no_grad()
def _read(source: ActivationSource, inputs: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the tokens of some images, and of each the image as the source counts them, a buffer at a time."""
    number = torch.zeros(1 + max(source.inputs), dtype=torch.long)
    number[list(source.inputs)] = torch.arange(len(source.inputs))
    for start in range(0, len(inputs), source.buffer):
        tokens, labels = source.reader.read([source.inputs[k] for k in inputs[start : start + source.buffer]])
        yield tokens, number[labels[:, 0]]
