"""What the benchmarks share: interleaved timings, peak memory of a fresh process, operation counts, results as JSON.

Times are taken pairwise: every repeat runs all candidates once, in alternating order, after warm-up runs that are
thrown away, and synchronises the device before and after each. A ratio is the median of the ratios within repeats, so
that a machine that slows down slows both sides.
"""

__all__ = [
    "DTYPES",
    "RESULTS",
    "add_options",
    "context",
    "count_flops",
    "fresh_process",
    "interleave",
    "matmul_rate",
    "peak_bytes",
    "positive",
    "resident_bytes",
    "start",
    "status_bytes",
    "summarise",
    "table",
    "write_result",
]

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PACKAGES = ("torch", "open_clip_torch", "transformers", "diffusers", "transformer-lens", "safetensors", "nnsight")
_MATMUL = 2048
sys.path.insert(0, str(ROOT))  # what is measured is this tree, whatever else is installed


# ---- command line and results ------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the weights")
    parser.add_argument("--repeats", type=positive, default=9, help="timed runs of every candidate")
    parser.add_argument("--threads", type=positive, help="of torch on the CPU; its own choice by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")


def positive(text: str) -> int:
    """Return a whole number of at least one, for the command line."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def start(options: argparse.Namespace) -> torch.device:
    """Apply threads and seed, and return the device; exits if it is not there."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        sys.exit(f"--device {options.device} is not usable here: {error}")
    return device


def context(options: argparse.Namespace) -> dict[str, Any]:
    """Return what figures depend on: machine, versions, commit, command."""
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": {
            "device": name, "cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "memory_gib": round(memory, 1), "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }  # fmt: skip


def write_result(options: argparse.Namespace, name: str, content: Mapping[str, Any]) -> Path:
    """Write one result, after the context, to ``<out>/<name>.json``."""
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"{name}.json"
    target.write_text(json.dumps({**context(options), **content}, indent=1, allow_nan=False) + "\n")
    print(f"written: {target}")
    return target


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as aligned text."""
    cells = [list(columns)] + [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


# ---- time ------------------------------------------------------------------------------------------------------------


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 2,
    device: torch.device,
    settle: bool = False,
) -> dict[str, list[float]]:
    """Return the seconds of every run of every candidate; each repeat runs all of them, in alternating order.

    Args:
        candidates: What is timed, by name.
        repeats: Timed runs of each.
        warmup: Runs of each before the first repeat.
        device: Waited for before and after each run.
        settle: Run a candidate once, untimed, before each timed run: what one leaves behind in the allocator is not
            the next one's to pay.
    """
    names = list(candidates)
    for name in names:
        for _ in range(warmup):
            candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 else reversed(names):
            if settle:
                candidates[name]()
            _synchronise(device)
            begin = time.perf_counter()
            candidates[name]()
            _synchronise(device)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def summarise(seconds: Mapping[str, Sequence[float]], base: str) -> list[dict[str, Any]]:
    """Return a row for each candidate: its median, and its ratio to ``base`` with the quartiles over repeats."""
    rows = []
    for name, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, seconds[base], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        rows.append(
            {
                "name": name, "seconds_median": _rounded(statistics.median(values)),
                "ratio": _rounded(statistics.median(ratios)), "ratio_low": _rounded(low), "ratio_high": _rounded(high),
                "base": base, "seconds": [_rounded(value) for value in values],
            }
        )  # fmt: skip
    return rows


# ---- memory ------------------------------------------------------------------------------------------------------


def fresh_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark's hidden task in a process of its own and return the JSON of its last line."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, script, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{Path(script).name} {' '.join(arguments)} ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def resident_bytes() -> int:
    """Return what this process holds in memory, and let the peak start again from there."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Return the peak of memory: of the device's allocator, or of this process where the device is the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status_bytes("VmHWM")


def status_bytes(key: str) -> int:
    """Return a figure of this process, such as VmHWM (its peak), in bytes."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith(f"{key}:"):
            return int(row.split()[1]) * 1024
    sys.exit(f"/proc/self/status has no {key}; memory is measured on Linux alone")


# ---- operations --------------------------------------------------------------------------------------------------


def count_flops(function: Callable[[], object]) -> int:
    """Return the floating-point operations of matrix products, convolutions and attention in a call (2 x MAC)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the operations per second of one large matrix product: what this device reaches, not what it promises."""
    size = _MATMUL * (4 if device.type == "cuda" else 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = interleave({"matmul": lambda: a @ b}, repeats=repeats, device=device)["matmul"]
    return 2 * size**3 / min(seconds)


# ---- helpers -----------------------------------------------------------------------------------------------------


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", "vit_lens", "benchmarks/*.py")
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{' and later changes' if changed else ''}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
