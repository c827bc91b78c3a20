"""Run a model and its source side by side, one layer at a time, and measure how far they come apart."""

__all__ = ["Difference", "differences", "norm_faults"]

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_lens.errors import VitLensError
from vit_lens.sources import SourceTower
from vit_lens.towers import HookedTower, LayerNorm, working_copy
from vit_lens.verification.copying import cast_while_running

Ids = Int[Tensor, "batch pos"]
_FINAL_NORM = "ln_final.hook_normalized"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two runs are apart at one place.

    Attributes:
        place: Where both were looked at: ``into L0``, ``L0`` (what leaves block 0), ..., ``final norm``, ``embedding``.
        max_diff: The largest absolute difference.
        max_source: The largest absolute value of the source.

    >>> Difference(place="L3", max_diff=1e-6, max_source=20.0).relative
    5e-08
    """

    place: str
    max_diff: float
    max_source: float

    @property
    def relative(self) -> float:
        """The largest difference, in units of the source's largest value."""
        return 0.0 if self.max_diff == 0 else self.max_diff / self.max_source if self.max_source else float("inf")


@torch.no_grad()
def differences(
    model: HookedTower,
    source: SourceTower,
    inputs: Float[Tensor, "batch channel height width"] | Ids,
    dtype: torch.dtype,
) -> list[Difference]:
    """Compare what enters block 0, what leaves every block, the final norm and the embedding.

    Both run from the same pixels, or ids of prompts, on their own results. While the source runs, the model follows
    block by block, so that the activations of one layer of each are in memory, and one block of each in ``dtype``.
    Where weight processing changed what an activation means, residual streams are compared without their mean, and a
    folded final norm is left out.

    Args:
        model: Without hooks.
        source: In any dtype and on any device; it is cast to the model's dtype, then to ``dtype``. Both run as copies.
        inputs: Pixels of the model's dtype and device, or ids of prompts.
        dtype: To compute in.

    Raises:
        VitLensError: The source does not run as its family does.
    """
    casts = dict.fromkeys((model.dtype, dtype))
    ours = working_copy(model, dtype, device=model.device, uncast=model.blocks)
    theirs = working_copy(source, *casts, device=model.device, uncast=source.blocks)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    run = _Lockstep(ours, theirs, inputs, tuple(casts))
    handles = [theirs.final_norm.register_forward_hook(run.leave_norm)]
    for layer, block in enumerate(theirs.blocks):
        handles.append(block.register_forward_pre_hook(partial(run.enter_block, layer), with_kwargs=True))
        handles.append(block.register_forward_hook(partial(run.leave_block, layer)))
    try:
        embedding = theirs(run.inputs)
        run.compare("embedding", run.embedding, embedding)
    finally:
        for handle in handles:  # they tie the copies into a cycle, which would outlive this call
            handle.remove()
    expected = 3 + len(source.blocks) - ("fold_ln" in run.steps)
    if len(run.found) != expected:
        told = ", ".join(difference.place for difference in run.found)
        raise VitLensError(f"the {source.kind} ran through {told} alone, so it cannot be compared layer by layer")
    return run.found


def norm_faults(model: HookedTower, source: SourceTower) -> list[str]:
    """Return the norms of the model whose eps the source does not have: float32 may not show it in numbers."""
    every = [getattr(part, "variance_epsilon", getattr(part, "eps", None)) for part in source.modules()]
    known = sorted({float(eps) for eps in every if eps is not None})
    told = ", ".join(f"{eps:g}" for eps in known)
    norms = [(name, part.eps) for name, part in model.named_modules() if isinstance(part, LayerNorm)]
    return [f"{name} has eps {eps:g}, the source {told}" for name, eps in norms if known and eps not in known]


@dataclass(eq=False)
class _Lockstep:
    """The model's side: it advances when the source does."""

    model: HookedTower
    source: SourceTower
    inputs: Float[Tensor, "batch channel height width"] | Ids
    casts: tuple[torch.dtype, ...]
    found: list[Difference] = field(default_factory=list)
    casting: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.steps = self.model.processing.steps if self.model.processing else ()
        self.resid = self.embedding = self.inputs

    def enter_block(self, layer: int, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if layer == 0:
            self.resid = self.model.forward(self.inputs, stop_at_layer=0)  # a call would refuse NaN, here a difference
            self._compare_stream("into L0", args[0] if args else kwargs["hidden_states"])
        self.casting.enter_context(cast_while_running(block, *self.casts))

    def leave_block(self, layer: int, block: nn.Module, args: tuple, output: Any) -> None:
        self.casting.close()
        with cast_while_running(self.model.blocks[layer], *self.casts):
            self.resid = self.model.run_blocks(self.resid, range(layer, layer + 1))
        self._compare_stream(f"L{layer}", output[0] if isinstance(output, tuple) else output)

    def leave_norm(self, norm: nn.Module, args: tuple, output: Tensor) -> None:
        normed, self.embedding = self._read_out()
        if "fold_ln" not in self.steps:
            # Hugging Face's CLIP norms the class token alone.
            self.compare("final norm", normed[:, 0] if output.ndim == 2 else normed, output)

    def compare(self, place: str, ours: Tensor, source: Tensor, *, centred: bool = False) -> None:
        if ours.shape != source.shape:
            raise VitLensError(
                f"{place}: the model has {list(ours.shape)}, the source {list(source.shape)}; it is another tower"
            )
        ours, source = ours.cpu().double(), source.cpu().double()
        if centred:
            ours, source = (x - x.mean(-1, keepdim=True) for x in (ours, source))
        largest = float((ours - source).abs().max()), float(source.abs().max())
        self.found.append(Difference(place=place, max_diff=largest[0], max_source=largest[1]))

    def _compare_stream(self, place: str, source: Tensor) -> None:
        source = source.transpose(0, 1) if self.source.tokens_first else source
        self.compare(place, self.resid, source, centred="center_writing_weights" in self.steps)

    def _read_out(self) -> tuple[Tensor, Tensor]:
        if not torch.isfinite(self.resid).all():  # the model refuses such a stream; here it is a difference
            nothing = torch.full_like(self.resid, float("nan"))
            shape = nothing.shape[: 2 if self.model.cfg.pool == "all" else 1]
            return nothing, nothing.new_full((*shape, self.model.cfg.d_embed), float("nan"))
        last = self.model.cfg.n_layers
        kept, hooks, _ = self.model.get_caching_hooks(_FINAL_NORM)
        with self.model.hooks(hooks):
            texts = {} if self.inputs.is_floating_point() else {"tokens": self.inputs}  # say where they end
            embedding = self.model.forward(self.resid, start_at_layer=last, **texts)
        return kept[_FINAL_NORM], embedding
