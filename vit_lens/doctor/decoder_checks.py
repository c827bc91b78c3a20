"""Is a decoder of any kind whole, made for this encoder, and does what it draws come back?"""

__all__ = ["decoder_inventory", "round_trip_check", "rows_check"]

from typing import Any

import torch

from vit_lens.conditions import Condition
from vit_lens.decoders import Decoder
from vit_lens.doctor.encoder_checks import part_check
from vit_lens.doctor.published import ROUND_TRIP_BAR, ROUND_TRIP_MARGIN, published_decoder
from vit_lens.doctor.reporting import Check
from vit_lens.engine import OWN, Bench, draw
from vit_lens.metrics import cosine
from vit_lens.models import HookedViT

_BATCH = 4
_LEVEL = 1.0  # grey level: what rounding may change


def decoder_inventory(decoder: Decoder, dtype: torch.dtype) -> list[Check]:
    """Count the tensors and parameters of every part."""
    published = published_decoder(decoder)
    return [
        part_check(part, weights.values(), dtype, published.parts[part] if published else None)
        for part, weights in decoder.parts().items()
    ]


def rows_check(model: HookedViT, decoder: Decoder, asked: Condition, settings: Any) -> list[Check]:
    """Draw two rows together, and each beside a copy of itself: a picture follows from its row alone."""
    expected = "the same pictures whatever is drawn beside them"
    if len(asked) < 2:
        return [Check("rows", None, "not run", expected, "One picture has no other beside it; give more.")]
    bench = Bench(model=model, decoder=decoder, negative=decoder.negative(model))
    chosen = decoder.coarse(settings) or settings
    drawn, _ = draw(bench, asked[[0, 1, 0, 0, 1, 1]], chosen, 2, label="rows")
    together, alone = drawn.float()[:2].repeat_interleave(2, 0), drawn.float()[2:]
    moved = float((together - alone).abs().flatten(1).mean(1).max())
    apart = float((alone[0] - alone[3]).abs().mean())
    told = f"{moved:.2f} of 255 apart, two pictures {apart:.2f}"
    values = {"same row": moved, "other row": apart}
    note = f"Mean absolute differences, {decoder.settings_words(chosen)}."
    return [Check("rows", moved <= max(_LEVEL, apart / 10), told, expected, note, values)]


def round_trip_check(
    model: HookedViT, decoder: Decoder, asked: Condition, settings: Any, *, progress: bool = False
) -> list[Check]:
    """Draw what pictures are to the decoder, read what comes out, and compare."""
    bench = Bench(model=model, decoder=decoder, negative=decoder.negative(model))
    _, seen = draw(bench, asked, settings, min(_BATCH, len(asked)), label="round trip", progress=progress)
    given, again = asked.kept().flat, seen[OWN].flat
    cosines = cosine(given[:, None], again[None])
    own = torch.eye(len(given), dtype=torch.bool)
    matched, others = float(cosines[own].mean()), cosines[~own]
    mismatched = float(others.mean()) if len(others) else float("nan")
    passed = matched >= ROUND_TRIP_BAR and not matched - mismatched < ROUND_TRIP_MARGIN
    expected = f">= {ROUND_TRIP_BAR}, and {ROUND_TRIP_MARGIN} above other pictures"
    detail = f"{len(given)} pictures, {decoder.settings_words(settings)}."
    if not len(others):
        detail += " One picture has no other to compare with; give more."
    values = {"matched": matched, "mismatched": mismatched, "lowest": float(cosines[own].min())}
    told = f"cosine {matched:.3f}, with other pictures {mismatched:.3f}"
    return [Check("round trip", passed, told, expected, detail, values)]
