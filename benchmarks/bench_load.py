"""How much memory and time loading a checkpoint takes, against the library that the checkpoint comes from.

Writes a checkpoint of random weights with the shapes of a published vision tower, loads it in fresh processes by each
route, and reports the peak of resident memory over what the process held before, as a multiple of the weights.

    python benchmarks/bench_load.py h14
    python benchmarks/bench_load.py b32 --format open_clip --dtype bfloat16 --runs 3

Peak memory is VmHWM of /proc (Linux), so it counts pages of mapped files as long as the process holds them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# open_clip's names; text towers are left out of the checkpoints.
PRESETS = {"mini": None, "b32": "ViT-B-32", "l14": "ViT-L-14", "h14": "ViT-H-14", "bigg": "ViT-bigG-14"}
MINI = {"width": 128, "layers": 8, "patch_size": 8, "image_size": 64, "head_width": 32}
FORMATS = ("open_clip", "open_clip.pt", "transformers")
ROUTES = ("vit_lens", "source")
RESULTS = Path(__file__).parent / "results"
MIB = 2**20


def main() -> None:
    """Make the checkpoints, measure every route, print a table and write the JSON."""
    options = parse()
    if options.load:
        print(json.dumps(load(options.load, options.route, options.checkpoint, options.preset, options.dtype)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for format_ in options.format or FORMATS:
            path = Path(scratch) / format_
            path.mkdir()
            run("--make", format_, path, options)
            for route in ROUTES:
                runs = [run("--load", format_, path, options, route) for _ in range(options.runs)]
                rows.append(summary(format_, route, runs))
                print(line(rows[-1]), flush=True)
            for file in path.iterdir():
                file.unlink()
    content = {"preset": options.preset, "dtype": options.dtype, "runs": options.runs, **machine(), "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"load_{options.preset}_{options.dtype}.json"
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {target}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS, help="whose shapes")
    parser.add_argument("--format", action="append", choices=FORMATS, help="repeat for several; all by default")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the result")
    parser.add_argument("--runs", type=int, default=1, help="fresh processes for each route")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--scratch", type=Path, help="where the checkpoint is written; a temporary folder by default")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--route", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.make, options.checkpoint, options.preset)
        sys.exit()
    return options


def run(task: str, format_: str, path: Path, options: argparse.Namespace, route: str = "") -> dict:
    """Do one task in a fresh process."""
    command = [sys.executable, __file__, options.preset, task, format_, "--checkpoint", str(path)]
    command += ["--dtype", options.dtype, *(["--route", route] if route else [])]
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return json.loads(out.splitlines()[-1]) if out else {}


# ---- checkpoints ----------------------------------------------------------------------------------------------


def model_config(preset: str) -> dict:
    """Return open_clip's config of a preset, with the smallest text tower."""
    import open_clip

    config: Any = {"embed_dim": 64, "vision_cfg": MINI}
    if preset != "mini":
        config = open_clip.get_model_config(PRESETS[preset])
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    return {"embed_dim": config["embed_dim"], "vision_cfg": config["vision_cfg"], "text_cfg": text}


def make(format_: str, path: Path, preset: str) -> None:
    """Write a float32 checkpoint of random weights, with the config that names its sizes."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = model_config(preset)
    if format_ == "transformers":
        hf_model(config).save_pretrained(path)
        return
    from open_clip.model import CLIP

    tensors = {name: tensor.contiguous() for name, tensor in CLIP(**config).state_dict().items()}
    if format_ == "open_clip":
        save_file(tensors, path / "open_clip_model.safetensors")
    else:
        torch.save(tensors, path / "open_clip_pytorch_model.bin")
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (path / "open_clip_config.json").write_text(json.dumps(content))


def hf_model(config: dict):
    """Build transformers' tower of the same sizes."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = config["vision_cfg"]
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=vision["width"], intermediate_size=int(vision["width"] * vision.get("mlp_ratio", 4)),
            num_hidden_layers=vision["layers"], num_attention_heads=vision["width"] // vision.get("head_width", 64),
            image_size=vision["image_size"], patch_size=vision["patch_size"], projection_dim=config["embed_dim"],
            hidden_act="gelu",
        )
    )  # fmt: skip


# ---- measuring ------------------------------------------------------------------------------------------------


def load(format_: str, route: str, path: Path, preset: str, dtype_name: str) -> dict:
    """Load a checkpoint in this process, in which nothing but imports has happened."""
    import torch

    dtype = getattr(torch, dtype_name)
    loader = prepare(format_, route, path, model_config(preset), dtype)
    before, start = resident("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    model = loader()
    seconds = time.perf_counter() - start
    tower: Any = getattr(model, "visual", model)
    for parameter in tower.parameters():
        parameter.sum()
    used = time.perf_counter() - start
    weights = sum(p.numel() * p.element_size() for p in tower.parameters())
    dtypes = sorted({str(p.dtype) for p in tower.parameters()})
    return {
        "weights_bytes": weights, "peak_bytes": resident("VmHWM") - before, "after_bytes": resident("VmRSS") - before,
        "seconds": seconds, "seconds_until_used": used, "dtypes": dtypes, "baseline_bytes": before,
    }  # fmt: skip


def prepare(format_: str, route: str, path: Path, config: dict, dtype):
    """Import everything and return a function that loads the checkpoint."""
    import torch

    if route == "vit_lens":
        import open_clip.transformer  # noqa: F401
        import transformers.models.clip.modeling_clip  # noqa: F401

        from vit_lens import HookedViT

        return lambda: HookedViT.from_pretrained(path, dtype=dtype)
    if format_ == "transformers":
        from transformers import CLIPVisionModelWithProjection

        return lambda: CLIPVisionModelWithProjection.from_pretrained(path, dtype=dtype)
    from open_clip.factory import load_checkpoint
    from open_clip.model import CLIP

    file = next(file for file in path.iterdir() if file.suffix != ".json")

    def load_open_clip():
        model = CLIP(**config)
        load_checkpoint(model, str(file), weights_only=True)
        return model.to(dtype)

    torch.zeros(1)
    return load_open_clip


def resident(key: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(f"{key}:"):
            return int(row.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}; this benchmark needs Linux")


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


def machine() -> dict:
    """Return what the figures depend on."""
    cpu = next(
        (r.split(":")[1].strip() for r in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in r), ""
    )
    packages = ("torch", "open_clip_torch", "transformers", "safetensors")
    return {
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(os.sysconf("SC_PAGE_SIZE")
                    * os.sysconf("SC_PHYS_PAGES") / 2**30, 1), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


if __name__ == "__main__":
    main()
