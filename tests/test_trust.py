"""docs/trust.md says what the results say: every number of its tables is read from docs/results."""

import json
import re
from pathlib import Path

import pytest

from vit_lens.studies import load_result

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "trust.md").read_text()
STUDIES = ("content", "importance", "overlay", "planted", "faithfulness")
TEST_ENCODERS = ("1", "2", "3", "4")
_TABLE = re.compile(r"<!-- scores (?P<study>\w+) (?P<level>\w+): (?P<measures>.*?) -->\n(?P<rows>(?:\|.*\n)+)")


def told(estimate):
    """An estimate as the page writes it."""
    if estimate.value is None:
        return "undefined"
    text = f"{estimate.value:+.2f}"
    return text if estimate.low is None else f"{text} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def tables():
    return list(_TABLE.finditer(PAGE))


def test_the_page_has_a_table_of_every_study():
    assert {table["study"] for table in tables()} == set(STUDIES)


@pytest.mark.parametrize("table", tables(), ids=lambda table: f"{table['study']}-{table['level']}")
def test_numbers_are_the_results(table):
    result = load_result(RESULTS / table["study"] / "pooled")
    measures = table["measures"].split(" | ")
    checked = 0
    for line in table["rows"].splitlines()[2:]:
        reading, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for measure, cell in zip(measures, cells, strict=False):
            score = result.score(measure, reading.strip("`*"), table["level"])
            assert cell.strip("*") == told(score.estimate), (reading, measure)
            checked += 1
    assert checked


@pytest.mark.parametrize("study", STUDIES)
def test_every_result_says_how_it_was_made(study):
    prints = set()
    for name in TEST_ENCODERS:
        text = (RESULTS / study / name / "result.json").read_text()
        found = json.loads(text)
        assert found["study"] == study and found["command"].startswith(f"vit-lens study {study} ")
        assert not re.search(r'"/|[A-Z]:\\', text), "a path of the machine"
        prints.add(found["setup"]["fingerprint"])
    pooled = json.loads((RESULTS / study / "pooled" / "result.json").read_text())
    assert {each["fingerprint"] for each in pooled["setup"]["encoders"]} == prints and len(prints) == len(TEST_ENCODERS)


def test_the_verdict_is_the_command_lines_default():
    from vit_lens.cli.flags import DEFAULT_LENSES

    assert f"`{DEFAULT_LENSES[0]}`" in PAGE.split("## ")[1]
