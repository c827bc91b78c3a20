"""What caches of a denoiser keep: hook points, or what addresses name in them; and how both are looked up."""

__all__ = ["BranchCache", "Kept", "as_named"]

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Address, find_address
from vit_lens.errors import UnknownHookError, UnknownSiteError
from vit_lens.hooking import Activations, Aim, Step, SteppedCache, aims_at


class Kept(Activations):
    """The activations of one step, in which addresses are looked up as hook points are.

    ``kept["D5H2.img@7"]`` is cut out of ``double.5.attn.hook_z`` where the whole of it is kept.

    Raises:
        UnknownHookError: A name or address is looked up that the cache does not hold, or one of several hook points.
        UnknownSiteError: There is no such token, head, neuron or feature.

    >>> Kept({"double.5.text.hook_mlp_out": torch.ones(1, 7, 24)})["D5.txt.mlp@6"].shape
    torch.Size([1, 1, 24])
    """

    def __missing__(self, name: Any) -> Tensor:
        if find_address(str(name)) is None:
            return super().__missing__(name)
        if str(name) in self:  # an Address
            return self[str(name)]
        try:
            aims = aims_at(name, [*self, *(key for key in map(_point, self) if key)])
        except UnknownSiteError as error:
            raise UnknownHookError(f"the cache holds no {name}: {error}") from error
        if len(aims) > 1:
            told = ", ".join(str(aim.address) for aim in aims)
            raise UnknownHookError(f"{name} is {len(aims)} activations, {told}: name one")
        (aim,) = aims
        if aim.key in self:
            return self[aim.key]
        if aim.point not in self:
            raise UnknownHookError(f"the cache holds no {name}: of {aim.point} it has parts alone")
        return aim.take(self[aim.point])


def _point(key: str) -> str | None:
    address = find_address(key)
    return None if address is None else address.hook_name


class BranchCache(SteppedCache[Kept]):
    """The activations of a run, step by step, in one branch of guidance; addresses are looked up as hook points are.

    ``cache["D5.img.mlp~3"]`` is [batch pos d_model], of one step; without ``~3`` it is [step batch pos d_model].

    Args:
        kept: As for :class:`vit_lens.hooking.SteppedCache`.
        steps: As for :class:`vit_lens.hooking.SteppedCache`.
        model: The model that ran.
        branch: The branch, "cond" or "uncond".

    Raises:
        UnknownHookError: A name or address is looked up that the cache does not hold, or one of several hook points.
        UnknownSiteError: There is no such token, head, neuron or feature.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> images, cache = sd.run_with_cache("a red star", names_filter="mid.0.update", steps=4)
    >>> cache["mid.0.update"].shape, cache["mid.0.update~3"].shape, cache["mid.0.update@15~3"].shape
    (torch.Size([4, 1, 16, 112]), torch.Size([1, 16, 112]), torch.Size([1, 1, 112]))
    """

    def __init__(self, kept: dict[str, Tensor], steps: Iterable[Step], model: Any, branch: str):
        super().__init__(kept, steps, Kept)
        self.model, self.branch = model, branch

    def __getitem__(self, key: Any) -> Tensor:
        address = find_address(key) if isinstance(key, str) else key if isinstance(key, Address) else None
        if address is None or address.step is None:
            return super().__getitem__(key)
        name = str(address).partition("~")[0]
        return self.at_step(address.step)[name]


def as_named(keep: Callable, aim: Aim) -> Callable:
    """Return a caching hook that keeps what an address names under its address."""
    point = HookPoint()
    point.name = aim.key

    def fire(tensor: Tensor, hook: Any) -> Any:
        return keep(tensor, hook=point)

    fire.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]
    return fire
