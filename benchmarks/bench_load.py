"""How much memory and time loading a checkpoint takes, against the library that the checkpoint comes from.

Writes a checkpoint of random weights with the shapes of a published vision tower, loads it in fresh processes by each
route, and reports the peak of resident memory over what the process held before, as a multiple of the weights.

    python benchmarks/bench_load.py h14
    python benchmarks/bench_load.py b32 --format open_clip --dtype bfloat16 --repeats 3

Peak memory is VmHWM of /proc (Linux), so it counts pages of mapped files as long as the process holds them.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import DTYPES, add_options, fresh_process, resident_bytes, start, status_bytes, write_result
from random_towers import add_preset, hugging_face_tower, vision_config

FORMATS = ("open_clip", "open_clip.pt", "transformers")
ROUTES = ("vit_lens", "source")
MIB = 2**20


def main() -> None:
    """Make the checkpoints, measure every route, print a table and write the JSON."""
    options = parse()
    start(options)
    if options.make:
        make(options.make, options.checkpoint, options.preset)
        return
    if options.load:
        print(json.dumps(load(options.load, options)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for format_ in options.format or FORMATS:
            path = Path(scratch) / format_
            path.mkdir()
            run("--make", format_, path, options)
            for route in ROUTES:
                runs = [run("--load", format_, path, options, route) for _ in range(options.repeats)]
                rows.append(summary(format_, route, runs))
                print(line(rows[-1]), flush=True)
            for file in path.iterdir():
                file.unlink()
    content = {"benchmark": "load", "preset": options.preset, "dtype": options.dtype, "weights": "random", "rows": rows}
    where = "" if options.device == "cpu" else f"_{torch.device(options.device).type}"
    write_result(options, f"load_{options.preset}{where}_{options.dtype}", content)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", action="append", choices=FORMATS, help="repeat for several; all by default")
    parser.add_argument("--scratch", type=Path, help="where the checkpoint is written; a temporary folder by default")
    for hidden in ("--make", "--load", "--route"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    add_options(parser)
    add_preset(parser)
    parser.set_defaults(repeats=1)
    return parser.parse_args()


def run(task: str, format_: str, path: Path, options: argparse.Namespace, route: str = "vit_lens") -> dict:
    """Do one task in a fresh process."""
    arguments = [options.preset, task, format_, "--checkpoint", str(path), "--route", route]
    return fresh_process(__file__, [*arguments, "--dtype", options.dtype, "--device", options.device])


# ---- checkpoints ----------------------------------------------------------------------------------------------


def model_config(preset: str) -> dict:
    """Return open_clip's config of a preset, with the smallest text tower."""
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    return {**vision_config(preset), "text_cfg": text}


def make(format_: str, path: Path, preset: str) -> None:
    """Write a float32 checkpoint of random weights, with the config that names its sizes."""
    from safetensors.torch import save_file

    print("{}")  # what every task of a fresh process ends with
    config = model_config(preset)
    if format_ == "transformers":
        hugging_face_tower(preset, torch.device("cpu"), torch.float32).save_pretrained(path)
        return
    from open_clip.model import CLIP

    tensors = {name: tensor.contiguous() for name, tensor in CLIP(**config).state_dict().items()}
    if format_ == "open_clip":
        save_file(tensors, path / "open_clip_model.safetensors")
    else:
        torch.save(tensors, path / "open_clip_pytorch_model.bin")
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (path / "open_clip_config.json").write_text(json.dumps(content))


# ---- measuring ------------------------------------------------------------------------------------------------


def load(format_: str, options: argparse.Namespace) -> dict:
    """Load a checkpoint in this process, in which nothing but imports has happened."""
    loader = prepare(format_, options)
    before, begin = resident_bytes(), time.perf_counter()  # the peak starts again from what is resident now
    model = loader()
    seconds = time.perf_counter() - begin
    tower: Any = getattr(model, "visual", model)
    for parameter in tower.parameters():
        parameter.sum()
    used = time.perf_counter() - begin
    weights = sum(p.numel() * p.element_size() for p in tower.parameters())
    dtypes = sorted({str(p.dtype) for p in tower.parameters()})
    return {
        "weights_bytes": weights, "peak_bytes": status_bytes("VmHWM") - before,
        "after_bytes": status_bytes("VmRSS") - before, "seconds": seconds, "seconds_until_used": used,
        "dtypes": dtypes, "baseline_bytes": before,
    }  # fmt: skip


def prepare(format_: str, options: argparse.Namespace) -> Any:
    """Import everything and return a function that loads the checkpoint."""
    path, dtype, device = options.checkpoint, DTYPES[options.dtype], torch.device(options.device)
    if options.route == "vit_lens":
        import open_clip.transformer  # noqa: F401
        import transformers.models.clip.modeling_clip  # noqa: F401

        from vit_lens import HookedViT

        return lambda: HookedViT.from_pretrained(path, dtype=dtype, device=device)
    if format_ == "transformers":
        from transformers import CLIPVisionModelWithProjection

        return lambda: CLIPVisionModelWithProjection.from_pretrained(path, dtype=dtype).to(device)
    from open_clip.factory import load_checkpoint
    from open_clip.model import CLIP

    file = next(file for file in path.iterdir() if file.suffix != ".json")
    config = model_config(options.preset)

    def load_open_clip() -> Any:
        model = CLIP(**config)
        load_checkpoint(model, str(file), weights_only=True)
        return model.to(device, dtype)

    return load_open_clip


def summary(format_: str, route: str, runs: list[dict]) -> dict:
    """Put the runs of one route together."""
    peak, weights = max(r["peak_bytes"] for r in runs), runs[0]["weights_bytes"]
    return {
        "format": format_, "route": route, "weights_bytes": weights, "peak_bytes": peak,
        "peak_over_weights": round(peak / weights, 4),
        "after_over_weights": round(max(r["after_bytes"] for r in runs) / weights, 4),
        "seconds_median": round(statistics.median(r["seconds"] for r in runs), 3),
        "seconds_until_used_median": round(statistics.median(r["seconds_until_used"] for r in runs), 3),
        "seconds_all": [round(r["seconds"], 3) for r in runs], "dtypes": runs[0]["dtypes"],
        "baseline_bytes": runs[0]["baseline_bytes"],
    }  # fmt: skip


def line(row: dict) -> str:
    """Return a row of the table."""
    return (
        f"{row['format']:13} {row['route']:9} weights {row['weights_bytes'] / MIB:8.1f} MiB   "
        f"peak {row['peak_bytes'] / MIB:8.1f} MiB = {row['peak_over_weights']:.3f} x   "
        f"{row['seconds_median']:7.2f} s, used after {row['seconds_until_used_median']:7.2f} s"
    )


if __name__ == "__main__":
    main()
