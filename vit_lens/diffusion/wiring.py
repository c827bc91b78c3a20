"""From hook points to stock modules: PyTorch hooks hand over what a module is given or returns, and take it back."""

__all__ = ["Place", "attach", "check_wirable", "places"]

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_lens.diffusion.ports import Denoiser, Port
from vit_lens.errors import UnsupportedTowerError, VitLensError

Fire = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Where a hook point is in a denoiser: a port, in the block at a path."""

    block: str
    port: Port

    def path(self, below: str) -> str:
        """Return the path of a module of the block."""
        return f"{self.block}.{below}" if below else self.block


def places(denoiser: nn.Module, row: Denoiser) -> dict[str, Place]:
    """Return where each hook point of a denoiser is, by name.

    Raises:
        UnsupportedTowerError: A block lacks a module that a hook point needs.
    """
    found = {}
    for blocks in row.blocks:
        for path, numbers in _blocks(denoiser, blocks.path.split(".")):
            block = denoiser.get_submodule(path)
            for port in blocks.ports:
                if port.needs and _below(block, port.needs, path) is None:
                    continue
                if _below(block, port.module, path) is not None:
                    found[f"{blocks.name.format(*numbers)}.{port.name}"] = Place(path, port)
    return found


def _blocks(module: nn.Module, parts: list[str], path: str = "") -> Iterator[tuple[str, list[int]]]:
    """Yield the path and the numbers of each block that a path with stars stands for."""
    if not parts:
        yield path, []
        return
    first, rest = parts[0], parts[1:]
    keys = [str(n) for n in range(len(module))] if first == "*" else [first]  # pyright: ignore[reportArgumentType]
    for key in keys:
        inner = getattr(module, key, None)
        if inner is not None:  # blocks without attention have no list of it
            for below, numbers in _blocks(inner, rest, f"{path}.{key}".lstrip(".")):
                yield below, [*([int(key)] if first == "*" else []), *numbers]


def _below(block: nn.Module, path: str, where: str) -> nn.Module | None:
    found: Any = block
    for part in path.split(".") if path else []:
        if not hasattr(found, part):
            raise UnsupportedTowerError(
                f"{where} is a {type(block).__name__} without {path!r}; expected that of diffusers: hooks were written "
                "for 0.35.2 to 0.42"
            )
        found = getattr(found, part)
        if found is None:
            return None
    return found


def check_wirable(denoiser: Any) -> None:
    """Refuse a denoiser whose modules do not run one by one, in whole and in every step.

    Raises:
        VitLensError: It is compiled, skips blocks, runs in pieces or on several devices at once; with what to call.
    """
    name = type(denoiser).__name__
    if any(getattr(one, "_compiled_call_impl", None) is not None for one in denoiser.modules()):
        raise VitLensError(f"this {name} is compiled, and hooks inside would be left out; load it without compile()")
    if getattr(denoiser, "is_cache_enabled", False):
        raise VitLensError(f"this {name} skips blocks (enable_cache); call its disable_cache() before hooks are used")
    if getattr(denoiser, "_parallel_config", None) is not None:
        raise VitLensError(f"this {name} is split over devices (enable_parallelism), and each holds a part of a stream")
    if any(getattr(one, "_chunk_size", None) is not None for one in denoiser.modules()):
        raise VitLensError(
            f"this {name} runs its MLPs in pieces; call set_chunk_feed_forward(None) of its blocks first"
        )


@contextmanager
def attach(denoiser: nn.Module, hooked: Mapping[str, Place], fire: Fire) -> Iterator[None]:
    """Have stock modules hand over what hook points are for, inside the ``with`` block.

    Args:
        denoiser: The stock denoiser.
        hooked: The hook points that are wanted, by name.
        fire: Called with a name and what is there; returns what is put in its place, or the same tensor for no edit.
    """
    spots: dict[tuple[str, str], list[tuple[str, Port]]] = {}
    gates: dict[tuple[str, int], _Gate] = {}
    wire = _Wire(fire)
    for name, place in hooked.items():
        port = place.port
        spots.setdefault((place.path(port.module), port.side), []).append((name, port))
        if port.gate is not None:
            gate = gates.setdefault((place.path(port.gate[0]), port.gate[1]), _Gate(port.gate[1]))
            wire.gates[(place.path(port.module), port.item)] = gate
        if port.heads is not None:
            wire.heads[name] = denoiser.get_submodule(place.path(port.heads)).heads  # pyright: ignore[reportArgumentType]
    handles = []
    try:
        if any(place.port.stream for place in hooked.values()):
            handles.append(denoiser.register_forward_pre_hook(wire.measure, with_kwargs=True))
        for (path, side), ports in spots.items():
            module = denoiser.get_submodule(path)
            if side == "in":
                handles.append(module.register_forward_pre_hook(wire.inward(path, ports), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(wire.outward(path, ports)))
        for (path, _), gate in gates.items():  # behind the hook points of the gates themselves
            handles.append(denoiser.get_submodule(path).register_forward_hook(gate.take))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Gate:
    """A vector that a block multiplies with: taken out and replaced by ones, so that the product is made here.

    One times a number is that number, so the block computes what it always does, and a hook sees the product.
    """

    def __init__(self, item: int):
        self.item = item
        self.value: Tensor | None = None

    def take(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.value = _of_tuple(output, self.item, None, type(module).__name__)
        return _swapped(output, self.value, torch.ones_like(self.value))

    def times(self, value: Tensor) -> Tensor:
        if self.value is None:
            raise VitLensError("a block's gate was not computed before what it multiplies; this diffusers is not known")
        gate, self.value = self.value, None
        return gate.unsqueeze(1) * value


class _Wire:
    def __init__(self, fire: Fire):
        self.fire = fire
        self.gates: dict[tuple[str, Any], _Gate] = {}
        self.heads: dict[str, int] = {}
        self.n_text = 0

    def measure(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Take down how many positions of text there are, which come first where the streams are joined."""
        self.n_text = _argument(module, args, kwargs, "encoder_hidden_states")[0].shape[1]

    def inward(self, path: str, ports: list[tuple[str, Port]]) -> Callable:
        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            given, named, changed = list(args), dict(kwargs), False
            for name, port in ports:
                value, key = _argument(module, given, named, port.item)
                new = self.through(name, port, _tensor(value, path))
                if new is value:
                    continue
                if port.in_place:
                    value.copy_(new)
                    continue
                changed = True
                if isinstance(key, int):
                    given[key] = new
                else:
                    named[key] = new
            return (tuple(given), named) if changed else None

        return before

    def outward(self, path: str, ports: list[tuple[str, Port]]) -> Callable:
        items = list(dict.fromkeys(port.item for _, port in ports))

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            found = output
            for item in items:
                here = [(name, port) for name, port in ports if port.item == item]
                value = _of_tuple(found, item, here[0][1].of, path) if isinstance(item, int) else _tensor(found, path)
                gate = self.gates.get((path, item))
                new = value if gate is None else gate.times(value)
                for name, port in here:
                    new = self.through(name, port, new)
                found = _swapped(found, value, new)
            return None if found is output else found

        return after

    def through(self, name: str, port: Port, whole: Tensor) -> Tensor:
        """Show a hook point what is for it, tokens by channels, and return all of it with what the point gave back."""
        seen = whole if whole.ndim != 4 else whole.flatten(2).transpose(1, 2)
        n = self.n_text
        if port.stream is not None:
            seen = seen[:, :n] if port.stream == "text" else seen[:, n:]
        if port.in_place or seen.untyped_storage().nbytes() > seen.numel() * seen.element_size():
            seen = seen.clone()  # what a cache keeps is not written over, and keeps nothing beside itself alive
        if name in self.heads:
            seen = seen.unflatten(-1, (self.heads[name], -1))
        new = self.fire(name, seen)
        if new is seen:
            return whole
        if name in self.heads:
            new = new.flatten(-2)
        if port.stream is not None:
            new = torch.cat([new, whole[:, n:]] if port.stream == "text" else [whole[:, :n], new], dim=1)
        if whole.ndim == 4:  # laid out in memory as it was
            new = torch.empty_like(whole).copy_(new.transpose(1, 2).unflatten(2, whole.shape[2:]))
        return new


def _argument(module: nn.Module, args: Any, kwargs: Any, item: Any) -> tuple[Any, Any]:
    """Return an argument, by its name or place, and where it was found."""
    if item in kwargs:
        return kwargs[item], item
    if isinstance(item, str):
        names = [one for one in inspect.signature(type(module).forward).parameters if one != "self"]
        item = names.index(item) if item in names else len(args)
    if item >= len(args):
        raise VitLensError(f"a {type(module).__name__} was called without what hooks read; this diffusers is not known")
    return args[item], item


def _tensor(value: Any, path: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise VitLensError(
            f"{path} gave a {type(value).__name__} where a tensor was expected: another release of diffusers, or an "
            "adapter that changes what is returned. Hooks were written for diffusers 0.35.2 to 0.42"
        )
    return value


def _of_tuple(output: Any, item: int, length: int | None, path: str) -> Tensor:
    """Return an item of what a module returned, a tuple of a known length."""
    if not isinstance(output, tuple) or len(output) <= item or (length is not None and len(output) != length):
        told = f"a tuple of {len(output)}" if isinstance(output, tuple) else f"a {type(output).__name__}"
        raise VitLensError(
            f"{path} returned {told}; expected a tuple of {length or f'more than {item}'}: another release of "
            "diffusers, or an IP adapter, which hooks do not know. Hooks were written for diffusers 0.35.2 to 0.42"
        )
    return _tensor(output[item], path)


def _swapped(output: Any, old: Tensor, new: Tensor) -> Any:
    """Return what a module returned, with a tensor replaced wherever it is in it."""
    if output is old:
        return new
    if isinstance(output, tuple) and new is not old:
        return tuple(_swapped(one, old, new) for one in output)
    return output
