"""The command line as a user meets it: wrong input is one clear line and status 2, and leaves nothing behind."""

import json
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def vit_lens(monkeypatch, capsys):
    """Run a command in this process; return its status, output and error output."""

    def run(*arguments):
        from vit_lens.cli import main

        monkeypatch.setattr(sys, "argv", ["vit-lens", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_sweep_report_and_sweep_again(vit_lens, photo, tmp_path):
    """The whole way on the embedded pair; the second run finds everything done."""
    out = tmp_path / "out"
    command = (
        "sweep",
        photo,
        "--sites",
        "L7H0,L7.mlp",
        "--sites",
        "L7.resid_post",
        "--controls",
        "--steps",
        2,
        "--out",
        out,
    )
    status, output, error = vit_lens(*command)
    assert status == 0, error
    assert output.strip() == f"page: {out / 'report.html'}"
    manifest = json.loads((out / "record.json").read_text())
    assert manifest["complete"] and manifest["command"].startswith("vit-lens sweep ")
    assert [lens["definition"] for lens in manifest["lenses"]] == ["mean-anchored DSL", "LN(v) proj"]
    assert len(list((out / "pictures").iterdir())) == 2 * 2 + 3 + 2
    assert manifest["readouts"]["texts"]["n"] == 49 and manifest["readouts"]["live"]  # mini has captions of its own
    before = {p: p.stat().st_mtime_ns for p in (out / "pictures").iterdir()}
    assert vit_lens(*command)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in (out / "pictures").iterdir()}
    assert vit_lens("report", out)[0] == 0
    status, _, error = vit_lens("sweep", photo, "--sites", "L7H1", "--steps", 2, "--out", out)
    assert status == 2 and "another sweep" in error


def test_captions_and_a_gallery_stand_in_the_record(vit_lens, photo, tmp_path):
    from vit_lens.records import Record

    folder, texts = tmp_path / "mine", tmp_path / "words.txt"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    texts.write_text("a star\n\na red object\n")
    command = ("sweep", photo, "--sites", "L7H0,L3.mlp", "--decoder", "none", "--gallery", folder)
    status, output, error = vit_lens(*command, "--captions", texts, "--out", tmp_path / "a")
    assert status == 0 and output.startswith("page: "), error
    record = Record.load(tmp_path / "a")
    assert record.readouts.captions == ("a star", "a red object") and len(record.live.images) == 1
    assert {len(found) for found in record.readouts.of(0)["captions"].values()} == {2}
    assert set(record.readouts.by_caption) == {"raw", "centred"}  # means over the gallery
    assert set(record.readouts.names.values()) <= {"0.png", "1.png", "2.png"}
    status, output, error = vit_lens(
        *command[:-2], "--captions", "a star, a ring", "--no-live", "--out", tmp_path / "b"
    )
    assert status == 0, error
    record = Record.load(tmp_path / "b")
    assert record.readouts.captions == ("a star", "a ring") and record.live is None and not record.readouts.names
    status, _, error = vit_lens(*command, "--captions", "a hippopotamus", "--out", tmp_path / "c")
    assert status == 2 and "hippopotamus" in error and not (tmp_path / "c").exists()


def test_reference_means_serve_the_leak_free_lens(vit_lens, photo, tmp_path):
    means = tmp_path / "means.safetensors"
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), (200, 30, 90)).save(other)
    status, output, _ = vit_lens("reference", photo, other, "--out", means)
    assert status == 0 and "halves" in output and output.splitlines()[-1].startswith("means of 2 images")
    status, output, error = vit_lens(
        "reference", photo, other, "--out", tmp_path / "all.safetensors", "--positions", "all"
    )
    assert status == 0 and "at every position" in output, error
    assert vit_lens("reference", photo, "--out", tmp_path / "no.safetensors", "--positions", "some")[0] == 2
    command = (
        "sweep",
        photo,
        "--sites",
        "L0H0",
        "--lens",
        "dsl-mean:share=0.5",
        "--reference",
        means,
        "--decoder",
        "none",
    )
    status, output, error = vit_lens(*command, "--out", tmp_path / "out")
    assert status == 0 and output.startswith("record: "), error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sites", "L9H0"], "layers L0 to L7"),
        (["--sites", "L3.mpl"], "nearest: 'L3.mlp'"),
        (["--lens", "dsl:alpha=nan"], "expected a finite number"),
        (["--lens", "dsl:alpha=much"], "'much' is not a number"),
        (["--lens", "dls:alpha=2"], "nearest: 'dsl'"),
        (["--lens", "dsl"], "give its strength as dsl:alpha=NUMBER"),
        (["--lens", "diffusion:alpha=2"], "has no settings"),
        (["--lens", "dsl:alpha=2", "--sites", "L3.resid_post"], "is the stream itself"),
        (["--model", "ViT-B-32/opnai"], "opnai"),
        (["--decoder", "/absent/decoder"], "/absent/decoder"),
        (["--reference", "/absent/means.safetensors"], "no reference means at"),
        (["--scheduler", "eulr"], "no scheduler 'eulr'"),
        (["--steps", "0"], "steps must be a whole number >= 1"),
        (["--size", "70"], "70"),
        (["--dtype", "float8"], "no dtype 'float8'"),
        (["--shard", "one"], "write I/N"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--device", "cuda:7"], "device 'cuda:7' cannot be used here"),
        (["--device", "gpu"], "take --device cpu"),
        (["--decoder", "none", "--encoder", "vit_lens/mini"], "with --decoder none it has no effect"),
        (["--decoder", "none", "--steps", "3"], "steps would have no effect"),
        (["--lens", "diffusion", "--reference", "means.safetensors"], "serves the lens dsl-mean alone"),
        (["--seed", "-1"], "seed must be a whole number"),
        (["--steps", "5000"], "5000"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(vit_lens, photo, tmp_path, arguments, message):
    status, _, error = vit_lens("sweep", photo, "--out", tmp_path / "out", *arguments)
    assert status == 2
    assert message in error and error.count("\n") == 1 and error.startswith("vit-lens: "), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("text.png", b"not an image"), ("empty.png", b""), ("cut.png", None)],
)
def test_a_broken_image_is_named(vit_lens, photo, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(photo.read_bytes()[:2000] if content is None else content)
    status, _, error = vit_lens("sweep", path, "--out", tmp_path / "out")
    assert status == 2 and name in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_missing_files_and_empty_folders_are_named(vit_lens, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent.png", tmp_path / "empty"):
        status, _, error = vit_lens("sweep", path, "--out", tmp_path / "out")
        assert status == 2 and str(path) in error
    status, _, error = vit_lens("report", tmp_path / "empty")
    assert status == 2 and "record.json" in error
    status, _, error = vit_lens("merge", tmp_path / "empty", "--out", tmp_path / "out")
    assert status == 2 and "record.json" in error


def test_output_that_cannot_be_written_is_said(vit_lens, photo, tmp_path):
    (tmp_path / "file").write_text("in the way")
    status, _, error = vit_lens("sweep", photo, "--sites", "L0H0", "--out", tmp_path / "file" / "out")
    assert status == 2 and "cannot create the directory" in error
    assert (tmp_path / "file").read_text() == "in the way"


def test_another_encoder_for_the_decoder_is_refused(vit_lens, photo, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=32,
        projection_dim=128,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "tower")
    status, _, error = vit_lens(
        "sweep", photo, "--model", tmp_path / "tower", "--lens", "diffusion", "--out", tmp_path / "out"
    )
    assert status == 2 and "made for encoder 'vit_lens/mini'" in error
    assert not (tmp_path / "out").exists()


def test_an_interruption_says_how_to_go_on(vit_lens, photo, tmp_path, monkeypatch):
    from vit_lens import sweeping

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "embed_stage", interrupt)
    status, _, error = vit_lens("sweep", photo, "--sites", "L0H0", "--out", tmp_path / "out")
    assert status == 130 and "run the same command again to go on" in error


def test_help_names_every_command(vit_lens):
    status, output, _ = vit_lens("--help")
    assert status == 0
    for command in ("demo", "sweep", "report", "reference", "merge", "doctor", "mini"):
        assert command in output
    status, output, _ = vit_lens("sweep", "--help")
    assert status == 0 and "dsl-mean:alpha=5" in output and "resid_post" in output
    assert vit_lens("--version")[1].strip() == "0.1.0"
