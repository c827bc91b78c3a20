"""The numbers that let a page scale parts of a tower: contributions, and what LayerNorm's scale is made of."""

__all__ = ["gather_live", "live_part", "n_live_images"]

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import read_rows, split_embedding
from vit_lens.lenses import site_outputs
from vit_lens.models import HookedViT
from vit_lens.records import LIVE_BUDGET, LiveNumbers, live_bytes, live_labels
from vit_lens.towers import ViTActivationCache

_START = ("embed", "pos_embed", "L0.resid_pre")


def n_live_images(model: HookedViT) -> int:
    """Return how many images a page can carry; their numbers are all that a record stores."""
    size = live_bytes(len(live_labels(model.cfg)), model.cfg.d_embed, recomputed=_is_recomputed(model))
    return LIVE_BUDGET // size


def live_part(model: HookedViT, cache: ViTActivationCache, clean: Float[Tensor, "1 d_embed"]) -> dict[str, Tensor]:
    """Return the live numbers of one image; see :meth:`vit_lens.records.LiveNumbers.by_image`.

    Args:
        model: The model.
        cache: Of its run, with ``rows="readout"``.
        clean: Its embedding.
    """
    labels = live_labels(model.cfg)
    split = split_embedding(cache)
    terms = split.values[:, 0].cpu().double()  # float64 is not on every device
    values = dict(zip(split.labels, terms, strict=True))
    values["start"] = torch.stack([values[name] for name in _START if name in values]).sum(0)
    contributions = torch.stack([values[label] for label in labels])
    embedding = clean[0].double().to(contributions)
    constant = terms.sum(0) - contributions.sum(0)
    found = {"contributions": contributions, "constant": constant, "embedding": embedding}
    if _is_recomputed(model):
        found |= zip(("gram", "along", "variance"), _scale_numbers(model, cache), strict=True)
    return {name: value.float().cpu() for name, value in found.items()}


def gather_live(model: HookedViT, found: Mapping[int, Mapping[str, Tensor]]) -> LiveNumbers:
    """Put the live numbers of images together, at least of one."""
    tensors: dict[str, Any] = {name: value[None] for name, value in next(iter(found.values())).items()}
    said = {"labels": live_labels(model.cfg), "recomputed": _is_recomputed(model), "eps": float(model.cfg.eps)}
    return LiveNumbers(images=tuple(found)[:1], **said, **tensors).holding(found)


def _is_recomputed(model: HookedViT) -> bool:
    """Whether one row is normed, whose scale is a quadratic form; of many rows each would need its own."""
    return len(model.readout.positions(model.cfg.n_ctx)) <= 1  # none: the one row is a mean


def _scale_numbers(
    model: HookedViT, cache: ViTActivationCache
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " component"], Float[Tensor, ""]]:
    cfg = model.cfg
    parts = [read_rows(cache, "blocks.0.hook_resid_pre")[0, 0][None]]
    for layer, block in enumerate(model.blocks):
        heads = [Site(layer, "head", head) for head in range(cfg.n_heads)]
        parts.append(site_outputs(cache, heads)[0, :, 0])
        parts.append(block.attn.b_O.detach().to(parts[-1])[None])  # pyright: ignore[reportAttributeAccessIssue]
        parts.append(site_outputs(cache, [Site(layer, "mlp")])[0, :, 0])
    written = torch.cat(parts).cpu().double()
    written = written - written.mean(-1, keepdim=True)
    square = written @ written.T / cfg.d_model
    rows, columns = torch.triu_indices(len(square), len(square), device=square.device)
    return square[rows, columns], square.sum(-1), square.sum() + cfg.eps
