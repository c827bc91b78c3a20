"""Sweeps beside all controls: numbers, pictures, order, cost, and what is said where one cannot be made."""

import re

import numpy as np
import pandas as pd
import pytest
import tiny_sweep
import torch
from PIL import Image

SITES = ["L0H1", "L1.mlp"]


@pytest.fixture(scope="module")
def model():
    return tiny_sweep.tower()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(5)
    paths = [folder / f"{name}.png" for name in "abcdefg"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (31, 25, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def bank(model, photos):
    from vit_lens.controls import ControlBank

    return ControlBank.from_images(model, photos)


@pytest.fixture(scope="module")
def lens():
    from vit_lens import DiffusionSteeringLens

    return DiffusionSteeringLens(alpha=3.0)


@pytest.fixture(scope="module")
def record(model, photos, lens, tmp_path_factory):
    """Two inputs of a bank that holds both, all controls drawn (that is, embedded: there is no decoder)."""
    import vit_lens as vl

    kinds = ["random", "other", "covariance"]
    against = vl.Controls(kinds=kinds, draws=6, bank=vl.controls.ControlBank.from_images(model, photos), seed=2)
    out = tmp_path_factory.mktemp("record") / "out"
    return vl.sweep(model, None, photos[:2], lens=lens, sites=SITES, controls=against, out=out)


def test_every_control_has_rows_and_a_name(record):
    readings = record.readings.values()
    assert [one.control for one in readings] == ["", "random", "other", "covariance"]
    words = {one.control: one.words for one in readings if one.control}
    assert "what the site writes for another image of the same length" in words["other"]
    assert "a random direction with the site's covariance of the same length" in words["covariance"]
    assert record.frame().groupby("control").size().to_dict() == {"": 4, "covariance": 4, "other": 4, "random": 4}
    said = record.manifest["controls"]
    assert said["measured"] == ["random", "other", "covariance"] and said["left_out"] == {}
    assert said["others"]["n"] == 7 and said["others"]["from"] == "a bank of 7 images"


def test_the_record_says_which_image_stood_in_and_it_is_never_the_image_itself(record, model, photos, bank, lens):
    """The control's embedding is what the lens reads of that image's output, scaled to the site's own norm."""
    from vit_lens.lenses import centred_norm, site_outputs

    frame = record.frame()
    for index in (0, 1):
        entry = record.entry(index)
        assert entry["other"] in bank.names and entry["other"] != entry["name"]
        rows = frame[(frame["input"] == index) & (frame["control"] == "other")]
        other = photos[[path.name for path in photos].index(entry["other"])]
        (_, own), (_, theirs) = (
            model.run_with_cache(model.preprocess([path]), rows="readout") for path in (photos[index], other)
        )
        for row, site in zip(rows["row"], rows["site"], strict=True):
            a, b = site_outputs(own, [site]), site_outputs(theirs, [site])
            made = (b - b.mean(-1, keepdim=True)) * (centred_norm(a) / centred_norm(b))[..., None, None]
            expected = lens.read_changed(own, [site], lambda *given, made=made: made).pooled[0, 0]
            assert torch.allclose(record.embeddings["lens"][row], expected, atol=1e-4)


def test_numbers_before_decoding_are_means_over_draws(record, model, photos, bank, lens):
    from vit_lens.controls import Against

    frame = record.frame()
    for index in (0, 1):
        clean, cache = model.run_with_cache(model.preprocess([photos[index]]), rows="readout")
        others = bank.others([bank.hashes[index]], seed=2)
        sites = frame[(frame["input"] == index) & (frame["control"] == "")]
        for kind, column in (("other", "cos_lens_other"), ("covariance", "cos_lens_covariance")):
            digits = record.entry(index)["sha256"][12:24]
            generator = torch.Generator().manual_seed(int(digits, 16) + 2)
            draws = [
                lens.pooled_against(
                    cache, list(sites["site"]), Against(control=kind, generator=generator, others=others.at(turn))
                )[0]
                for turn in range(6)
            ]
            cosines = torch.cosine_similarity(torch.stack(draws).double(), clean.double(), dim=-1).mean(0)
            np.testing.assert_allclose(sites[column], cosines, atol=1e-5)
        assert sites["cos_lens_control"].notna().all()
    rest = frame[frame["control"] != ""]
    assert rest[["cos_lens_control", "cos_lens_other", "cos_lens_covariance"]].isna().all(axis=None)


def test_the_isotropic_control_is_what_it_was_whatever_stands_beside_it(record, model, photos, lens, tmp_path):
    import vit_lens as vl

    alone = vl.sweep(
        model, None, photos[:1], lens=lens, sites=SITES, controls=vl.Controls(draws=6, seed=2), out=tmp_path / "alone"
    )
    a, b = (one.frame() for one in (alone, record))
    b = b[(b["input"] == 0) & b["control"].isin(["", "random"])]
    assert a["cos_lens_control"].tolist() == pytest.approx(b["cos_lens_control"].tolist(), nan_ok=True, abs=1e-7)
    assert torch.equal(alone.embeddings["lens"], record.embeddings["lens"][b["row"].tolist()])


# ---- what cannot be made ----------------------------------------------------------------------------------------


def test_one_image_has_no_other_which_is_said_and_refused_where_it_is_asked_for(model, photos, lens, tmp_path, errors):
    import vit_lens as vl

    plan = vl.plan(model, None, photos[:1], lens=lens, sites=SITES, controls=True)
    assert "controls: random in numbers; left out, for want of other images: other, covariance" in str(plan)
    found = vl.sweep(model, None, photos[:1], lens=lens, sites=SITES, controls=True, out=tmp_path / "one")
    assert found.table["cos_lens_other"].isna().all() and found.table["cos_lens_control"].notna().any()
    left_out = found.manifest["controls"]["left_out"]
    assert "needs 1 other image, and there is none" in left_out["other"]
    assert "needs 5 other images, and there is none" in left_out["covariance"]
    assert "other" not in found.entry(0)
    with pytest.raises(errors.VitLensError, match="'other' needs 1 other image, and there is none: give more images"):
        vl.plan(model, None, photos[:1], lens=lens, sites=SITES, controls=vl.Controls(kinds=["other"]))
    with pytest.raises(errors.VitLensError, match="'covariance' needs 5 other images, and there are 3"):
        vl.plan(model, None, photos[:4], lens=lens, sites=SITES, controls=vl.Controls(kinds=["covariance"]))
    with pytest.raises(errors.VitLensError, match="normalise='std' is fitted on other images: it needs 5, and there"):
        vl.plan(model, None, photos[:2], lens=lens, sites=SITES, controls=vl.Controls(normalise="std"))


def test_a_copy_is_no_other_image(model, photos, lens, tmp_path, errors):
    import vit_lens as vl

    copy = tmp_path / "copy.png"
    copy.write_bytes(photos[0].read_bytes())
    drawn = vl.Controls(kinds=["other"])
    with pytest.raises(errors.LensError, match="'other' needs 1 other image, and there is none"):
        vl.sweep(model, None, [photos[0], copy], lens=lens, sites=SITES, controls=drawn, out=tmp_path / "out")


def test_a_bank_of_another_model_is_refused_before_anything_runs(bank, photos, lens, errors):
    from conftest import randomize

    import vit_lens as vl

    other = randomize(tiny_sweep.tower(), seed=9)
    with pytest.raises(errors.ReferenceMismatchError, match=r"bank of controls \(7 images\) was"):
        vl.plan(other, None, photos[:1], lens=lens, sites=SITES, controls=vl.Controls(bank=bank))


def test_unknown_controls_get_the_nearest(errors):
    import vit_lens as vl

    with pytest.raises(errors.VitLensError, match="no control 'othr'; nearest: 'other'"):
        vl.Controls(kinds=["othr"])
    with pytest.raises(errors.VitLensError, match="no normalisation 'white'; nearest: 'whiten'"):
        vl.Controls(normalise="white")


def test_controls_of_prompts_are_none_of_images(model, photos, lens, errors):
    import vit_lens as vl

    with pytest.raises(errors.VitLensError, match="'shuffled' is one of prompts; those of images are random, other"):
        vl.plan(model, None, photos[:2], lens=lens, sites=SITES, controls=vl.Controls(kinds=["shuffled"]))


# ---- normalised -------------------------------------------------------------------------------------------------


def test_normalised_likeness_is_that_of_standardised_embeddings(model, photos, bank, lens, tmp_path):
    import vit_lens as vl

    against = vl.Controls(normalise="std", draws=2, bank=bank)
    record = vl.sweep(model, None, photos[:1], lens=lens, sites=SITES, controls=against, out=tmp_path / "std")
    embeds = bank.embeds[1:].double()  # of the others: the input is the bank's first
    scale = (embeds - embeds.mean(0)).square().mean(0).sqrt()
    rows = record.frame().query("control == ''")
    clean = record.embeddings["clean"].double() / scale
    expected = torch.cosine_similarity(record.embeddings["lens"][rows["row"].tolist()].double() / scale, clean, dim=-1)
    np.testing.assert_allclose(rows["cos_lens_clean"], expected, atol=1e-6)
    (control,) = [one for one in record.readings.values() if one.control]
    assert control.id.endswith(".random-std") and "in normalised coordinates (std)" in control.words
    assert record.manifest["controls"]["normalise"] == "std"


# ---- budgets ----------------------------------------------------------------------------------------------------


def test_a_budget_ranks_by_the_control_that_is_nearest():
    from vit_lens.sweeping.order import refining_groups

    table = pd.DataFrame(
        {
            "row": range(3), "input": 0, "site": ["massive", "own", "none"], "site_type": "mlp", "reading": "a",
            "norm_h": [9.0, 2.0, 3.0], "same_as": pd.array([None] * 3, dtype="Int64"),
            "cos_lens_clean": [0.51, 0.5, 0.3], "cos_lens_control": [0.25, 0.4, 0.3],
            "cos_lens_other": [0.503, 0.38, np.nan], "cos_lens_covariance": [np.nan] * 3,
        }
    )  # fmt: skip
    assert refining_groups(table, {"a": "a"}) == [[1], [0], [2]]
    older = table.drop(columns=["cos_lens_other", "cos_lens_covariance"])
    assert refining_groups(older, {"a": "a"}) == [[0], [1], [2]]  # what the isotropic control alone would have said


def test_the_plan_says_what_controls_cost(model, photos, lens):
    import vit_lens as vl

    decoder = tiny_sweep.decoder()
    few, more = (
        str(vl.plan(model, decoder, photos, lens=lens, sites=SITES, controls=vl.Controls(kinds=kinds)))
        for kinds in (["random"], ["random", "other", "covariance"])
    )
    assert "drawn controls: random: 14 of the pictures" in few
    assert "drawn controls: random, other, covariance: 42 of the pictures, about" in more
    assert "controls: random, other, covariance in numbers, of the 7 inputs themselves" in few
    counts = [int(re.search(r"pictures: (\d+),", text)[1]) for text in (few, more)]
    assert counts == [28, 56]


def test_a_budget_holds_with_all_controls_and_a_site_is_refined_with_them(model, photos, lens, tmp_path):
    import vit_lens as vl

    against = vl.Controls(kinds=["random", "other"], draws=2)
    drawing = vl.Drawing(batch_size=3)
    record = vl.sweep(
        model, tiny_sweep.decoder(), photos[:2], lens=lens, sites=SITES, controls=against, drawing=drawing,
        budget=6, out=tmp_path / "budget",
    )  # fmt: skip
    refined = record.frame().query("drawn == 'full'")
    assert 0 < len(refined) <= 6
    of_sites = refined.groupby(["input", "site"])["control"].apply(set)
    assert all(found == {"", "random", "other"} for found in of_sites)


def test_leaks_over_the_images_of_a_record(model, photos, lens, tmp_path):
    """Of what the table holds, site by site, by a ratio of means; not applicable where S of the site is noise."""
    import vit_lens as vl

    gallery = vl.readers.Gallery.from_folder(model, photos[0].parent)
    means = vl.readers.SiteMeans.of_gallery(model, gallery, [lens], SITES)
    record = vl.sweep(
        model, None, photos, lens=lens, sites=SITES, controls=vl.Controls(drawn=False, draws=3),
        beside=vl.Beside(gallery=gallery, means=means), out=tmp_path / "leaks",
    )  # fmt: skip
    found = vl.records.leaks(record)
    assert list(found["control"]) == ["random", "other", "covariance"] * len(SITES) and set(found["n"]) == {7}
    for row in found.to_dict("records"):
        of_site = record.table[record.table["site"] == row["site"]]
        column = "S_lens_control" if row["control"] == "random" else f"S_lens_{row['control']}"
        if row["why"]:
            assert row["why"].startswith("not applicable") and np.isnan(row["leak"] or np.nan)
        else:
            assert row["leak"] == pytest.approx(of_site[column].mean() / of_site["S_lens_clean"].mean())
            assert row["low"] <= row["leak"] <= row["high"]
    assert (found["why"] == "").any()
    noise = record.table.assign(S_lens_clean=np.where(np.arange(len(record.table)) % 4 < 2, 0.4, -0.39))
    object.__setattr__(record, "table", noise)
    assert vl.records.leaks(record)["why"].str.startswith("not applicable: S(site) is").all()


# ---- records of before ------------------------------------------------------------------------------------------


def test_a_record_of_before_loads_and_its_page_says_what_it_lacks(tmp_path):
    import record_factory as factory

    from vit_lens.figures import head_map
    from vit_lens.metrics import control_columns
    from vit_lens.records import COLUMNS
    from vit_lens.report.data import page_data

    new = {column for name in ("other", "covariance") for column in control_columns(name)}
    new |= {"S_lens_clean", "S_lens_control", "leak_low", "leak_high"}
    columns = {name: kind for name, kind in COLUMNS.items() if name not in new}
    record = factory.build(tmp_path / "old", n_layers=2, n_heads=2, changes={"columns": columns})
    assert not new & set(record.table.columns)
    data = page_data(record, "")
    assert set(data["rows"]["cos_lens_other"]) == {None} and set(data["rows"]["cos_lens_control"]) != {None}
    assert "made before sites were held against what the site writes for another image" in data["left_out"]
    with pytest.raises(Exception, match="has no 'cos_lens_other': it was made by an earlier version"):
        head_map(record, value="cos_lens_other")
    assert head_map(record, value="cos_lens_control").data


# ---- the command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, said",
    [
        (("sweep", "a.png", "--control-kind", "other"), "none are without --controls"),
        (("sweep", "a.png", "--controls", "--control-kind", "othr"), "no control 'othr'; nearest: 'other'"),
        (("sweep", "a.png", "--controls", "--control-kind", "other"), "'other' needs 1 other image, and there is none"),
        (("sweep", "a.png", "--controls", "--control-images", "nothing"), "nothing"),
        (("sweep", "a.png", "--normalise", "size"), "no normalisation 'size'; nearest: "),
        (("sweep", "a.png", "b.png", "--normalise", "std"), "fitted on other images: it needs 5"),
        (("readout", "a.png", "--control-kind", "other"), "none are without --controls"),
        (("readout", "a.png", "--controls", "--control-kind", "covar"), "no control 'covar'; nearest: 'covariance'"),
        (
            ("readout", "a.png", "--controls", "--control-kind", "other"),
            "'other' needs 1 other image, and there is none",
        ),
        (
            ("sweep", "--prompts", "a", "--control-images", "a.png"),
            "--control-images would have no effect on --prompts",
        ),
    ],
)
def test_wrong_options_are_told_in_a_line(vit_lens, photos, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(photos[0].parent)
    status, _, error = vit_lens(*given, "--out", tmp_path / "out")
    assert status == 2 and said in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_controls_of_other_images_from_the_command_line(vit_lens, photos, tmp_path):
    from vit_lens import Record

    kinds = ("--control-kind", "random,other", "--control-images", photos[1].parent)
    status, output, error = vit_lens(
        "sweep", photos[0], "--controls", *kinds, "--decoder", "none", "--sites", "L7.mlp", "--lens", "dsl:alpha=5",
        "--no-live", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, error
    record = Record.load(tmp_path / "out")
    assert [one.control for one in record.readings.values()] == ["", "random", "other"]
    assert record.entry(0)["other"] in [path.name for path in photos[1:]]
    status, output, error = vit_lens(
        "readout",
        photos[0],
        "--controls",
        *kinds[:2],
        "--control-images",
        photos[1].parent,
        "--sites",
        "L7.mlp",
        "-k",
        1,
    )
    assert status == 0 and "L7.mlp random  raw" in output and "L7.mlp other  raw" in output, error
