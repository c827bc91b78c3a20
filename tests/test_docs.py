"""The pages of docs/ tell the truth about today: their Python runs, and prints what they show.

- ```` ```python ```` runs, top to bottom; the blocks of one page share their names.
- ```` ```text ```` directly below such a block is what it prints, or the error that it raises, as
  ``NameOfTheError: message``. ``...`` stands for anything, numbers may differ in the last digit that is shown, those
  written with an exponent (rounding errors) in all.
- ```` ```py ```` is another library's code, on the pages for those who come from there: it is parsed, and not run.
"""

import ast
import contextlib
import io
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.tl3

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
WRONG_CALLS = (
    "errors",
    "own_decoder",
    "own_lens",
    "text_lens",
)  # pages that show them as users meet them: without type checks

_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)")
_ERROR = re.compile(r"[A-Z]\w*Error: ")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int  # of the first line of text, counted from 1
    end: int  # index behind the closing fence

    @property
    def is_error(self) -> bool:
        return self.language == "text" and _ERROR.match(self.text) is not None


def blocks(page):
    text = page.read_text()
    return [Block(m[2], m[3], text.count("\n", 0, m.start(3)) + 1, m.end()) for m in _BLOCK.finditer(text)]


def shown_below(page, block):
    """Return the text block directly below, with nothing but white space between."""
    text = page.read_text()
    following = next((b for b in blocks(page) if b.line > block.line), None)
    if following is None or following.language != "text":
        return None
    between = text[block.end :].split("```", 1)[0]
    return following if not between.strip() else None


def matches(shown, found):
    """Whether a text is the one that is shown, but for white space, ``...`` and the last digits of numbers."""
    shown, found = " ".join(shown.split()), " ".join(found.split())
    pieces = [re.escape(piece) for piece in _NUMBER.sub("\0", shown).split("...")]
    pattern = ".*".join(pieces).replace("\0", f"({_NUMBER.pattern})").replace("\\\0", f"({_NUMBER.pattern})")
    hit = re.fullmatch(pattern, found)
    numbers = _NUMBER.findall(shown)
    return hit is not None and all(_close(a, b) for a, b in zip(numbers, hit.groups(), strict=True))


def _close(shown, found):
    """Whether two numbers differ by no more than 2 in the last digit; one with an exponent is rounding, or random."""
    if "e" in shown:
        return True
    return abs(float(shown) - float(found)) <= 2.1 * 10.0 ** -len(shown.split(".")[1])


def run_page(page):
    """Run a page's Python; return what each block printed or raised, with its line and what the page shows of it."""
    import torch

    names, results = {"__name__": "__main__"}, []
    with torch.enable_grad():  # a page that switches gradients off does so for itself
        for block in blocks(page):
            if block.language != "python":
                continue
            shown = shown_below(page, block)
            printed, code = io.StringIO(), compile("\n" * (block.line - 1) + block.text, page.name, "exec")
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                try:
                    exec(code, names)
                except Exception as error:
                    if shown is None or not shown.is_error:
                        raise
                    results.append((block.line, shown.text, f"{type(error).__name__}: {error}"))
                    continue
            results.append((block.line, shown and shown.text, printed.getvalue()))
    return results


@pytest.fixture(scope="module")
def wrong_calls(tmp_path_factory):
    """What docs/errors.md shows and what happens, as users meet it: without the type checks of this suite."""
    from jaxtyping import config

    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("error")
        patched.chdir(tmp_path_factory.mktemp("errors"))
        patched.setattr(config, "jaxtyping_disable", True)
        return run_page(ROOT / "docs" / "errors.md")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with a picture and a folder of pictures, as the pages expect."""
    from vit_lens.mini import sample_images

    monkeypatch.chdir(tmp_path)
    shutil.copy(sample_images()[0], "photo.png")
    (tmp_path / "photos").mkdir()
    for path in sample_images():
        shutil.copy(path, tmp_path / "photos")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_snippet_runs_and_prints_what_is_shown(page, workplace, monkeypatch, request):
    from jaxtyping import config

    if page.stem in WRONG_CALLS:
        monkeypatch.setattr(config, "jaxtyping_disable", True)
    results = request.getfixturevalue("wrong_calls") if page.stem == "errors" else run_page(page)
    assert len(results) == sum(block.language == "python" for block in blocks(page))
    for line, shown, found in results:
        assert shown is None or matches(shown, found), f"{page.name}, line {line}: shown\n{shown}\nfound\n{found}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_that_is_not_run_is_another_librarys(page):
    for block in blocks(page):
        assert block.language in ("python", "py", "text", "bash"), f"{page.name}, line {block.line}: {block.language!r}"
        if block.language == "py":
            assert page.stem.startswith("coming_from_") or page.stem == "habits", f"{page.name}, line {block.line}"
            assert "vit_lens" not in block.text, f"{page.name}, line {block.line}: ours must run, write ```python"
            ast.parse(block.text)
        if block.language == "text":
            before = next(b for b in reversed(blocks(page)) if b.line < block.line)
            ours = before.language == "python" and shown_below(page, before) == block
            assert ours or before.language == "bash", f"{page.name}, line {block.line}: no snippet prints this"


def test_every_error_class_is_explained_and_raised(wrong_calls):
    from vit_lens import errors

    page = ROOT / "docs" / "errors.md"
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    headings = set(re.findall(r"^## `?(\w+Error)`?$", page.read_text(), re.MULTILINE))
    assert classes == headings
    raised = {found.partition(":")[0] for _, shown, found in wrong_calls if shown and _ERROR.match(shown)}
    assert classes <= raised, f"no wrong call shows {sorted(classes - raised)}"


def test_a_message_that_differs_is_seen():
    assert matches("LensError: 3 of ... heads", "LensError: 3 of\n 64 heads")
    assert not matches("LensError: 3 of ... heads", "LensError: 4 of 64 heads")
    assert matches("cosine 0.330, (8, 8)", "cosine 0.331, (8, 8)") and matches("1.2e-07", "1.3e-07")
    assert not matches("cosine 0.330", "cosine 0.340") and not matches("(8, 8)", "(8, 9)")
    assert not matches("0.3 [a]", "0.3 (a)") and not matches("total 1.00", "total 2.00")


def test_the_table_of_hook_points_is_the_golden_list():
    rows = re.findall(r"^\| `([\w.{}]+)` \| (`B [^|]*) \|", (ROOT / "docs" / "hooks.md").read_text(), re.MULTILINE)
    table = {name: set(re.findall(r"`([^`]+)`", shapes)) for name, shapes in rows}
    golden = {}
    for line in (ROOT / "tests" / "data" / "hook_points.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, shape = re.sub(r"^blocks\.\d+", "blocks.{l}", line).partition(": ")
            golden.setdefault(name, set()).add(shape)
    assert set(table) == set(golden)
    for name, shapes in golden.items():
        # Where two widths of a tower are the same, the golden list names the first.
        wide = {s.replace("d_embed", "d_model") for s in table[name]} | {
            s.replace("d_pooled", "d_model") for s in table[name]
        }
        assert shapes <= table[name] | wide, name
        assert all({s, s.replace("d_pooled", "d_model")} & shapes for s in table[name]), name


def targets(page):
    """Return the anchors that a page offers, as GitHub makes them from headings."""
    text = _BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {slug if not plain[:i].count(slug) else f"{slug}-{plain[:i].count(slug)}" for i, slug in enumerate(plain)}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    prose = _BLOCK.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in targets(target), f"{page.name}: {link}"


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    named = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert named == {page.name for page in PAGES} - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page):
    from typer.main import get_command

    from vit_lens.cli import app

    commands = get_command(app).commands
    for block in blocks(page):
        if block.language != "bash":
            continue
        for group, rest in re.findall(r"^vit-lens ([a-z]+)(.*)$", block.text.replace("\\\n", " "), re.MULTILINE):
            command = commands[group]
            if inner := getattr(command, "commands", None):
                command = inner[rest.split()[0]]
            known = {name for p in command.params for name in [*p.opts, *p.secondary_opts]} | {"--help"}
            assert set(re.findall(r"(?<!\S)(--[a-z-]+)", rest)) <= known, f"{page.name}: vit-lens {group}{rest}"


def test_there_are_pages():
    assert len(PAGES) >= 7
