"""``ActivationSource``: tokens in shuffled batches, the same for the same seed, from anywhere in the stream."""

__all__ = ["ActivationSource", "Batch", "Place"]

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries.belonging import hook_name_of
from vit_lens.dictionaries.reading import ArrayTokens, ShardTokens, TokenReader, reader_for, write_shards
from vit_lens.dictionaries.semantics import Provenance, Stream
from vit_lens.dictionaries.steps import StepTokens
from vit_lens.errors import DictionaryError
from vit_lens.hooking import LoudHookedRootModule


@dataclass(frozen=True, order=True)
class Place:
    """Where a stream of batches stands: what is read next.

    Attributes:
        epoch: Which pass over the inputs.
        input: The index of the first input of the buffer, in the order of that pass.
        batch: Which batch of that buffer.

    >>> Place(1, 64) > Place(0, 96)
    True
    """

    epoch: int = 0
    input: int = 0
    batch: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Some tokens.

    Attributes:
        tokens: The activations.
        labels: Of each token its input, and its place there.
        then: Where the stream stands behind this batch.

    >>> batch = next(vl.ActivationSource.of_array(torch.randn(20, 4, 8), batch_size=6).stream())
    >>> batch.tokens.shape, batch.labels.shape, batch.then
    (torch.Size([6, 8]), torch.Size([6, 2]), Place(epoch=0, input=0, batch=1))
    """

    tokens: Float[Tensor, "token d"]
    labels: Int[Tensor, "token 2"]
    then: Place


@dataclass(frozen=True, eq=False, repr=False)
class ActivationSource:
    """Batches [n d] of tokens, shuffled through a bounded buffer.

    An epoch takes the inputs in an order that the seed gives, reads as many as the buffer holds, shuffles their tokens,
    and gives them in batches, of which the last of a buffer may be short. So a stream is the same for the same seed,
    goes on from any :class:`Place`, and holds one buffer in memory. :meth:`of_model`, :meth:`of_array` and :meth:`open`
    make one. Iterating gives tensors, without end, as SAELens' trainers take them.

    Attributes:
        reader: Where the tokens come from.
        inputs: Which of its inputs are read.
        batch_size: How many tokens a batch has.
        buffer: How many inputs are shuffled together.
        seed: The seed of all that is drawn.

    Raises:
        DictionaryError: There are no inputs, or a number is not at least 1.

    >>> source = vl.ActivationSource.of_model(model, images * 3, "L5.resid_post", tokens="patches", batch_size=24)
    >>> source
    ActivationSource(6 inputs, batches of 24 tokens, patches of blocks.5.hook_resid_post)
    >>> [len(batch.tokens) for batch in source.epoch()]
    [24, 24, 24, 24]
    >>> train, held_out = source.split(0.5)
    >>> len(train.inputs), len(held_out.inputs)
    (3, 3)
    """

    reader: TokenReader
    inputs: tuple[int, ...]
    batch_size: int = 1024
    buffer: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "buffer"):
            if (as_index(getattr(self, name)) or 0) < 1:
                raise DictionaryError(f"{name}={getattr(self, name)!r}; expected a whole number, at least 1")
        if not self.inputs:
            raise DictionaryError("a source has no inputs; give some, or hold fewer out")

    @classmethod
    def of_model(
        cls, model: LoudHookedRootModule, inputs: Any, site: str, *, tokens: str = "all", stream: Stream = "output",
        batch_size: int = 1024, buffer: int = 256, seed: int = 0, inputs_at_once: int = 32, **run: Any,
    ) -> "ActivationSource":  # fmt: skip
        """Return the activations of a hook point.

        Args:
            model: Any hooked model.
            inputs: What it runs on: images (as ``preprocess`` takes them) or pixels, or prompts.
            site: The hook point, or its address such as ``L5.resid_post``.
            tokens: Which tokens: ``all`` (of prompts without what is filled up), ``patches``, ``cls``, and whatever
                else addresses have behind ``@``.
            stream: ``output``; or ``update``, what a block adds, at its ``hook_resid_post``.
            batch_size: How many tokens a batch has.
            buffer: How many inputs are shuffled together.
            seed: The seed of all that is drawn.
            inputs_at_once: How many inputs the model runs on at once.
            **run: Of a diffusion model, whose inputs are prompts: ``at_steps``, ``branch``, ``noise_seed``, and what
                its pipeline is called with, as :class:`vit_lens.dictionaries.DenoiserTokens` takes them.

        Raises:
            DictionaryError: There is no input or no such hook point, or what it holds is not [input token d].
        """
        name = hook_name_of(model, site)
        reader = reader_for(model)(model, inputs, name, tokens=tokens, stream=stream, batch_size=inputs_at_once, **run)
        return cls(reader, tuple(range(len(reader.keys))), batch_size, buffer, seed)

    @classmethod
    def of_array(
        cls, activations: Tensor | Sequence[Tensor], provenance: Provenance | None = None, *, batch_size: int = 1024,
        buffer: int = 256, seed: int = 0,
    ) -> "ActivationSource":  # fmt: skip
        """Return activations that are in memory.

        Args:
            activations: [token d], each token an input of its own; [input token d]; or a list of [token d].
            provenance: Which activations they are; None where that is not known.
            batch_size: How many tokens a batch has.
            buffer: How many inputs are shuffled together.
            seed: The seed of all that is drawn.

        Raises:
            DictionaryError: They are no floats of these shapes, or hold NaN or inf.

        >>> vl.ActivationSource.of_array(torch.randn(100, 8), batch_size=32)
        ActivationSource(100 inputs, batches of 32 tokens, all of no site)
        """
        reader = ArrayTokens(activations, provenance)
        return cls(reader, tuple(range(len(reader.keys))), batch_size, buffer, seed)

    @classmethod
    def open(
        cls, folder: str | Path, *, batch_size: int = 1024, buffer: int = 256, seed: int = 0
    ) -> "ActivationSource":
        """Return activations that :meth:`write` has left on disk.

        Args:
            folder: The folder.
            batch_size: How many tokens a batch has.
            buffer: How many inputs are shuffled together; shards are read one after the other where it is their size.
            seed: The seed of all that is drawn.

        Raises:
            DictionaryError: There are none, or they are damaged.

        >>> kept = vl.ActivationSource.of_array(torch.randn(6, 3, 8)).write(tmp / "kept", dtype=torch.float32)
        >>> vl.ActivationSource.open(kept, batch_size=9)
        ActivationSource(6 inputs, batches of 9 tokens, all of no site)
        """
        reader = ShardTokens(folder)
        return cls(reader, tuple(range(len(reader.keys))), batch_size, buffer, seed)

    def write(self, folder: str | Path, *, dtype: torch.dtype = torch.float16, inputs_per_shard: int = 256) -> Path:
        """Write the tokens of all inputs as shards; one that was stopped goes on. See :meth:`open`.

        Args:
            folder: Where they go.
            dtype: ``torch.float16``, refused where a number does not fit it, or ``torch.float32``.
            inputs_per_shard: How many inputs a shard holds.

        Raises:
            DictionaryError: The source is a part of another, or the dtype is too narrow.
            OutputError: The files cannot be written.
        """
        if len(self.inputs) != len(self.reader.keys):
            raise DictionaryError("this source is a part of another; write the whole, and split what open() gives")
        return write_shards(self.reader, folder, dtype=dtype, inputs_per_shard=inputs_per_shard)

    @property
    def provenance(self) -> Provenance:
        """Which activations these are."""
        return self.reader.provenance

    @property
    def content(self) -> str:
        """Sixteen digits that identify the stream: what is read, in which order."""
        read = [(i, self.reader.keys[i]) for i in self.inputs]  # an input's place, too: a picture's noise is of it
        said = [self.provenance, read, self.batch_size, self.buffer, self.seed]
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    def split(self, held_out: float = 0.1) -> "tuple[ActivationSource, ActivationSource]":
        """Return the inputs that are learnt from, and those that are held out: whole inputs, never tokens.

        Inputs that are the same (one path, one prompt, equal pixels) are on one side.

        Args:
            held_out: The share of inputs that is held out, above 0 and below 1.

        Raises:
            DictionaryError: The share is another, or one side would be empty.
        """
        if not 0 < held_out < 1:
            raise DictionaryError(f"held_out={held_out!r}; expected a share above 0 and below 1")
        groups: dict[str, list[int]] = {}
        for index in self.inputs:
            groups.setdefault(self.reader.keys[index], []).append(index)
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(self.seed)).tolist()
        members, held = list(groups.values()), set()
        for group in order:
            if len(held) >= max(1, round(held_out * len(self.inputs))):
                break
            held |= set(members[group])
        kept = tuple(index for index in self.inputs if index not in held)
        if not kept:
            raise DictionaryError(f"{len(groups)} different inputs cannot be split; give more")
        return replace(self, inputs=kept), replace(self, inputs=tuple(sorted(held)))

    def at_steps(self, steps: Sequence[int]) -> "ActivationSource":
        """Return the tokens of some steps of a diffusion model alone.

        Args:
            steps: Which of the source's steps, counted from 0.

        Raises:
            DictionaryError: The source has no steps, or not these.

        >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
        >>> source = vl.ActivationSource.of_model(sd, ["a red star"], "mid.0.update", steps=4)
        >>> first = source.at_steps([0])
        >>> first.provenance.at_steps, len(next(first.in_order()).tokens), len(next(source.in_order()).tokens)
        ((0,), 16, 64)
        """
        return replace(self, reader=StepTokens(self.reader, steps))

    def stream(self, start: Place | None = None, *, epochs: int | None = None) -> Iterator[Batch]:
        """Give batches from a place on.

        Args:
            start: Where; None begins.
            epochs: How many passes over the inputs there are in all; None for no end.
        """
        place = start or Place()
        while epochs is None or place.epoch < epochs:
            yield from self._epoch(place)
            place = Place(place.epoch + 1)

    def epoch(self, index: int = 0) -> Iterator[Batch]:
        """Give the batches of one pass over the inputs.

        Args:
            index: Which pass.
        """
        return self._epoch(Place(index))

    def in_order(self) -> Iterator[Batch]:
        """Give every token once, input by input, not shuffled."""
        for start in range(0, len(self.inputs), self.buffer):
            tokens, labels = self.reader.read(self.inputs[start : start + self.buffer])
            for first in range(0, len(tokens), self.batch_size):
                part = slice(first, first + self.batch_size)
                yield Batch(tokens[part], labels[part], Place())

    def _epoch(self, place: Place) -> Iterator[Batch]:
        n, epoch = len(self.inputs), place.epoch
        order = torch.randperm(n, generator=_generator(self.seed, epoch)).tolist()
        for start in range(place.input, n, self.buffer):
            tokens, labels = self.reader.read([self.inputs[i] for i in order[start : start + self.buffer]])
            mixed = torch.randperm(len(tokens), generator=_generator(self.seed, epoch, start))
            parts = mixed.split(self.batch_size)
            behind = Place(epoch, start + self.buffer) if start + self.buffer < n else Place(epoch + 1)
            for batch in range(place.batch if start == place.input else 0, len(parts)):
                then = Place(epoch, start, batch + 1) if batch + 1 < len(parts) else behind
                yield Batch(tokens[parts[batch].to(tokens.device)], labels[parts[batch]], then)

    def __iter__(self) -> Iterator[Float[Tensor, "token d"]]:
        for batch in self.stream():
            yield batch.tokens

    def __repr__(self) -> str:
        where = f"{self.provenance.tokens} of {self.provenance.site or 'no site'}"
        return f"ActivationSource({len(self.inputs)} inputs, batches of {self.batch_size} tokens, {where})"


def _generator(*parts: int) -> torch.Generator:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
