"""The machine that an examination ran on, and the memory that it took."""

__all__ = ["describe_machine", "memory_checks", "package_versions"]

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import vit_lens
from vit_lens.doctor.reporting import Check

_PACKAGES = ("torch", "transformer-lens", "transformers", "open_clip_torch", "diffusers", "pillow", "numpy")
_GIB = 2**30


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the processor, memory, threads and accelerator, without names of people or hosts."""
    told: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "device": str(device),
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        told["accelerator"] = f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB"
        told["cuda"] = torch.version.cuda
    return told


def package_versions() -> dict[str, str]:
    """Return the versions of Python, this package and those that it computes with."""
    told = {"python": platform.python_version(), "vit_lens": vit_lens.__version__}
    for package in _PACKAGES:
        try:
            told[package] = version(package)
        except PackageNotFoundError:
            told[package] = "not installed"
    return told


def memory_checks(device: torch.device) -> list[Check]:
    """Report the most memory that the process, and its part of the accelerator, held at any time."""
    values = {}
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        values["resident_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB
    if device.type == "cuda":
        values["cuda_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    words = {"resident_gib": "resident", "cuda_gib": "on the GPU"}
    given = ", ".join(f"{value:.2f} GiB {words[name]}" for name, value in values.items()) or "not measured here"
    return [Check("peak memory", None, given, "reported", "Resident: since the process began.", values)]
