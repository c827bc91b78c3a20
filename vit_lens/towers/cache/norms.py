"""The LayerNorms as linear maps: with the scale of the run frozen, each is a matrix on every contribution."""

__all__ = ["FrozenNorm", "LabelledStack", "Norms", "Parts", "Reading", "Stack", "images_of"]

from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.errors import BatchAxisError, LensError, VitLensError, expect
from vit_lens.towers.cache.held import HeldActivations, as_slice, cut, input_of, need, readout_rows
from vit_lens.towers.layers import LayerNorm, wide

Stack = Float[Tensor, "component *batch_pos out"]
Parts = tuple[Stack, list[str]]
LabelledStack = Stack | Parts


@dataclass(frozen=True)
class Reading:
    """What a norm at a frozen scale, and then a projection, see of a contribution to the residual stream.

    The map is linear, so it is applied to the weights that write (``fold``), and the scale to what they are
    multiplied with (``scaled``): no product of tokens x neurons x d_model is built for a projection.

    Attributes:
        norm: The norm, or None.
        scale: [*batch *pos 1], of the norm.
        project: [d_model out]; None keeps d_model.
        is_weighted: Whether the norm's weight is applied.
    """

    norm: LayerNorm | None
    scale: Float[Tensor, "*batch_pos 1"] | None
    project: Float[Tensor, "d_model out"] | None
    is_weighted: bool = True

    def fold(self, written: Float[Tensor, "*axes d_model"], like: Tensor) -> Float[Tensor, "*axes out"]:
        """Return what is read of vectors, but for the scale, on the device of ``like`` and in its dtype or wider."""
        kinds = [t.dtype for t in (written, like, self.scale, self.project) if t is not None]
        x = written.to(like.device, reduce(torch.promote_types, kinds))
        norm, direction = self.norm, None if self.project is None else self.project.to(x)
        if norm is None:
            return x if direction is None else x @ direction
        weight = norm.w.to(x) if self.is_weighted else torch.ones_like(norm.w).to(x)
        if direction is None:
            return norm.centre(x) * weight
        return x @ norm.centre((weight[:, None] * direction).T).T  # centring is its own transpose

    def scaled(self, x: Float[Tensor, "*batch_pos_axes"], n_axes: int = 1) -> Float[Tensor, "*batch_pos_axes"]:
        """Return ``x`` over the scale; ``n_axes`` axes follow batch and positions."""
        if self.scale is None:
            return x
        return x / self.scale.to(x.device).reshape(*self.scale.shape[:-1], *[1] * n_axes)

    def __call__(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes out"]:
        """Return what is read of contributions, whose last axes are those of the scale."""
        return self.scaled(self.fold(x, x))


@dataclass(frozen=True)
class FrozenNorm:
    """The norm that reads the stream at the input of a layer, at the scale that it had in a run.

    Attributes:
        cache: Of the run.
        layer: The block whose input this is; ``n_layers`` means ``ln_final``.
        mlp_input: The block's ``ln2`` instead of its ``ln1``.
    """

    cache: HeldActivations
    layer: int
    mlp_input: bool = False

    @property
    def name(self) -> str:
        """The norm's name."""
        is_last = self.layer == self.cache.model.cfg.n_layers
        return "ln_final" if is_last else f"blocks.{self.layer}.{'ln2' if self.mlp_input else 'ln1'}"

    @property
    def module(self) -> LayerNorm:
        """The norm."""
        return cast("LayerNorm", self.cache.model.get_submodule(self.name))

    @property
    def is_pooled(self) -> bool:
        """Whether the norm reads the mean over the patches."""
        return self.name == "ln_final" and self.cache.read_out.pools_first

    def names(self, apply_ln: bool = True) -> list[str]:
        """Return what the scale is read from: itself, or where it is not cached, the stream; nothing for no norm."""
        resid = f"blocks.{self.layer}.hook_resid_{'mid' if self.mlp_input else 'pre'}"
        if self.name == "ln_final":
            resid = f"blocks.{self.layer - 1}.hook_resid_post"
        scale, held = f"{self.name}.hook_scale", self.cache.cache_dict
        is_lost = self.is_pooled and self.cache.rows == "cut"
        return [scale if scale in held or resid not in held or is_lost else resid] * apply_ln

    def scale(self, pos: Slice, batch: Slice) -> Float[Tensor, "*batch_pos 1"]:
        """Return the scale, cut as the components are that it divides.

        Raises:
            LensError: It has no one scale, or not of the rows that the cache holds.
        """
        cache = self.cache
        if cache.rows == "readout" and cache.read_out.pools_first and not self.is_pooled:
            raise LensError(
                f"{self.name} acts on every token, and a cache with rows='readout' of this tower holds their mean; "
                "make the cache without rows="
            )
        (key,) = self.names()
        (scale,) = need(cache, [key], f"a norm at its frozen scale ({self.name})")
        if not key.endswith("hook_scale"):
            scale = self.module.split(readout_rows(cache, scale) if self.is_pooled else scale)[1]
        if scale.ndim != 2 + cache.has_batch_dim:
            raise LensError(
                f"{self.name}.hook_scale has one scale per head (a switch or hook splits its input): no one norm reads "
                "a sum"
            )
        if self.is_pooled:  # one row, whatever positions were kept
            scale = scale[..., 0, :] if pos.mode == "int" else scale
        else:
            scale = cut(scale, pos, -2, "positions")
        return cut(scale, batch, 0, "images") if cache.has_batch_dim else scale

    def reading(
        self, pos: Slice, apply_ln: bool = True, project: Float[Tensor, "d_model out"] | None = None
    ) -> Reading:
        """Return what the norm, unless ``apply_ln`` is False, and then a projection make of contributions."""
        d_model = self.cache.model.cfg.d_model
        if project is not None and (project.ndim != 2 or len(project) != d_model):
            raise VitLensError(
                f"project_output_onto of shape {tuple(project.shape)}; expected [d_model] or [d_model out], with "
                f"d_model={d_model}"
            )
        if not apply_ln:
            return Reading(None, None, project)
        return Reading(self.module, self.scale(pos, as_slice(None)), project)

    def of(
        self, stack: Stack, pos: Slice, batch: Slice, *, weight: bool = True, incl_bias: bool = False
    ) -> Float[Tensor, "component_out *batch_pos out"]:
        """Return components of some of the images through the norm."""
        norm, scale = self.module, self.scale(pos, batch)
        _check_fits(stack, scale)
        out = Reading(norm, scale, None, weight)(stack)
        return torch.cat([out, norm.b.to(out).expand(1, *out.shape[1:])]) if incl_bias else out

    def recomputed(self, stack: Stack) -> Stack:
        """Return the norm of every component, with its own statistics."""
        return self.module.read(wide(stack)).to(stack.dtype)


class Norms(HeldActivations):
    """What the norms of the run make of parts of the residual stream."""

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "component *batch_pos d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Any = None,
        batch_slice: Any = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
        *,
        weight: bool = True,
        incl_bias: bool = False,
    ) -> Float[Tensor, "component_out *batch_pos_out d_model"]:
        """Apply a norm, at the scale that it had in the run, to components of what it reads.

        A norm at a frozen scale ``s`` is linear but for its bias: ``LN(sum of x) = sum of (x - mean x) / s * w, + b``.
        TransformerLens leaves ``w`` and ``b`` out, since its models are folded: there they are 1 and 0. A tower
        as it was trained has both, so here ``w`` is applied; after folding (``w = 1``) the two agree.

        ==================================== ==========================================================
        default                              ``(x - mean x) / s * w``
        ``incl_bias=True``                   the same, and ``b`` as one more, last, component: the sum over
                                             a full decomposition is ``hook_normalized``
        ``weight=False``                     ``(x - mean x) / s``, as TransformerLens
        ``recompute_ln=True``                ``LN(x)`` of every component, with its own statistics, ``w`` and ``b``
        ==================================== ==========================================================

        The bias itself is ``model.ln_final.b`` (``model.blocks[l].ln1.b``, ``.ln2.b``). The scale is the cached
        ``hook_scale``; where the cache has none, that of the cached residual stream which the norm reads, which is
        the same unless a hook edited the scale. A tower that pools before its last norm (``ln_final="after_pool"``)
        has one scale per image: components keep their positions, and the mean over the patches is what they
        contribute; with ``recompute_ln`` each position is read as if it alone were pooled.

        Args:
            residual_stack: The components, cut by ``pos_slice`` already.
            layer: The block whose input this is; None, -1 and ``n_layers`` mean ``ln_final``.
            mlp_input: Whether the norm is the block's ``ln2``, not its ``ln1``.
            pos_slice: How the components were cut, None where they were not; an int dropped the axis.
            batch_slice: Which images to keep, of components and scale; None keeps all.
            has_batch_dim: Whether the components have a batch axis; False with ``batch_slice=<int>`` for those of
                one image of a batch. Of no effect where the cache has none.
            recompute_ln: Whether each component has statistics of its own, as in the table; in TransformerLens this
                acts on ``ln_final`` alone, here on every norm.
            weight: Whether the norm's weight is applied.
            incl_bias: Whether the norm's bias is appended.

        Raises:
            UnknownHookError: Neither scale nor residual stream is cached; the message says what to cache.
            VitLensError: Shapes do not fit, or the options contradict each other.
        """
        if incl_bias and (recompute_ln or not weight):
            raise VitLensError(
                "incl_bias=True goes with weight=True and recompute_ln=False: else no sum contains it once"
            )
        if recompute_ln and not weight:
            raise VitLensError("recompute_ln=True applies the whole norm; leave weight=True")
        norm = FrozenNorm(self, input_of(self, layer, mlp_input), mlp_input)
        pos, batch = as_slice(pos_slice), as_slice(batch_slice)
        stack = images_of(self, residual_stack, pos, batch, has_batch_dim)
        if recompute_ln:
            return norm.recomputed(stack)
        return norm.of(stack, pos, batch, weight=weight, incl_bias=incl_bias)


def images_of(cache: HeldActivations, stack: Tensor, pos: Slice, batch: Slice, has_batch_dim: bool) -> Tensor:
    """Return the components of some of the images; how many axes they have is checked first."""
    if not cache.has_batch_dim and batch.mode != "identity":
        raise BatchAxisError("the cache has no batch axis, so batch_slice has nothing to slice")
    expect(stack, Tensor, "a stack of components", VitLensError, "such as decompose_resid gives")
    of_batch = has_batch_dim and cache.has_batch_dim
    axes = ["component", *["batch"] * of_batch, *["pos"] * (pos.mode != "int"), "d_model"]
    if stack.ndim != len(axes) or stack.shape[-1] != cache.model.cfg.d_model:
        raise VitLensError(
            f"components of shape {tuple(stack.shape)}; expected [{' '.join(axes)}] with "
            f"d_model={cache.model.cfg.d_model}. With pos_slice, cut the components too; without a batch axis, say "
            "has_batch_dim=False and batch_slice=<int>"
        )
    return cut(stack, batch, 1, "images") if of_batch else stack


def _check_fits(stack: Tensor, scale: Tensor) -> None:
    want, have = scale.shape[:-1], stack.shape[1:-1]
    if len(want) != len(have) or any(s not in (1, x) for s, x in zip(want, have, strict=True)):
        raise VitLensError(
            f"components with batch and position axes {tuple(have)}, the norm's scale has {tuple(want)}; pass the "
            "pos_slice and batch_slice that they were cut with"
        )
