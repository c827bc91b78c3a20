"""A function in a forked child, with bounds on time and memory; and the counts of what became of many."""

import argparse
import collections
import json
import os
import resource
import signal
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

SECONDS = 60  # by the clock: a machine with other work is slow
BYTES = 1 << 30  # more than the parent has mapped
_PACKAGE = Path(__file__).parents[2] / "vit_lens"
_PACKAGES = ("torch", "safetensors", "pillow", "pandas", "transformers", "diffusers", "hypothesis")


class Outcome(NamedTuple):
    """``value`` and what was returned, ``refused`` and a VitLensError's words, or ``traceback``, ``memory``, ``hang``,
    ``signal`` and where."""

    how: str
    what: Any


def in_child(function, *arguments, seconds: int = SECONDS) -> Outcome:
    """Run a function, whose result JSON can hold, in a child; nothing that it does to this process remains."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # makes anew the pool that a fork breaks; two threads at once would race for it
            _bound(seconds)
            with open(writer, "w") as pipe:
                pipe.write(json.dumps(_outcome(function, arguments)))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return Outcome(*json.loads(said))
    number = os.WTERMSIG(status)
    return Outcome("hang", f"over {seconds} s") if number == signal.SIGALRM else Outcome("signal", number)


def _bound(seconds):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, wherever it waits
    signal.alarm(seconds)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _outcome(function, arguments):
    from vit_lens.errors import VitLensError

    try:
        return "value", function(*arguments)
    except VitLensError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:
        short = isinstance(error, MemoryError) or "allocate memory" in str(error)
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
        at = f"{Path(own[-1].filename).relative_to(_PACKAGE)}:{own[-1].name}" if own else "no room"
        return "memory" if short else "traceback", f"{type(error).__name__} in {at}: {str(error)[:200]}"


class Tally:
    """Counts by kind and class, and up to five examples of every fault, in a file that grows with them."""

    def __init__(self, parser: argparse.ArgumentParser, arguments=None):
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--out", type=Path, help="a file of JSON for all of it")
        self.given, self._started = parser.parse_args(arguments), time.monotonic()
        self._said = f"{parser.prog} {' '.join(sys.argv[1:] if arguments is None else arguments)}"
        self._counts = collections.defaultdict(collections.Counter)
        self._faults = collections.defaultdict(list)

    def add(self, kind: str, how: str, fault: str | None, example=None) -> None:
        """Count one; a fault has a name, which is that of others like it, and an example to make it again."""
        self._counts[kind][how] += 1
        if fault is not None:
            self._faults[f"{kind}: {fault}"].append(example)

    def keep(self) -> dict:
        """Say and write what there is so far."""
        import vit_lens

        seconds = round(time.monotonic() - self._started, 1)
        sys.stderr.write(f"{seconds:7.1f} s  {dict(self._counts[list(self._counts)[-1]])} {list(self._counts)[-1]}\n")
        found = {
            "command": self._said, "seed": self.given.seed,
            "seconds": seconds, "cpu_seconds": round(sum(os.times()[:4]), 1),
            "versions": {"vit_lens": vit_lens.__version__, **{name: version(name) for name in _PACKAGES}},
            "n": sum(some.total() for some in self._counts.values()), "counts": self._counts,
            "faults": {name: {"n": len(some), "examples": some[:5]} for name, some in sorted(self._faults.items())},
        }  # fmt: skip
        if self.given.out:
            self.given.out.write_text(json.dumps(found, indent=1) + "\n")
        return found
