"""What a model is given: pixels, ids, a residual stream, a mask; checked before anything runs."""

__all__ = ["check_input", "check_tokens", "whole_mask"]

import torch
from jaxtyping import Bool
from torch import Tensor

from vit_lens.config import HookedTextConfig, TowerConfig
from vit_lens.errors import PreprocessError, TextError, VitLensError


def whole_mask(
    mask: Tensor, batch: int, cfg: TowerConfig, device: torch.device | None = None, n_pos: int | None = None
) -> Bool[Tensor, "#batch #head pos pos"]:
    """Return a mask as [batch or 1, head or 1, pos, pos]: True where a query (third axis) may look at a key.

    Args:
        mask: Bool [pos pos], or with both axes before them.
        batch: The number of images that it is for.
        cfg: The config of the tower.
        device: The device of the images; None does not check it.
        n_pos: The number of tokens of each; None takes as many as the tower reads.

    Raises:
        VitLensError: The mask is of another shape, dtype or device, or leaves a query nothing to look at.

    >>> whole_mask(torch.ones(17, 17, dtype=torch.bool), 2, model.cfg).shape
    torch.Size([1, 1, 17, 17])
    """
    n_heads, n_ctx = cfg.n_heads, n_pos or cfg.n_ctx
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else None
    whole = (1, 1, *shape) if shape and len(shape) == 2 else shape
    fits = whole and len(whole) == 4 and whole[0] in (1, batch) and whole[1] in (1, n_heads)
    if not whole or not fits or whole[2:] != (n_ctx, n_ctx) or mask.dtype != torch.bool:
        given = f"{shape} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise VitLensError(
            f"mask of {given}; expected bool of shape ({n_ctx}, {n_ctx}) or ({batch} or 1, {n_heads} or 1, "
            f"{n_ctx}, {n_ctx}), True where a query (third axis) may look at a key"
        )
    if device is not None and mask.device != device:
        raise VitLensError(f"mask is on {mask.device}, the model on {device}; give mask.to(model.device)")
    if not torch.compiler.is_compiling() and not mask.is_meta and not mask.any(-1).all():
        raise VitLensError("mask leaves a query no key to look at: give every row at least one True")
    return mask.reshape(whole)


def check_input(x: Tensor, expected: tuple[int, ...], like: Tensor) -> None:
    """Raise unless ``x`` holds whole pixels, or a residual stream, of the dtype and device of ``like``.

    Args:
        x: The tensor that the model was given.
        expected: Its shape but for the batch: (channel, height, width), or (pos, d_model).
        like: A weight of the model, whose dtype and device count.

    Raises:
        PreprocessError: The tensor is of another shape, dtype or device, or not finite; the message says what was
            expected.

    >>> check_input(torch.zeros(1, 3, 32, 32), (3, 64, 64), model.W_E)
    Traceback (most recent call last):
    vit_lens.errors.PreprocessError: pixels of shape (1, 3, 32, 32); expected (batch, 3, 64, 64); ...
    """
    name, advice = "pixels", "model.preprocess(images) gives the right ones"
    if len(expected) == 2:
        name, advice = "a residual stream", "with start_at_layer, give what entered that block: [batch pos d_model]"
    if not isinstance(x, Tensor):
        raise PreprocessError(f"expected a tensor of {name}, got {type(x).__name__}; {advice}")
    if x.layout != torch.strided:
        raise PreprocessError(f"{name} of layout {x.layout}; expected a dense tensor: give x.to_dense()")
    if tuple(x.shape[1:]) != expected or not len(x):
        if x.ndim == 4 == len(expected) + 1 and x.shape[1] == expected[0] and len(x):
            advice += f"; a tower of Hugging Face takes others if loaded with image_size={tuple(x.shape[2:])}"
        raise PreprocessError(
            f"{name} of shape {tuple(x.shape)}; expected (batch, {', '.join(map(str, expected))}); {advice}"
        )
    if x.dtype != like.dtype or x.device != like.device:
        raise PreprocessError(
            f"{name} of dtype {x.dtype} on {x.device}; the model is {like.dtype} on {like.device}; {advice}"
        )
    if torch.compiler.is_compiling() or x.is_meta:
        return
    finite = torch.isfinite(x).flatten(1).all(1)
    if not finite.all():
        raise PreprocessError(f"image {int((~finite).nonzero()[0])} holds NaN or infinite {name.split()[-1]}")


def check_tokens(ids: Tensor, cfg: HookedTextConfig, what: str = "prompts") -> None:
    """Raise unless ``ids`` are those of prompts that a text tower reads, [batch pos].

    Args:
        ids: The tensor that the model was given.
        cfg: The config of the tower.
        what: The argument that they came by, for messages.

    Raises:
        TextError: The tensor is of another shape or dtype, holds more tokens than the tower reads, or an id that it
            does not embed.

    >>> check_tokens(torch.tensor([[1, 25, 99]]), text_model.cfg)
    Traceback (most recent call last):
    vit_lens.errors.TextError: id 99 in prompts: the tower embeds 60 ids, counted from 0; ...
    """
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel():
        given = f"a tensor of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise TextError(f"{what} is {given}; expected texts, or ids [batch pos]: model.to_tokens(texts)")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TextError(
            f"{what} of dtype {ids.dtype}; expected ids, whole numbers; a residual stream goes with start_at_layer="
        )
    if ids.shape[1] > cfg.n_ctx:
        raise TextError(
            f"{what} of {ids.shape[1]} tokens; this tower reads {cfg.n_ctx}: model.to_tokens(texts, truncate=True) cuts"
        )
    if ids.layout != torch.strided:
        raise TextError(f"{what} of layout {ids.layout}; expected a dense tensor: give ids.to_dense()")
    if torch.compiler.is_compiling() or ids.is_meta:
        return
    if (odd := ids[(ids < 0) | (ids >= cfg.n_vocab)]).numel():
        raise TextError(
            f"id {int(odd[0])} in {what}: the tower embeds {cfg.n_vocab} ids, counted from 0; tokenise with its own "
            "tokenizer: model.to_tokens(texts)"
        )
