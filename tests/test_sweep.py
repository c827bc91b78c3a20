"""Sweeps: what a record holds is what lens, decoder and encoder say, and an interruption loses nothing."""

import threading

import numpy as np
import pytest
import record_factory
import tiny_kandinsky
import tiny_sweep
import torch
from conftest import randomize
from PIL import Image
from tiny_sweep import contents

SITES = ["L0.resid_pre", "resid_post", "heads", "L1.mlp"]  # 1 + 2 + 6 + 1


@pytest.fixture(scope="module")
def model():
    return tiny_sweep.tower()


@pytest.fixture(scope="module")
def decoder():
    return tiny_sweep.decoder()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_sweep.pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def lenses(model, images):
    return tiny_sweep.lenses(model, images[1:])


def run(model, decoder, images, lenses, out, **overrides):
    from vit_lens import sweep

    settings = dict(lens=lenses, sites=SITES, out=out, batch_size=7, controls=True, seeds=[3, 0]) | overrides
    return sweep(model, decoder, images, **tiny_sweep.options(**settings))


@pytest.fixture(scope="module")
def record(model, decoder, images, lenses, tmp_path_factory):
    return run(model, decoder, images[:2], lenses, tmp_path_factory.mktemp("sweep") / "out")


def test_rows_say_what_was_read(record):
    """Two images, two seeds; the steering lens on 7 submodules, the Diffusion Lens on all 10, a control for each."""
    table = record.frame()
    assert len(table) == 2 * 2 * (7 + 7 + 10 + 7) and record.complete
    first = table[(table["input"] == 0) & (table["seed"] == 3)]
    counts = first.groupby(["lens", "control"]).size().to_dict()
    assert counts == {("dsl", ""): 7, ("dsl", "random"): 7, ("diffusion", ""): 10, ("diffusion", "random"): 7}
    steered = first[first["lens"] == "dsl"]
    assert set(steered["definition"]) == {"mean-anchored DSL"} and set(steered["alpha"]) == {4.0}
    assert first.loc[first["site"] == "L1H2", "head"].tolist() == [2, 2, 2, 2]
    assert [i["name"] for i in record.manifest["inputs"]] == ["a.png", "<b>&.png"]
    assert record.manifest["decoder"]["settings"]["steps"] == 2


def test_numbers_are_those_of_an_independent_run(record, model, decoder, images, lenses):
    """Recomputed from the source image: lens by hooks, picture by a call of its own, cosines by numpy."""
    from dataclasses import replace

    def cos(a, b):
        a, b = a.double().flatten().numpy(), b.double().flatten().numpy()
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    pixels = model.preprocess([images[1]])
    clean, cache = model.run_with_cache(pixels)
    sites = record.frame()[(record.frame()["input"] == 1) & (record.frame()["control"] == "")]
    for lens_name, lens in (("dsl", lenses[0]), ("diffusion", lenses[1])):
        row = sites[(sites["lens"] == lens_name) & (sites["site"] == "L0H1") & (sites["seed"] == 3)].iloc[0]
        embeds = model.run_with_hooks(pixels, fwd_hooks=lens.hooks(cache, "L0H1"))
        stored = record.embeddings["lens"][row["row"]]
        assert torch.allclose(stored, embeds[0], rtol=1e-4, atol=1e-4)
        picture = decoder.decode(embeds, negative=model.zero_embedding(), settings=replace(decoder.defaults, seed=3))[0]
        kept = np.asarray(record.picture(row["row"])).astype(int)
        assert np.abs(kept - picture.numpy().astype(int)).max() <= 1  # rounding to uint8
        again = model(model.preprocess([kept.astype(np.uint8)]))
        assert row["cos_lens_clean"] == pytest.approx(cos(stored, clean), abs=1e-5)
        assert row["faithfulness"] == pytest.approx(cos(again, stored), abs=1e-4)
        assert row["cos_input"] == pytest.approx(cos(again, clean), abs=1e-4)
        h = cache["z", 0][0, 0, 1] @ model.blocks[0].attn.W_O[1]
        assert row["norm_h"] == pytest.approx(float(h.norm()), rel=1e-5)


def by_numpy(a, b):
    a, b = (torch.as_tensor(x).detach().double().flatten().numpy() for x in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def draws_of(record, model, lens, image, picture, names, n=20):
    """Twenty random directions for every site, as the record draws them."""
    digits = record.manifest["inputs"][image]["sha256"][12:24]
    generator = torch.Generator().manual_seed(int(digits, 16) + record.manifest["seeds"]["control"])
    clean, cache = model.run_with_cache(model.preprocess([picture]))
    return clean, torch.stack([lens.placebo(cache, names, generator=generator)[0] for _ in range(n)], dim=1)


def test_every_site_stands_beside_twenty_random_directions(record, model, images, lenses):
    for lens_name, lens in (("dsl", lenses[0]), ("diffusion", lenses[1])):
        rows = record.frame()[(record.frame()["input"] == 1) & (record.frame()["lens"] == lens_name)]
        written = rows[(rows["control"] == "") & ~rows["site_type"].str.startswith("resid")]
        others = rows.drop(written.index)
        assert others["cos_lens_control"].isna().all() and len(others)
        for seed in (3, 0):  # noise of the decoder, which has no part in it
            some = written[written["seed"] == seed]
            clean, draws = draws_of(record, model, lens, 1, images[1], list(some["site"]))
            expected = [np.mean([by_numpy(draw, clean) for draw in site]) for site in draws]
            np.testing.assert_allclose(some["cos_lens_control"], expected, atol=1e-5)
    assert record.table["leak"].isna().all()  # no other images, so no centre


def test_other_directions_are_other_numbers_of_the_same_size(record, model, images, lenses, tmp_path):
    other = run(model, None, images[:2], lenses, tmp_path / "out", seeds=None, control_seed=1)
    a, b = (f[(f["control"] == "") & (f["lens"] == "dsl")] for f in (record.frame(), other.frame()))
    a = a[a["seed"] == 3]
    assert (a["cos_lens_control"].to_numpy() != b["cos_lens_control"].to_numpy()).all()
    assert abs(a["cos_lens_control"].mean() - b["cos_lens_control"].mean()) < 0.1


def test_the_leak_index_is_that_of_the_studies(full, model, images, lenses, beside, gallery):
    """S of twenty directions over S of the site, both as studies compute it; nan where chance gives as much."""
    from vit_lens.studies.similarities import centred_similarity

    (mean,) = beside["means"]
    frame = full.frame()
    rows = frame[(frame["input"] == 0) & (frame["seed"] == 3) & (frame["lens"] == "dsl")]
    sites = rows[rows["control"] == ""]
    assert rows.drop(sites.index)["leak"].isna().all()
    assert frame.loc[frame["lens"] == "diffusion", "leak"].isna().all()  # the gallery alone is not enough
    clean, draws = draws_of(full, model, lenses[0], 0, images[0], list(sites["site"]))
    known = [str(site) for site in mean.sites]
    site_means = mean.values[[known.index(site) for site in sites["site"]]][None]
    embeds = full.embeddings["lens"][sites["row"].tolist()][None]
    own = centred_similarity(embeds, clean, site_means, gallery.mean)[0]
    control = torch.stack(
        [centred_similarity(some[None], clean, site_means, gallery.mean)[0] for some in draws.unbind(1)]
    )
    np.testing.assert_allclose(sites["S_lens_clean"], own, atol=1e-5)
    np.testing.assert_allclose(sites["S_lens_control"], control.mean(0), atol=1e-5)
    away = embeds[0] - site_means[0]
    known = gallery.embeds[[name != "same.png" for name in gallery.names]] - gallery.mean  # not the image itself
    likeness = [[by_numpy(row, other) for other in known] for row in away]
    chance = np.maximum(np.quantile(likeness, 0.975, axis=1), 1.96 / np.sqrt(embeds.shape[-1]))
    for row, s_site, s_control, least in zip(
        sites.to_dict("records"), own.tolist(), control.mean(0).tolist(), chance.tolist(), strict=True
    ):
        assert np.isnan(row["leak"]) if s_site <= least else row["leak"] == pytest.approx(s_control / s_site, abs=1e-4)
        assert np.isnan(row["leak"]) or (row["leak_low"] <= row["leak"] <= row["leak_high"] and row["leak"] < 10)
    assert 0 < sites["leak"].isna().sum() < len(sites)


def test_controls_differ_from_sites_and_seeds_from_each_other(record):
    table, lens = record.frame(), record.embeddings["lens"]
    heads = table[(table["lens"] == "dsl") & (table["input"] == 0)]
    real, placebo = (
        lens[heads.loc[(heads["control"] == k) & (heads["seed"] == 3), "row"].tolist()] for k in ("", "random")
    )
    assert (real - placebo).norm(dim=1).min() > 1e-2
    rows = {s: heads.loc[(heads["control"] == "") & (heads["seed"] == s), "row"].tolist() for s in (3, 0)}
    assert torch.equal(lens[rows[3]], lens[rows[0]])
    assert record.picture(rows[3][0]).tobytes() != record.picture(rows[0][0]).tobytes()


@pytest.mark.parametrize("kill_at", [1, 2, 4, 5, 6, 9, 14, 15, 16, 17, 40, 60])
def test_killed_at_any_write_a_sweep_goes_on_to_the_same_bits(
    record, model, decoder, images, lenses, tmp_path, monkeypatch, kill_at
):
    """Killed before or after the given write of a file, twice, with a checkpoint after every batch."""
    import vit_lens.files
    import vit_lens.records.writer
    import vit_lens.sweeping.ledger as ledger

    original, out, lock = vit_lens.files.write_atomic, tmp_path / "out", threading.Lock()
    state = {"writes": 0, "dead": False}

    def write(path, data):
        with lock:
            state["writes"] += 1
            number, was_dead = state["writes"], state["dead"]
            state["dead"] |= number in (kill_at, 2 * kill_at)
        if was_dead or number == kill_at:
            raise KeyboardInterrupt
        original(path, data)
        if number == 2 * kill_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(vit_lens.files, "write_atomic", write)
    monkeypatch.setattr(vit_lens.records.writer, "write_atomic", write)
    monkeypatch.setattr(ledger, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(ledger, "_SHARE", 0)
    kept = {}
    for _ in range(2):
        state |= {"dead": False, "writes": min(state["writes"], kill_at)}
        with pytest.raises(KeyboardInterrupt):
            run(model, decoder, images[:2], lenses, out)
        finished = contents(out / "pictures") if (out / "pictures").exists() else {}
        assert all(finished[name] == data for name, data in kept.items())
        kept = finished
    state["dead"] = False
    run(model, decoder, images[:2], lenses, out)
    assert contents(out) == contents(record.path)
    assert all(contents(out / "pictures")[name] == data for name, data in kept.items())
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".png", ".csv", ".safetensors")}
    run(model, decoder, images[:2], lenses, out)
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_one_process_at_a_time(model, decoder, images, lenses, record):
    from vit_lens.errors import OutputError
    from vit_lens.files import exclusive

    with (
        exclusive(record.path),
        pytest.raises(OutputError, match="another process is writing"),
        exclusive(record.path),
    ):
        pass


def test_another_sweep_is_refused_its_directory(record, model, decoder, images, lenses, tmp_path):
    from dataclasses import replace

    from vit_lens import DiffusionSteeringLens, ReferenceMeans
    from vit_lens.errors import RecordError, ReferenceMismatchError

    before = contents(record.path)
    with pytest.raises(RecordError, match="another sweep"):
        run(model, decoder, images[:2], lenses, record.path, seeds=[4, 0])
    with pytest.raises(RecordError, match="another sweep"):
        run(model, decoder, images[:2], lenses[1], record.path)
    others = ReferenceMeans.from_images(model, [images[0], images[2]])
    changed = DiffusionSteeringLens(alpha=4.0, anchor="mean", reference=others)
    with pytest.raises(RecordError, match=r"readings\[0\]\.id"):
        run(model, decoder, images[:2], [changed, lenses[1]], record.path)
    spec = model.preprocess_spec
    model.preprocess_spec = replace(spec, mean=(0.1, 0.2, 0.3))
    unknown = replace(lenses[0].reference, preprocess={})  # as in files of an earlier version
    try:
        with pytest.raises(RecordError, match=r"model.preprocess.mean"):
            run(model, decoder, images[:2], [replace(lenses[0], reference=unknown), lenses[1]], record.path)
        with pytest.raises(ReferenceMismatchError, match="preprocessed with mean"):
            run(model, decoder, images[:2], lenses, record.path)
    finally:
        model.preprocess_spec = spec
    assert contents(record.path) == before
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RecordError, match="not empty and holds no record"):
        run(model, decoder, images[:2], lenses, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def same_but(one, other, *names):
    """Hold two folders to each other, but for files of some names."""
    a, b = contents(one), contents(other)
    left = [{name: data for name, data in files.items() if name not in names} for files in (a, b)]
    assert left[0].keys() == left[1].keys()
    assert left[0] == left[1], [name for name in left[0] if left[0][name] != left[1][name]]


@pytest.mark.parametrize(("n_images", "n_parts"), [(1, 4), (2, 3), (1, 13)])
def test_parts_that_share_images_join_to_the_bits_of_the_whole(
    model, decoder, images, lenses, tmp_path, n_images, n_parts
):
    """One image over four parts, two over three, and more parts than batches, of which some are empty."""
    from vit_lens.records import merge

    small = dict(sites=["L0.resid_pre", "L0H0", "L1H2", "L1.mlp"], controls=True, seeds=[3, 0], batch_size=4)
    whole = run(model, decoder, images[:n_images], lenses, tmp_path / "whole", **small)
    parts = [
        run(model, decoder, images[:n_images], lenses, tmp_path / f"{i}", shard=(i, n_parts), **small)
        for i in range(n_parts)
    ]
    sizes = [len(part.table) for part in parts]
    assert sum(sizes) == len(whole.table) and all(part.complete for part in parts)
    assert (0 in sizes) == (n_parts == 13)
    joined = merge([part.path for part in reversed(parts)], tmp_path / "joined")
    same_but(joined.path, whole.path, "record.json", ".vit_lens.lock")
    one, other = joined.manifest, whole.manifest
    assert {**one, "command": None} == {**other, "command": None}


def test_the_default_batch_divides_to_the_same_bits(model, images, lenses, tmp_path):
    """Without a batch size: a constant of the decoder, whatever is divided, interrupted, or free."""
    from vit_lens.records import merge

    quick, out = tiny_sweep.quick_decoder(), tmp_path / "whole"
    small = dict(sites=["heads", "L1.mlp"], seeds=[0], batch_size=None)
    whole = run(model, quick, images[:1], lenses, out, **small)
    assert whole.manifest["batch_plan"]["batch_size"] == 5
    quick.n_free = 10**6  # more memory than ever changes nothing
    parts = [run(model, quick, images[:1], lenses, tmp_path / f"{i}", shard=(i, 4), **small) for i in range(4)]
    same_but(merge([p.path for p in parts], tmp_path / "joined").path, out, "record.json", ".vit_lens.lock")
    assert all("changes" not in part.manifest["batch_plan"] for part in parts)


def test_less_memory_lowers_the_batch_and_is_written_down(model, images, lenses, tmp_path):
    quick = tiny_sweep.quick_decoder()
    quick.n_free = 2
    small = dict(sites=["heads"], seeds=[0], batch_size=None, controls=False)
    record = run(model, quick, images[:1], lenses, tmp_path / "out", **small)
    assert record.manifest["batch_plan"]["batch_size"] == 5
    (change,) = record.manifest["batch_plan"]["changes"]
    assert (change["row"], change["batch_size"]) == (0, 2) and "memory" in change["why"]
    assert "2 at a time" in record.manifest["notes"][-1] and {size for _, _, size in quick.calls} == {2}
    asked = run(model, quick, images[:1], lenses, tmp_path / "asked", **small | {"batch_size": 4})
    assert "changes" not in asked.manifest["batch_plan"]  # a size that was asked for is tried


def test_a_part_of_a_budget_shares_the_pictures_that_the_whole_shares(model, images, lenses, tmp_path):
    """Twins are found before rows are divided: what is drawn once in the whole is drawn by one part, once."""
    from vit_lens.records import merge

    quick = tiny_sweep.quick_decoder()
    small = dict(sites=["L0.resid_pre", "L1.resid_post", "L0H1", "L1.mlp"], seeds=[0], batch_size=4, budget=10**6)
    whole = run(model, quick, images[:2], lenses, tmp_path / "whole", **small)
    parts = [run(model, quick, images[:2], lenses, tmp_path / f"{i}", shard=(i, 3), **small) for i in range(3)]
    again = [run(model, quick, images[:2], lenses, tmp_path / f"{i}", shard=(i, 3), **small) for i in range(3)]
    assert [len(p.table) for p in parts] == [len(p.table) for p in again] and all(p.complete for p in again)
    joined = merge([p.path for p in parts], tmp_path / "joined")
    assert joined.table["same_as"].equals(whole.table["same_as"]) and whole.table["same_as"].notna().any()
    assert torch.equal(joined.embeddings["lens"], whole.embeddings["lens"])


def test_threads_are_those_of_the_record(model, decoder, images, lenses, tmp_path):
    from vit_lens.errors import RecordError

    small, seen = dict(sites=["L0H0"], seeds=[0], controls=False), []
    before = torch.get_num_threads()
    first = run(model, decoder, images[:1], lenses, tmp_path / "out", threads=1, **small)
    assert first.manifest["threads"] == 1 and torch.get_num_threads() == before
    (tmp_path / "out" / "pictures" / "000001.png").unlink()
    record_factory.edit_manifest(tmp_path / "out", complete=False)
    torch.set_num_threads(2)
    try:
        watch = dict(on_pass=lambda _: seen.append(torch.get_num_threads()))
        watched = run(model, decoder, images[:1], lenses, tmp_path / "out", **watch, **small)
        assert watched.complete and torch.get_num_threads() == 2
        with pytest.raises(RecordError, match="begun with 1 threads, and 2 would be other bits"):
            run(model, decoder, images[:1], lenses, tmp_path / "out", threads=2, **small)
    finally:
        torch.set_num_threads(before)


def test_embeddings_alone_need_no_decoder(model, images, lenses, tmp_path):
    from vit_lens.errors import RecordError, VitLensError

    record = run(model, None, images[:1], lenses[1], tmp_path / "out", sites=["heads"], seeds=None)
    assert record.complete and not list((tmp_path / "out" / "pictures").iterdir())
    assert record.table["cos_lens_clean"].notna().all() and record.table["faithfulness"].isna().all()
    with pytest.raises(RecordError, match="made without a decoder"):
        record.picture(0)
    with pytest.raises(VitLensError, match="would have no effect"):
        run(model, None, images[:1], lenses[1], tmp_path / "other", sites=["heads"], seeds=[0, 1])


def test_hooks_left_on_the_model_are_refused(model, decoder, images, lenses, tmp_path):
    from vit_lens.errors import VitLensError

    hooks = [("blocks.0.attn.hook_z", lambda z, hook: z * 0)]
    with pytest.warns(UserWarning, match="never fired"), model.hooks(hooks):
        with pytest.raises(
            VitLensError, match=r"hooks are on \['blocks.0.attn.hook_z'\], and a record could not say so"
        ):
            run(model, decoder, images, lenses, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_another_encoder_is_refused(model, images, lenses, tmp_path):
    from vit_lens import KandinskyDecoder
    from vit_lens.errors import ContractError

    other = KandinskyDecoder(*tiny_kandinsky.parts(), encoder="vit_lens/mini")
    with pytest.raises(ContractError, match="made for encoder 'vit_lens/mini'"):
        run(model, other, images, lenses, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(sites=["L2H0"]), "UnknownSiteError", "layers L0 to L1"),
        (dict(sites=["L0H9"]), "UnknownSiteError", "heads H0 to H2"),
        (dict(batch_size=0), "VitLensError", "at least 1"),
        (dict(seeds=[1, 1]), "VitLensError", "different seeds"),
        (dict(shard=(2, 2)), "VitLensError", "0 <= i < n"),
        (dict(seeds=[-1]), "DecoderError", "seed must be a whole number >= 0"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(model, decoder, images, lenses, tmp_path, change, error, message):
    from vit_lens import errors

    with pytest.raises(getattr(errors, error), match=message):
        run(model, decoder, images, lenses, tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_residual_sites_need_a_lens_that_reads_them(model, decoder, images, lenses, tmp_path):
    from vit_lens.errors import LensError

    with pytest.raises(LensError, match=r"L0\.resid_post, L1\.resid_post are the stream itself"):
        run(model, decoder, images, lenses[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(LensError, match=r"none of the lenses is defined on L0\.resid_pre"):
        run(model, decoder, images, [lenses[0], "dsl:alpha=2"], tmp_path / "out")


def test_a_broken_image_stops_the_sweep_before_it_starts(model, decoder, lenses, tmp_path):
    from vit_lens.errors import ImageError

    (tmp_path / "text.png").write_text("not an image")
    for path in (tmp_path / "text.png", tmp_path / "absent.png"):
        with pytest.raises(ImageError, match=path.name):
            run(model, decoder, [path], lenses, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_labels_name_the_nearest_text():
    from vit_lens import ZeroShotLabels
    from vit_lens.errors import VitLensError

    labels = ZeroShotLabels(
        {"colour": ("red", "green"), "shape": ("star", "ring")},
        {"colour": torch.tensor([[1.0, 0, 0], [0, 1, 0]]), "shape": torch.tensor([[0, 0.2, 5.0], [1.0, 1, 0]])},
    )
    assert labels.label(torch.tensor([[9.0, 0, 1], [0, 1, 4.0]])) == [
        "colour red, shape ring",
        "colour green, shape star",
    ]
    labels = ZeroShotLabels(labels.names, labels.embeds, {"shape": ("colour", "green")})
    assert labels.label(torch.tensor([[9.0, 0, 1], [0, 1, 4.0]])) == ["colour red", "colour green, shape star"]
    with pytest.raises(VitLensError, match="2 names need as many"):
        ZeroShotLabels({"colour": ("red", "green")}, {"colour": torch.zeros(1, 3)})


def test_a_folder_stands_for_its_images(model, images, lenses, tmp_path):
    from vit_lens.errors import ImageError

    record = run(model, None, images[0].parent, lenses, tmp_path / "out", seeds=None, controls=False)
    assert [image["name"] for image in record.manifest["inputs"]] == ["<b>&.png", "a.png", "c.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no image"):
        run(model, None, [tmp_path / "empty"], lenses, tmp_path / "out2", seeds=None, controls=False)


# ---- captions, nearest images and live numbers beside the pictures


CAPTIONS = ("a cat", "a <dog>", "a ship", "red", "blue", "green")
BESIDE = dict(sites=["L0H1", "L1H2", "attn", "mlp", "resid_post"], seeds=[3, 0], batch_size=9)


@pytest.fixture(scope="module")
def bank(model):
    from vit_lens import TextBank

    embeds = torch.randn(6, tiny_kandinsky.D_EMBED, generator=torch.Generator().manual_seed(1))
    return TextBank(
        captions=CAPTIONS, embeds=embeds, logit_scale=9.0, logit_bias=None, encoder_id="test/tower"
    )  # fmt: skip


@pytest.fixture(scope="module")
def gallery(model, images, tmp_path_factory):
    """Nine pictures, one of them the first image that is swept, once more under another name."""
    from vit_lens.readers import Gallery

    folder = tmp_path_factory.mktemp("gallery")
    generator = np.random.default_rng(8)
    for number in range(8):
        pixels = generator.integers(0, 256, (29, 33, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number} <i>&.png")
    Image.open(images[0]).save(folder / "same.png")
    return Gallery.from_folder(model, folder)


@pytest.fixture(scope="module")
def beside(model, lenses, bank, gallery):
    """Arguments of a sweep that keeps everything; the Diffusion Lens has no means."""
    from vit_lens.readers import SiteMeans

    paths = [gallery.path(i) for i in range(4)]
    means = SiteMeans.from_images(model, paths, ["heads", "attn", "mlp"], lens=lenses[0])
    groups = {"what": CAPTIONS[:3], "colour": CAPTIONS[3:]}
    return dict(texts=bank, groups=groups, gallery=gallery, means=[means], live=True) | BESIDE


@pytest.fixture(scope="module")
def full(model, decoder, images, lenses, beside, tmp_path_factory):
    return run(model, decoder, images[:2], lenses, tmp_path_factory.mktemp("full") / "out", **beside)


def _order(values, k):
    best = np.argsort(-values, kind="stable")[:k]
    return best.tolist(), values[best]


@pytest.mark.parametrize("form", ["raw", "centred"])
def test_captions_and_neighbours_are_the_nearest_to_every_row(full, bank, gallery, beside, form):
    """Site and control alike, by numpy, one row at a time; the image itself is not its own neighbour."""
    (mean,) = beside["means"]
    origin = {str(site): value.double().numpy() for site, value in zip(mean.sites, mean.values, strict=True)}
    texts, pictures = bank.embeds.double().numpy(), gallery.embeds.double().numpy()
    middle = pictures.mean(0)
    same = gallery.names.index("same.png")
    counts = {"random": 0, "": 0}
    for row in full.frame().to_dict("records"):
        embed = full.embeddings["lens"][row["row"]].double().numpy()
        steered = row["lens"] == "dsl"
        mu = origin.get(row["site"])
        found = full.readouts.of(row["row"])
        if form == "raw" or steered:
            vector = embed - mu if form == "centred" else embed
            cosines = texts @ vector / np.linalg.norm(texts, axis=1) / np.linalg.norm(vector)
            index, best = _order(cosines, 4)
            assert [CAPTIONS[i] for i in index] == [a["caption"] for a in found["captions"][form]]
            np.testing.assert_allclose(best, [a["cosine"] for a in found["captions"][form]], atol=2e-5)
        else:  # there are no means of this lens
            assert found["captions"][form] == found["images"][form] == []
            continue
        targets = pictures - middle if form == "centred" else pictures
        vector = embed - mu if form == "centred" else embed
        cosines = targets @ vector / np.linalg.norm(targets, axis=1) / np.linalg.norm(vector)
        if row["input"] == 0:
            cosines[same] = -np.inf
        index, best = _order(cosines, 4)
        assert index == [a["index"] for a in found["images"][form]]
        assert [gallery.names[i] for i in index] == [a["name"] for a in found["images"][form]]
        np.testing.assert_allclose(best, [a["cosine"] for a in found["images"][form]], atol=2e-5)
        counts[row["control"]] += 1
    assert min(counts.values()) > 20
    assert full.readouts.groups == {"what": [0, 1, 2], "colour": [3, 4, 5]}


def test_pictures_that_are_referred_to_are_copied(full, gallery):
    used = sorted(full.readouts.names)
    assert [p.name for p in sorted((full.path / "gallery").iterdir())] == [f"{i:06d}.png" for i in used]
    for index in used:
        kept = full.neighbour(index)
        assert np.array_equal(np.asarray(kept), np.asarray(gallery.picture(index)))  # smaller than a thumbnail


def test_a_large_picture_is_copied_small(model, images, lenses, tmp_path):
    from vit_lens.readers import Gallery

    (tmp_path / "large").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (300, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "large" / f"{number}.png")
    gallery = Gallery.from_folder(model, tmp_path / "large")
    record = run(model, None, images[:1], lenses[1], tmp_path / "out", sites=["L0H0"], seeds=None, gallery=gallery)
    assert {record.neighbour(index).size for index in record.readouts.names} == {(85, 128)}
    assert record.live is None and not (tmp_path / "out" / "live.safetensors").exists()


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 5, 9, 12, 13, 14, 15])
def test_killed_a_full_sweep_goes_on_to_the_same_bits(model, images, lenses, beside, tmp_path, monkeypatch, kill_at):
    """Before every kind of file that is written beside the pictures."""
    import vit_lens.files
    import vit_lens.records.writer

    original, writes, out = vit_lens.files.write_atomic, [], tmp_path / "out"
    settings = beside | dict(seeds=None, sites=["L0H1", "L1.mlp"])
    whole = run(model, None, images[:2], lenses, tmp_path / "whole", **settings)

    def write(path, data):
        writes.append(path)
        if len(writes) == kill_at:
            raise KeyboardInterrupt
        original(path, data)

    monkeypatch.setattr(vit_lens.files, "write_atomic", write)
    monkeypatch.setattr(vit_lens.records.writer, "write_atomic", write)
    with pytest.raises(KeyboardInterrupt):
        run(model, None, images[:2], lenses, out, **settings)
    run(model, None, images[:2], lenses, out, **settings)
    assert contents(out) == contents(whole.path)


def test_shards_join_to_the_captions_neighbours_and_numbers_of_the_whole(
    model, images, lenses, beside, tmp_path, monkeypatch
):
    import vit_lens.sweeping.beside_pictures as readouts
    from vit_lens.records import merge

    monkeypatch.setattr(readouts, "n_live_images", lambda model: 2)  # a page that carries two of three
    settings = beside | dict(seeds=None)
    whole = run(model, None, images, lenses, tmp_path / "whole", **settings)
    parts = [run(model, None, images, lenses, tmp_path / f"{i}", shard=(i, 2), **settings) for i in (0, 1)]
    assert [part.live.images for part in parts] == [(0, 1), (0, 1)]  # each has rows of both
    merge([p.path for p in parts], tmp_path / "joined")
    one, other = contents(whole.path), contents(tmp_path / "joined")
    kept = [name for name in one if name.startswith(("gallery/", "readouts", "live", "embeddings"))]
    assert len(kept) > 8 and {name: one[name] for name in kept} == {name: other[name] for name in kept}
    assert set(one) == set(other)


@pytest.mark.parametrize("change", ["texts", "groups", "gallery", "means", "live"])
def test_another_bank_or_gallery_is_another_sweep(full, model, decoder, images, lenses, beside, bank, gallery, change):
    from dataclasses import replace

    from vit_lens.errors import RecordError

    others = {
        "texts": replace(bank, embeds=bank.embeds * 2),
        "groups": {"all": CAPTIONS},
        "gallery": replace(gallery, embeds=gallery.embeds * 2),
        "means": [replace(beside["means"][0], values=beside["means"][0].values * 2)],
        "live": False,
    }
    where = {"groups": "texts"}.get(change, change)
    with pytest.raises(RecordError, match=rf"holds another sweep's record: beside\.{where}"):
        run(model, decoder, images[:2], lenses, full.path, **beside | {change: others[change]})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(texts=None), "VitLensError", "groups= sorts the captions of texts="),
        (dict(texts=None, groups=None, gallery=None), "VitLensError", "they have no effect"),
        (dict(groups={"pets": ["a bird"]}), "TextError", "no caption 'a bird'"),
    ],
)
def test_arguments_beside_without_effect_are_refused(model, images, lenses, beside, tmp_path, change, error, message):
    from vit_lens import errors

    with pytest.raises(getattr(errors, error), match=message):
        run(model, None, images, lenses, tmp_path / "out", **beside | dict(seeds=None) | change)
    assert not (tmp_path / "out").exists()


def test_a_bank_gallery_or_means_of_another_model_or_lens_are_refused(model, images, lenses, beside, tmp_path):
    from dataclasses import replace

    from vit_lens import DiffusionLens, errors

    wrong = {
        "texts": (replace(beside["texts"], encoder_id="other/tower"), "TextError"),
        "gallery": (replace(beside["gallery"], fingerprint="0" * 8), "GalleryError"),
        "means": ([replace(beside["means"][0], fingerprint="0" * 8)], "ReferenceMismatchError"),
    }
    settings = beside | dict(seeds=None)
    for name, (value, error) in wrong.items():
        with pytest.raises(getattr(errors, error)):
            run(model, None, images, lenses, tmp_path / "out", **settings | {name: value})
    with pytest.raises(errors.LensError, match="belongs to no lens of this sweep"):
        run(model, None, images, DiffusionLens(), tmp_path / "out", **settings)
    with pytest.raises(errors.LensError, match="lack"):
        few = replace(beside["means"][0], sites=beside["means"][0].sites[:2], values=beside["means"][0].values[:2])
        run(model, None, images, lenses, tmp_path / "out", **settings | {"means": [few]})
    assert not (tmp_path / "out").exists()


# ---- live numbers, against runs of the model


def _live_of(model, pixels):
    from vit_lens.sweeping.live_parts import gather_live, live_part

    parts = []
    for image in range(len(pixels)):
        one = pixels[image : image + 1]
        clean, cache = model.run_with_cache(one, rows="readout")
        parts.append(live_part(model, cache, clean))
    return gather_live(model, dict(enumerate(parts)))


def _brute_force(model, pixels, factors):
    """Run the model with every part set to its own output times its factor; a scale that is not recomputed is held."""
    _, cache = model.run_with_cache(pixels)
    cfg = model.cfg

    def put(name, factor=1.0):
        return name, lambda act, hook: cache[name] * factor

    hooks = [put("blocks.0.hook_resid_pre", factors.get("start", 1.0))]
    for layer in range(cfg.n_layers):
        heads = torch.tensor([factors.get(f"L{layer}H{h}", 1.0) for h in range(cfg.n_heads)]).double()
        hooks.append(put(f"blocks.{layer}.attn.hook_z", heads[:, None]))
        times = factors.get(f"L{layer}.attn", 1.0)
        hooks.append((f"blocks.{layer}.hook_attn_out", lambda act, hook, times=times: act * times))
        hooks.append(put(f"blocks.{layer}.hook_mlp_out", factors.get(f"L{layer}.mlp", 1.0)))
    if model.readout.kind in ("patches", "tokens"):
        hooks.append(put("ln_final.hook_scale"))
    if model.attn_pool is not None:
        held = ("attn_pool.attn.hook_pattern", "attn_pool.ln_post.hook_scale")
        hooks += [put(name) for name in held if name in model.hook_dict]
        if cfg.attn_pool.d_mlp:
            hooks.append(put("attn_pool.hook_mlp_out", factors.get("pool.mlp", 1.0)))
    return model.run_with_hooks(pixels, fwd_hooks=hooks)


FACTORS = [
    {},
    {"L1H2": 0.0},
    {"L0.mlp": -2.0, "L1H0": 0.0, "L1.attn": 3.5, "L2H1": 7.0, "start": 0.5},
    {f"L{layer}.{part}": 0.0 for layer in range(3) for part in ("attn", "mlp")},
]


def _close(found, expected):
    assert (found - expected).norm() <= 1e-5 * expected.norm(), (found - expected).norm() / expected.norm()


@pytest.mark.parametrize("factors", FACTORS)
def test_live_numbers_are_those_of_a_run_with_hooks(readout_vit, factors):
    """For one normed row exactly; for a mean of normed patches with their scales held."""
    model, _ = readout_vit
    pixels = torch.randn(2, 3, *model.cfg.image_size, generator=torch.Generator().manual_seed(3)).double()
    live = _live_of(model, pixels)
    assert live.recomputed == (model.readout.kind != "patches")
    for image, expected in enumerate(_brute_force(model, pixels, factors)):
        _close(live.embed(image, factors), expected)


@pytest.mark.parametrize("factors", [*FACTORS[:3], {"pool.mlp": 2.5, "L2.attn": 0.0}])
def test_live_numbers_with_attention_pooling_hold_its_scales(pooling_vit, pooling_pixels, factors):
    from vit_lens.errors import UnknownSiteError

    live = _live_of(pooling_vit, pooling_pixels)
    assert not live.recomputed and live.gram is None
    if "pool.mlp" in factors and not pooling_vit.cfg.attn_pool.d_mlp:
        with pytest.raises(UnknownSiteError, match=r"no part 'pool.mlp' to scale"):
            live.embed(0, factors)
        return
    for image, expected in enumerate(_brute_force(pooling_vit, pooling_pixels, factors)):
        _close(live.embed(image, factors), expected)


@pytest.mark.parametrize("alpha", [0.0, -1.5, 1.0, 30.0])
def test_one_part_scaled_is_the_steering_lens(vit, pixels, alpha):
    from vit_lens import DiffusionSteeringLens, Site

    live = _live_of(vit, pixels)
    sites = Site.resolve(["heads", "attn", "mlp"], vit.cfg)
    _, cache = vit.run_with_cache(pixels, rows="readout")
    expected = DiffusionSteeringLens(alpha=alpha).embed(cache, sites)
    for image in range(len(pixels)):
        for place, site in enumerate(sites):
            _close(live.embed(image, {str(site): alpha}), expected[image, place])


def test_a_sweep_stores_these_numbers(full, model, images):
    from vit_lens import Address

    live = _live_of(model, model.preprocess(images[:2]))
    assert full.live.images == (0, 1) and full.live.labels == live.labels
    assert [str(Address.parse(label)) for label in live.labels] == list(live.labels)
    same = full.live.embed(0, {"L0H1": 2, "L0.attn": 3})
    assert torch.equal(full.live.embed(0, {"l0h1": 2, "l0.ATTN": 3}), same)
    for name in ("contributions", "constant", "embedding", "gram", "along", "variance"):
        assert torch.allclose(getattr(full.live, name), getattr(live, name), atol=1e-5)


def test_parts_and_images_that_are_not_there_are_named(full):
    from vit_lens.errors import RecordError, UnknownSiteError

    with pytest.raises(RecordError, match=r"no live numbers for image 5; there are for \[0, 1\]"):
        full.live.embed(5, {})
    with pytest.raises(UnknownSiteError, match=r"no part 'L0.mpl' to scale; nearest: 'L0.mlp'"):
        full.live.embed(0, {"L0.mpl": 2})
    with pytest.raises(UnknownSiteError, match=r"no part 'L0.b_O' to scale; nearest"):  # its block's factor is its own
        full.live.embed(0, {"L0.b_O": 2})
    with pytest.raises(RecordError, match="no row 9999"):
        full.readouts.of(9999)


def test_a_page_carries_a_few_images_and_a_record_no_more(vit):
    from vit_lens.records.live import LIVE_BUDGET, live_bytes
    from vit_lens.sweeping.live_parts import n_live_images

    assert live_bytes(1 + 48 * 18, 1280, recomputed=True) <= LIVE_BUDGET  # ViT-bigG, the largest
    live = _live_of(vit, torch.zeros(1, 3, 22, 22).double())
    tensors = (live.contributions, live.constant, live.embedding, live.gram, live.along, live.variance)
    one = sum(4 * t.numel() for t in tensors)
    assert n_live_images(vit) == LIVE_BUDGET // (-(-one // 3) * 4)


def test_a_tower_that_pools_by_attention_is_swept_with_its_pool(tmp_path, images):
    """Sites of the pool have no layer; the map of the record shows them last."""
    from conftest import pooling_config

    from vit_lens import DiffusionSteeringLens, HookedViT, PreprocessSpec
    from vit_lens.figures import head_map

    spec = PreprocessSpec(
        size=(23, 21), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="squash"
    )  # fmt: skip
    tower = randomize(HookedViT(pooling_config("map"), preprocess_spec=spec, encoder_id="test/pool")).requires_grad_(
        False
    )
    lens = DiffusionSteeringLens(alpha=3.0)
    record = run(tower, None, images[:2], lens, tmp_path / "out", sites=["heads", "mlp"], seeds=None, live=True)
    frame = record.frame()
    pool = frame[frame["layer"].isna() & (frame["control"] == "") & (frame["input"] == 1)]
    assert pool["site"].tolist() == [f"poolH{head}" for head in range(5)] + ["pool.mlp"]
    _, cache = tower.run_with_cache(tower.preprocess([images[1]]))
    for row in pool.to_dict("records"):
        expected = lens.embed(cache, row["site"])[0, 0]
        assert torch.allclose(record.embeddings["lens"][row["row"]], expected, atol=1e-4)
    z = cache["attn_pool.attn.hook_z"][0, 0, 3] @ tower.attn_pool.attn.W_O[3]
    assert pool.loc[pool["site"] == "poolH3", "norm_h"].item() == pytest.approx(float(z.norm()), rel=1e-5)
    heat = head_map(record, input=1, value="cos_lens_clean").data[0]
    assert list(heat.y) == ["0", "1", "2", "pool"] and heat.customdata[3][4] == "poolH4"
    assert heat.z[3][4] == pool.loc[pool["site"] == "poolH4", "cos_lens_clean"].item()
    assert not record.live.recomputed and record.live.labels[-1] == "pool.mlp"
