"""What a cache holds: looking activations up, cutting them, and saying what is missing."""

__all__ = ["HeldActivations", "Rows", "as_slice", "cut", "input_of", "need", "readout_rows"]

import logging
import numbers
import operator
from collections.abc import Iterable
from typing import Any, Literal, SupportsIndex, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.addresses import as_index
from vit_lens.errors import BatchAxisError, InterventionError, LensError, UnknownHookError, VitLensError, nearest
from vit_lens.hooking import as_device
from vit_lens.towers.contract import Tower
from vit_lens.towers.readout import EndOfText, Readout

Rows = Literal["all", "readout", "cut"]
Held = TypeVar("Held", bound="HeldActivations")

_FEW = 4  # names that a message spells out
_GRAD = "_grad"


class HeldActivations(ActivationCache):
    """Activations by hook name, with the shorthand ``cache["z", 3]`` and the model that made them."""

    model: Tower  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        has_batch_dim: bool = True,
        rows: Rows = "all",
        start_at_layer: SupportsIndex | None = None,
        read_out: Readout | None = None,
    ):
        super().__init__(cache_dict, model, has_batch_dim=has_batch_dim)
        self.rows: Rows = rows
        self.start_at_layer = start_at_layer
        self.read_out: Readout = model.readout if read_out is None else read_out
        self.first_layer = model.blocks_to_run(start_at_layer, None).start

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return super().__getitem__(key)
        except (KeyError, TypeError) as error:
            name = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(key)
            if name in self.model.hook_dict:
                raise UnknownHookError(
                    f"the cache does not hold {name!r}: name it in names_filter (a gated point such as hook_result is "
                    "not cached by default; set_use_attn_result(True) and its kin change that)"
                ) from None
            if name.removesuffix(_GRAD) in self.model.hook_dict:
                raise UnknownHookError(f"the cache does not hold {name!r}: run with incl_bwd=True") from None
            raise UnknownHookError(f"the cache holds no {name!r}; nearest: {nearest(name, self.cache_dict)}") from None

    def __repr__(self) -> str:
        names, tensors = list(self.cache_dict), list(self.cache_dict.values())
        if not names:
            return f"{type(self).__name__}(empty)"
        counts = sorted({len(value) for name, value in self.cache_dict.items() if self._is_of_images(name)})
        images = f"{' or '.join(map(str, counts))} images" if self.has_batch_dim else "1 image, no batch axis"
        size = sum(t.numel() * t.element_size() for t in tensors) / 1e6
        places = ", ".join(sorted({f"{str(t.dtype).removeprefix('torch.')} on {t.device}" for t in tensors}))
        start = "" if self.start_at_layer is None else f", from layer {self.first_layer}"
        shown = ", ".join(names if len(names) <= _FEW else [*names[:2], "...", *names[-2:]])
        return (
            f"{type(self).__name__}({images}, {self.rows} rows{start}; {len(names)} activations, {size:.1f} MB, "
            f"{places}: {shown})"
        )

    def readout(self, name: str) -> Float[Tensor, "batch row *axes"]:
        """Return an activation at the positions that the read-out uses; of a pattern, these are the queries.

        It may share memory with the cache.

        What has no positions, such as ``hook_pooled``, is returned as it is. A gradient (``<name>_grad``) is that
        with respect to the rows.

        Raises:
            LensError: The cache has lost its batch axis, or positions.
        """
        if not self.has_batch_dim:
            raise LensError("the cache has no batch axis; lenses need one (leave remove_batch_dim=False)")
        value = self[name]
        if self.rows == "readout":
            return value
        plain = name.removesuffix(_GRAD)
        if (axis := self.model.pos_axis(plain)) is None:
            return value
        rows = self.read_out.gradient_rows if name != plain else self.read_out.rows
        return rows(value.movedim(axis, 1)).movedim(1, axis) if self.rows == "all" else readout_rows(self, value)

    def read_at(self: Held, where: Any) -> Held:
        """Return this cache, of a text tower, as if the output were read at another token of each prompt.

        Lenses, attribution and ``logit_lens`` then answer for that token. What was cached of the output itself is left
        out: it is of the ends.

        Args:
            where: One token of each prompt: ``'"star"'``, ``"eos"``, ``4``, as behind ``@`` in addresses.

        Raises:
            InterventionError: A prompt has no such token, or several.
            LensError: The prompts of the run are not known, or the cache holds some positions alone.

        >>> _, texts = text_model.run_with_cache(["a red star", "a striped blue star"])
        >>> vl.attribution.split_embedding(texts.read_at('"star"')).values.shape
        torch.Size([15, 2, 128])
        """
        if self.read_out.ids is None or self.rows != "all" or not self.has_batch_dim:
            raise LensError("read_at needs a whole cache of prompts, made without start_at_layer, pos_slice and rows=")
        mask = self.model.positions_of(where, self.read_out.ids)
        if (n := mask.sum(-1)).max() > 1:
            raise InterventionError(f"{where!r} is {int(n.max())} tokens of a prompt; name one by its position")
        read = self.read_out
        there = EndOfText(read.cfg, read.ln_final, read.unembed, ends=mask.int().argmax(-1), ids=read.ids)
        own = ("hook_pooled", self.model.output_point)
        held = {name: value for name, value in self.cache_dict.items() if name.removesuffix(_GRAD) not in own}
        return type(self)(held, self.model, True, self.rows, self.start_at_layer, there)

    # ---- images and devices -------------------------------------------------------------------------------

    def _is_of_images(self, name: str) -> bool:
        """Whether an entry is an activation; what a user adds under other names is left alone."""
        return name.removesuffix(_GRAD) in self.model.hook_dict

    def _batch_size(self) -> int:
        sizes = {len(value): name for name, value in self.cache_dict.items() if self._is_of_images(name)}
        if len(sizes) != 1:
            found = ", ".join(f"{n} in {name!r}" for n, name in sizes.items()) or "no activation"
            raise BatchAxisError(f"the cache's activations are not of one number of images: {found}")
        return next(iter(sizes))

    def remove_batch_dim(self: Held, batch_size: int | None = None) -> Held:
        """Drop the batch axis of a cache of one image, in place; see ``ActivationCache.remove_batch_dim``.

        Args:
            batch_size: The number of images, as upstream; None reads it from the activations.

        Raises:
            BatchAxisError: The cache has several images.
        """
        if not self.has_batch_dim:
            logging.warning("the batch axis was removed before; the cache stays as it is")
            return self
        found = self._batch_size() if batch_size is None else batch_size
        if found != 1 or self._batch_size() != 1:
            raise BatchAxisError(
                f"cannot remove the batch axis of {self._batch_size()} images; take one: "
                "cache.apply_slice_to_batch_dim(0)"
            )
        for name in self.cache_dict:
            if self._is_of_images(name):
                self.cache_dict[name] = self.cache_dict[name][0]
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self: Held, batch_slice: Any) -> Held:
        """Return the cache of some of the images; an int drops the batch axis. It may share memory with this one.

        See ``ActivationCache.apply_slice_to_batch_dim``. Entries that are not activations stay as they are.

        Raises:
            BatchAxisError: The cache has no batch axis, or the slice selects no image.
        """
        part = as_slice(batch_slice)
        if not self.has_batch_dim and part.mode != "identity":
            raise BatchAxisError("the cache has no batch axis to slice")
        held = {
            name: cut(value, part, 0, "images") if self.has_batch_dim and self._is_of_images(name) else value
            for name, value in self.cache_dict.items()
        }
        has_batch_dim = self.has_batch_dim and part.mode != "int"
        return type(self)(held, self.model, has_batch_dim, self.rows, self.start_at_layer, self.read_out.of(part))

    def to(self: Held, device: str | torch.device) -> Held:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every activation, in place; methods bring the model's weights to where the activations are.

        Raises:
            VitLensError: This machine has no such device.
        """
        where = as_device(device)
        self.cache_dict = {name: value.to(where) for name, value in self.cache_dict.items()}
        return self


def need(cache: HeldActivations, names: Iterable[str], purpose: str) -> list[Tensor]:
    """Return activations by full name.

    Raises:
        UnknownHookError: Some are missing; the message lists them and a ``names_filter`` that keeps all.
    """
    names = list(dict.fromkeys(names))
    missing = [n for n in names if n not in cache.cache_dict]
    if not missing:
        return [cache.cache_dict[n] for n in names]
    listed = f"{', '.join(map(repr, missing[:_FEW]))}{f' and {len(missing) - _FEW} more' * (len(missing) > _FEW)}"
    hint = "" if cache.rows != "readout" else "a cache with rows='readout' keeps a fixed set: leave rows= and "
    raise UnknownHookError(
        f"{purpose} reads {listed}, which this cache does not hold; {hint}make it with "
        f"names_filter={_filter_for(names)}, without a stop_at_layer before them"
    )


def readout_rows(cache: HeldActivations, value: Float[Tensor, "*batch_pos_axes"]) -> Float[Tensor, "*batch_row_axes"]:
    """Return an activation, as the cache holds it, at the rows that the read-out uses.

    Raises:
        LensError: Positions were cut.
    """
    if cache.rows == "cut":
        raise LensError(
            "the cache was cut by pos_slice, so the read-out rows may be missing; lenses need a cache without "
            "pos_slice, or with rows='readout'"
        )
    if cache.rows == "readout":
        return value
    return cache.read_out.rows(value) if cache.has_batch_dim else cache.read_out.rows(value[None])[0]


def input_of(cache: HeldActivations, layer: int | None, mlp_input: bool = False) -> int:
    """Return the layer whose input is meant; None and -1 mean the end of the residual stream."""
    n_layers = cache.model.cfg.n_layers
    index = n_layers if layer is None else as_index(layer)
    index = n_layers if index == -1 else index
    if index is None or not cache.first_layer <= index <= n_layers:
        start = f", since the run started at layer {cache.first_layer}" if cache.first_layer else ""
        raise VitLensError(
            f"layer={layer!r}: expected {cache.first_layer} to {n_layers}{start}, or -1 or None for the end"
        )
    if mlp_input and index == n_layers:
        raise VitLensError(f"mlp_input=True is the input of a block's MLP: layer must be below {n_layers}")
    return index


def as_slice(value: Any) -> Slice:
    """Return TransformerLens' ``Slice`` of an int, tuple, list, array or None.

    Raises:
        VitLensError: It is something else.
    """
    if isinstance(value, Slice):
        return value
    try:
        if isinstance(value, numbers.Integral) or getattr(value, "ndim", None) == 0:
            value = str(value) if isinstance(value, bool) else operator.index(value)  # True is no position 1
        return Slice(value)
    except (TypeError, ValueError):
        raise VitLensError(
            f"{value!r} is no slice; expected an int, (stop,), (start, stop), (start, stop, step), a list or an array"
        ) from None


def cut(x: Tensor, part: Slice, dim: int, what: str) -> Tensor:
    """Return part of an axis.

    Raises:
        BatchAxisError: Of images, if nothing is selected or an index is out of range.
        VitLensError: The same of any other axis.
    """
    kind = BatchAxisError if what == "images" else VitLensError
    try:
        out = part.apply(x, dim=dim)
    except IndexError:
        raise kind(f"{part.slice!r} is out of range for {x.shape[dim]} {what}") from None
    if part.mode not in ("int", "identity") and not out.shape[dim]:
        raise kind(f"{part.slice!r} selects none of {x.shape[dim]} {what}")
    return out


def _filter_for(names: list[str]) -> str:
    if len(names) <= _FEW:
        return repr(names)
    tails = dict.fromkeys(name.split(".", 2)[2] if name.startswith("blocks.") else name for name in names)
    return f"lambda name: name.endswith({tuple(tails)!r})"
