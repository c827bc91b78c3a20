"""docs/trust.md and the pages beside it say what the results say: every number of their tables is theirs."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from vit_lens.studies import load_result
from vit_lens.studies.statistics import across_encoders

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("trust", "trust_first_round", "trust_text")}
FIRST = ("content", "importance", "overlay", "planted", "faithfulness")
SECOND = tuple(sorted(path.name for path in (RESULTS / "second").iterdir()))
TEXT = tuple(sorted(path.name for path in (RESULTS / "text").iterdir()))
SEEDS = {study: "1234" for study in FIRST}
SEEDS |= {f"second/{study}": [str(seed) for seed in range(11, 19)] for study in SECOND}
SEEDS |= {f"text/{study}": "123456" for study in TEXT}
_ROWS = r"\n(?P<rows>(?:\|.*\n)+)"
_TABLE = re.compile(r"<!-- scores (?P<study>[\w/]+) (?P<level>\w+): (?P<measures>.*?) -->" + _ROWS)
_DIFFERENCES = re.compile(r"<!-- differences (?P<study>[\w/]+): (?P<measure>.*?); minus (?P<minus>.*?) -->" + _ROWS)
_NULLS = re.compile(r"<!-- nulls (?P<study>[\w/]+): (?P<measure>.*?): (?P<nulls>.*?) -->" + _ROWS)


def told(estimate):
    """An estimate as the pages write it."""
    if estimate.value is None:
        return "undefined"
    text = f"{estimate.value:+.2f}"
    return text if estimate.low is None else f"{text} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def tables(kind=_TABLE):
    return [table for page in PAGES.values() for table in kind.finditer(page)]


def rows(table):
    for line in table["rows"].splitlines()[2:]:
        reading, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        yield reading.strip("`*"), [cell.strip("*") for cell in cells]


@cache
def result(*parts):
    return load_result(RESULTS.joinpath(*parts))


def of_encoders(study):
    return [result(study, path.name) for path in sorted((RESULTS / study).iterdir()) if path.name.isdecimal()]


def test_the_pages_have_a_table_of_every_study():
    found = {table["study"] for table in tables()}
    assert found == set(SEEDS)
    assert tables(_DIFFERENCES) and tables(_NULLS)


@pytest.mark.parametrize("table", tables(), ids=lambda table: f"{table['study']}-{table['level']}")
def test_numbers_are_the_results(table):
    pooled = result(table["study"], "pooled")
    measures = table["measures"].split(" | ")
    checked = 0
    for reading, cells in rows(table):
        for measure, cell in zip(measures, cells, strict=False):
            score = pooled.score(measure, reading, table["level"])
            assert cell == told(score.estimate), (reading, measure)
            checked += 1
    assert checked


@pytest.mark.parametrize("table", tables(_DIFFERENCES), ids=lambda table: table["study"])
def test_differences_are_those_of_the_encoders_in_pairs(table):
    """Worked out from the encoders' own results, and not from the pooled one's table; the last of two is for four."""
    found = of_encoders(table["study"])
    for reading, cells in rows(table):
        pairs = [
            [one.score(table["measure"], name, "decoded").estimate.value for name in (reading, table["minus"])]
            for one in found
        ]
        values = [a - b for a, b in pairs]
        assert cells[0] == told(across_encoders(values)), reading
        if len(cells) > 1:
            wider = across_encoders(values, level=1 - 0.05 / 4)
            assert cells[1] == f"[{wider.low:+.2f}, {wider.high:+.2f}]", reading


@pytest.mark.parametrize("table", tables(_NULLS), ids=lambda table: table["study"])
def test_nulls_are_those_of_the_encoders(table):
    names = table["nulls"].split(" | ")
    for reading, cells in rows(table):
        for name, cell in zip(names, cells, strict=True):
            means = [
                one.score(table["measure"], reading, "decoded").nulls[name].mean for one in of_encoders(table["study"])
            ]
            assert cell == told(across_encoders(means)), (reading, name)


@pytest.mark.parametrize("study", SEEDS)
def test_every_result_says_how_it_was_made(study):
    folders = [path for path in (RESULTS / study).iterdir() if path.name.isdecimal()]
    assert {path.name for path in folders} == set(SEEDS[study])
    prints, name = set(), study.rpartition("/")[2].removesuffix("_second_decoder")
    for folder in folders:
        text = (folder / "result.json").read_text()
        found = json.loads(text)
        assert found["study"] == name and found["command"].startswith(f"vit-lens study {name} ")
        assert not re.search(r'["\s]/\w|[A-Z]:\\', text), "a path of the machine"
        prints.add(found["setup"]["fingerprint"])
    pooled = json.loads((RESULTS / study / "pooled" / "result.json").read_text())
    assert {each["fingerprint"] for each in pooled["setup"]["encoders"]} == prints and len(prints) == len(folders)
    assert not re.search(r'["\s]/\w|[A-Z]:\\', json.dumps(pooled["command"]))


def test_the_verdict_is_the_command_lines_default():
    from vit_lens.cli.flags import DEFAULT_LENSES

    use = PAGES["trust"].split("**What to use.**")[1].split("\n\n")[0]
    assert f"`{DEFAULT_LENSES[0]}`" in use


def test_what_the_page_of_texts_says_beyond_its_tables():
    """Of compounds without places, and of textures in pairs: worked out from the encoders' own curves and scores."""
    page, found = " ".join(PAGES["trust_text"].split()), of_encoders("text/composition")
    half = "half-rise above mismatched prompts"
    for kind, word in (("pair, head first", "head first"), ("pair, fronted", "fronted")):
        gaps, later = [], []
        for one in found:
            curves = one.frame("curves").set_index(["kind", "part"])["accuracy"]
            both, head, other = (curves[kind, f"{part} there"].to_numpy() for part in ("both", "head", "other"))
            gaps.append(float((both - head * other)[1:-1].mean()))
            pair = [one.score(half, f"{name}: texture 1", "decoded").estimate.value for name in (kind, "single")]
            later.append(pair[0] - pair[1])
        assert f"{told(across_encoders(gaps))} {word}" in page and max(gaps) < 0 < min(later)
        assert told(across_encoders(later)) in page
