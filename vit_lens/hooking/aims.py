"""What an address names in a run: some of what a hook point holds, at one step or at each."""

__all__ = ["Aim", "AimedGuard", "Aiming", "aims_at"]

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Address, address_of, find_address
from vit_lens.errors import UnknownSiteError, nearest
from vit_lens.hooking.codes import CODES
from vit_lens.hooking.guard import Direction, Guard

_ADDED = ("attn", "attn2", "cross_attn", "mlp", "update")  # what is meant by a block, or one of its streams
_STREAMS = ("img", "txt")


@dataclass(frozen=True)
class Aim:
    """A hook point, or of what it holds [batch pos ...] one token, one head, neuron or feature, in one step.

    Attributes:
        point: The name of the hook point.
        address: What of it is meant; None for all of it, in every step.

    >>> act = torch.arange(24).reshape(1, 3, 4, 2)  # [batch pos head d_head]
    >>> aim = Aim("double.0.attn.hook_z", vl.Address.parse("D0H3.img@1"))
    >>> aim.take(act), aim.put(act, torch.zeros(1, 1, 2, dtype=torch.long)).sum() - act.sum()
    (tensor([[[14, 15]]]), tensor(-29))
    """

    point: str
    address: Address | None = None

    @property
    def token(self) -> int | None:
        """The place on the axis ``pos``; None for all."""
        position = None if self.address is None else self.address.position
        return position.value if position is not None and isinstance(position.value, int) else None

    @property
    def unit(self) -> int | None:
        """The head, neuron or feature, the third axis; None for all."""
        named = () if self.address is None else (self.address.head, self.address.neuron, self.address.feature)
        return next((unit for unit in named if unit is not None), None)

    @property
    def step(self) -> int | None:
        """The index of the step; None for every one."""
        return None if self.address is None else self.address.step

    @property
    def name(self) -> str:
        """The address, or the name of the hook point: what models take."""
        return self.point if self.address is None else str(self.address)

    @property
    def key(self) -> str:
        """What it is called in caches, which keep steps apart: the hook point, or the address of a part of it."""
        if self.address is None or (self.token, self.unit) == (None, None):
            return self.point
        return str(replace(self.address, step=None))

    def shape_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of what is meant, of the shape of what the hook point holds.

        Raises:
            UnknownSiteError: There is no such token, head, neuron or feature.
        """
        found, token, unit = list(shape), self.token, self.unit
        if token is not None:
            if len(shape) < 3:
                raise UnknownSiteError(f"{self.address}: {self.point} is one vector for all tokens; leave @ off")
            if token >= shape[1]:
                raise UnknownSiteError(f"{self.address}: the run has the tokens @0 to @{shape[1] - 1} there")
            found[1] = 1
        if unit is not None:
            if unit >= shape[2]:
                raise UnknownSiteError(f"{self.address}: there are {shape[2]} of these, counted from 0")
            del found[2]
        return tuple(found)

    def take(self, act: Tensor) -> Tensor:
        """Return what is meant: [batch pos ...] with one token in ``pos``, and without the axis of heads or features.

        Raises:
            UnknownSiteError: There is no such token, head, neuron or feature.
        """
        self.shape_of(act.shape)
        found = act if self.token is None else act[:, [self.token]]
        return found if self.unit is None else found[:, :, [self.unit]].squeeze(2)

    def put(self, act: Tensor, new: Tensor) -> Tensor:
        """Return the activation with something else in the place of what is meant."""
        if (self.token, self.unit) == (None, None):
            return new
        out, where = act.clone(), slice(None) if self.token is None else slice(self.token, self.token + 1)
        if self.unit is None:
            out[:, where] = new
        else:
            out[:, where, self.unit] = new
        return out


@runtime_checkable
class Aiming(Protocol):
    """A model that reads addresses itself wherever it takes a hook point's name, such as a hooked diffusion model.

    >>> isinstance(vl.HookedUNet.from_pretrained("mini-sd"), Aiming), isinstance(model, Aiming)
    (True, False)
    """

    current_branch: str | None

    def aims(self, address: Address | str) -> list[Aim]:
        """Return what an address, or a hook point's name, is in this model."""
        ...


class AimedGuard(Guard):
    """A hook function that is given what an address names, in its step alone, and whose result goes in its place.

    Args:
        hook: The function.
        aim: What it is given.
        direction: Whether it sees activations or gradients.
        model: The model, which says its step.

    Raises:
        UnknownSiteError: Gradients are asked for at one step, and come when all steps are done.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> (aim,) = sd.aims("mid.0.update@1")
    >>> guard = AimedGuard(lambda act, hook: 0 * act, aim, "fwd", sd)
    >>> guard(torch.ones(1, 2, 3), sd.hook_dict[aim.point])
    tensor([[[1., 1., 1.],
             [0., 0., 0.]]])
    """

    def __init__(self, hook: Callable, aim: Aim, direction: Direction, model: Any):
        super().__init__(hook, aim.point, direction)
        if direction == "bwd" and aim.step is not None:
            raise UnknownSiteError(f"{aim.address}: gradients come behind the steps; leave ~{aim.step} off")
        self.aim, self.model = aim, model

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Any:
        step = self.model.current_step
        if self.aim.step is not None and (step is None or step.index != self.aim.step):
            return None
        new = super().__call__(self.aim.take(tensor), hook)
        new = new[0] if isinstance(new, tuple) else new
        return None if new is None else self.aim.put(tensor, new)


def aims_at(named: Address | str, points: Collection[str]) -> list[Aim]:
    """Return what an address is among the hook points of a denoiser, or among those that a cache holds.

    An address of both streams (``D5H2``) is two aims; one of all of a block, or of a stream, is what that adds.

    Args:
        named: The address.
        points: The names of hook points.

    Raises:
        UnknownSiteError: It is no address, or of nothing that there is; the message says what there is.

    >>> points = ["double.0.hook_mlp_out", "double.0.hook_attn_out", "double.0.text.hook_mlp_out"]
    >>> [aim.point for aim in aims_at("D0.img~3", points)]
    ['double.0.hook_attn_out', 'double.0.hook_mlp_out']
    >>> aims_at("D1.img.mlp", points)
    Traceback (most recent call last):
    vit_lens.errors.UnknownSiteError: D1.img.mlp: there is no such block; nearest: 'D0'. There are D0 to D0
    """
    address = Address.parse(str(named))
    if address.tower is not None:
        raise UnknownSiteError(f"{address}: a denoiser is one model; leave {address.tower}: off")
    if address.sigma is not None:
        raise UnknownSiteError(f"{address}: the levels of noise are those of a run; name the step by its index, as ~3")
    if (position := address.position) is not None and position.kind not in ("index", "patch"):
        raise UnknownSiteError(
            f"{address}: tokens of a denoiser go by number, as @7: cells of the picture row by row, words of the text "
            "as its tokenizer has them"
        )
    found = []
    for part in _parts(address.part, points):
        with suppress(UnknownSiteError):  # what is of no one hook point
            if part.hook_name in points:
                found.append(Aim(part.hook_name, replace(part, position=position, step=address.step)))
    if not found:
        raise _absent(address, points)
    return found


def _parts(part: Address, points: Collection[str]) -> list[Address]:
    if part.feature is not None:
        sites = [address_of(name.removesuffix(CODES)) for name in points if name.endswith(CODES)]
        return [part.resolve_feature([site for site in sites if site is not None])]
    streams = [part]
    if part.block in ("D", "S") and part.hook != "gate" and not (part.hook or "").startswith(_STREAMS):
        streams = [replace(part, hook=f"{s}.{part.hook}" if part.hook else s) for s in _STREAMS]
    found = []
    for one in streams:
        whole = (one.head, one.neuron) == (None, None) and one.hook in (None, *_STREAMS)
        found += [find_address(f"{one}.{name}") for name in _ADDED] if whole else [one]
    return [one for one in found if one is not None]


def _absent(address: Address, points: Collection[str]) -> UnknownSiteError:
    known = [one for one in map(address_of, points) if one is not None]
    here = [str(one) for one in known if _block(one) == _block(address)]
    if here:
        return UnknownSiteError(f"{address}: there is no such part; nearest: {nearest(str(address), here)}. There are "
                                f"{', '.join(here)}, and heads and neurons of attention and MLPs")  # fmt: skip
    groups: dict[tuple[str | None, str | None], list[Address]] = {}
    for one in dict.fromkeys(map(_block, known)):
        if one.within in (None, address.within) or one.block is None:
            groups.setdefault((one.within, one.block), []).append(one)
    blocks = [str(one) for group in groups.values() for one in group]
    told = [f"{group[0]} to {group[-1]}" if group[0].block else str(group[0]) for group in groups.values()]
    return UnknownSiteError(
        f"{address}: there is no such block; nearest: {nearest(str(_block(address)), blocks)}. There are "
        f"{', '.join(told)}"
    )


def _block(part: Address) -> Address:
    return Address(within=part.within, block=part.block, layer=part.layer)
