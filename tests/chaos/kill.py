"""Kills at every file event: a job dies there, is run again, and must end in the bits of an undisturbed run.

An event is an opening for writing, a rename, a removal, a new folder, or an fsync. A job dies before it, right after an
opening, and at an fsync with half of the file written. Outcomes: ``equal``; ``lost``, if a file is missing in the end;
``differing``; ``drawn again``, if a finished picture was; ``left over``, if temporary files were; ``refused``,
``traceback``, ``hang``.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from .children import Tally, in_child
from .sweeps import World

_KILLED = ("signal", signal.SIGKILL)
_SECONDS = 300
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_AUDITED = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir"}
_LEFT = (".vit_lens.lock", "report.html")  # the page follows from the record
_TIMELY = ("command", "budgets", "seconds_per_picture", "content")  # in JSON


# ---- the jobs, each a function of the world and a folder


def sweep(world, out):
    from vit_lens import write_report

    write_report(world.sweep(out / "record", **world.beside))


def budget(world, out):
    world.sweep(out / "record", budget=10**6)


def part(world, out, index=0):
    world.sweep(out / f"part{index}", shard=(index, 2), **world.beside)


def merge(world, out):
    from vit_lens.records import merge

    parts = [world.folder / f"part{index}" for index in (0, 1)]
    for index, path in enumerate(parts):
        if not path.exists():
            part(world, world.folder, index)
    merge(parts, out / "record")


def indices(world, out):
    """Reference means and a gallery."""
    from vit_lens import ReferenceMeans
    from vit_lens.readers import Gallery

    ReferenceMeans.from_images(world.model, world.images).save(out / "means.safetensors")
    Gallery.from_folder(world.model, world.folder / "images", out=out / "gallery.safetensors", batch_size=1)


def study(world, out):
    """Faithfulness of three sites, the fewest that it takes."""
    from vit_lens.studies import StudyImages, make_setup
    from vit_lens.studies.faithfulness.study import faithfulness_study

    drawn = list(np.random.default_rng(0).integers(0, 256, (6, 21, 20, 3), dtype=np.uint8))
    setup = make_setup(
        world.model, StudyImages(drawn[:2], drawn[2:4], drawn[4:]), lenses=["diffusion"], out=out, seed=0,
        decoder=world.quick, noise_seeds=(0, 1), batch_size=4,
    )  # fmt: skip
    faithfulness_study(setup, sites=["L0H1", "L1H2", "L1.mlp"], n_shuffles=3).save(out)


def training(world, out):
    """A replica of the embedded pair: another encoder in two steps, and the shipped decoder fitted to it."""
    from vit_lens.mini.training.encoder import EncoderSettings
    from vit_lens.mini.training.replica import train_replica

    tiny = dict(width=16, n_layers=1, n_heads=2, d_embed=8, text_width=16, text_layers=1, batch=8, n_steps=2)
    train_replica(out, 5, encoder=EncoderSettings(**tiny), n_scenes=250, n_images=8, n_decoded=1)


QUICK = (sweep, budget, part, merge, indices)
JOBS = {job.__name__: job for job in (*QUICK, study, training)}


# ---- dying


class Events:
    """Count what happens to files below a folder, in this process for good, and die at the event of a number."""

    def __init__(self, below: Path, at: int | None):
        self._below, self._at, self.seen = f"{below}{os.sep}", at, []
        self._lock, self._fsync = threading.RLock(), os.fsync
        os.fsync = self._synced
        sys.addaudithook(self._audited)

    def _audited(self, name, arguments):
        if name == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            path, _, flags = arguments
            self._meet("open", path)
            self._meet("opened", path, lambda: os.close(os.open(path, flags, 0o644)))
        elif name in _AUDITED:
            self._meet(_AUDITED[name], arguments[0])

    def _synced(self, descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._meet("half", path, lambda: os.truncate(path, os.path.getsize(path) // 2))
        self._fsync(descriptor)

    def _meet(self, what, path, last_act=lambda: None):
        with self._lock:  # who comes meanwhile waits until the end
            if not isinstance(path, (str, os.PathLike)) or not str(path).startswith(self._below):
                return
            self.seen.append(f"{what} {_plain(Path(path).relative_to(self._below))}")
            if len(self.seen) - 1 == self._at:
                self._below = "\0"  # the last act is no event
                with contextlib.suppress(OSError):
                    last_act()
                os.kill(os.getpid(), signal.SIGKILL)


def _plain(path):
    return path.parent / "TEMPORARY" if path.suffix == ".tmp" else path


def _counted(world, job, out, at):
    events = Events(out, at)
    job(world, out)
    return events.seen


def run(world, job, out: Path, at: int | None = None):
    """Run a job in a child that is killed at an event, or not at all; what it returns are the events."""
    return in_child(_counted, world, job, out, at, seconds=_SECONDS)


def interrupted(world, job, out: Path) -> None:
    """Kill a job after three fifths of what it does to files."""
    events = run(world, job, out)
    shutil.rmtree(out)
    out.mkdir()
    assert run(world, job, out, len(events.what) * 3 // 5) == _KILLED, events


# ---- what must be equal


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file that counts, by its name; of JSON, all but what names a command, a budget or a time."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: _content(path) for name, path in sorted(found.items()) if path.name not in _LEFT}


def _content(path):
    said = json.loads(path.read_bytes()) if path.suffix == ".json" else None
    if not isinstance(said, dict):
        return path.read_bytes()
    return json.dumps({key: value for key, value in said.items() if key not in _TIMELY}).encode()


def killed(world, job, whole: dict[str, bytes], at: list[int]) -> tuple[str, str]:
    """Kill a job at events, one run after the other, run it to its end, and hold its files to those of the whole."""
    with tempfile.TemporaryDirectory(dir=world.folder) as folder:
        out = Path(folder)
        for number in at:
            outcome = run(world, job, out, number)
            if outcome.how == "value":
                break  # it came to its end before
            if outcome != _KILLED:
                return outcome.how, str(outcome.what)
        drawn = {path: path.stat().st_ino for path in out.glob("*/pictures/**/*.png") if _is_in(path, out, whole)}
        outcome = run(world, job, out)
        if outcome.how != "value":
            return outcome.how, str(outcome.what)
        found = contents(out)
        again = [
            str(path.relative_to(out)) for path, was in drawn.items() if path.exists() and path.stat().st_ino != was
        ]
    classes = {
        "lost": whole.keys() - found.keys(),
        "differing": {name for name in found.keys() & whole.keys() if found[name] != whole[name]},
        "drawn again": again,
        "left over": found.keys() - whole.keys(),
    }
    return next(((how, ", ".join(sorted(names)[:3])) for how, names in classes.items() if names), ("equal", ""))


def _is_in(path, out, whole):
    return path.read_bytes() == whole.get(str(path.relative_to(out)))


def campaign(world, job, tally: Tally, n: int | None) -> None:
    """Kill a job at every event once, a quick one at some pairs, too; or, with ``n``, at so many of all these."""
    undisturbed = world.folder / f"whole {job.__name__}"
    undisturbed.mkdir()
    outcome = run(world, job, undisturbed)
    assert outcome.how == "value", outcome
    events, whole, chance = outcome.what, contents(undisturbed), random.Random(tally.given.seed)
    plans = [[number] for number in range(len(events))]
    plans += [[chance.randrange(len(events)) for _ in range(2)] for _ in events[::8] if job in QUICK]
    for at in plans if n is None else chance.sample(plans, min(n, len(plans))):
        how, what = killed(world, job, whole, at)
        tally.add(job.__name__, how, None if how == "equal" else how, {"at": at, "event": events[at[0]], "what": what})
    tally.keep()


def main(arguments=None) -> dict:
    """Run the campaigns and write what came of them."""
    parser = argparse.ArgumentParser("python -m tests.chaos.kill", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every event of every job; without it --n of the quick ones")
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS))
    parser.add_argument("--n", type=int, default=4, help="of each job")
    tally = Tally(parser, arguments)
    given = tally.given
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for name in given.jobs or (JOBS if given.all else [job.__name__ for job in QUICK]):
            campaign(world, JOBS[name], tally, None if given.all else given.n)
    return tally.keep()


if __name__ == "__main__":
    main()
