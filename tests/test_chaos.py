"""Kills at file events and damaged files, a few of each; `tests/chaos` tries thousands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked, and /proc names open files")


def campaign(tmp_path, module, *arguments):
    """Run one in a process of its own, whose children are forked before anything else has threads."""
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", f"tests.chaos.{module}", *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_killed_at_file_events_everything_ends_in_the_same_bits(tmp_path):
    found = campaign(tmp_path, "kill", "--n", "3")
    assert found["n"] == 15 and not found["faults"], json.dumps(found["faults"], indent=1)


def test_damaged_files_are_refused_or_do_not_matter(tmp_path):
    found = campaign(tmp_path, "fuzz", "--mutants", "132")
    assert found["n"] == 132 and not found["faults"], json.dumps(found["faults"], indent=1)


CARELESS = """
import json, os, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace
from tests.chaos import children, kill

def careless(world, out):
    if not (out / "a.txt").exists():
        (out / "a.txt").write_text("whole")

def raises(error):
    raise error

from vit_lens.errors import VitLensError
tried = {
    "value": (len, "abc"), "refused": (raises, VitLensError("no")), "traceback": (raises, TypeError("no")),
    "memory": (bytes, 1 << 40), "hang": (time.sleep, 9), "signal": (os.abort,),
}
hows = {name: children.in_child(*what, seconds=1).how for name, what in tried.items()}
with tempfile.TemporaryDirectory() as folder:
    world, whole = SimpleNamespace(folder=Path(folder)), {"a.txt": b"whole"}
    kills = [kill.killed(world, careless, whole, [at]) for at in range(3)]
print(json.dumps([hows, kills]))
"""


def test_the_harness_sees_what_becomes_of_children():
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", CARELESS], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hows, kills = json.loads(done.stdout)
    assert all(name == how for name, how in hows.items()) and len(hows) == 6
    assert kills == [["equal", ""], ["differing", "a.txt"], ["equal", ""]]  # died before, with it empty, not at all
