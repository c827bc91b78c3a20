"""The README tells the truth about today: its Python runs as written, its commands exist."""

import re
import shutil
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_every_python_snippet_runs_as_written(tmp_path, monkeypatch):
    from vit_lens.mini.shipped import sample_images

    monkeypatch.chdir(tmp_path)
    shutil.copy(sample_images()[0], "photo.png")
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) >= 2
    names = {}
    exec(compile("\n".join(snippets), "README.md", "exec"), names)
    record = names["record"]
    assert record.complete and len(record.table) == 64 + 64 + 8
    assert (tmp_path / "out" / "report.html").is_file()


def test_every_command_and_option_exists():
    from typer.main import get_command

    from vit_lens.cli import app

    commands = get_command(app).commands
    text = README.replace("\\\n", " ")  # continued lines
    used = re.findall(r"vit-lens ((?:(?:mini|study|paper) )?[a-z0-9-]+)([^`\n#]*)", text)
    seen = set()
    for command, rest in used:
        group, _, inner = command.partition(" ")
        if group not in commands:
            continue
        known = commands[group].commands[inner] if inner else commands[group]
        options = {name for parameter in known.params for name in [*parameter.opts, *parameter.secondary_opts]}
        assert set(re.findall(r"(--[a-z-]+)", rest)) <= options, command
        seen.add(command)
    assert {"demo", "sweep", "report", "merge", "reference", "doctor", "mini train"} <= seen


def test_every_picture_and_file_that_is_named_exists():
    root = Path(__file__).parent.parent
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (root / link).exists(), link
