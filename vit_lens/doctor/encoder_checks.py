"""Is the encoder the one that it claims to be, whole, and computed as its source computes it?"""

__all__ = ["encoder_inventory", "norm_checks", "parity_checks", "part_check"]

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.doctor.published import COLLAPSED_COSINE, UNIT_NORM_TOLERANCE, published_encoder
from vit_lens.doctor.reporting import Check, dtype_name
from vit_lens.metrics import cosine
from vit_lens.models import HookedViT
from vit_lens.sources import SourceTower
from vit_lens.verification import verify


def part_check(part: str, tensors: Iterable[Tensor], dtype: torch.dtype, published: tuple[int, int] | None) -> Check:
    """Count a part's tensors and parameters, and look for values that are not finite.

    Args:
        part: Its name.
        tensors: All that it holds.
        dtype: That was asked for.
        published: Tensors and parameters of the published file, where there is one.
    """
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    counts = len(floats), sum(tensor.numel() for tensor in floats)
    broken = sum(not bool(torch.isfinite(tensor).all()) for tensor in floats)
    dtypes = sorted({dtype_name(tensor.dtype) for tensor in floats})
    passed = published in (None, counts) and not broken and dtypes == [dtype_name(dtype)]
    given = f"{counts[0]} tensors, {counts[1]:,} parameters, {'+'.join(dtypes)}"
    given += f", {broken} not finite" if broken else ""
    expected = f"{published[0]} tensors, {published[1]:,} parameters, " if published else ""
    expected += f"{dtype_name(dtype)}, all finite"
    note = "" if published else "No published numbers are known for this part; only dtype and finiteness are judged."
    values = {"tensors": counts[0], "parameters": counts[1], "tensors_not_finite": broken}
    return Check(f"{part} inventory", passed, given, expected, note, values)


def encoder_inventory(model: HookedViT, dtype: torch.dtype) -> list[Check]:
    """Count the encoder's tensors; HookedViT splits as many as transformers does, so the numbers compare."""
    published = published_encoder(model.encoder_id, model.cfg)
    expected = published.parts["encoder"] if published else None
    return [part_check("encoder", model.state_dict().values(), dtype, expected)]


def parity_checks(model: HookedViT, source: SourceTower) -> list[Check]:
    """Compare what enters block 0, what leaves every block, and the embedding; see ``HookedViT.verify``."""
    result = verify(model, source, dtypes=[model.dtype])
    rows, bar = result.differences[model.dtype], result.bars[model.dtype]
    errors = {row.place: row.relative for row in rows}
    layers = {place: error for place, error in errors.items() if place.startswith("L")}
    worst = max(layers, key=lambda place: _or_infinite(layers[place]))
    listed = ", ".join(f"{place} {error:.1e}" for place, error in layers.items())
    where = f"max|diff| / max|source|, {result.inputs}, {dtype_name(model.dtype)}, against {result.source}"
    entry = {"L0.resid_pre": errors["into L0"]}
    ends = {place: errors[place] for place in ("final norm", "embedding") if place in errors}
    told = "; ".join([listed, *result.faults])
    blocks = _parity("parity: after each block", layers, f"{layers[worst]:.1e} at {worst}, the worst", bar, told)
    return [
        _parity("parity: into block 0", entry, f"{errors['into L0']:.1e}", bar, where),
        replace(blocks, passed=blocks.passed and not result.faults),
        _parity("parity: embedding", ends, f"{errors['embedding']:.1e}", bar, ""),
    ]


def norm_checks(embeds: Float[Tensor, "image d_embed"], zero: Float[Tensor, "1 d_embed"]) -> list[Check]:
    """Look at the lengths and directions of the embeddings: a decoder takes raw ones, never of length 1."""
    norms, zero_norm = embeds.double().norm(dim=1), float(zero.double().norm())
    between = cosine(embeds[:, None], embeds[None])[~torch.eye(len(embeds), dtype=torch.bool, device=embeds.device)]
    mean_cosine = float(between.mean()) if len(between) else float("nan")
    unit = bool(((norms - 1).abs() < UNIT_NORM_TOLERANCE).all())
    collapsed = mean_cosine > COLLAPSED_COSINE
    finite = bool(torch.isfinite(norms).all()) and torch.isfinite(zero).all().item()
    spread = f"{norms.min():.2f} to {norms.max():.2f}, mean {norms.mean():.2f}; zero pixels {zero_norm:.2f}"
    spread += f"; cosine between pictures {mean_cosine:.3f}" if len(between) else ""
    told = "every norm is 1: L2-normalised, which the decoder was not trained on. " if unit else ""
    told += "all pictures have the same embedding. " if collapsed else ""
    values = {"mean": norms.mean(), "min": norms.min(), "max": norms.max(), "zero": zero_norm, "cosine": mean_cosine}
    passed, note = bool(finite and not unit and not collapsed), told[:1].upper() + told[1:].strip()
    values = {name: float(value) for name, value in values.items()}
    return [Check("embedding norms", passed, spread, "finite, not all 1, not all alike", note, values)]


def _parity(name: str, errors: dict[str, float], given: str, bar: float, detail: str) -> Check:
    return Check(name, all(error < bar for error in errors.values()), given, f"< {bar:.0e}", detail, errors)


def _or_infinite(error: float) -> float:
    return error if error == error else float("inf")
