"""How long a forward pass without hooks takes, against the libraries that the towers come from.

Towers have published shapes and random weights; open_clip, Hugging Face and vit_lens embed the same pixels in the same
process, in turn. nnsight wraps open_clip's tower, where it is installed.

    python benchmarks/bench_forward.py b32
    python benchmarks/bench_forward.py l14 --batch 2 --curve
    python benchmarks/bench_forward.py bigg --device cuda --dtype bfloat16 --batch 32 --compile
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
    count_flops,
    fresh_process,
    interleave,
    matmul_rate,
    peak_bytes,
    positive,
    resident_bytes,
    start,
    summarise,
    table,
    write_result,
)
from random_towers import add_preset, hugging_face_tower, open_clip_tower

from vit_lens import HookedViT

BATCHES = (1, 2, 4, 8, 16)
COLUMNS = ("name", "batch", "seconds_median", "ratio", "ratio_low", "ratio_high", "gflop_per_s", "share_of_peak")


def main() -> None:
    """Time every library, print a table and write the JSON."""
    options = parse()
    device, dtype = start(options), DTYPES[options.dtype]
    if options.child:
        print(json.dumps(peak_of(options.child, options.preset, options.batch, device, dtype)))
        return
    with torch.no_grad():
        rows, rate, breaks = measure(options, device, dtype)
    print(table(rows, COLUMNS))
    memory = [peak_in_fresh_process(name, options) for name in ("open_clip", "hugging_face", "vit_lens")]
    print(table(memory, ("name", "weights_mib", "peak_mib", "peak_over_weights")))
    write_result(
        options, f"forward_{options.preset}_{device.type}_{options.dtype}",
        {
            "benchmark": "forward", "preset": options.preset, "dtype": options.dtype, "weights": "random",
            "matmul_gflop_per_s": round(rate / 1e9, 1), "graph_breaks": breaks, "rows": rows, "memory": memory,
        },
    )  # fmt: skip


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=positive, default=8, help="images at once")
    parser.add_argument("--curve", action="store_true", help=f"also batches of {', '.join(map(str, BATCHES))}")
    parser.add_argument("--compile", action="store_true", help="also the compiled towers (a minute or more)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_options(parser)
    add_preset(parser)
    return parser.parse_args()


def measure(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[list[dict[str, Any]], float, int | None]:
    """Return a row for every library and batch, the rate of a matrix product, and the graph breaks of compiling."""
    source = open_clip_tower(options.preset, device, dtype)
    model = HookedViT.from_module(source)
    towers: dict[str, Callable[[torch.Tensor], Any]] = {
        "open_clip": source, "hugging_face": hugging_face_tower(options.preset, device, dtype), "vit_lens": model,
    }  # fmt: skip
    breaks = None
    if options.compile:
        sample = torch.randn(options.batch, 3, *model.cfg.image_size, device=device, dtype=dtype)
        breaks = torch._dynamo.explain(model)(sample).graph_break_count
        towers |= {
            f"{name} compiled": torch.compile(towers[name], fullgraph=True) for name in ("open_clip", "vit_lens")
        }
    if importlib.util.find_spec("nnsight"):
        towers["nnsight"] = nnsight_forward(source)
    rate, rows = matmul_rate(device, dtype), []
    for batch in sorted({options.batch, *(BATCHES if options.curve else ())}):
        pixels = torch.randn(batch, 3, *model.cfg.image_size, device=device, dtype=dtype)
        check_same(towers, pixels)
        flops = count_flops(lambda pixels=pixels: source(pixels))
        candidates = {name: lambda tower=tower, pixels=pixels: tower(pixels) for name, tower in towers.items()}
        seconds = interleave(candidates, repeats=options.repeats, device=device)
        for row in summarise(seconds, "open_clip"):
            speed = flops / row["seconds_median"]
            rows.append(
                {**row, "batch": batch, "gflop": round(flops / 1e9, 2), "gflop_per_s": round(speed / 1e9, 1),
                 "share_of_peak": round(speed / rate, 3)}
            )  # fmt: skip
    return rows, rate, breaks


def check_same(towers: dict[str, Callable[[torch.Tensor], Any]], pixels: torch.Tensor) -> None:
    """Stop unless vit_lens computes what open_clip does: a fast wrong answer is no result."""
    difference = (towers["vit_lens"](pixels) - towers["open_clip"](pixels)).abs().max()
    scale = towers["open_clip"](pixels).abs().max()
    if not difference <= 100 * torch.finfo(pixels.dtype).eps * scale:
        raise SystemExit(f"vit_lens and open_clip differ by {difference:.3g} at a scale of {scale:.3g}")


def nnsight_forward(source: torch.nn.Module) -> Callable[[torch.Tensor], Any]:
    """Return a trace that keeps the embedding alone."""
    from nnsight import NNsight  # pyright: ignore[reportMissingImports]

    wrapped = NNsight(source)

    def run(pixels: torch.Tensor) -> Any:
        with wrapped.trace(pixels):
            out = wrapped.output.save()
        return out

    return run


def peak_in_fresh_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the peak of one library's forward pass in a process of its own."""
    arguments = [options.preset, "--child", name, "--batch", str(options.batch), "--device", options.device]
    return fresh_process(__file__, [*arguments, "--dtype", options.dtype])


def peak_of(name: str, preset: str, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Measure the peak of this process over what it held before the tower was built."""
    if name == "vit_lens":
        tower: Any = HookedViT.from_module(open_clip_tower(preset, device, dtype), copy=False)
    else:
        tower = (open_clip_tower if name == "open_clip" else hugging_face_tower)(preset, device, dtype)
    weights = sum(p.numel() * p.element_size() for p in tower.parameters())
    size = tower.cfg.image_size if name == "vit_lens" else open_clip_size(preset)
    pixels = torch.randn(batch, 3, *size, device=device, dtype=dtype)
    before = resident_bytes() if device.type == "cpu" else torch.cuda.memory_allocated(device)
    with torch.no_grad():
        tower(pixels)
    peak = weights + peak_bytes(device) - before
    mib = 2**20
    return {
        "name": name, "batch": batch, "weights_mib": round(weights / mib, 1), "peak_mib": round(peak / mib, 1),
        "peak_over_weights": round(peak / weights, 3),
    }  # fmt: skip


def open_clip_size(preset: str) -> tuple[int, int]:
    """Return the image size of a preset."""
    from random_towers import vision_config

    size = vision_config(preset)["vision_cfg"]["image_size"]
    return (size, size)


if __name__ == "__main__":
    main()
