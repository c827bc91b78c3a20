"""The LayerNorms as linear maps: with the scale of the run frozen, each is a matrix on every contribution."""

__all__ = ["NormedActivations", "Reading"]

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.errors import BatchAxisError, LensError, VitLensError
from vit_lens.towers.cache.held import HeldActivations, as_slice, cut
from vit_lens.towers.layers import LayerNorm


@dataclass(frozen=True)
class Reading:
    """What a norm at a frozen scale, and then a projection, see of a contribution to the residual stream.

    The map is linear, so it is applied to the weights that write (``fold``), and the scale to what they are
    multiplied with (``scaled``): no product of tokens x neurons x d_model is built for a projection.

    Attributes:
        weight: Of the norm; None without a norm.
        scale: [*batch *pos 1], of the norm.
        project: [d_model out]; None keeps d_model.
    """

    weight: Float[Tensor, " d_model"] | None
    scale: Float[Tensor, "*batch_pos 1"] | None
    project: Float[Tensor, "d_model out"] | None

    def fold(self, written: Float[Tensor, "*axes d_model"], like: Tensor) -> Float[Tensor, "*axes out"]:
        """Return what is read of vectors, but for the scale, on the device of ``like`` and in its dtype or wider."""
        kinds = [t.dtype for t in (written, like, self.scale, self.project) if t is not None]
        dtype = kinds[0]
        for kind in kinds[1:]:
            dtype = torch.promote_types(dtype, kind)
        x = written.to(like.device, dtype)
        weight = None if self.weight is None else self.weight.to(x)
        if self.project is None:
            return x if weight is None else (x - x.mean(-1, keepdim=True)) * weight
        direction = self.project.to(x)
        if weight is not None:
            direction = weight[:, None] * direction
            direction = direction - direction.mean(0)  # centring is its own transpose
        return x @ direction

    def scaled(self, x: Float[Tensor, "*batch_pos_axes"], n_axes: int = 1) -> Float[Tensor, "*batch_pos_axes"]:
        """Return ``x`` over the scale; ``n_axes`` axes follow batch and positions."""
        if self.scale is None:
            return x
        return x / self.scale.to(x.device).reshape(*self.scale.shape[:-1], *[1] * n_axes)

    def __call__(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes out"]:
        """Return what is read of contributions, whose last axes are those of the scale."""
        return self.scaled(self.fold(x, x))


class NormedActivations(HeldActivations):
    """A cache that applies the model's norms to parts of the residual stream."""

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
            residual_stack: Components, cut by ``pos_slice`` already.
            layer: The block whose input this is; None, -1 and ``n_layers`` mean ``ln_final``.
            mlp_input: The block's ``ln2`` instead of its ``ln1``.
            pos_slice: How the components were cut; an int dropped the axis.
            batch_slice: Which images to keep, of components and scale.
            has_batch_dim: Whether the components have a batch axis; False with ``batch_slice=<int>`` for those of
                one image of a batch. Of no effect where the cache has none.
            recompute_ln: As in the table; in TransformerLens this acts on ``ln_final`` alone, here on every norm.
            weight: Apply the norm's weight.
            incl_bias: Append the norm's bias.

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
        layer = self._layer(layer, mlp_input)
        pos, batch = as_slice(pos_slice), as_slice(batch_slice)
        stack = self._images_of(residual_stack, pos, batch, has_batch_dim)
        _, norm, _ = self._norm(layer, mlp_input)
        if recompute_ln:
            return norm.read(stack.to(torch.promote_types(stack.dtype, torch.float32))).to(stack.dtype)
        scale = self._scale(layer, mlp_input, pos, batch)
        _check_fits(stack, scale)
        out = Reading(norm.w if weight else torch.ones_like(norm.w), scale, None)(stack)
        return torch.cat([out, norm.b.to(out).expand(1, *out.shape[1:])]) if incl_bias else out

    def _images_of(self, stack: Tensor, pos: Slice, batch: Slice, has_batch_dim: bool) -> Tensor:
        """Return the components of some of the images; how many axes they have is checked first."""
        if not self.has_batch_dim and batch.mode != "identity":
            raise BatchAxisError("the cache has no batch axis, so batch_slice has nothing to slice")
        of_batch = has_batch_dim and self.has_batch_dim
        axes = ["component", *["batch"] * of_batch, *["pos"] * (pos.mode != "int"), "d_model"]
        if stack.ndim != len(axes) or stack.shape[-1] != self.model.cfg.d_model:
            raise VitLensError(
                f"components of shape {tuple(stack.shape)}; expected [{' '.join(axes)}] with "
                f"d_model={self.model.cfg.d_model}. With pos_slice, cut the components too; without a batch axis, say "
                "has_batch_dim=False and batch_slice=<int>"
            )
        return cut(stack, batch, 1, "images") if of_batch else stack

    def _norm(self, layer: int, mlp_input: bool) -> tuple[str, LayerNorm, str]:
        """Return a norm's name, the norm, and the name of the residual stream that it reads."""
        if layer == self.model.cfg.n_layers:
            return "ln_final", self.model.ln_final, f"blocks.{layer - 1}.hook_resid_post"
        block = self.model.blocks[layer]
        if mlp_input:
            return f"blocks.{layer}.ln2", block.ln2, f"blocks.{layer}.hook_resid_mid"
        return f"blocks.{layer}.ln1", block.ln1, f"blocks.{layer}.hook_resid_pre"

    def _reading(
        self, layer: int, mlp_input: bool, pos: Slice, apply_ln: bool, project: Float[Tensor, "d_model out"] | None
    ) -> Reading:
        if project is not None and (project.ndim != 2 or len(project) != self.model.cfg.d_model):
            raise VitLensError(
                f"project_output_onto of shape {tuple(project.shape)}; expected [d_model] or [d_model out], with "
                f"d_model={self.model.cfg.d_model}"
            )
        if not apply_ln:
            return Reading(None, None, project)
        _, norm, _ = self._norm(layer, mlp_input)
        return Reading(norm.w, self._scale(layer, mlp_input, pos, as_slice(None)), project)

    def _norm_names(self, layer: int, mlp_input: bool, apply_ln: bool = True) -> list[str]:
        """Return what the scale of a norm is read from: itself, or where it is not cached, what the norm read."""
        name, _, resid = self._norm(layer, mlp_input)
        scale, is_lost = f"{name}.hook_scale", self._is_pooled(name) and self.rows == "cut"
        return [scale if scale in self.cache_dict or resid not in self.cache_dict or is_lost else resid] * apply_ln

    def _is_pooled(self, name: str) -> bool:
        """Whether a norm reads the mean over the patches."""
        return name == "ln_final" and self.model.readout.pools_first

    def _scale(self, layer: int, mlp_input: bool, pos: Slice, batch: Slice) -> Float[Tensor, "*batch_pos 1"]:
        name, norm, resid = self._norm(layer, mlp_input)
        is_pooled = self._is_pooled(name)
        if self.rows == "readout" and self.model.readout.pools_first and not is_pooled:
            raise LensError(
                f"{name} acts on every token, and a cache with rows='readout' of this tower holds their mean; make "
                "the cache without rows="
            )
        (key,) = self._norm_names(layer, mlp_input)
        (scale,) = self._need([key], f"a norm at its frozen scale ({name})")
        if key == resid:
            scale = norm.split(self._readout_rows(scale) if is_pooled else scale)[1]
        if scale.ndim != 2 + self.has_batch_dim:
            raise LensError(
                f"{name}.hook_scale has one scale per head (a switch or hook splits its input): no one norm reads a sum"
            )
        if is_pooled:  # one row, whatever positions were kept
            scale = scale[..., 0, :] if pos.mode == "int" else scale
        else:
            scale = cut(scale, pos, -2, "positions")
        return cut(scale, batch, 0, "images") if self.has_batch_dim else scale


def _check_fits(stack: Tensor, scale: Tensor) -> None:
    want, have = scale.shape[:-1], stack.shape[1:-1]
    if len(want) != len(have) or any(s not in (1, x) for s, x in zip(want, have, strict=True)):
        raise VitLensError(
            f"components with batch and position axes {tuple(have)}, the norm's scale has {tuple(want)}; pass the "
            "pos_slice and batch_slice that they were cut with"
        )
