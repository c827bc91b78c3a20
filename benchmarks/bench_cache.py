"""What it costs to keep activations, against a plain forward pass and against torch's own hooks.

One tower of published shapes and random weights. ``rows="readout"`` keeps what lenses need; the full cache keeps every
hook point that is not gated, attention scores and patterns included; "torch hooks" keep what attention, MLP and block
write, three tensors a layer, as one does without a library. nnsight keeps the same three, where it is installed. Each
timed run follows an untimed one of the same kind: what one leaves behind in the allocator is not the next one's to pay.

    python benchmarks/bench_cache.py b32
    python benchmarks/bench_cache.py l14 --batch 2 --curve
    python benchmarks/bench_cache.py bigg --device cuda --dtype bfloat16 --batch 32
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import torch
from measuring import (
    DTYPES,
    add_options,
    fresh_process,
    interleave,
    peak_bytes,
    positive,
    resident_bytes,
    start,
    summarise,
    table,
    write_result,
)
from random_towers import add_preset, open_clip_tower

from vit_lens import HookedViT

BATCHES = (1, 2, 4, 8, 16)
COLUMNS = ("name", "batch", "seconds_median", "ratio", "ratio_low", "ratio_high", "kept_mib")
MIB = 2**20


def main() -> None:
    """Time every way to keep activations, print a table and write the JSON."""
    options = parse()
    device, dtype = start(options), DTYPES[options.dtype]
    source = open_clip_tower(options.preset, device, dtype)
    model = HookedViT.from_module(source, copy=False)
    with torch.no_grad():
        if options.child:
            pixels = torch.randn(options.batch, 3, *model.cfg.image_size, device=device, dtype=dtype)
            print(
                json.dumps(
                    peak_of(options.child, options.batch, ways(model, source, pixels)[options.child], model, device)
                )
            )
            return
        rows = []
        for batch in sorted({options.batch, *(BATCHES if options.curve else ())}):
            pixels = torch.randn(batch, 3, *model.cfg.image_size, device=device, dtype=dtype)
            candidates = ways(model, source, pixels)
            kept = {name: round(kept_bytes(function()) / MIB, 2) for name, function in candidates.items()}
            seconds = interleave(candidates, repeats=options.repeats, device=device, settle=True)
            rows += [{**row, "batch": batch, "kept_mib": kept[row["name"]]} for row in summarise(seconds, "forward")]
    print(table(rows, COLUMNS))
    memory = [peak_in_fresh_process(name, options) for name in ("forward", "cache, readout rows", "cache, everything")]
    print(table(memory, ("name", "weights_mib", "peak_over_weights", "over_weights_mib")))
    write_result(
        options, f"cache_{options.preset}_{device.type}_{options.dtype}",
        {
            "benchmark": "cache", "preset": options.preset, "dtype": options.dtype, "weights": "random",
            "hook_points": len(model.hook_dict), "rows": rows, "memory": memory,
        },
    )  # fmt: skip


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=positive, default=8, help="images at once")
    parser.add_argument("--curve", action="store_true", help=f"also batches of {', '.join(map(str, BATCHES))}")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_options(parser)
    add_preset(parser)
    return parser.parse_args()


def ways(model: HookedViT, source: torch.nn.Module, pixels: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return every way to run the tower; each returns what it kept."""
    found = {
        "forward": lambda: (model(pixels), [])[1],
        "open_clip forward": lambda: (source(pixels), [])[1],
        "cache, readout rows": lambda: list(model.run_with_cache(pixels, rows="readout")[1].cache_dict.values()),
        "cache, everything": lambda: list(model.run_with_cache(pixels)[1].cache_dict.values()),
        "torch hooks on open_clip": lambda: with_torch_hooks(source, pixels),
    }
    if importlib.util.find_spec("nnsight"):
        found["nnsight on open_clip"] = with_nnsight(source, pixels)
    return found


def with_torch_hooks(source: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Keep what attention, MLP and block of every layer return, by forward hooks of torch."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    blocks = source.transformer.resblocks
    handles = [part.register_forward_hook(keep) for block in blocks for part in (block.attn, block.mlp, block)]
    source(pixels)
    for handle in handles:
        handle.remove()
    return kept


def with_nnsight(source: Any, pixels: torch.Tensor) -> Callable[[], Any]:
    """Return a trace that keeps what attention, MLP and block of every layer return."""
    from nnsight import NNsight  # pyright: ignore[reportMissingImports]

    wrapped = NNsight(source)

    def run() -> list[torch.Tensor]:
        kept = []
        with wrapped.trace(pixels):
            for block in wrapped.transformer.resblocks:
                kept += [block.attn.output[0].save(), block.mlp.output.save(), block.output.save()]
        return kept

    return run


def kept_bytes(tensors: list[torch.Tensor]) -> int:
    """Return the memory that tensors hold; what they share counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def peak_in_fresh_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the peak of one way in a process of its own."""
    arguments = [options.preset, "--child", name, "--batch", str(options.batch), "--device", options.device]
    return fresh_process(__file__, [*arguments, "--dtype", options.dtype])


def peak_of(
    name: str, batch: int, function: Callable[[], Any], model: HookedViT, device: torch.device
) -> dict[str, Any]:
    """Measure the peak of this process, weights included, over what it held beside them."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    before = resident_bytes() if device.type == "cpu" else torch.cuda.memory_allocated(device)
    kept = function()
    added = peak_bytes(device) - before
    return {
        "name": name, "batch": batch, "weights_mib": round(weights / MIB, 1),
        "peak_over_weights": round(1 + added / weights, 3), "over_weights_mib": round(added / MIB, 1),
        "kept_tensors": len(kept),
    }  # fmt: skip


if __name__ == "__main__":
    main()
