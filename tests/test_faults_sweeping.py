"""Faults that hostile use found in sweeps and pages, and more of their kinds."""

import contextlib
import os
import sys

import numpy as np
import pytest
import tiny_sweep
import torch
from PIL import Image

FEW = dict(lens="diffusion", sites=["L0H1", "L1.mlp"], batch_size=2, draws=2)


@pytest.fixture(scope="module")
def model():
    return tiny_sweep.tower()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_sweep.pictures(tmp_path_factory.mktemp("images"))


def _sweep(model, decoder, images, out, **changes):
    import vit_lens as vl

    return vl.sweep(model, decoder, images, out=out, **tiny_sweep.options(**FEW | changes))


def _files(record):
    return {name: data for name, data in tiny_sweep.contents(record.path).items() if name != ".vit_lens.lock"}


# ---- H5: a picture depends on what the record says -----------------------------------------------------------------


@contextlib.contextmanager
def _dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "dtype": _dtype, "device": _device, "device block": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(model, images, tmp_path_factory):
    return _files(
        _sweep(model, tiny_sweep.decoder(), images[:1], tmp_path_factory.mktemp("plain") / "r", controls=True)
    )


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_the_process_change_no_bit(model, images, tmp_path, plain, name):
    decoder = tiny_sweep.decoder()
    with DEFAULTS[name]():
        record = _sweep(model, decoder, images[:1], tmp_path / "r", controls=True)
        assert torch.empty(0).dtype == (torch.float64 if name == "dtype" else torch.float32)
        assert (torch.empty(0).device.type == "meta") == name.startswith("device")
        assert torch.is_autocast_enabled("cpu") == (name == "autocast")
    assert _files(record) == plain


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_bench_draws_and_looks_whatever_the_defaults(model, images, name):
    from vit_lens import Condition
    from vit_lens.engine import OWN, Bench

    decoder = tiny_sweep.decoder()
    bench = Bench(model=model, decoder=decoder, negative=decoder.negative(model))
    asked = Condition(pooled=model(model.preprocess(images[:2])).detach())
    pictures = bench.draw(asked, decoder.defaults, 2)
    seen = bench.look(pictures, 2)[OWN].flat
    with DEFAULTS[name]():
        again = bench.draw(asked, decoder.defaults, 2)
        assert torch.equal(again, pictures) and torch.equal(bench.look(again, 2)[OWN].flat, seen)


def test_coarser_products_are_another_machine(model, images, tmp_path):
    from vit_lens.errors import RecordError

    _sweep(model, None, images[:1], tmp_path / "r")
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(RecordError, match=r"machine is .* on disk, .*medium precision.* now"):
            _sweep(model, None, images[:1], tmp_path / "r")
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- H6: what changes a record is in its identity ------------------------------------------------------------------


def test_other_labels_are_another_sweep(model, images, tmp_path):
    from vit_lens import ZeroShotLabels
    from vit_lens.errors import RecordError

    def labels(*names, only_if=None):
        embeds = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
        return ZeroShotLabels(names={"shape": names}, embeds={"shape": embeds}, only_if=only_if or {})

    decoder = tiny_sweep.quick_decoder()
    _sweep(model, decoder, images[:1], tmp_path / "r", labels=labels("ring", "star"))
    _sweep(model, decoder, images[:1], tmp_path / "r", labels=labels("ring", "star"))
    for other in (labels("ring", "moon"), labels("ring", "star", only_if={"shape": ("shape", "ring")}), None):
        with pytest.raises(RecordError, match="holds another sweep's record: beside"):
            _sweep(model, decoder, images[:1], tmp_path / "r", labels=other)


# ---- H10, R12: names -----------------------------------------------------------------------------------------------


def _picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((24, 24, 3), len(str(path)), np.uint8)).save(path, "png")
    return path


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/x.png", "b/x.png", "b/y.png"], ["a/x.png", "b/x.png", "b/y.png"]),
        (["deep/a/x.png", "deep/ab/x.png"], ["a/x.png", "ab/x.png"]),
        (["a/x.png", "b/y.png"], ["x.png", "y.png"]),
        (["a/x.png", "a/x.png", "a/y.png"], ["x.png", "x.png (2)", "y.png"]),
        (["=cmd|' !A0.png", "-x.png", "@x.png", "+.png"], ["./=cmd|' !A0.png", "./-x.png", "./@x.png", "./+.png"]),
    ],
)
def test_names_of_inputs_differ_and_are_no_formulas(model, tmp_path, files, names):
    paths = [tmp_path / "in" / file for file in files]
    for path in paths:
        _picture(path)
    record = _sweep(model, None, paths, tmp_path / "r", sites="L1.mlp")
    assert [entry["name"] for entry in record.manifest["inputs"]] == names
    assert record.table["input_name"].tolist() == names


def test_inputs_from_memory_have_names_of_their_own(model, images, tmp_path):
    from vit_lens import Inputs

    array = np.zeros((8, 8, 3), np.uint8)
    inputs = Inputs([images[0], array, array, images[0], images[0].parent / "image 1"])
    assert [inputs.name(i) for i in range(5)] == ["a.png", "image 1", "image 2", "a.png (2)", "image 1 (2)"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are text")
def test_names_that_are_no_text_make_a_record_and_a_page(model, tmp_path):
    from vit_lens import Record, write_report
    from vit_lens.readers import Gallery

    folder = tmp_path / os.fsdecode(b"caf\xe9")
    paths = [_picture(folder / os.fsdecode(name)) for name in (b"r\xe9d.png", b"bl\xfce.png")]
    gallery = Gallery.from_folder(model, folder)
    record = _sweep(model, tiny_sweep.quick_decoder(), paths, folder / "r", gallery=gallery, notes=["caf\udce9"])
    assert [entry["name"] for entry in record.manifest["inputs"]] == [
        "r\\xe9d.png".replace("x", "udc"),
        "bl\\udcfce.png",
    ]
    record = Record.load(folder / "r")
    assert record.readouts is not None and record.manifest["notes"] == ["caf?"]
    assert write_report(record).exists() and write_report(record, tmp_path / "page.html").exists()
    assert record._repr_html_()


# ---- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/r"])
def test_impossible_names_of_directories_are_output_errors(model, images, tmp_path, name):
    from vit_lens.errors import OutputError

    with pytest.raises(OutputError, match="choose another --out"):
        _sweep(model, None, images[:1], tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_place_that_cannot_be_written_is_an_output_error(model, images, tmp_path):
    from vit_lens.errors import OutputError

    tmp_path.chmod(0o500)
    with pytest.raises(OutputError):
        _sweep(model, None, images[:1], tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size=0; expected at least 1"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\); expected \(i, n\)"),
        ({"shard": (0, 10**9)}, r"shard=\(0, 1000000000\); expected \(i, n\) .* n is at most 1e6"),
        ({"threads": 0}, "threads=0; expected at least 1"),
    ],
)
def test_wrong_numbers_are_told(model, images, tmp_path, changes, said):
    from vit_lens.errors import VitLensError

    with pytest.raises(VitLensError, match=said):
        _sweep(model, tiny_sweep.quick_decoder(), images[:1], tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists()


# ---- R12: twins are found without comparing all with all -----------------------------------------------------------


def test_rows_of_other_lengths_are_not_compared():
    import time

    from vit_lens.sweeping.order import find_twins

    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(12_000, 64, generator=generator) * torch.rand(12_000, 1, generator=generator)
    embeds[9000] = embeds[7] * 1.00001
    started = time.process_time()
    found = find_twins(embeds, torch.zeros(12_000).long(), 0.9999)
    assert time.process_time() - started < 3
    assert {row: first for row, first in enumerate(found) if first is not None} == {9000: 7}


# ---- H8: what a sweep drew is no image of a gallery ----------------------------------------------------------------


@pytest.mark.parametrize("place", ["heads", "runs/2024/heads"])
def test_pictures_of_a_record_are_no_images_of_the_folder_around_it(model, tmp_path, place):
    """The default output folder lies in the current one: a second sweep would take what the first drew for images."""
    from vit_lens.readers import Gallery

    paths = [_picture(tmp_path / name) for name in ("a.png", "b.png", "deep/ccc.png")]
    records = []
    for _ in range(2):
        gallery = Gallery.from_folder(model, tmp_path)
        assert sorted(gallery.names) == ["a.png", "b.png", "deep/ccc.png"]
        _sweep(model, tiny_sweep.quick_decoder(), paths[:1], tmp_path / place, gallery=gallery)
        records.append(tiny_sweep.contents(tmp_path / place))
    assert records[0] == records[1]
    assert len(Gallery.from_folder(model, tmp_path / place / "pictures").names) == 2


# ---- M2: what is embedded is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"budget": "1h"}])
def test_a_sweep_that_is_killed_while_it_embeds_goes_on(model, images, tmp_path, monkeypatch, options):
    from vit_lens.sweeping import ledger, stages

    monkeypatch.setattr(ledger, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(ledger, "_SHARE", 0)
    embed, seen = stages.embed_input, []

    def counted(model, entry, *rest, **more):
        seen.append(entry["index"])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return embed(model, entry, *rest, **more)

    monkeypatch.setattr(stages, "embed_input", counted)
    with pytest.raises(KeyboardInterrupt):
        _sweep(model, tiny_sweep.quick_decoder(), images, tmp_path / "r", **options)
    assert _sweep(model, tiny_sweep.quick_decoder(), images, tmp_path / "r", **options).complete
    assert seen == [0, 1, 2, 2]


# ---- M9: the same encoder, however it is written -------------------------------------------------------------------


def test_an_encoder_given_by_the_path_that_the_model_came_from_is_the_same(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from vit_lens.decoders import check_encoder
    from vit_lens.errors import ContractError

    (tmp_path / "tower").mkdir()
    monkeypatch.chdir(tmp_path)
    given = SimpleNamespace(encoder_id="local/tower@0123456789abcdef", source={"name": "tower", "tag": None})
    for path in ("tower", "./tower/", str(tmp_path / "tower")):
        check_encoder("mine", path, given)
    named = SimpleNamespace(
        encoder_id="open_clip/ViT-B-32/openai", source={"name": "open_clip:ViT-B-32/openai", "tag": None}
    )
    check_encoder("mine", "open_clip:ViT-B-32/openai", named)
    for made_for, other in (("elsewhere", given), (str(tmp_path), given), ("tower", named)):
        with pytest.raises(ContractError, match="was made for encoder"):
            check_encoder("mine", made_for, other)
    given.source = None  # its weights were changed
    with pytest.raises(ContractError, match="was made for encoder"):
        check_encoder("mine", "tower", given)


# ---- R9: the same weights to the last bit --------------------------------------------------------------------------


def test_weights_that_differ_below_bfloat16_do_not_go_on(images, tmp_path):
    from vit_lens.errors import RecordError

    model = tiny_sweep.tower()
    _sweep(model, None, images[:1], tmp_path / "r")
    before = model.fingerprint
    with torch.no_grad():
        model.blocks[1].mlp.b_out[3] *= 1 + 2**-20
    assert model.fingerprint == before
    with pytest.raises(RecordError, match=r"holds another sweep's record: model\.weights is"):
        _sweep(model, None, images[:1], tmp_path / "r")


@pytest.mark.parametrize("part", ["model", "decoder"])
def test_weights_that_were_changed_unseen_do_not_go_on(images, tmp_path, part):
    """PyTorch counts no change through .data; a sweep hashes what there is."""
    import vit_lens as vl
    from vit_lens.errors import RecordError, ReferenceMismatchError

    model, decoder = tiny_sweep.tower(), tiny_sweep.decoder()
    means = vl.ReferenceMeans.from_images(model, images)
    _sweep(model, decoder, images[:1], tmp_path / "r")
    changed, before = (model, model.fingerprint) if part == "model" else (decoder, decoder.fingerprint)
    next(iter(changed.parameters() if part == "model" else decoder.unet.parameters())).data.mul_(2)
    assert changed.fingerprint == before
    with pytest.raises(RecordError, match=rf"{part}\.fingerprint"):
        _sweep(model, decoder, images[:1], tmp_path / "r")
    assert changed.fingerprint != before
    if part == "model":
        with pytest.raises(ReferenceMismatchError, match="were made with"):
            means.check(model)


def test_an_executor_that_there_is_not_is_refused_before_anything_is_planned(model, images):
    import vit_lens as vl
    from vit_lens.errors import VitLensError

    with pytest.raises(VitLensError, match="no executor 'foo'; nearest: 'local'"):
        vl.plan(model, None, images, lens="diffusion", execution=vl.Execution(executor="foo"))
