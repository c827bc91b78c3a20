"""A hooked pipeline that takes addresses wherever it takes the names of hook points."""

__all__ = ["AddressedPipeline"]

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Address, address_of, find_address
from vit_lens.diffusion.calls import Call
from vit_lens.diffusion.costs import point_shapes
from vit_lens.diffusion.passes import n_steps
from vit_lens.diffusion.pipeline import PipelineModule
from vit_lens.errors import UnknownHookError, UnknownSiteError, VitLensError, nearest
from vit_lens.hooking import CODES, Aim, AimedGuard, CodesPoint, Name, aims_at, find_feature


class AddressedPipeline(PipelineModule):
    """A :class:`PipelineModule` whose parts have addresses; what a run has not is refused before it begins."""

    current_branch: str | None = None

    def aims(self, address: Address | str) -> list[Aim]:
        """Return what an address, or the name of a hook point, is in this model.

        Args:
            address: Such as ``D5.img.mlp``, ``S5.txt.update@7~3``, ``D5H2.img``, ``mid.0.update.f17``. Of both streams
                (``D5H2``) it is two; of a block, or a stream of it, it is all that adds to the residual stream.

        Raises:
            UnknownHookError: It is no address and no hook point; the message has the nearest.
            UnknownSiteError: The model has no such part; the message says what there is.

        >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
        >>> [aim.point for aim in sd.aims("mid.0.L0~3")]
        ['mid.0.blocks.0.hook_attn_out', 'mid.0.blocks.0.hook_cross_attn_out', 'mid.0.blocks.0.hook_mlp_out']
        >>> sd.aims("mid.1.update")
        Traceback (most recent call last):
        vit_lens.errors.UnknownSiteError: mid.1.update: there is no such block; nearest: 'mid.0', ...
        """
        name = str(address)
        if name in self.hook_dict:
            return [Aim(name)]
        said = find_address(name)
        if said is None:
            known = [*(str(one) for one in map(address_of, self.hook_dict) if one is not None), *self.hook_dict]
            raise UnknownHookError(f"no hook point or address {name!r}; nearest: {nearest(name, known)}")
        if said.feature is not None:
            said = replace(said, hook=find_feature(self.hook_dict, said.part)[0].hook)
        found = aims_at(said, self.hook_dict)
        for aim in found if said.head is not None else []:
            place = self._places[aim.point]
            n: Any = self.denoiser.get_submodule(place.path(str(place.port.heads))).heads
            if said.head >= n:
                raise UnknownSiteError(f"{said}: there are heads H0 to H{n - 1}")
        return found

    def _is_address(self, name: object) -> bool:
        return isinstance(name, Address) or (
            isinstance(name, str) and name not in self.hook_dict and "hook_" not in name
        )

    def hook_points_named(self, name: Name | Address) -> list[tuple[str, HookPoint]]:
        """Return the hook points that a name, an address of whole ones or a predicate on names selects.

        Raises:
            UnknownHookError: No hook point is selected; the message names the nearest.
            UnknownSiteError: The model has no such part, or the address is of a part of a hook point.
        """
        if not self._is_address(name):
            return super().hook_points_named(name)  # pyright: ignore[reportArgumentType]
        aims = self.aims(name)  # pyright: ignore[reportArgumentType]
        if any(aim.key != aim.point or aim.step is not None for aim in aims):
            raise UnknownSiteError(
                f"{name}: whole hook points are asked for, in every step; leave head, neuron, feature, token and step "
                "off, or give it to run_with_hooks, hooks() or run_with_cache"
            )
        return [(aim.point, self.hook_dict[aim.point]) for aim in aims]

    def _guards_at(self, name: Any, hook: Callable, direction: Any) -> list[Any]:
        if not self._is_address(name):
            return super()._guards_at(name, hook, direction)
        return [AimedGuard(hook, aim, direction, self) for aim in self.aims(name)]

    def _kept(self, names_filter: Any) -> list[Aim]:
        """Return what a ``names_filter`` selects, in the order of the hook points."""
        if names_filter is None:
            return [Aim(name) for name in self.hook_dict]
        items: Any = names_filter
        if isinstance(names_filter, (str, Address)) or not isinstance(names_filter, Iterable):
            items = [names_filter]
        aims: dict[tuple[str, int | None], Aim] = {}
        for item in items:
            found = self.aims(item) if self._is_address(item) else [Aim(n) for n, _ in self.hook_points_named(item)]
            aims |= {(aim.key, aim.step): aim for aim in found}
        if not aims:
            raise UnknownHookError("names_filter is empty; pass None to cache everything")
        order = list(self.hook_dict)
        several = [aim for aim in aims.values() if aim.step is None or (aim.key, None) not in aims]
        return sorted(several, key=lambda aim: order.index(aim.point))

    def _refuse_absent(self, call: Call) -> None:
        """Refuse hooks at a step, token, unit or branch that a run has not, before it begins.

        A hook function may say its own ``at_steps`` and ``branches``.
        """
        for point in self.hook_dict.values():
            for guard in [getattr(handle, "guard", None) for handle in point.fwd_hooks]:
                hook = getattr(guard, "hook", None)
                name = guard.aim.name if isinstance(guard, AimedGuard) else point.name
                if absent := {*getattr(hook, "branches", ())} - {*call.branches}:
                    raise VitLensError(f"{name} is to be changed in branches {sorted(absent)} that the run has not")
                if late := [step for step in getattr(hook, "at_steps", ()) if step >= self._steps(call)]:
                    raise VitLensError(
                        f"{name} is to be changed at steps {late}; a run of steps={call.every['num_inference_steps']} "
                        f"has the steps 0 to {self._steps(call) - 1}"
                    )
                if not isinstance(guard, AimedGuard):
                    continue
                self._refuse_step(guard.aim, call)
                if (guard.aim.token, guard.aim.unit) != (None, None):
                    self._shape(guard.aim, call)

    def _steps(self, call: Call) -> int:
        return n_steps(self.pipeline.scheduler, call.every["num_inference_steps"], call.every)

    def _refuse_step(self, aim: Aim, call: Call) -> None:
        if aim.step is not None and aim.step >= (n := self._steps(call)):
            steps = call.every["num_inference_steps"]
            raise UnknownSiteError(f"{aim.address}: a run of steps={steps} has the steps ~0 to ~{n - 1}")

    def _shape(self, aim: Aim, call: Call) -> tuple[int, ...]:
        """Return the shape of what is meant, in one step of one branch of a run.

        Raises:
            UnknownSiteError: The run has no such token or unit.
        """
        return aim.shape_of(self._point_shape(aim.point, call))

    def _point_shape(self, name: str, call: Call) -> tuple[int, ...]:
        """Return the shape of what a hook point holds, those that a spliced dictionary adds included."""
        given = call.shapes(self.pipeline, self._row)
        if (key := repr(given)) not in self._shapes:
            self._shapes = {key: point_shapes(self.denoiser, self._row, given)}
        shapes = self._shapes[key]
        if name in shapes:
            return shapes[name]
        site = next(each for each in shapes if name.startswith(f"{each}.hook_sae_"))
        codes = self.hook_dict[site + CODES]
        n_features = codes.n_features if isinstance(codes, CodesPoint) else 0
        return (*shapes[site][:-1], n_features if "_acts_" in name else shapes[site][-1])

    def _bytes(self, aims: Sequence[Aim], steps: Sequence[int], call: Call) -> int:
        """Return what a cache of these holds, of one branch."""
        every = [len(steps) if aim.step is None else 1 for aim in aims]
        numbers = sum(n * math.prod(self._shape(aim, call)) for n, aim in zip(every, aims, strict=True))
        return numbers * self.dtype.itemsize
