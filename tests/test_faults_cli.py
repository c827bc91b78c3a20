"""What was wrong with the command line once: what is told late, in Python's words, or not at all."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def work(monkeypatch, tmp_path):
    """A folder with an image and files that are in the way."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.txt").write_bytes("a caf\xe9".encode("latin-1"))
    (tmp_path / "utf16.txt").write_bytes("a star\na ring\n".encode("utf-16"))
    (tmp_path / "bom.txt").write_bytes("a star\n".encode("utf-8-sig"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fail where a model is loaded: what is wrong is to be told before."""
    from vit_lens import HookedViT

    def refuse(*args, **kwargs):
        raise AssertionError("a model is loaded before this is told")

    monkeypatch.setattr(HookedViT, "from_pretrained", refuse)


# ---- M11: what cannot be done is told before anything runs ---------------------------------------------------------

LONG = "a" * 300
TOLD = {
    ("demo", "--out", "file"): "file is a file; choose another",
    ("demo", "--out", LONG): "File name too long; choose another",
    ("sweep", "p.png", "--out", "file/below"): "file is a file; choose another",
    ("readout", "p.png", "--out", "file"): "file is a file; choose another",
    ("reference", "p.png", "--out", "folder"): "folder is a folder; choose another",
    ("reference", "p.png", "--out", f"{LONG}.safetensors"): "File name too long; choose another",
    ("verify", "mini", "--out", "folder"): "folder is a folder; choose another",
    ("doctor", "--out", "file/x.json"): "file is a file; choose another",
    ("study", "content", "--out", "file"): "file is a file; choose another",
    ("paper", "fig2", "--out", "file"): "file is a file; choose another",
    ("mini", "train", "--out", "file"): "file is a file; choose another",
    ("mini", "train", "--out", "t", "--training-seed", "-1"): "'--training-seed': Input should be greater than",
    ("mini", "replica", "--out", "t", "--training-seed", "9" * 20): "Input should be less than or equal to 2147483647",
    ("sweep", "p.png", "--steps", "0"): "'--steps': Input should be greater than or equal to 1",
    ("sweep", "p.png", "--size", "-64"): "'--size': Input should be greater than or equal to 1",
    ("sweep", "p.png", "--batch-size", "0"): "'--batch-size': Input should be greater than or equal to 1",
    ("sweep", "p.png", "--threads", "0"): "'--threads': Input should be greater than or equal to 1",
    ("sweep", "p.png", "--decoder-seed", "-1"): "'--decoder-seed': Input should be greater than or equal to 0",
    ("sweep", "p.png", "--control-seed", "-1"): "'--control-seed': Input should be greater than or equal to 0",
    ("sweep", "p.png", "--lens", ""): "(behind --lens): a variable that is not set? Leave an option out",
    ("sweep", "p.png", "--lens", " , "): "' , ' names nothing",
    ("sweep", "p.png", "--shard", "\xb2/4"): "write I/N, for example 0/4",
    ("sweep", "p.png", "--guidance", "1", "--guidance-interval", "0", "1"): "--guidance 1 is none, so",
    ("sweep", "p.png", "--model", "mnii"): "no model 'mnii'; nearest: 'mini'",
    ("verify", "Mini"): "no model 'Mini'; nearest: 'mini'",
    ("verify", "mini", "--encoder-dtype", ""): "an argument is empty (behind --encoder-dtype)",
    ("readout", "p.png", "-k", "0"): "'-k': Input should be greater than or equal to 1",
    ("doctor", "--steps", "0"): "'--steps': Input should be greater than or equal to 1",
    ("study", "faithfulness", "--n", "1"): "'--n': Input should be greater than or equal to 2",
    ("study", "faithfulness", "--sites", ","): "',' names nothing",
    ("study", "importance", "--n", "2"): "'--n': Input should be greater than or equal to 3",
    ("study", "importance", "--n-decoded", "1"): "'--n-decoded': Input should be greater than or equal to 3",
    ("study", "importance", "--n", "5"): "--n-decoded 12 of --n 5 images: at most all of them can be drawn",
    ("study", "planted", "--n-decoded", "2"): "'--n-decoded': Input should be greater than or equal to 4",
    ("study", "planted", "--n-decoded", "5"): "--n-decoded 5: give an even number, half of each class",
    ("study", "planted", "--bar", "nan"): "'--bar': Input should be",
    ("study", "overlay", "--n", "4"): "'--n': Input should be greater than or equal to 5",
    ("study", "content", "--n-decoded", "0"): "'--n-decoded': Input should be greater than or equal to 1",
    ("study", "content", "--decoder", "none", "--steps", "3"): "--decoder none nothing is drawn, so --steps would have",
    ("paper", "fig2", "--stride", "0"): "'--stride': Input should be greater than or equal to 1",
    ("paper", "fig3", "--by", "x"): "'--by': Value error, 'x' is not one of 'cos', 'S', 'picture'",
    ("paper", "fig4", "--alpha", "nan"): "alpha=nan; expected a finite number",
}  # fmt: skip


@pytest.mark.parametrize("arguments", TOLD, ids=lambda words: " ".join(words)[:60])
def test_what_cannot_be_done_is_told_first(vit_lens, work, nothing_runs, arguments):
    before = sorted(path.name for path in work.iterdir())
    status, output, error = vit_lens(*arguments)
    assert status == 2 and output == "" and TOLD[arguments] in error, error
    assert sorted(path.name for path in work.iterdir()) == before


def test_minima_are_in_the_help(vit_lens):
    for command, least in [("importance", 3), ("planted", 4)]:
        help_text = vit_lens("study", command, "--help")[1]
        (line,) = [line for line in help_text.splitlines() if "--n-decoded" in line]
        assert f"x>={least}" in help_text.split("--n-decoded", 1)[1][:250], line


# ---- tracebacks: files of captions, terminals, files that cannot be read -------------------------------------------


@pytest.mark.parametrize(("captions", "said"), [
    ("latin.txt", "latin.txt cannot be read as UTF-8"),
    ("folder", "no file of captions at folder; expected a text file"),
    ("absent.csv", "no file of captions at absent.csv"),
    ("absent.txt", "no file of captions at absent.txt"),
])  # fmt: skip
def test_captions_that_cannot_be_read_are_told(work, captions, said):
    from vit_lens.cli import flags, intake
    from vit_lens.errors import TextError

    with pytest.raises(TextError, match=said):
        intake.read_captions(captions, flags.Tower())


def test_captions_with_a_byte_order_mark_are_read(work):
    from vit_lens.cli import flags, intake

    assert intake.read_captions("utf16.txt", flags.Tower()).captions == ("a star", "a ring")
    assert intake.read_captions("bom.txt", flags.Tower()).captions == ("a star",)
    assert intake.read_captions("a star", flags.Tower()).captions == ("a star",)


def test_letters_that_a_terminal_cannot_show_are_no_fault(work):
    names = [os.fsencode("\u2192.png"), b"\xff.png"]  # an arrow, and no text at all
    for name in names:
        (work / os.fsdecode(name)).write_bytes((work / "p.png").read_bytes())
    command = [sys.executable, "-c", "from vit_lens.cli import main; main()", "readout", "--sites", "L7H0", *names]
    done = subprocess.run(
        command, capture_output=True, env={"PYTHONIOENCODING": "latin-1", "PATH": "", "PYTHONUTF8": "1"} | _path()
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [b"\\u2192.png", b"\\xff.png"]


def _path():
    import vit_lens

    return {"PYTHONPATH": str(Path(vit_lens.__file__).parent.parent)}


def test_what_the_system_refuses_is_one_line(vit_lens, work, monkeypatch):
    from vit_lens import report

    def refuse(*args, **more):
        raise PermissionError(13, "Permission denied", "record/table.csv")

    monkeypatch.setattr(report, "write_report", refuse)
    status, _, error = vit_lens("report", "folder")
    assert (status, error) == (2, "vit-lens: Permission denied (record/table.csv)\n")


@pytest.mark.parametrize("stage", ["images.find_images", "HookedViT.from_pretrained", "doctor.examining.load_source"])
def test_ctrl_c_is_told_wherever_it_comes(vit_lens, work, monkeypatch, stage):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"vit_lens.{stage}", interrupt)
    commands = {"find_images": ("sweep", "p.png"), "from_pretrained": ("verify", "mini")}
    status, _, error = vit_lens(*commands.get(stage.rsplit(".", 1)[1], ("doctor", "--decoder", "none")))
    assert status == 130 and "vit-lens: interrupted; run the same command again to go on" in error
    monkeypatch.setattr("vit_lens.cli.program.app", interrupt)
    assert vit_lens("models")[0] == 130


# ---- M9: the same encoder under two names; M8: captions for a tower without text -----------------------------------


def test_a_decoder_is_made_for_the_folder_that_the_model_came_from(tmp_path, monkeypatch):
    import tiny_kandinsky
    import towers

    from vit_lens import HookedViT, load_decoder
    from vit_lens.cli import flags
    from vit_lens.errors import ContractError

    towers.hf_tower(projection_dim=tiny_kandinsky.D_EMBED).save_pretrained(tmp_path / "encoder")
    tiny_kandinsky.save(tmp_path / "decoder")
    monkeypatch.chdir(tmp_path)
    model = HookedViT.from_pretrained("./encoder")
    for name in ("encoder", "./encoder", str(tmp_path / "encoder")):
        load_decoder("decoder", encoder=name).check(model.zero_embedding(), model)
    with pytest.raises(ContractError, match="made for encoder 'other'"):
        load_decoder("decoder", encoder="other").check(model.zero_embedding(), model)
    pair = flags.Pair(model="encoder", decoder="decoder", decoder_encoder="encoder")
    assert pair.load_decoder("float32", model).encoder_id == model.encoder_id


def test_captions_of_a_study_come_from_elsewhere_and_are_told_first(vit_lens, work, monkeypatch):
    """A vision tower alone: told before its means are made, and run where captions are embedded elsewhere."""
    import towers

    from vit_lens import HookedViT, TextBank
    from vit_lens.studies import command_parts

    towers.hf_tower(projection_dim=128).save_pretrained(work / "tower")
    seen = {}

    def setup(study, sets, out, **options):
        seen.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(command_parts, "make_setup", setup, raising=False)
    study = ("study", "content", "--model", "tower", "--decoder", "none", "--n", "1")
    status, _, error = vit_lens(*study)
    assert status == 2 and "or give --captions-from, the CLIP that the tower was part of" in error
    monkeypatch.setattr(command_parts, "open_setup", setup)
    for source in ("mini", "bank.safetensors"):
        TextBank.mini(["a star"]).save(work / "bank.safetensors")
        assert vit_lens(*study, "--captions-from", source)[0] == 130
        assert seen["texts"].encoder_id == "vit_lens/mini"
    model = HookedViT.from_pretrained(work / "tower")
    with pytest.raises(ValueError, match="width 128 and belongs to vit_lens/mini"):
        seen["texts"].check(HookedViT.from_module(towers.hf_tower(projection_dim=24)), other_encoder=True)
    assert seen["texts"].check(model, other_encoder=True) is seen["texts"] and json.dumps(model.encoder_id)


# ---- what a shell hands over, what is overwritten, what has no effect ------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sweep", ""), r"an argument is empty \(behind sweep\).*'\.' is this folder"),
        (("sweep", "p.png", "--out", ""), r"an argument is empty \(behind --out\)"),
        (("sweep", "p.png", "--out="), r"an argument is empty \(--out=\)"),
        (("readout", "p.png", "--gallery", ""), "an argument is empty"),
        (("sweep", "--prompts", "folder"), "--prompts folder is a folder; expected a file of prompts"),
        (("sweep", "--prompts", "a", "--control-kind", "empty"), "none are without --controls"),
        (("sweep", "p.png", "--controls", "--control-seed", str(2**63)), "seed=9223372036854775808; expected at most"),
        (("sweep", "p.png", "--threads", "100000"), "threads=100000; expected at most 1024"),
        (("verify", "mini", "--out", "p.png"), r"--out p\.png: the result is JSON; name a file that ends in \.json"),
        (("verify", "mini", "--out", "record.json"), r"--out record\.json is there and holds something else"),
        (("doctor", "--out", "broken.json"), r"broken\.json cannot be read as JSON.*choose another name"),
        (("reference", "p.png", "--out", "m.safetensors"), r"--out m\.safetensors is there already; remove it"),
    ],
)
def test_nothing_is_guessed_ignored_or_overwritten(vit_lens, work, nothing_runs, arguments, said):
    (work / "record.json").write_text('{"format": 2}')
    (work / "broken.json").write_text("a record, once")
    (work / "m.safetensors").write_bytes(b"means of many images")
    before = {path: path.read_bytes() for path in work.iterdir() if path.is_file()}
    status, _, error = vit_lens(*arguments)
    assert status == 2 and re.search(said, error), error
    assert {path: path.read_bytes() for path in work.iterdir() if path.is_file()} == before


def test_an_earlier_result_is_replaced(vit_lens, work):
    (work / "v.json").write_text('{"passed": false}')
    assert vit_lens("verify", "mini", "--encoder-dtype", "float32", "--out", "v.json")[0] == 0
    assert json.loads((work / "v.json").read_text())["passed"] is True
