"""Where tokens come from: a model that runs, an array in memory, shards on disk."""

__all__ = [
    "ArrayTokens",
    "ModelTokens",
    "ShardTokens",
    "TokenReader",
    "labels_of",
    "reader_for",
    "reads",
    "write_shards",
]

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.dictionaries.belonging import identity_of
from vit_lens.dictionaries.semantics import Provenance, Stream
from vit_lens.dictionaries.tokens import reads_text, token_rule
from vit_lens.errors import DictionaryError, OutputError, expect
from vit_lens.files import as_path, check_fields, file_tensors, open_tensors, read_json, save_tensors, write_atomic
from vit_lens.hooking import LoudHookedRootModule, SteppedCache
from vit_lens.identity import forget_fingerprints

_SHARD, _INDEX = "vit_lens.activations.1", "activations.json"
_ADVICE = "source.write(folder) makes one"
_OfReader = TypeVar("_OfReader", bound="Callable[..., Any]")
_SHARD_BYTES = 2**31  # what one shard may take in memory


@runtime_checkable
class TokenReader(Protocol):
    """What an :class:`ActivationSource` asks of where its tokens come from."""

    @property
    def provenance(self) -> Provenance: ...
    @property
    def keys(self) -> Sequence[str]:
        """What each input is; inputs of one key are never on both sides of a split."""
        ...

    def read(self, inputs: Sequence[int]) -> tuple[Float[Tensor, "token d"], Int[Tensor, "token 2"]]:
        """Return the tokens of some inputs, in order, and of each its input and its place there."""
        ...


class ArrayTokens:
    """Activations in memory.

    Args:
        activations: [token d], each token an input of its own; [input token d]; or a list of [token d], one of each.
        provenance: Which activations they are.

    Raises:
        DictionaryError: They are no floats of these shapes, or hold NaN or inf.
    """

    def __init__(self, activations: Tensor | Sequence[Tensor], provenance: Provenance | None = None):
        one = isinstance(activations, Tensor)
        given: Any = activations[:, None] if one and activations.ndim == 2 else activations
        parts: list[Any] = list(given)
        width = {part.shape[-1] if isinstance(part, Tensor) and part.ndim == 2 else None for part in parts}
        if not parts or len(width) != 1 or None in width or not parts[0].is_floating_point():
            raise DictionaryError("activations in memory are floats [token d], [input token d], or a list of [token d]")
        if not all(torch.isfinite(part).all() for part in parts):
            raise DictionaryError("activations hold NaN or inf")
        self._parts, self.provenance = parts, provenance or Provenance()
        self.keys = [str(index) for index in range(len(parts))]

    def read(self, inputs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the tokens of some inputs, and their labels."""
        parts = [self._parts[index] for index in inputs]
        return torch.cat(parts), labels_of(inputs, [len(part) for part in parts])


class ModelTokens:
    """Activations of a hook point, of a model that runs when they are asked for.

    Args:
        model: Any hooked model.
        inputs: What the model runs on, with a length: images as ``preprocess`` takes them, pixels, prompts.
        site: The hook point.
        tokens: Which tokens: ``all`` (of prompts without what is filled up), or what
            :func:`vit_lens.tokens.resolve_tokens` takes of images, and ``positions_of`` of prompts.
        stream: ``output``, or the ``update`` of a block.
        batch_size: How many inputs the model runs on at once.
        **run: What else says how it runs; a model without steps takes nothing.

    Raises:
        DictionaryError: There is no input, or no such hook point.
    """

    def __init__(
        self, model: LoudHookedRootModule, inputs: Any, site: str, *, tokens: str = "all", stream: Stream = "output",
        batch_size: int = 32, **run: Any,
    ):  # fmt: skip
        expect(model, LoudHookedRootModule, "model", DictionaryError, "a hooked model")
        if run:
            raise DictionaryError(f"a {type(model).__name__} takes no {', '.join(run)}; a diffusion model's run has it")
        if not isinstance(inputs, (Tensor, Sequence)) or isinstance(inputs, str) or not len(inputs):
            raise DictionaryError(f"inputs={inputs!r:.80}; expected images, pixels or prompts, at least one")
        self._names = [name := model.hook_points_named(site)[0][0]]
        if stream == "update":
            start = name.removesuffix("hook_resid_post") + "hook_resid_pre"
            if not name.endswith("hook_resid_post") or start not in model.hook_dict:
                raise DictionaryError(f"stream='update' is of a block, and {name!r} is no hook_resid_post of one")
            self._names.append(start)
        elif stream != "output":
            raise DictionaryError(f"stream={stream!r}; expected 'output' or 'update'")
        self.model, self.inputs, self.batch_size = model, inputs, batch_size
        self._positions, self._reads_text = token_rule(model, tokens), reads_text(model)
        forget_fingerprints(model)
        known, digits = identity_of(model)
        self.provenance = Provenance(site=name, stream=stream, tokens=tokens, model=known, fingerprint=digits)
        self.keys = [_key(each) for each in inputs]

    @torch.no_grad()
    def read(self, inputs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the tokens of some inputs, and their labels."""
        found = [
            self._read(inputs[start : start + self.batch_size]) for start in range(0, len(inputs), self.batch_size)
        ]
        tokens, labels = zip(*found, strict=True)
        return torch.cat(tokens), torch.cat(labels)

    def given(self, inputs: Sequence[int]) -> Any:
        """Return what the model is given for some inputs."""
        given = self.inputs[list(inputs)] if isinstance(self.inputs, Tensor) else [self.inputs[i] for i in inputs]
        if not isinstance(given, Tensor) and not self._reads_text and hasattr(self.model, "preprocess"):
            return self.model.preprocess(given)  # pyright: ignore[reportCallIssue]
        return given

    def _read(self, inputs: Sequence[int]) -> tuple[Tensor, Tensor]:
        given = self.given(inputs)
        _, cache = self.model.run_with_cache(given, names_filter=self._names)
        x = cache[self._names[0]]
        x = x if len(self._names) == 1 else x - cache[self._names[1]]
        if isinstance(cache, SteppedCache) and x.ndim > 3:  # [step batch pos d]: all steps of an input are its tokens
            x = x.movedim(0, 1)
        x = x[:, None] if x.ndim == 2 else x
        if x.ndim < 3 or len(x) != len(inputs) or not torch.isfinite(x).all():
            raise DictionaryError(
                f"{self._names[0]} is {tuple(x.shape)} for {len(inputs)} inputs; expected finite [input token d]: "
                "split heads yourself, and give the result as an array"
            )
        if self._reads_text and x.shape[1] > 1:
            seen = self._seen(given)
            parts = [row[mask[: len(row)]] for row, mask in zip(x, seen, strict=True)]
            places = [mask.nonzero()[:, 0] for mask in seen]
            return torch.cat(parts), labels_of(inputs, [len(part) for part in parts], places)
        x = x if self._positions is None or x.shape[-2] == 1 else x[..., self._positions, :]
        x = x.flatten(1, -2)
        return x.flatten(0, 1), labels_of(inputs, [x.shape[1]] * len(x))

    def _seen(self, prompts: Any) -> Tensor:
        model: Any = self.model
        if self.provenance.tokens != "all":
            return model.positions_of(self.provenance.tokens, prompts).cpu()
        return model.attention_mask(model.to_tokens(prompts)).bool().cpu()


class ShardTokens:
    """Activations on disk, as :func:`write_shards` leaves them; every shard is held to its hash when it is read.

    Args:
        folder: The folder.

    Raises:
        DictionaryError: There are none, the index does not fit them, or a shard asks for more memory than is bounded.
    """

    def __init__(self, folder: str | Path):
        self._folder = as_path(folder, DictionaryError)
        said = read_json(self._folder / _INDEX, DictionaryError, _ADVICE)
        index = _Index(**check_fields(_Index, said, str(self._folder / _INDEX), DictionaryError))
        provenance = check_fields(Provenance, index.provenance, f"{self._folder}: provenance", DictionaryError)
        self.provenance, self.keys = Provenance(**provenance), list(map(str, index.keys))
        counts, per_shard = index.counts, index.inputs_per_shard
        if min(index.d, per_shard, *(n + 1 for n in counts)) < 1 or len(counts) != len(self.keys):
            raise DictionaryError(f"{self._folder}: the index does not say how many tokens its inputs have; {_ADVICE}")
        for start in range(0, len(counts), per_shard):
            if (n := sum(counts[start : start + per_shard]) * index.d * 4) > _SHARD_BYTES:
                raise DictionaryError(f"{self._folder}: a shard of {n} bytes; at most {_SHARD_BYTES} are read at once")
        self._index: Any = index
        self._held: tuple[int, Tensor, Tensor] | None = None

    def read(self, inputs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the tokens of some inputs, in float32, and their labels."""
        counts, per_shard = self._index.counts, self._index.inputs_per_shard
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for index in sorted(set(inputs)):  # shard by shard: each is loaded once
            shard, place = divmod(index, per_shard)
            first = sum(counts[shard * per_shard : shard * per_shard + place])
            tokens, of_tokens = self._shard(shard)
            own = slice(first, first + counts[index])
            found[index] = tokens[own].float(), of_tokens[own]
        parts, places = zip(*(found[index] for index in inputs), strict=True)
        return torch.cat(parts), labels_of(inputs, [len(part) for part in parts], places)

    def _shard(self, shard: int) -> tuple[Tensor, Tensor]:
        if self._held is None or self._held[0] != shard:
            start, per_shard = shard * self._index.inputs_per_shard, self._index.inputs_per_shard
            shape = (sum(self._index.counts[start : start + per_shard]), self._index.d)
            path = self._folder / f"activations_{shard:05d}.safetensors"
            if path.is_file() and path.stat().st_size > shape[0] * (shape[1] * 4 + 8) + 2**16:
                raise DictionaryError(f"{path} is larger than the index says; {_ADVICE}")
            with open_tensors(path, [_SHARD], what="activations", error=DictionaryError, advice=_ADVICE) as (
                file,
                meta,
            ):
                held = file_tensors(file)
            found, places = (held.get(name, torch.empty(0)) for name in ("activations", "places"))
            if tuple(found.shape) != shape or not found.is_floating_point() or meta.get("source") != self._index.source:
                raise DictionaryError(f"{path} holds {tuple(found.shape)}, the index says {shape}; {_ADVICE}")
            if tuple(places.shape) != shape[:1] or places.dtype != torch.int64:
                raise DictionaryError(f"{path} does not say the places of its {shape[0]} tokens; {_ADVICE}")
            self._held = shard, found, places
        return self._held[1:]


_READERS: list[tuple[Callable[[Any], bool], Callable[..., ModelTokens]]] = []


def reads(takes: Callable[[Any], bool]) -> Callable[[_OfReader], _OfReader]:
    """Register a reader for the models that a function says yes to; the last that takes a model reads it.

    Args:
        takes: Whether a model is one of those.
    """

    def register(reader: _OfReader) -> _OfReader:
        _READERS.append((takes, reader))
        return reader

    return register


def reader_for(model: Any) -> Callable[..., ModelTokens]:
    """Return what reads the tokens of a model: :class:`ModelTokens`, or what is registered for its kind."""
    return next((reader for takes, reader in reversed(_READERS) if takes(model)), ModelTokens)


@dataclass(frozen=True)
class _Index:
    source: str
    provenance: dict
    keys: tuple[str, ...]
    counts: tuple[int, ...]
    d: int
    inputs_per_shard: int


def write_shards(
    reader: TokenReader, folder: str | Path, *, dtype: torch.dtype = torch.float16, inputs_per_shard: int = 256
) -> Path:
    """Write all tokens of a reader as shards of safetensors, each whole or absent; what is there already stays.

    Args:
        reader: Where the tokens come from.
        folder: Where they go. One that holds a part of the same goes on where it stopped.
        dtype: ``torch.float16``, which is refused where a number does not fit it, or ``torch.float32``.
        inputs_per_shard: How many inputs a shard holds.

    Returns:
        The folder.

    Raises:
        DictionaryError: The dtype is another, or too narrow for the numbers.
        OutputError: The files cannot be written.
    """
    if dtype not in (torch.float16, torch.float32):
        raise DictionaryError(f"dtype={dtype}; activations are kept as torch.float16 or torch.float32")
    place, n = as_path(folder, OutputError), len(reader.keys)
    said = json.dumps([asdict(reader.provenance), list(reader.keys), str(dtype), inputs_per_shard])
    source, counts, d = hashlib.sha256(said.encode()).hexdigest()[:16], [], 0
    for shard, start in enumerate(range(0, n, inputs_per_shard)):
        path, inputs = place / f"activations_{shard:05d}.safetensors", range(start, min(start + inputs_per_shard, n))
        if path.is_file():
            with open_tensors(path, [_SHARD], what="activations", error=DictionaryError, advice=_ADVICE) as (
                file,
                meta,
            ):
                if meta.get("source") != source:
                    raise DictionaryError(f"{path} is of other activations; choose another folder")
                counts += json.loads(meta["counts"])
                d = file.get_slice("activations").get_shape()[1]
            continue
        tokens, labels = reader.read(inputs)
        kept = tokens.to(dtype)
        if not torch.isfinite(kept).all():
            raise DictionaryError(
                f"activations of up to {float(tokens.abs().max()):.3g} do not fit {dtype}; give float32"
            )
        here, d = [int((labels[:, 0] == index).sum()) for index in inputs], tokens.shape[1]
        told = {"format": _SHARD, "source": source, "counts": json.dumps(here)}
        save_tensors({"activations": kept, "places": labels[:, 1].contiguous()}, path, told)
        counts += here
    index = _Index(source, asdict(reader.provenance), tuple(reader.keys), tuple(counts), d, inputs_per_shard)
    write_atomic(place / _INDEX, json.dumps(asdict(index)).encode())
    return place


def labels_of(
    inputs: Sequence[int], counts: Sequence[int], places: Sequence[Tensor] | None = None
) -> Int[Tensor, "token 2"]:
    """Return the labels of tokens: of each its input, and its place there; None counts places from 0."""
    own = [torch.arange(n) for n in counts] if places is None else places
    rows = [torch.stack([torch.full((len(p),), i), p.cpu()], 1) for i, p in zip(inputs, own, strict=True)]
    return torch.cat(rows)


def _key(item: Any) -> str:
    """Return what an input is, in words or as a hash of its values: equal inputs are on one side of a split."""
    if isinstance(item, (str, Path)):
        return str(item)
    if isinstance(item, Tensor):
        data = item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        data = getattr(item, "tobytes", lambda: repr(item).encode())()
    return hashlib.sha256(data).hexdigest()[:16]
