"""A sweep within a budget: coarse first, the most informative refined, and no kill, clock or memory changes a bit."""

import json
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import tiny_sweep
import torch
from tiny_sweep import contents

SITES = ["L0.resid_pre", "L1.resid_post", "L0H1", "L1H2", "L1.mlp"]  # the first is the same for every image
EVERYTHING = 10**6


@pytest.fixture(scope="module")
def model():
    return tiny_sweep.tower()


@pytest.fixture(scope="module")
def quick():
    return tiny_sweep.quick_decoder()


@pytest.fixture
def decoder(quick, monkeypatch):
    """A decoder whose pictures cost nothing, as if fresh."""
    for name in ("calls", "before", "room", "n_free"):
        monkeypatch.setattr(quick, name, getattr(type(quick), name))
    return quick


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_sweep.pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def lenses(model, images):
    return tiny_sweep.lenses(model, images[1:])


@pytest.fixture(scope="module")
def run(model, quick, images, lenses):
    def run(out, decoder=quick, **overrides):
        from vit_lens import sweep

        few = dict(draws=2)  # random directions in place of twenty: half of a small sweep's time, and no matter here
        settings = dict(lens=lenses, sites=SITES, batch_size=5, controls=True, seeds=[3, 0]) | few | overrides
        return sweep(model, decoder, images[:2], out=out, **tiny_sweep.options(**settings))

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """Both passes of every row, in one go."""
    return run(tmp_path_factory.mktemp("whole") / "out", budget=EVERYTHING)


def _kill_at_call(decoder, number):
    """Let the decoder be interrupted in a call to come."""

    def before(settings):
        if len(decoder.calls) == number:
            raise KeyboardInterrupt

    decoder.before = before


# ---- what a budget is


def test_budgets_are_read_as_they_are_written():
    from vit_lens.sweeping import Budget

    read = {"60s": (60, None), "2m": (120, None), "1.5 h": (5400, None), "200": (None, 200), 200: (None, 200)}
    for given, (seconds, pictures) in read.items():
        assert Budget.parse(given) == Budget(seconds=seconds, pictures=pictures)
    own = Budget(seconds=3, pictures=7, same_above=0.99)
    assert Budget.parse(own) is own and str(own) == "3s and 7 pictures"


@pytest.mark.parametrize(
    "given", ["60 seconds", "-3s", "", "1.5", 0.5, 60.0, "60.0", "0s", 0, "nan", float("inf"), True]
)
def test_what_is_no_budget_is_named(given):
    from vit_lens.errors import VitLensError
    from vit_lens.sweeping import Budget

    with pytest.raises(VitLensError, match=r"write seconds, minutes or hours as 60s|number, more than 0"):
        Budget.parse(given)


def test_numbers_of_a_budget_are_checked_for_users_without_type_checks():
    code = (
        "from vit_lens.sweeping import Budget\nfrom vit_lens.errors import VitLensError\n"
        "for given in ({'pictures': 1.5}, {'seconds': '60'}, {'seconds': True}, {'seconds': 1, 'same_above': 'x'}):\n"
        "    try: Budget(**given)\n    except VitLensError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 4, done.stdout + done.stderr


def test_bounds_that_bound_nothing_are_refused():
    from vit_lens.errors import VitLensError
    from vit_lens.sweeping import Budget

    with pytest.raises(VitLensError, match="bounds nothing"):
        Budget()
    for bound in (0, 1.01, float("nan")):
        with pytest.raises(VitLensError, match="expected a cosine above 0"):
            Budget(pictures=1, same_above=bound)


@pytest.mark.parametrize(("steps", "coarse"), [(100, 20), (25, 5), (10, 3), (4, 3), (2, 2)])
def test_coarse_pictures_take_a_fifth_of_the_steps_and_no_guidance(decoder, steps, coarse):
    full = replace(decoder.defaults, steps=steps, guidance_interval=(0.0, 0.5), seed=9)
    found = decoder.coarse(full)
    assert found == replace(full, steps=coarse, guidance=1.0, guidance_interval=None)
    assert decoder.work(full) == steps + steps // 2 and decoder.work(found) == coarse
    assert decoder.coarse(found) is None or steps > 15  # 3 steps without guidance cannot be had for less


# ---- which rows share a picture, against two loops


def _twins_one_by_one(embeds, seeds, bound):
    same = []
    for row, embed in enumerate(embeds):
        first = None
        for other in range(row):
            a, b = embed.double().numpy(), embeds[other].double().numpy()
            norms = np.linalg.norm(a), np.linalg.norm(b)
            if same[other] is None and seeds[other] == seeds[row] and min(norms) > 0:
                if a @ b / norms[0] / norms[1] >= bound and min(norms) / max(norms) >= bound:
                    first = other
                    break
        same.append(first)
    return same


def test_rows_that_are_all_but_equal_share_the_first_picture():
    from vit_lens.sweeping.order import find_twins

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 9, generator=generator)
    embeds = base.repeat(7, 1) + 0.08 * torch.randn(42, 9, generator=generator)  # cosines on both sides of the bound
    embeds[5] = embeds[11] = 0.0
    embeds[20] = embeds[2] * 1.2  # as long a way off in length
    seeds = torch.tensor([row % 5 == 0 for row in range(42)]).long()
    found = find_twins(embeds, seeds, 0.99)
    assert found == _twins_one_by_one(embeds, seeds, 0.99)
    assert 5 < sum(same is not None for same in found) < 36
    assert all(found[same] is None for same in found if same is not None)  # nothing drifts along a chain
    assert found[5] is None and found[11] is None and found[20] != 2


def test_a_row_that_shares_a_picture_lends_none():
    """Along a circle in steps of five degrees, with a bound of six: every other row is drawn."""
    from vit_lens.sweeping.order import find_twins

    angles = torch.arange(7) * torch.pi / 36
    embeds = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = find_twins(embeds, torch.zeros(7).long(), float(torch.cos(torch.tensor(torch.pi / 30))))
    assert found == [None, 0, None, 2, None, 4, None]


# ---- the order


def _of(record):
    return {one.id: one.of or one.id for one in record.readings.values()}


def _unit(record, row):
    return row["input"], row["site"], _of(record)[row["reading"]]


def test_inputs_take_turns_residuals_first_and_the_most_informative_of_each_input_first(whole):
    """With a site goes all that it is compared with; the order is even over inputs."""
    from vit_lens.sweeping.order import refining_groups

    table = whole.table.assign(same_as=None)
    groups = refining_groups(table, _of(whole))
    assert sorted(row for group in groups for row in group) == list(range(len(table)))
    keys = []
    for group in groups:
        rows = [table.loc[row] for row in group]
        assert len({_unit(whole, row) for row in rows}) == 1  # one site of one input and lens ...
        (unit,) = {_unit(whole, row) for row in rows}
        assert len(rows) == sum(_unit(whole, row) == unit for _, row in table.iterrows())  # ... and all of it
        site = next(row for row in rows if not whole.readings[row["reading"]].control)
        is_residual = site["site_type"].startswith("resid")
        assert is_residual or {whole.readings[row["reading"]].control for row in rows} == {"", "random"}
        against = [site[name] for name in ("cos_lens_control", "cos_lens_other") if not is_residual]
        adds = min((abs(site["cos_lens_clean"] - one) for one in against), default=-1.0)
        keys.append((not is_residual, site["input"], (-adds, -site["norm_h"])))
    assert [key[0] for key in keys] == sorted(key[0] for key in keys)  # residuals first
    for kind in (False, True):
        own = [key for key in keys if key[0] == kind]
        inputs = [key[1] for key in own]
        assert inputs == [0, 1] * (len(own) // 2)  # in turn
        for index in (0, 1):
            of_input = [key[2] for key in own if key[1] == index]
            assert of_input == sorted(of_input) and len(of_input) >= 2


def test_ties_go_to_the_larger_and_sites_that_share_a_picture_go_together(whole):
    from vit_lens.sweeping.order import refining_groups

    table, of = whole.table.assign(cos_lens_clean=0.5, cos_lens_control=0.25, same_as=None), _of(whole)
    table["cos_lens_other"] = 0.0
    own = [name for name, reading in whole.readings.items() if not reading.control]
    sites = table[table["reading"].isin(own) & (table["seed"] == 3) & ~table["site_type"].str.startswith("resid")]
    groups = refining_groups(table, of)
    for index in (0, 1):
        some = sites[sites["input"] == index]
        order = [next(r for r in group if r in some.index) for group in groups if set(group) & {*some.index}]
        assert table.loc[order, "norm_h"].is_monotonic_decreasing and len(order) == len(some) > 3
    first, last = sites.index[0], sites.index[-1]
    table["same_as"] = [first if row == last else None for row in range(len(table))]
    (together,) = [group for group in refining_groups(table, of) if first in group]
    units = {_unit(whole, table.loc[row]) for row in together}
    assert units == {_unit(whole, table.loc[first]), _unit(whole, table.loc[last])} and last not in together


def test_a_budget_that_ends_early_has_drawn_of_every_input(run, decoder, tmp_path):
    """The clock stops in the coarse pass: all inputs have residuals and sites with their controls."""
    _kill_at_call(decoder, 4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", budget="1h")
    from vit_lens.records import Record

    record = Record.load(tmp_path / "out")
    files = {int(path.stem) for path in (tmp_path / "out/pictures/coarse").iterdir()}
    table = record.table.loc[sorted(files)]
    assert set(table["input"]) == {0, 1}
    counts = table.groupby("input").size()
    assert abs(counts[0] - counts[1]) <= 2 * 2  # a group of each noise seed apart, at most


# ---- the passes


def test_all_rows_are_drawn_coarsely_then_at_full_settings(whole, run, decoder, tmp_path):
    """Every picture is that of its embedding, its pass's settings and its noise seed."""
    coarse = run(tmp_path / "out", budget=1).path  # one batch is refined at least
    from vit_lens.records import Record

    record = Record.load(coarse)
    drawn = record.table["drawn"]
    assert set(drawn) == {"coarse", "full"} and not record.complete and whole.complete
    assert set(whole.table["drawn"]) == {"full"}
    for found, drawn in ((record, "coarse"), (whole, "full")):
        rows = found.table[(found.table["drawn"] == drawn) & found.table["same_as"].isna()]
        for seed in (3, 0):
            some = rows[rows["seed"] == seed]["row"].tolist()[:4]
            settings = replace(decoder.defaults, seed=seed)
            if drawn == "coarse":
                settings = replace(settings, steps=3, guidance=1.0)
            for row in some:
                lens = found.embeddings["lens"][row]
                assert np.array_equal(np.asarray(found.picture(row)), decoder._picture(lens, settings, 5))
            assert {found.table["picture"][row] for row in some} == {
                f"pictures/{'coarse/' * (drawn == 'coarse')}{row:06d}.png" for row in some
            }
    assert record.manifest["budgets"] == ["1 pictures"]
    assert record.manifest["batch_plan"]["budget"]["coarse"]["steps"] == 3


def _numbers_are_of_the_picture(record, model):
    """Every row's numbers are those of the picture that it names, re-encoded alone."""
    from vit_lens.metrics import cosine

    drawn = record.table[record.table["picture"] != ""]
    others = record.table.drop(drawn.index)
    assert others["faithfulness"].isna().all() and set(others["drawn"]) <= {""}
    if len(drawn):
        again = model(model.preprocess([np.asarray(record.picture(row)) for row in drawn.index]))
        lens, clean = record.embeddings["lens"][drawn.index], record.embeddings["clean"][drawn["input"].tolist()]
        np.testing.assert_allclose(drawn["faithfulness"], cosine(again, lens), atol=1e-5)
        np.testing.assert_allclose(drawn["cos_input"], cosine(again, clean), atol=1e-5)


def _but_the_manifest(path):
    return {name: data for name, data in contents(path).items() if name != "record.json"}


def _full(path):
    """Everything but the coarse pictures, and the list of files, which names them."""
    return {
        name: data for name, data in _but_the_manifest(path).items() if "coarse" not in name and name != "files.csv"
    }


def test_it_goes_on_for_another_budget_and_ends_with_the_same_bits(run, whole, model, tmp_path):
    import vit_lens as vl

    out, refined = tmp_path / "out", []
    for budget in (7, "7", 3):
        record = run(out, budget=budget)
        _numbers_are_of_the_picture(record, model)
        refined.append(int((record.table["drawn"] == "full").sum()))
    assert 0 < refined[0] < refined[1] < refined[2] < len(record.table)
    in_order = whole.table.loc[record.table["drawn"] == "full"]
    assert (in_order["site_type"].str.startswith("resid")).sum() == 2 * 2 * 2
    end = run(out)  # without a budget: all of it
    assert end.complete and end.manifest["budgets"] == ["7 pictures", "7 pictures", "3 pictures", ""]
    assert vl.records.budget_words(end).startswith(
        "Drawn to a budget of 7 pictures and then 7 pictures and then 3 pictures and then without one."
    )
    assert _but_the_manifest(out) == _but_the_manifest(whole.path)
    before = contents(out)
    assert run(out, budget=5).complete and contents(out) == before


def test_without_a_budget_the_coarse_pass_need_not_end(run, whole, decoder, tmp_path):
    _kill_at_call(decoder, 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", budget="1h")
    decoder.before = type(decoder).before
    end = run(tmp_path / "out")
    assert end.complete and len(list((end.path / "pictures/coarse").iterdir())) < len(end.table)
    assert _full(end.path) == _full(whole.path)


SMALL = dict(sites=["L0.resid_pre", "L0H1", "L1.mlp"], seeds=[0], batch_size=4)


@pytest.fixture(scope="module")
def small(run, tmp_path_factory):
    return run(tmp_path_factory.mktemp("small") / "out", budget=EVERYTHING, **SMALL)


@pytest.mark.parametrize("kill_at", [2, 7, 9, 10, 16, 24, 29, 35])
def test_killed_at_any_write_no_picture_is_lost_or_paired_with_other_numbers(
    run, model, tmp_path, monkeypatch, kill_at, small
):
    """Killed twice, with a checkpoint after every round: what is on disk is sound, and ends with the same bits."""
    import vit_lens.files
    import vit_lens.records.writer
    import vit_lens.sweeping.ledger as drawing
    from vit_lens.records import Record

    original, out, lock = vit_lens.files.write_atomic, tmp_path / "out", threading.Lock()
    state = {"left": kill_at}

    def write(path, data):
        with lock:
            state["left"] -= 1
            left = state["left"]
        if left < 0:
            raise KeyboardInterrupt
        original(path, data)

    monkeypatch.setattr(vit_lens.files, "write_atomic", write)
    monkeypatch.setattr(vit_lens.records.writer, "write_atomic", write)
    monkeypatch.setattr(drawing, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(drawing, "_SHARE", 0)
    kept = {}
    for _ in range(2):
        state["left"] = kill_at
        with pytest.raises(KeyboardInterrupt):
            run(out, budget=EVERYTHING, **SMALL)
        state["left"] = EVERYTHING
        found = contents(out / "pictures") if (out / "pictures").exists() else {}
        assert all(found[name] == data for name, data in kept.items())
        kept = found
        if (out / "record.json").exists():
            _numbers_are_of_the_picture(Record.load(out), model)
    run(out, budget=EVERYTHING, **SMALL)
    assert _but_the_manifest(out) == _but_the_manifest(small.path)


def test_pictures_that_are_on_disk_are_not_drawn_again(run, whole, decoder, tmp_path):
    """Killed before its first checkpoint, after several rounds: their pictures are read, and only the rest is drawn."""
    run(tmp_path / "other", budget=EVERYTHING)
    n_calls, decoder.calls = len(decoder.calls), ()
    _kill_at_call(decoder, n_calls - 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", budget=EVERYTHING)
    decoder.before, decoder.calls = type(decoder).before, ()
    run(tmp_path / "out", budget=EVERYTHING)
    assert 4 <= len(decoder.calls) < n_calls - 4  # those that waited for a thread at the kill may be lost
    assert _but_the_manifest(tmp_path / "out") == _but_the_manifest(whole.path)


def test_the_record_is_shown_after_the_first_pass_and_at_the_end(run, tmp_path):
    shown = []
    run(
        tmp_path / "out",
        budget=EVERYTHING,
        on_pass=lambda record: shown.append((record.complete, *record.table["drawn"])),
    )
    assert [(complete, set(drawn)) for complete, *drawn in shown] == [(False, {"coarse"}), (True, {"full"})]


def test_now_and_then_the_record_is_shown_as_far_as_it_is(run, model, tmp_path, monkeypatch):
    import vit_lens.sweeping.ledger as drawing

    for name in ("_CHECKPOINT_SECONDS", "_SHOW_SECONDS", "_SHARE"):
        monkeypatch.setattr(drawing, name, 0.0)
    refined = []

    def show(record):
        _numbers_are_of_the_picture(record, model)
        refined.append(int((record.table["drawn"] == "full").sum()))

    run(tmp_path / "out", budget=EVERYTHING, on_pass=show, **SMALL)
    assert refined == sorted(refined) and len(set(refined)) > 3 and refined[-1] == 18


# ---- twins


def test_the_same_reading_of_two_images_is_drawn_once(run, whole, decoder, tmp_path):
    table = whole.table
    start = table[(table["site"] == "L0.resid_pre")]
    assert start["same_as"].isna().tolist() == [True, True, False, False]  # for each noise seed
    assert table["same_as"].notna().sum() == 2
    for row, first in table["same_as"].dropna().items():
        assert table["seed"][row] == table["seed"][first] and table["input"][row] != table["input"][first]
        assert (whole.path / table["picture"][row]).read_bytes() == (whole.path / table["picture"][first]).read_bytes()
        assert torch.equal(whole.embeddings["reencoded"][row], whole.embeddings["reencoded"][first])
        assert table["cos_input"][row] != table["cos_input"][first]  # each with its own input
    run(tmp_path / "out", budget=EVERYTHING)
    assert sum(n_rows for n_rows, _, _ in decoder.calls) == 2 * (len(table) - 2)


def test_an_ordinary_sweep_draws_every_row(run, whole, tmp_path):
    record = run(tmp_path / "out")
    assert record.table["same_as"].isna().all() and set(record.table["drawn"]) == {"full"}
    assert "budget" not in record.manifest["batch_plan"] and "budgets" not in record.manifest
    assert not (tmp_path / "out/pictures/coarse").exists()
    own = whole.table.index[whole.table["same_as"].isna()]
    assert all(record.picture(row).tobytes() == whole.picture(row).tobytes() for row in own)


# ---- the clock


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the decoder moves: seconds by rows of the UNet."""
    import types

    import vit_lens.sweeping as sweeping
    import vit_lens.sweeping.budget as budget
    import vit_lens.sweeping.ledger as drawing
    import vit_lens.sweeping.stages as running

    now = types.SimpleNamespace(seconds=1000.0)
    fake = types.SimpleNamespace(monotonic=lambda: now.seconds)
    for module in (sweeping, running, budget, drawing):
        monkeypatch.setattr(module, "time", fake)
    return now


@pytest.mark.parametrize("seconds", [20, 60, 150, 300, 600])
def test_time_is_spent_to_the_last_round_that_fits(run, small, decoder, tmp_path, clock, seconds):
    """Every batch costs what its UNet rows cost: the pass stops where the next round would end too late."""

    def before(settings):
        clock.seconds += 5 * decoder.work(settings)

    decoder.before, start = before, clock.seconds
    record = run(tmp_path / "out", budget=f"{seconds}s", **SMALL)
    spent, drawn = clock.seconds - start, set(record.table["drawn"])
    assert spent <= seconds
    if drawn == {"full"}:
        assert record.complete and seconds == 600
    elif "" in drawn:
        assert spent > seconds - 5 * 3 and "full" not in drawn
    else:
        assert spent > seconds - 5 * 12
    end = run(tmp_path / "out", **SMALL)
    assert end.complete and _full(end.path) == _full(small.path)


def test_a_slow_start_counts_until_there_is_a_second_round(decoder):
    import time

    from vit_lens.sweeping import Budget
    from vit_lens.sweeping.budget import Pace

    pace = Pace(Budget(seconds=100), time.monotonic())
    assert pace.fits("coarse", 10**9)  # nothing is known
    pace.spent("coarse", 10, 5, 20.0)
    assert pace.fits("coarse", 45) and not pace.fits("coarse", 55)
    assert pace.fits("full", 45) and not pace.fits("full", 55)  # the other pass serves
    for seconds in (1.0, 3.0, 2.0):
        pace.spent("coarse", 10, 5, seconds)
    assert pace.fits("coarse", 300) and not pace.fits("coarse", 340)  # the slowest but the first
    pace.spent("full", 10, 5, 50.0)
    assert not pace.fits("full", 30) and pace.fits("full", 15)
    pace.ending |= {"save": 20.0, "show": 10.0}
    assert not pace.fits("full", 15)
    counted = Pace(Budget(pictures=10), time.monotonic())
    counted.spent("full", 10, 9, 1.0)
    assert counted.fits("full", 10)
    counted.spent("full", 10, 9, 1.0)
    assert not counted.fits("full", 10) and counted.fits("coarse", 10)


# ---- memory


def _as_if_killed_at_the_end(record, lost):
    """Undo the finish of a record, take pictures from it, and return all that it held."""
    before = contents(record.path)
    (record.path / "record.json").write_text(json.dumps(record.manifest | {"complete": False, "notes": []}))
    for name in lost:
        (record.path / "pictures" / name).unlink()
    return before


def _same(before, path):
    after = contents(path)
    ours, theirs = (json.loads(held.pop("record.json")) for held in (after, before))
    assert {**ours, "content": ""} == {**theirs, "content": ""}
    assert after == before


def test_memory_that_runs_short_halves_the_batch_and_the_record_says_so(run, decoder, tmp_path):
    """Room for 3 rows: batches of 4 become 2 and, with guidance, 1; nothing is lost, all is replayed to the bit."""
    decoder.room = 3
    record = run(tmp_path / "out", budget=EVERYTHING, **SMALL)
    changes = record.manifest["batch_plan"]["changes"]
    assert [(c["pass"], c["batch_size"]) for c in changes] == [("coarse", 2), ("full", 1)]
    assert {c["why"] for c in changes} == {"out of memory"}
    assert record.complete and record.manifest["batch_plan"]["batch_size"] == 4
    (note,) = record.manifest["notes"]
    first, second = (change["row"] for change in changes)
    assert note.startswith(
        f"Memory ran short: coarse pictures were drawn 2 at a time from row {first} on, pictures 1 at a time from row "
        f"{second} on, instead of 4. Batches of another size differ by rounding: "
    )
    lost = [f"{row:06d}.png" for row in (2, 7, 16)] + [f"coarse/{row:06d}.png" for row in (1, 12)]
    before = _as_if_killed_at_the_end(record, lost)
    decoder.room, decoder.calls = EVERYTHING, ()  # room again: what is lost is drawn as it was
    run(tmp_path / "out", budget=EVERYTHING, **SMALL)
    assert {(settings.steps, size) for _, settings, size in decoder.calls} == {(3, 2), (6, 1)}
    manifest = json.loads(before["record.json"])
    before["record.json"] = json.dumps(manifest | {"budgets": manifest["budgets"] * 2})
    _same(before, record.path)


def test_memory_that_runs_short_midway_changes_what_comes_after(run, decoder, tmp_path):
    """In an ordinary sweep: batches before keep size and bits, those after have the new one; a resumed sweep too.

    Rows of the first seed are 0 to 13, and 28 to 41; the fourth batch of five begins with row 29.
    """

    def squeeze(settings):
        if len(decoder.calls) == 4:
            decoder.room = 5  # two rows with guidance

    decoder.before = squeeze
    record = run(tmp_path / "out")
    (change,) = record.manifest["batch_plan"]["changes"]
    assert change == {"row": 29, "pass": "full", "batch_size": 2, "why": "out of memory"}
    assert [size for _, _, size in decoder.calls[:6]] == [5, 5, 5, 5, 2, 2]
    assert [n_rows for n_rows, _, _ in decoder.calls[:8]] == [5, 5, 5, 5, 2, 2, 1, 2]
    decoder.room, decoder.calls, decoder.before = EVERYTHING, (), type(decoder).before
    before = _as_if_killed_at_the_end(record, ["000002.png", "000029.png", "000033.png"])
    run(tmp_path / "out")
    assert [(n_rows, size) for n_rows, _, size in decoder.calls] == [(5, 5), (2, 2), (1, 2)]
    _same(before, record.path)


def test_a_unet_without_room_is_drawn_in_smaller_batches(model, images, lenses, tmp_path):
    """The same with a true decoder, whose UNet refuses more than 3 rows."""
    from vit_lens import Drawing, sweep

    decoder = tiny_sweep.decoder(steps=1, guidance=1.0)
    settings = dict(lens=lenses, sites=["L0H1", "L1.resid_post"], drawing=Drawing(batch_size=4))
    plain = sweep(model, decoder, images[:2], out=tmp_path / "plain", **settings)

    def refuse(module, arguments, keywords):
        if len(arguments[0] if arguments else keywords["sample"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with decoder.unet.register_forward_pre_hook(refuse, with_kwargs=True):
        record = sweep(model, decoder, images[:2], out=tmp_path / "out", **settings)
    (change,) = record.manifest["batch_plan"]["changes"]
    assert change == {"row": 0, "pass": "full", "batch_size": 2, "why": "out of memory"}
    smaller = sweep(
        model, decoder, images[:2], out=tmp_path / "smaller", **settings | {"drawing": Drawing(batch_size=2)}
    )
    assert contents(record.path / "pictures") == contents(smaller.path / "pictures")
    for row in range(len(plain.table)):
        one, two = (np.asarray(r.picture(row)).astype(int) for r in (plain, record))
        assert np.abs(one - two).max() <= 1  # rounding, which is what the note says


def test_a_smaller_chunk_of_movq_is_written_down_and_loses_nothing(run, decoder, tmp_path, monkeypatch):
    original = type(decoder).decode

    def decode(self, condition, *, on_smaller, **arguments):
        if len(self.calls) == 1:
            on_smaller(arguments["batch_size"])  # as where MoVQ's share was halved, and sufficed
        return original(self, condition, on_smaller=on_smaller, **arguments)

    monkeypatch.setattr(type(decoder), "decode", decode)
    record = run(tmp_path / "out")
    (change,) = record.manifest["batch_plan"]["changes"]
    assert change["row"] == 5 and change["batch_size"] == 5 and "MoVQ takes fewer pictures" in change["why"]
    assert sum(n_rows for n_rows, _, _ in decoder.calls) == len(record.table)
    assert "MoVQ" in record.manifest["notes"][0]


def test_one_row_that_does_not_fit_is_an_error_and_what_is_drawn_stays(run, decoder, tmp_path):
    from vit_lens.errors import DecoderError

    decoder.room = 1  # enough without guidance
    with pytest.raises(DecoderError, match="does not fit"):
        run(tmp_path / "out", budget=EVERYTHING, **SMALL)
    coarse = contents(tmp_path / "out/pictures")
    assert len(coarse) == 18 and all(name.startswith("coarse/") for name in coarse)
    decoder.room = EVERYTHING
    assert run(tmp_path / "out", budget=EVERYTHING, **SMALL).complete


def test_a_batch_that_memory_lowered_stays_so(run, decoder, tmp_path):
    """The plan keeps the decoder's constant; from the first row drawn so the record says otherwise."""
    from vit_lens.errors import RecordError

    decoder.n_free = 4
    _kill_at_call(decoder, 4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", batch_size=None)
    decoder.before, decoder.n_free = type(decoder).before, 9
    record = run(tmp_path / "out", batch_size=None)
    plan = record.manifest["batch_plan"]
    assert plan["batch_size"] == 5 and [(c["row"], c["batch_size"]) for c in plan["changes"]] == [(0, 4)]
    assert {size for _, _, size in decoder.calls} == {4}
    with pytest.raises(RecordError, match=r"batch_plan\.batch_size is 5 on disk, 6 now"):
        run(tmp_path / "out", batch_size=6)


def test_a_compiled_decoder_is_not_mixed_with_another(run, decoder, tmp_path, monkeypatch):
    """Its pictures differ by rounding, and the record promises bits."""
    from vit_lens.errors import RecordError

    monkeypatch.setattr(type(decoder), "compiled", True)
    assert run(tmp_path / "out", **SMALL).manifest["decoder"]["compiled"] is True
    monkeypatch.setattr(type(decoder), "compiled", False)
    with pytest.raises(RecordError, match=r"decoder\.compiled is true on disk, null now"):
        run(tmp_path / "out", **SMALL)


# ---- threads


def test_an_error_of_a_thread_reaches_the_caller_and_the_table_names_no_missing_picture(
    run, whole, tmp_path, monkeypatch
):
    import vit_lens.records.writer as writer
    from vit_lens.errors import OutputError
    from vit_lens.records import Record

    original = writer.write_atomic

    def write(path, data):
        if path.name == "000013.png":
            raise OutputError("no space left on device")
        original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_atomic", write)
        with pytest.raises(OutputError, match="no space left"):
            run(tmp_path / "out", budget=EVERYTHING)
    record = Record.load(tmp_path / "out")
    named = [name for name in record.table["picture"] if name]
    assert all((record.path / name).exists() for name in named)
    run(tmp_path / "out", budget=EVERYTHING)
    assert _but_the_manifest(tmp_path / "out") == _but_the_manifest(whole.path)


def test_few_pictures_wait_and_all_are_written(monkeypatch):
    from vit_lens.records import RecordWriter
    from vit_lens.sweeping import threads

    gate, written, submitted = threading.Event(), [], []

    class Slow(RecordWriter):
        def __init__(self):
            pass

        def write_picture(self, row, picture, drawn):
            gate.wait(10)
            written.append((row, drawn))

    monkeypatch.setattr(threads, "_WAITING", 4)
    picture = torch.zeros(2, 2, 3, dtype=torch.uint8)

    def fill():
        with threads.PictureThreads(Slow()) as pool:
            for row in range(12):
                pool.write(row, picture, "full")
                submitted.append(row)
            pool.settle()
            assert sorted(written) == [(row, "full") for row in range(12)]

    filler = threading.Thread(target=fill)
    filler.start()
    filler.join(0.3)
    assert len(submitted) == 4 and filler.is_alive()  # the fifth waits
    gate.set()
    filler.join(10)
    assert len(submitted) == 12 and not filler.is_alive()


# ---- what is refused


def test_another_budget_plan_is_another_sweep(run, whole, model, images, lenses, tmp_path):
    from vit_lens import sweep
    from vit_lens.errors import RecordError, VitLensError
    from vit_lens.sweeping import Budget

    with pytest.raises(RecordError, match=r"batch_plan\.budget\.same_above is 0\.9999 on disk, 0\.9 now"):
        run(whole.path, budget=Budget(pictures=3, same_above=0.9))
    plain = run(tmp_path / "plain", sites=["L0H1"], seeds=[0], controls=False)
    with pytest.raises(RecordError, match=r"begun without a budget.* without a budget, or choose another"):
        run(plain.path, sites=["L0H1"], seeds=[0], controls=False, budget=3)
    with pytest.raises(VitLensError, match="budget= would have no effect"):
        sweep(model, None, images, lens=lenses, sites=SITES, out=tmp_path / "none", budget=3)
    with pytest.raises(VitLensError, match="write seconds"):
        run(tmp_path / "none", budget="soon")
    assert not (tmp_path / "none").exists()


def test_shards_within_a_budget_join_when_all_is_refined(model, decoder, images, lenses, tmp_path):
    """The last image is the first once more: all its rows share pictures, in whichever part these are drawn."""
    from vit_lens import sweep
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    def part(number, budget):
        given = dict(lens=lenses, sites=SITES[:3], shard=(number, 2), batch_size=1, budget=budget)
        return sweep(model, decoder, [*images, images[0]], out=tmp_path / str(number), **tiny_sweep.options(**given))

    parts = [part(0, EVERYTHING), part(1, 1)]
    with pytest.raises(RecordError, match="unfinished; run its sweep again without its budget"):
        merge([p.path for p in parts], tmp_path / "joined")
    parts[1] = part(1, None)
    joined = merge([p.path for p in parts], tmp_path / "joined")
    assert joined.complete and set(joined.table["drawn"]) == {"full"} and min(len(p.table) for p in parts) > 2
    table, pairs = joined.table, []
    for row, first in joined.table["same_as"].dropna().items():
        assert table["site"][row] == table["site"][first] and table["reading"][row] == table["reading"][first]
        assert joined.picture(row).tobytes() == joined.picture(int(first)).tobytes()
        pairs.append((table["site"][row], table["input"][first], table["input"][row]))
    start = [(first, other) for site, first, other in pairs if site == "L0.resid_pre"]
    assert start == [(0, 1), (0, 2), (0, 3)]  # the same for every image
    assert {pair[1:] for pair in pairs if pair[0] != "L0.resid_pre"} == {(0, 3)} and len(pairs) == 3 + 3


# ---- the command line


def test_the_command_draws_within_a_budget_and_writes_the_page_as_it_goes(tmp_path, monkeypatch, capsys):
    import sys

    from vit_lens import KandinskyDecoder
    from vit_lens.cli import main
    from vit_lens.mini.shipped import sample_images
    from vit_lens.records import Record

    compiled = []  # which takes a minute, and has tests of its own
    monkeypatch.setattr(KandinskyDecoder, "compile", lambda self: compiled.append(self.decoder_id))

    def command(*arguments):
        sites = ("--sites", "L7H0", "--sites", "L7.mlp", "--controls", "--batch-size", 2, "--no-live")
        given = (
            "vit-lens",
            "sweep",
            sample_images()[0],
            *sites,
            "--fast",
            "--compile",
            "--out",
            tmp_path / "out",
            *arguments,
        )
        monkeypatch.setattr(sys, "argv", list(map(str, given)))
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, capsys.readouterr()

    status, said = command("--budget", "2")
    assert status == 0, said.err
    page, words = said.out.splitlines()
    assert page == f"page: {tmp_path / 'out/report.html'}"
    assert words.startswith("Drawn to a budget of 2 pictures. 2 of 8 pictures are refined")
    record = Record.load(tmp_path / "out")
    assert set(record.table["drawn"]) == {"coarse", "full"} and compiled == ["vit_lens/mini"]
    assert record.manifest["decoder"]["settings"]["scheduler"] == "dpm++"  # of the fast settings
    assert record.manifest["batch_plan"]["batch_size"] == 2
    status, said = command("--budget", "soon")
    assert status == 2 and "write seconds, minutes or hours as 60s" in said.err
    status, said = command("--decoder", "none", "--budget", "3")
    assert status == 2 and "budget would have no effect" in said.err


def test_a_plan_says_what_a_budget_covers(model, decoder, images, lenses):
    from vit_lens import plan

    made = plan(model, decoder, images[:2], lens=lenses, sites=["resid_post", "heads"], budget=5)
    # as Budget.pictures says, and as the runs above count: what is refined, after a coarse pass of every row
    assert made.estimate().endswith(f"; 5 pictures at full settings are {5 / made.n_rows:.0%} of them")
    both = plan(model, decoder, images[:2], lens=lenses, sites=["resid_post", "heads"], budget=10**9)
    assert both.estimate().endswith("pictures at full settings are 100% of them")
    timed = plan(model, decoder, images[:2], lens=lenses, sites=["resid_post", "heads"], budget="100h")
    assert timed.estimate().endswith("; 360000s covers 100% of the coarse ones")
    assert repr(made) == f"<Plan of {made.n_rows} rows of 2 inputs; print it for time, memory and disk>"
