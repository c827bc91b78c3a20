"""Sweeps: what a record holds is what lens, decoder and encoder say, and an interruption loses nothing."""

import numpy as np
import pytest
import tiny_kandinsky
import torch
from conftest import randomize
from PIL import Image

SITES = ["L0.resid_pre", "resid_post", "heads", "L1.mlp"]  # 1 + 2 + 6 + 1


@pytest.fixture(scope="module")
def model():
    """A random CLIP tower as wide as the tiny decoder."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from vit_lens import HookedViT, PreprocessSpec

    config = CLIPVisionConfig(
        hidden_size=33, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3, image_size=20, patch_size=10,
        projection_dim=tiny_kandinsky.D_EMBED, hidden_act="gelu",
    )  # fmt: skip
    spec = PreprocessSpec(
        size=(20, 20), mean=(0.5, 0.4, 0.45), std=(0.3, 0.2, 0.25), interpolation="bicubic", resize_mode="shortest"
    )
    tower = randomize(CLIPVisionModelWithProjection(config).eval())
    with torch.no_grad():
        tower.visual_projection.weight.mul_(8)  # a natural length of embedding
    return HookedViT.from_module(tower, preprocess_spec=spec, encoder_id="test/tower").requires_grad_(False)


@pytest.fixture(scope="module")
def decoder():
    from vit_lens import DecodeSettings, KandinskyDecoder

    unet, movq, scheduler = tiny_kandinsky.parts()
    return KandinskyDecoder(
        unet, movq, scheduler, encoder="test/tower",
        defaults=DecodeSettings(steps=2, guidance=3.0, scheduler="ddim", height=32, width=32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    paths = [folder / name for name in ("a.png", "<b>&.png", "c.png")]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (31, 25, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def lenses(model, images):
    from vit_lens import DiffusionLens, DiffusionSteeringLens, ReferenceMeans

    means = ReferenceMeans.from_images(model, images[1:])
    return [DiffusionSteeringLens(alpha=4.0, anchor="mean", reference=means), DiffusionLens()]


def run(model, decoder, images, lenses, out, **overrides):
    from vit_lens import sweep

    settings = dict(lens=lenses, sites=SITES, out=out, batch_size=7, controls=True, seeds=[3, 0]) | overrides
    return sweep(model, decoder, images, **settings)


@pytest.fixture(scope="module")
def record(model, decoder, images, lenses, tmp_path_factory):
    return run(model, decoder, images[:2], lenses, tmp_path_factory.mktemp("sweep") / "out")


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_rows_say_what_was_read(record):
    """Two images, two seeds; the steering lens on 7 submodules, the Diffusion Lens on all 10, a control for each."""
    table = record.table
    assert len(table) == 2 * 2 * (7 + 7 + 10 + 7) and record.complete
    first = table[(table["image"] == 0) & (table["seed"] == 3)]
    counts = first.groupby(["lens", "kind"]).size().to_dict()
    assert counts == {("dsl", "site"): 7, ("dsl", "control"): 7, ("diffusion", "site"): 10, ("diffusion", "control"): 7}
    steered = first[first["lens"] == "dsl"]
    assert set(steered["definition"]) == {"mean-anchored DSL"} and set(steered["alpha"]) == {4.0}
    assert first.loc[first["site"] == "L1H2", "head"].tolist() == [2, 2, 2, 2]
    assert [i["name"] for i in record.manifest["images"]] == ["a.png", "<b>&.png"]
    assert record.manifest["decoder"]["settings"]["steps"] == 2


def test_numbers_are_those_of_an_independent_run(record, model, decoder, images, lenses):
    """Recomputed from the source image: lens by hooks, picture by a call of its own, cosines by numpy."""
    from dataclasses import replace

    def cos(a, b):
        a, b = a.double().flatten().numpy(), b.double().flatten().numpy()
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    pixels = model.preprocess([images[1]])
    clean, cache = model.run_with_cache(pixels)
    sites = record.table[(record.table["image"] == 1) & (record.table["kind"] == "site")]
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


def test_controls_differ_from_sites_and_seeds_from_each_other(record):
    table, lens = record.table, record.embeddings["lens"]
    heads = table[(table["lens"] == "dsl") & (table["image"] == 0)]
    real, placebo = (
        lens[heads.loc[(heads["kind"] == k) & (heads["seed"] == 3), "row"].tolist()] for k in ("site", "control")
    )
    assert (real - placebo).norm(dim=1).min() > 1e-2
    rows = {s: heads.loc[(heads["kind"] == "site") & (heads["seed"] == s), "row"].tolist() for s in (3, 0)}
    assert torch.equal(lens[rows[3]], lens[rows[0]])
    assert record.picture(rows[3][0]).tobytes() != record.picture(rows[0][0]).tobytes()


@pytest.mark.parametrize("kill_at", [1, 2, 4, 5, 6, 9, 14, 15, 16, 17, 40, 60])
def test_killed_at_any_write_a_sweep_goes_on_to_the_same_bits(
    record, model, decoder, images, lenses, tmp_path, monkeypatch, kill_at
):
    """Killed before or after the given write of a file, twice, with a checkpoint after every batch."""
    import vit_lens.files
    import vit_lens.records.writer
    import vit_lens.sweeping.stages as stages

    original, writes, out = vit_lens.files.write_atomic, [], tmp_path / "out"

    def write(path, data):
        writes.append(path)
        if len(writes) == kill_at:
            raise KeyboardInterrupt
        original(path, data)
        if len(writes) == 2 * kill_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(vit_lens.files, "write_atomic", write)
    monkeypatch.setattr(vit_lens.records.writer, "write_atomic", write)
    monkeypatch.setattr(stages, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(stages, "_CHECKPOINT_SHARE", 0)
    kept = {}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(model, decoder, images[:2], lenses, out)
        finished = contents(out / "pictures") if (out / "pictures").exists() else {}
        assert all(finished[name] == data for name, data in kept.items())
        kept = finished
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
    from vit_lens.errors import RecordError

    before = contents(record.path)
    with pytest.raises(RecordError, match="another sweep"):
        run(model, decoder, images[:2], lenses, record.path, seeds=[4, 0])
    with pytest.raises(RecordError, match="another sweep"):
        run(model, decoder, images[:2], lenses[1], record.path)
    others = ReferenceMeans.from_images(model, [images[0], images[2]])
    changed = DiffusionSteeringLens(alpha=4.0, anchor="mean", reference=others)
    with pytest.raises(RecordError, match=r"lenses\[0\].reference_content"):
        run(model, decoder, images[:2], [changed, lenses[1]], record.path)
    spec = model.preprocess_spec
    model.preprocess_spec = replace(spec, mean=(0.1, 0.2, 0.3))
    try:
        with pytest.raises(RecordError, match=r"model.preprocess.mean"):
            run(model, decoder, images[:2], lenses, record.path)
    finally:
        model.preprocess_spec = spec
    assert contents(record.path) == before
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RecordError, match="not empty and holds no record"):
        run(model, decoder, images[:2], lenses, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_shards_join_to_the_undivided_sweep(model, decoder, images, lenses, tmp_path):
    from vit_lens.records import merge

    small = dict(sites=["L0H0", "L1.mlp"], controls=True, seeds=[0], batch_size=4)
    whole = run(model, decoder, images, lenses, tmp_path / "whole", **small)
    parts = [run(model, decoder, images, lenses, tmp_path / f"{i}", shard=(i, 2), **small) for i in range(2)]
    assert [p.table["image"].unique().tolist() for p in parts] == [[0, 2], [1]]
    joined = merge([p.path for p in parts], tmp_path / "joined")
    assert torch.equal(joined.embeddings["lens"], whole.embeddings["lens"])
    assert joined.table.drop(columns=["faithfulness", "cos_input"]).equals(
        whole.table.drop(columns=["faithfulness", "cos_input"])
    )
    drift = (joined.table["faithfulness"] - whole.table["faithfulness"]).abs().max()
    assert drift < 1e-3  # other batches, other rounding


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

    with model.hooks([("blocks.0.attn.hook_z", lambda z, hook: z * 0)]):
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
        run(model, decoder, images, [lenses[0]], tmp_path / "out")


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
