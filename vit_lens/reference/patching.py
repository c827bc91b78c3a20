"""True patching on held-out images, and what averaged Jacobians predicted of it."""

__all__ = ["measure_error"]

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import einsum
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import Site, Sites
from vit_lens.errors import LensError
from vit_lens.models import HookedViT, several
from vit_lens.reference.backward import note
from vit_lens.reference.fitting import check_once, check_vit, image_digits
from vit_lens.reference.jacobians import Jacobians
from vit_lens.reference.moved import moved_norms
from vit_lens.reference.patching_error import PatchingError, summarised
from vit_lens.reference.row_means import last_state, read_state
from vit_lens.towers import working_copy
from vit_lens.verification import exact_float32


@torch.no_grad()
def measure_error(
    jacobians: Jacobians, model: HookedViT, images: Any, *, sites: Sites | None = None, batch_size: int = 8,
    progress: bool = False,
) -> Jacobians:  # fmt: skip
    """Return the Jacobians with their error against patching, and how far they move what sites write apart.

    See :class:`PatchingError`.

    Args:
        jacobians: Those of the model.
        model: The model, without hooks.
        images: Held-out images or pixels, at least two; each is patched with the next, the last with the first.
        sites: Heads, attention blocks, MLPs or residuals of layers, as ``Site.resolve`` takes them; None for the
            attention and the MLP of every layer.
        batch_size: The number of images in one run.
        progress: Whether to show a bar.

    Raises:
        LensError: There are fewer than two images, one was fitted on or is given twice, or a site is behind the blocks.
        ReferenceMismatchError: The Jacobians are another model's.

    >>> from vit_lens.reference import fit_jacobians, measure_error
    >>> made = measure_error(fit_jacobians(model, pixels), model, pixels.flip(-1), sites="L6.mlp, L7.mlp")
    >>> made.error.frame().query("of == 'last' and by == 'jacobian'").error.round(1).tolist()[1]
    0.0
    """
    check_vit(model)
    jacobians.check(model)
    model.refuse_hooks("an error against patching")
    images = several(images)
    bare = working_copy(model, torch.promote_types(model.dtype, torch.float32), device=model.device)
    usual = [Site(layer, kind) for kind in ("attn", "mlp") for layer in range(model.cfg.n_layers)]
    chosen = usual if sites is None else Site.resolve(sites, model.cfg)
    for site in chosen:
        jacobians.place(site)
    if len(images) < 2:
        raise LensError(f"{len(images)} held-out images; an image is patched with another: give at least two")
    digits = image_digits(bare, images, batch_size)
    check_once(digits)
    if known := set(digits) & set(jacobians.images):
        raise LensError(
            f"{len(known)} of the held-out images were fitted on (the first is image "
            f"{min(map(digits.index, known))}); give others"
        )
    changes: dict[tuple[Site, str], list[dict[str, Tensor]]] = {}
    index = [*range(len(images)), 0]
    bar = tqdm(total=len(images), desc="patching", unit="pair", disable=not progress)
    for start in range(0, len(images), batch_size):
        wanted = index[start : start + batch_size + 1]
        some = images[wanted] if isinstance(images, Tensor) else [images[at] for at in wanted]
        pixels = some if isinstance(some, Tensor) else bare.preprocess(some)
        with exact_float32():
            _add_changes(changes, jacobians, bare, pixels.to(bare.W_E), chosen)
        bar.update(len(wanted) - 1)
    bar.close()
    rows: list[dict[str, Any]] = []
    for (site, of), parts in changes.items():
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        rows += summarised(str(site), whole.pop("true"), whole, of)
    moved = moved_norms(jacobians, bare, images, batch_size=batch_size)
    return replace(jacobians, error=PatchingError(n=len(images), images=digits, rows=tuple(rows)), moved=moved)


def _add_changes(
    changes: dict[tuple[Site, str], list[dict[str, Tensor]]], jacobians: Jacobians, model: HookedViT, pixels: Tensor,
    sites: Sequence[Site],
) -> None:  # fmt: skip
    """Patch all images but the last with the next one, at every site, and add what changed and what was predicted."""
    _, cache = model.run_with_cache(pixels, names_filter=model.is_readout_part)
    end = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    before = last_state(model, cache[end])[:-1]
    plain = read_state(model, before)
    for site in sites:
        layer = site.layer or 0
        put = partial(_put, value=cache[site.hook_name][1:], head=site.head)
        resid: list[Tensor] = []
        model.run_with_hooks(
            cache[f"blocks.{layer}.hook_resid_pre"][:-1], start_at_layer=layer,
            fwd_hooks=[(site.hook_name, put), (end, partial(note, into=resid))],
        )  # fmt: skip
        after = last_state(model, resid[0])
        written = jacobians.written(cache, site)
        change = written[1:] - written[:-1]
        direct = einsum(jacobians.values[-1].to(change), change, "group d_last d, batch group d -> batch d_last")
        predicted = {"jacobian": jacobians.transport(change, site), "direct": direct}
        found = {
            "last": {"true": after - before, **predicted},
            "embed": {
                "true": read_state(model, after) - plain,
                **{by: read_state(model, before + one) - plain for by, one in predicted.items()},
            },
        }
        for of, parts in found.items():
            changes.setdefault((site, of), []).append({name: one.cpu() for name, one in parts.items()})


def _put(act: Tensor, hook: Any, *, value: Tensor, head: int | None) -> Tensor:
    if head is None:
        return value.to(act, copy=True)
    out = act.clone()
    out[:, :, head] = value[:, :, head].to(act)
    return out
