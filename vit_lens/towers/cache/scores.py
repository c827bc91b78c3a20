"""What captions score: components of the stream along them, and its states as if the tower ended there."""

__all__ = ["Scores"]

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import LensError, VitLensError
from vit_lens.towers.cache.held import HeldActivations, as_slice, need, readout_rows
from vit_lens.towers.cache.norms import FrozenNorm, images_of
from vit_lens.towers.cache.stream import stream_until
from vit_lens.towers.contract import CaptionBank

_NOT_FOR_IMAGES = {
    "positions": "the read-out decides which rows are read",
    "batch_slice": "cut the cache first: cache.apply_slice_to_batch_dim(...)",
    "targets": "index the last axis, with texts.index(caption)",
    "vocab": "index the last axis",
    "top_k": "use .topk on the result",
    "return_type": "these are logits; .softmax(-1), or for SigLIP .sigmoid(), gives probabilities",
    "apply_ln": "the embedding is always read through the final norm",
}


class Scores(HeldActivations):
    """Attributions to captions, and the logit lens."""

    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "component *batch_pos d_model"],
        tokens: Any,
        incorrect_tokens: Any = None,
        pos_slice: Any = None,
        batch_slice: Any = None,
        has_batch_dim: bool = True,
        *,
        incl_bias: bool = False,
    ) -> Float[Tensor, "component_out *batch_pos_out"]:
        """Return what each component adds to the image embedding along captions; see ``ActivationCache.logit_attrs``.

        With the scale of ``ln_final`` frozen and its weight applied (:meth:`apply_ln_to_stack`), then the
        direction ``W_U u``, where ``u`` is the unit text embedding of a caption of ``model.vocabulary``, or without
        one a dimension of the embedding. At the read-out rows (position 0; or the mean over the patches) the sum
        over a full decomposition with ``incl_bias`` is ``u`` times the embedding before normalisation. Divide by
        the norm of ``cache["hook_image_embeds"]`` for parts of the cosine, and multiply by the logit scale for parts
        of the logit.

        Args:
            residual_stack: The components, cut by ``pos_slice`` already.
            tokens: A caption (str), or an index (int, tensor): one for all, [batch] one per image, [pos] one per
                position (where that is another number), or [batch pos].
            incorrect_tokens: What is taken off, in the same shape, so that attributions are to the difference; None
                for nothing.
            pos_slice: How the components were cut; None where they were not.
            batch_slice: Which images to keep, None for all; ``tokens`` are of these.
            has_batch_dim: Whether the components have a batch axis; see :meth:`apply_ln_to_stack`.
            incl_bias: Whether what is constant is appended: the bias of ``ln_final``, and of the projection.

        Raises:
            LensError: The tower pools by attention: there a token is not read by projection alone.
            VitLensError: Shapes do not fit, or a caption is unknown.
        """
        if not self.read_out.is_linear:
            raise LensError(
                "this tower pools tokens by attention, so no direction of the residual stream belongs to a caption; "
                "look at cache['attn_pool.hook_attn_out'], or embed states with cache.logit_lens or model.embed_rows"
            )
        direction, constant = self._direction(tokens)
        if incorrect_tokens is not None:
            other, other_constant = self._direction(incorrect_tokens)
            if other.shape != direction.shape:
                raise VitLensError(
                    f"tokens of shape {tuple(direction.shape[:-1])}, incorrect_tokens of {tuple(other.shape[:-1])}; "
                    "expected the same"
                )
            direction, constant = direction - other, constant - other_constant
        pos, batch = as_slice(pos_slice), as_slice(batch_slice)
        stack = images_of(self, residual_stack, pos, batch, has_batch_dim)
        stack = FrozenNorm(self, self.model.cfg.n_layers).of(stack, pos, batch, incl_bias=incl_bias)
        of_batch = has_batch_dim and self.has_batch_dim and batch.mode != "int"
        shape = _aligned(constant.shape, stack.shape[1:-1], of_batch, pos.mode != "int")
        direction = direction.to(stack).reshape(*shape, direction.shape[-1]).expand(*stack.shape[1:])
        attrs = einsum(stack, direction, "n ... d, ... d -> n ...")
        if incl_bias:
            attrs = torch.cat([attrs[:-1], attrs[-1:] + constant.to(attrs).reshape(shape)])
        return attrs

    def _direction(self, tokens: Any) -> tuple[Float[Tensor, "*tokens d_model"], Float[Tensor, "*tokens"]]:
        """Return the directions of captions in what ``ln_final`` gives, and what the projection's bias adds."""
        if not isinstance(tokens, str | int | Tensor) or isinstance(tokens, bool):
            raise VitLensError(
                f"tokens of type {type(tokens).__name__}; expected a caption, an int or a tensor of ints"
            )
        directions, bank = self.model.tokens_to_residual_directions(tokens), self.model.vocabulary
        index = torch.as_tensor(self.model.to_single_token(tokens) if isinstance(tokens, str) else tokens)
        b_U = self.model.b_U
        table = b_U if bank is None else bank.unit.to(b_U) @ b_U
        return directions, table[index.to(table.device)]

    def logit_lens(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        texts: CaptionBank | None = None,
        *,
        layers: Sequence[int] | None = None,
        incl_mid: bool = False,
        return_labels: bool = False,
        **unsupported: Any,
    ) -> Float[Tensor, "layer *batch caption"] | tuple[Float[Tensor, "layer *batch caption"], list[str]]:
        """Return zero-shot logits of the residual stream at every layer, as if the tower ended there.

        The read-out rows of each state pass the final norm with their own statistics, pooling and projection
        (:meth:`vit_lens.HookedViT.embed_rows`); the unit embedding is compared with the captions. The last entry
        is the model's own logits (a run that was edited behind its last block is refused). Earlier states were never
        trained to align with text: hold them against the last one, not against zero.

        Args:
            texts: The captions; None takes ``model.vocabulary``.
            layers: Which entries of the stack (:meth:`accumulated_resid`), negative from the end; None takes all.
            incl_mid: Whether the stream between attention and MLP is read as well.
            return_labels: Whether ``0_pre``, ``0_mid``, ..., ``final_post`` are returned as well.
            **unsupported: TransformerLens' other arguments raise.

        Raises:
            VitLensError: There are no captions, or they are another encoder's; an argument is for language models.
            LensError: The cache was cut by ``pos_slice``.
            UnknownHookError: The cache lacks a state; the message says what to cache.
        """
        for name in unsupported:
            advice = _NOT_FOR_IMAGES.get(name, "expected texts, layers, incl_mid, return_labels")
            raise VitLensError(f"logit_lens has no {name}=: {advice}")
        if texts is not None and not isinstance(texts, CaptionBank):
            raise VitLensError(f"texts is a TextBank, not {type(texts).__name__}: TextBank.from_open_clip(...)")
        bank = self.model.vocabulary if texts is None else texts.check(self.model)
        if bank is None:
            raise VitLensError(
                "logit_lens needs captions: give a TextBank, or set model.vocabulary = TextBank.from_open_clip(...)"
            )
        named = stream_until(self, self.model.cfg.n_layers, incl_mid)
        labels = _chosen(list(named), layers)
        states = need(self, [named[label] for label in labels], "logit_lens")
        embeds = [self.read_out.read(readout_rows(self, state)) for state in states]
        self._check_read_out(labels, embeds)
        logits = bank.logits(torch.stack(embeds))
        return (logits, labels) if return_labels else logits

    def _check_read_out(self, labels: list[str], embeds: list[Tensor]) -> None:
        own = self.cache_dict.get(self.model.output_point)
        if own is None or labels[-1] != "final_post":
            return
        allowed = min(1e4 * torch.finfo(own.dtype).eps, 0.1) * own.abs().amax()
        if not (embeds[-1].to(own) - own).abs().amax() <= allowed:
            raise LensError(
                f"this run was edited behind its last block (ln_final, hook_pooled, {self.model.output_point}), so its "
                "last residual does not lead to its embedding; make the cache without those hooks"
            )


def _chosen(labels: list[str], layers: Sequence[int] | None) -> list[str]:
    if layers is None:
        return labels
    if not len(layers) or any(not -len(labels) <= index < len(labels) for index in layers):
        raise VitLensError(
            f"layers={list(layers)}: expected at least one of 0 to {len(labels) - 1}, which are {labels}"
        )
    return [labels[index] for index in layers]


def _aligned(tokens: Sequence[int], axes: Sequence[int], of_batch: bool, of_pos: bool) -> tuple[int, ...]:
    """Return the shape in which tokens broadcast over the axes (batch, then positions) of components."""
    shape, axes = tuple(tokens), tuple(axes)
    if not shape or (len(shape) == len(axes) and all(t in (1, n) for t, n in zip(shape, axes, strict=True))):
        return shape if len(shape) != 1 or shape == axes else _refuse_tokens(shape, axes)
    if len(shape) == 1 and of_batch and of_pos and shape[0] in axes:
        return (shape[0], 1) if shape[0] == axes[0] else (1, shape[0])
    return _refuse_tokens(shape, axes)


def _refuse_tokens(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    raise VitLensError(
        f"tokens of shape {shape} for components with batch and position axes {axes}; expected one token, one per "
        "image, one per position, or one for each of both"
    )
