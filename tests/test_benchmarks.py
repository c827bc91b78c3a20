"""The benchmarks run and say what they did; the pages show what the results hold."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("bench_*.py"))


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{script}", *map(str, arguments)])
    return runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_shows_how_to_run_it(script, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, script.name, "--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"python benchmarks/{script.name}" in said
    assert "--dtype" in said and "--out" in said


@pytest.mark.parametrize("benchmark", ["forward", "cache", "sweep"])
def test_an_encoder_benchmark_writes_what_it_measured(benchmark, monkeypatch, tmp_path):
    import measuring

    asked = []

    def in_this_process(script, arguments):
        asked.append(arguments)
        made = {"name": arguments[2] if benchmark != "sweep" else "", "batch": 1, "weights_mib": 1.0}
        return made | {"peak_over_weights": 1.0, "process_over_weights": 1.0, "sites": 72}

    monkeypatch.setattr(measuring, "fresh_process", in_this_process)
    with torch.random.fork_rng():
        run(monkeypatch, f"bench_{benchmark}.py", "mini", "--repeats", 2, "--batch", 1, "--out", tmp_path)
    found = json.loads((tmp_path / f"{benchmark}_mini_cpu_float32.json").read_text())
    assert found["machine"]["cores"] and found["versions"]["torch"] and found["commit"] and found["date"]
    assert found["command"].startswith(f"python benchmarks/bench_{benchmark}.py mini")
    assert found["weights"] == "random" and asked
    rows = found["lens"] if benchmark == "sweep" else found["rows"]
    assert all(row["ratio"] > 0 and len(row["seconds"]) >= 1 for row in rows)
    base = [row for row in rows if row["name"] == row["base"]]
    assert base and all(row["ratio"] == 1 for row in base)


def test_the_text_benchmark_compares_with_the_stock_pipeline(monkeypatch, tmp_path):
    import vit_lens as vl

    short = ("--repeats", 1, "--prompts", 1, "--steps", 1, "--out", tmp_path)
    with torch.random.fork_rng():
        run(monkeypatch, "bench_text.py", "mini", *short)
        found = json.loads((tmp_path / "text_mini_cpu_float32.json").read_text())
        assert found["equal_bits_at_equal_rows"] and found["largest_difference_in_counts"] <= 1
        assert [row["name"].split(",")[0] for row in found["rows"]] == ["stock pipeline", "stock pipeline", "vit_lens"]
        assert (found["prompts"], found["layers"], found["weights"]) == (1, 9, "the embedded model's")
        run(monkeypatch, "bench_text.py", "mini", *short, "--saved")
        right = vl.TextDiffusionLens.read
        monkeypatch.setattr(vl.TextDiffusionLens, "read", lambda self, run, sites: right(self, run, sites)[:, [0] * 9])
        with pytest.raises(SystemExit, match="differ from the stock pipeline's"):
            run(monkeypatch, "bench_text.py", "mini", *short)


def test_the_dictionary_benchmark_says_what_it_did_not_run(monkeypatch, tmp_path):
    short = (
        "--width",
        24,
        "--features",
        40,
        "--k",
        3,
        "--tokens",
        96,
        "--batch",
        32,
        "--repeats",
        2,
        "--out",
        tmp_path,
    )
    with torch.random.fork_rng():
        run(monkeypatch, "bench_dictionaries.py", *short)
        found = json.loads((tmp_path / "dictionaries_24_cpu_float32.json").read_text())
        names = [row["name"] for row in found["rows"]]
        assert names[0] == "TopK" and ("SAELens TopK" in names) == (found["sae_lens"] == "run")
        assert [row["name"] for row in found["pursuit"]] == ["active set", "all atoms"]
        assert all(row["ratio"] > 0 and row["tokens_per_s"] > 0 for row in found["rows"] + found["pursuit"])
        assert found["machine"]["cores"] and found["versions"]["torch"] and found["command"]
        monkeypatch.setattr("vit_lens.dictionaries.gradient_pursuit", lambda x, atoms, k: Halved(x, atoms, k))
        with pytest.raises(SystemExit, match="the two pursuits differ"):
            run(monkeypatch, "bench_dictionaries.py", *short)


class Halved:
    """Codes that are half of what they should be."""

    def __init__(self, x, atoms, k):
        from vit_lens.dictionaries.pursuit import gradient_pursuit

        self.codes = gradient_pursuit(x, atoms, k)

    def dense(self, n):
        return self.codes.dense(n) / 2


def test_peak_memory_is_that_of_a_process_of_its_own(monkeypatch):
    """A hundred MiB more in the child is a hundred MiB more in the result."""
    import measuring

    script = Path(measuring.__file__).parent / "_child.py"
    code = (
        "import json, sys, measuring, torch\n"
        "before = measuring.resident_bytes()\n"
        "held = torch.ones(int(sys.argv[1]) * 2**18)\n"
        "print(json.dumps({'peak': measuring.peak_bytes(torch.device('cpu')) - before}))\n"
    )
    try:
        script.write_text(code)
        small, large = (measuring.fresh_process(str(script), [str(n)])["peak"] / 2**20 for n in (1, 101))
    finally:
        script.unlink()
    assert 95 < large - small < 110


def test_candidates_take_turns_and_ratios_are_paired(monkeypatch):
    """A clock that slows down tenfold in the second half changes no ratio."""
    import measuring

    clock, order = [0.0], []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])

    def candidate(name, cost):
        def call():
            order.append(name)
            clock[0] += cost * (10 if len(order) > 8 else 1)

        return call

    made = {"a": candidate("a", 1.0), "b": candidate("b", 3.0)}
    seconds = measuring.interleave(made, repeats=4, warmup=1, device=torch.device("cpu"))
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]
    rows = {row["name"]: row for row in measuring.summarise(seconds, "a")}
    assert rows["b"]["ratio"] == 3 and rows["b"]["ratio_low"] == rows["b"]["ratio_high"] == 3
    assert rows["a"]["seconds"] == [1, 1, 1, 10]


def test_operations_are_counted_as_two_for_a_product_and_sum():
    import measuring

    assert measuring.count_flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7


def test_a_benchmark_stops_where_the_fast_way_is_wrong(monkeypatch, tmp_path):
    from vit_lens import DiffusionSteeringLens

    right = DiffusionSteeringLens.embed
    monkeypatch.setattr(DiffusionSteeringLens, "embed", lambda self, cache, sites: right(self, cache, sites) * 1.001)
    with pytest.raises(SystemExit, match="differ by"), torch.random.fork_rng():
        run(monkeypatch, "bench_sweep.py", "mini", "--repeats", 1, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_pages_show_the_results():
    """After new results: python benchmarks/summary.py."""
    import summary

    results = summary.load_results()
    parts = summary.details(results) | {
        "bars": summary.bars_table(results),
        "headlines": summary.bars_table(results, headlines=True),
    }
    for name, markers in summary.PAGES.items():
        text = page = (ROOT / name).read_text()
        for marker in markers:
            text = summary.replace_between(text, marker, parts[marker])
        assert text == page, f"{name} is stale"
    assert len(summary.figure(results).data) == 8 and summary.PICTURE.is_file()


def test_every_result_says_where_it_comes_from():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        found = json.loads(path.read_text())
        assert {"machine", "versions", "date"} <= found.keys(), path.name
        if not path.stem.startswith("load"):
            assert found["command"].startswith("python benchmarks/bench_") and found["commit"], path.name
            assert "later changes" not in found["commit"], f"{path.name}: measured on code that is not committed"
