"""The command line as a user meets it: wrong input is one clear line and status 2, and leaves nothing behind."""

import json

import numpy as np
import pytest
from PIL import Image

from vit_lens.cli.old_words import OLD_SPELLINGS, respell

OLD = [(path, old, new.split()) for path, names in OLD_SPELLINGS.items() for old, new in names.items()]


def commands():
    """Every command by its path, as typer makes it."""
    from typer.main import get_command

    from vit_lens.cli import app

    found, groups = {}, {"": get_command(app)}
    while groups:
        path, group = groups.popitem()
        for name, command in group.commands.items():
            (groups if hasattr(command, "commands") else found)[f"{path} {name}".strip()] = command
    return found


def options(command):
    """The options of a command by every name that they have."""
    named = [param for param in command.params if param.param_type_name == "option"]
    return {name: param for param in named for name in (*param.opts, *param.secondary_opts)}


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
    definitions = [one["settings"]["definition"] for one in manifest["readings"] if not one["control"]]
    assert definitions == ["mean-anchored DSL", "LN(v) proj"]
    assert len(list((out / "pictures").iterdir())) == 2 * 2 + 3 + 2
    assert manifest["beside"]["texts"]["n"] == 49 and manifest["beside"]["live"]  # mini has captions of its own
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
        (["--size", "70"], "70"),
        (["--decoder-dtype", "float8"], "no dtype 'float8'"),
        (["--shard", "one"], "write I/N"),
        (["--device", "cuda:7"], "device 'cuda:7' cannot be used here"),
        (["--device", "gpu"], "take --device cpu"),
        (["--decoder", "none", "--decoder-encoder", "vit_lens/mini"], "so --decoder-encoder would have no effect"),
        (["--decoder", "none", "--steps", "3"], "steps would have no effect"),
        (
            ["--lens", "diffusion", "--reference", "means.safetensors"],
            "serves the lenses dsl-mean, counterfactual and patch-dsl-mean",
        ),
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
    assert status == 2 and f"--out {tmp_path / 'file' / 'out'}: {tmp_path / 'file'} is a file" in error
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
    from vit_lens.sweeping import stages

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "embed_input", interrupt)
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


# ---- one word for one thing ------------------------------------------------------------------------------------


def test_an_option_means_the_same_in_every_command():
    meanings = {}
    for command in commands().values():
        for name, option in options(command).items():
            meanings.setdefault(name, set()).add(option.help)
    assert len(meanings) > 60
    assert {name: helps for name, helps in meanings.items() if len(helps) > 1} == {}


def test_no_old_spelling_is_an_option():
    """The one that still is somewhere was another thing there: the height and width of pictures."""
    old = {name for names in OLD_SPELLINGS.values() for name in names}
    for path, command in commands().items():
        now = set(options(command))
        assert not now & (old - {"--size"}) and not now & set(OLD_SPELLINGS.get(path, ())), path


@pytest.mark.parametrize(("path", "old", "new"), OLD, ids=lambda value: value if isinstance(value, str) else "")
def test_an_old_spelling_is_todays_and_is_said_once(path, old, new, capsys):
    words = path.split()
    assert set(new) <= set(options(commands()[path]))
    expected = [*words, "a", *(word for name in new for word in (name, "3"))]
    assert respell([*words, "a", old, "3"]) == expected
    assert capsys.readouterr().err == f"vit-lens: {old} is {' and '.join(new)} now\n"
    twice = [*words, "a", f"{old}=3", old, "4", "--", old, "5"]
    assert respell(twice) == [*expected, *(word for name in new for word in (name, "4")), "--", old, "5"]
    assert capsys.readouterr().err.count("\n") == 1
    assert respell([*words, old]) == [*words, *new]  # the command says what is missing


def test_only_old_spellings_change(capsys):
    for line in (["sweep", "--image", "a"], ["report", "--seed", "3"], ["study", "pool", "--seed"], ["--seed"], []):
        assert respell(line) == line
    assert capsys.readouterr().err == ""


def test_a_sweep_in_old_spellings_runs_and_is_recorded_in_todays(vit_lens, photo, tmp_path):
    out = tmp_path / "out"
    given = ("--sites", "L7H0", "--lens", "diffusion", "--steps", 1, "--controls", "--no-page", "--out", out)
    old = ("--seed", 3, "--seed=4", "--dtype", "float32", "--encoder", "vit_lens/mini")
    status, _, error = vit_lens("sweep", photo, *given, *old)
    assert status == 0, error
    assert [line for line in error.splitlines() if line.startswith("vit-lens: ")] == [
        f"vit-lens: {name} is {OLD_SPELLINGS['sweep'][name]} now" for name in ("--seed", "--dtype", "--encoder")
    ]
    manifest = json.loads((out / "record.json").read_text())
    assert "--decoder-seed 3 --decoder-seed 4 --decoder-dtype float32" in manifest["command"]
    status, _, error = vit_lens("sweep", photo, *given, "--decoder-seed", 3, "--decoder-seed", 4, "--control-seed", 1)
    assert status == 2 and "another sweep" in error  # which has other controls


def test_a_readout_in_old_spellings_runs(vit_lens, photo, tmp_path):
    out = tmp_path / "out"
    status, output, error = vit_lens(
        "readout", photo, "--means", photo, "--dtype=float64", "--sites", "L7H0", "-k", 1, "--out", out
    )
    assert status == 0, error
    assert "vit-lens: --means is --reference-images now" in error and " centred: " in output


def test_images_are_the_argument_and_the_option(vit_lens, photo, tmp_path):
    other, means = tmp_path / "other.png", tmp_path / "means.safetensors"
    Image.new("RGB", (64, 64), (200, 30, 90)).save(other)
    status, output, error = vit_lens("reference", photo, "--images", other, "--out", means)
    assert status == 0 and output.splitlines()[-1].startswith("means of 2 images"), error
    status, output, error = vit_lens(
        "readout", "--images", photo, "--images", other, "--sites", "L7H0", "-k", 1, "--reference", means,
        "--lens", "dsl-mean:alpha=5", "--reference-images", photo, "--reference-images", other,
    )  # fmt: skip
    assert status == 0 and {line.split()[0] for line in output.splitlines()} == {"photo.png", "other.png"}, error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "no images: name files or folders after the command, or with --images"),
        (["readout"], "no images"),
        (["reference", "--out", "means.safetensors"], "no images"),
        (["readout", "FILE", "--lens", "diffusion,dsl:alpha=2"], "--lens is given 2 values"),
        (
            ["readout", "FILE", "--reference", "means.safetensors"],
            "serves the lenses dsl-mean, counterfactual and patch-dsl-mean",
        ),
        (["paper", "fig2", "--images", "FILE", "--images", "FILE"], "a figure shows one image, and --images holds"),
        (["paper", "fig2", "--decoder-seed", "0", "--decoder-seed", "1"], "--decoder-seed is given 2 values"),
        (["study", "content", "--images", "FILE", "--images", "FILE"], "--images is given 2 values"),
    ],
)
def test_what_one_command_does_not_take_is_named(vit_lens, photo, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = vit_lens(*(photo.name if word == "FILE" else word for word in arguments))
    assert status == 2 and message in error and error.count("\n") == 1, error
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png"}


def test_a_plan_is_printed_and_nothing_else_happens(vit_lens, photo, tmp_path):
    status, output, error = vit_lens(
        "sweep", photo, "--controls", "--plan", "--budget", "60s", "--out", tmp_path / "out"
    )
    assert status == 0, error
    assert "rows: 329" in output and "16 at a time" in output and "time: 329 coarse pictures" in output
    assert "of the coarse ones" in output and "disk: about" in output and not (tmp_path / "out").exists()
    status, output, _ = vit_lens(
        "sweep", photo, "--plan", "--shard", "1/4", "--decoder", "none", "--out", tmp_path / "o"
    )
    assert status == 0 and "part 1 of 4: 41 rows" in output and "pictures: none" in output


def test_parts_of_one_image_are_drawn_and_merged(vit_lens, photo, tmp_path):
    command = ("sweep", photo, "--sites", "L7H0,L7.mlp,L3H1", "--steps", 2, "--batch-size", 2, "--no-live")
    assert vit_lens(*command, "--out", tmp_path / "whole")[0] == 0
    for part in range(4):
        assert vit_lens(*command, "--shard", f"{part}/4", "--out", tmp_path / str(part))[0] == 0
    status, output, error = vit_lens(
        "merge", *(tmp_path / str(part) for part in range(4)), "--out", tmp_path / "joined"
    )
    assert status == 0 and output.startswith("page: "), error
    one, other = ((tmp_path / name / "table.csv").read_bytes() for name in ("whole", "joined"))
    assert one == other and (tmp_path / "3" / "report.html").exists()  # empty, and yet a page


def test_the_defaults_of_the_command_are_those_of_the_library():
    from vit_lens.cli import flags
    from vit_lens.lenses import DEFAULT_LENSES
    from vit_lens.sweeping import DEFAULT_SITES

    assert tuple(flags.DEFAULT_LENSES) == DEFAULT_LENSES and tuple(flags.DEFAULT_SITES) == DEFAULT_SITES


def test_the_demo_shows_an_image_and_a_sentence_on_one_page(vit_lens, tmp_path, monkeypatch):
    """The first command of the README, on one of each and with one step."""
    from vit_lens import Record, mini
    from vit_lens.cli import recording

    monkeypatch.setattr(recording, "_DEMO_SETTINGS", {"steps": 1, "guidance": 1.0})
    one = mini.sample_images()[:1]
    monkeypatch.setattr(mini, "sample_images", lambda: one, raising=False)
    monkeypatch.setattr(mini, "SENTENCES", mini.SENTENCES[:1], raising=False)
    status, said, error = vit_lens("demo", "--out", tmp_path / "demo")
    assert status == 0 and said.splitlines()[-1] == f"page: {tmp_path / 'demo' / 'report.html'}", error
    images, prompts = Record.load(tmp_path / "demo"), Record.load(tmp_path / "demo" / "prompts")
    assert images.complete and prompts.complete and len(prompts.table) == 9 * 3
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "A sentence becomes a scene" in page and 'href="prompts/report.html"' in page
    assert page.count('class="cell" title="L') == 27 and (tmp_path / "demo" / "prompts" / "report.html").is_file()
