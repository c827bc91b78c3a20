"""Files that anybody may have written go through one door, which takes what is meant and says what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from faults import outcomes

from vit_lens.errors import ImageError, RecordError, VitLensError

pytestmark = pytest.mark.usefixtures("unchecked")


def parse(text):
    from vit_lens.files import parse_json

    return parse_json(text, "it", RecordError, "mend it")


# ---- R7, R10: hostile JSON ------------------------------------------------------------------------------------

HOSTILE = {
    "[" * 200_000: "cannot be read as JSON",
    '{"a": ' + "[" * 70 + "]" * 70 + "}": "nested deeper than 64",
    '{"a": NaN}': "the number NaN is not finite",
    '{"a": -Infinity}': "the number -Infinity is not finite",
    '{"a": [1e999]}': "the number 1e999 is not finite",
    '{"a": 1' + "0" * 25 + "}": "beyond 64 bits",
    '{"a": 1' + "0" * 9_999 + "}": "beyond 64 bits",
    '{"a": {"b": 1, "b": 2}}': "the key 'b' occurs twice",
    '{"a": "\\ud800"}': "surrogates not allowed",
    '{"\\ud800": 1}': "surrogates not allowed",
    "[1]": "holds a JSON list; expected an object",
    '{"a": 1': "cannot be read as JSON",
    "": "cannot be read as JSON",
    b"\xff\xfe\x00": "cannot be read as JSON",
    b'{"a": "\xe9"}': "cannot be read as JSON",
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: str(text[:24]))
def test_hostile_json_is_refused(text):
    with pytest.raises(RecordError, match=HOSTILE[text]) as caught:
        parse(text)
    assert str(caught.value).startswith("it ") and str(caught.value).endswith("; mend it")
    assert len(str(caught.value)) < 300


def test_json_that_is_meant_is_read():
    plain = {"a": [1, -2.5, 1e-300, None, True, "é"], "b": {"c": 2**63 - 1, "d": []}}
    assert parse(json.dumps(plain)) == parse(json.dumps(plain).encode()) == plain
    assert parse(b"\xef\xbb\xbf" + json.dumps(plain, ensure_ascii=False).encode()) == plain
    assert parse('{"a": ' + "[" * 60 + "]" * 60 + "}")["a"]


def test_json_is_read_from_files_alone_and_not_without_end(tmp_path):
    import os

    from vit_lens import files

    os.mkfifo(tmp_path / "fifo")
    for name in ("absent", "fifo", "."):
        with pytest.raises(VitLensError, match="no such file; copy it"):
            files.read_json(tmp_path / name, VitLensError, "copy it")
    (tmp_path / "long").write_text('{"a": "' + "x" * 30 + '"}')
    with pytest.raises(VitLensError, match="longer than 20 bytes"):
        files.read_json(tmp_path / "long", VitLensError, "copy it", most=20)


# ---- R8: the index of a sharded checkpoint --------------------------------------------------------------------


@pytest.mark.parametrize(
    "held, words",
    [
        (["a.safetensors"], "no table from tensors"),
        ({}, "no table from tensors"),
        ({"w": 3}, "no table from tensors"),
        ({"w": None}, "no table from tensors"),
        (None, "no table from tensors"),
        ({"w": "../../outside.safetensors"}, "lies outside"),
        ({"w": "/etc/passwd"}, "lies outside"),
        ({"w": "a/../../b"}, "lies outside"),
        ({"w": "..\\outside"}, "lies outside"),
        ({"w": "C:\\outside"}, "lies outside"),
    ],
)
def test_an_index_names_files_below_it(held, words, tmp_path):
    from vit_lens.files import read_shards

    path = tmp_path / "x.index.json"
    path.write_text(json.dumps({"weight_map": held}))
    with pytest.raises(VitLensError, match=words):
        read_shards(path, VitLensError, "download it again")
    path.write_text(json.dumps({"weight_map": {"w": "b/2.bin", "v": "1.bin", "u": "b/2.bin"}}))
    assert read_shards(path, VitLensError, "") == ["1.bin", "b/2.bin"]


# ---- R7: safetensors, and what dataclasses are made of --------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x" * 7, b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}"], ids=repr)
def test_what_is_no_safetensors_is_refused(data, tmp_path):
    from vit_lens.files import open_safetensors

    (tmp_path / "x").write_bytes(data)
    with pytest.raises(VitLensError, match=r"not a whole safetensors file.*copy it"):
        open_safetensors(tmp_path / "x", VitLensError, "copy it")
    with pytest.raises(VitLensError, match="no such file; copy it"):
        open_safetensors(tmp_path, VitLensError, "copy it")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"captions": ["a", 3]}, r"captions is \['a', 3\]; expected tuple\[str, \.\.\.\]"),
        ({"captions": "ab"}, "captions is 'ab'"),
        ({"logit_scale": True}, "logit_scale is True; expected float"),
        ({"logit_scale": None}, "logit_scale is None"),
        ({"logit_bias": "2"}, "logit_bias is '2'"),
        ({"embeds": "x"}, "embeds is 'x'"),
        ({"embeds": torch.ones(2)}, "embeds is"),
        ({"encoder_id": 7}, "encoder_id is 7; expected str"),
    ],
)
def test_fields_are_checked_down_to_their_elements(change, words):
    from vit_lens import TextBank
    from vit_lens.files import check_fields

    plain = dict(captions=["a", "b"], embeds=torch.eye(2), logit_scale=3, logit_bias=None, encoder_id="x")
    assert check_fields(TextBank, plain, "it", VitLensError)["captions"] == ("a", "b")
    with pytest.raises(VitLensError, match=words):
        check_fields(TextBank, plain | change, "it", VitLensError)


# ---- paths: one door, whoever hands one over ------------------------------------------------------------------

NO_PATH = "expected str or PathLike: where the file or folder lies"
NO_PATHS = {  # what is given, and what is said of it
    "None": (None, f"is of type NoneType; {NO_PATH}"),
    "a number": (3, f"is of type int; {NO_PATH}"),
    "bytes": (b"x", f"is of type bytes; {NO_PATH}"),
    "a list": (["x"], f"is of type list; {NO_PATH}"),
    "nothing": ("", "is empty: no such file or folder"),
    "NUL": ("a\0b", r"no file can be at 'a\x00b': "),
    "NUL in a Path": (Path("a\0b"), r"no file can be at 'a\x00b': "),
    "5,000 characters": ("x" * 5000, "xxx...xxx"),
    "a folder of 5,000": (Path("x" * 5000, "y"), "File name too long; choose another "),
}


@pytest.fixture(scope="module")
def takers(vit):
    """Every public function that takes a path, and the error that it raises."""
    import vit_lens as vl
    from vit_lens import images, readers, texts

    bank = texts.TextBank(captions=("a",), embeds=torch.ones(1, 13), logit_scale=1.0, logit_bias=None, encoder_id="x")
    pixels = torch.randn(2, 3, 22, 22, dtype=torch.float64)
    means = readers.SiteMeans.from_images(vit, pixels, "L1.mlp")
    reference = vl.ReferenceMeans.from_images(vit, pixels)
    parts = dict(encoder_id="x", fingerprint="x", preprocess={}, folder="", names=("a",), hashes=("a",), stamps=("a",))
    gallery = readers.Gallery(**parts, embeds=torch.ones(1, 13))
    return {
        "Gallery.load": (readers.Gallery.load, "GalleryError"),
        "Gallery.save": (gallery.save, "OutputError"),
        "Gallery.from_folder": (lambda path: readers.Gallery.from_folder(vit, path), "GalleryError"),
        "Gallery.from_folder(out)": (lambda path: readers.Gallery.from_folder(vit, ".", out=path), "OutputError"),
        "SiteMeans.load": (readers.SiteMeans.load, "LensError"),
        "SiteMeans.save": (means.save, "OutputError"),
        "ReferenceMeans.load": (vl.ReferenceMeans.load, "VitLensError"),
        "ReferenceMeans.save": (reference.save, "OutputError"),
        "TextBank.load": (vl.TextBank.load, "TextError"),
        "TextBank.save": (bank.save, "OutputError"),
        "read_captions": (texts.read_captions, "TextError"),
        "load_image": (images.load_image, "ImageError"),
        "load_with_hash": (images.load_with_hash, "ImageError"),
        "find_images": (images.find_images, "ImageError"),
        "find_images of several": (lambda path: images.find_images([path]), "ImageError"),
        "images_in": (lambda path: images.images_in(path, below=True), "ImageError"),
    }  # fmt: skip


@pytest.mark.parametrize("given", NO_PATHS)
def test_what_is_no_path_is_refused_by_everybody_who_takes_one(given, takers, errors):
    value, said = NO_PATHS[given]
    cases = {name: (lambda call=call: call(value), kind, said) for name, (call, kind) in takers.items()}
    if not isinstance(value, str | Path):  # no file: of a picture there are other kinds, None keeps a gallery in memory
        for name in ("load_image", "load_with_hash", *["find_images"] * isinstance(value, list)):
            del cases[name]
    if value is None:
        del cases["Gallery.from_folder(out)"]
    assert not outcomes(errors, cases)


@pytest.mark.parametrize("given", [name for name in NO_PATHS if name != "nothing"])
def test_no_file_function_meets_what_is_no_path(given, errors):
    from vit_lens import files

    value, said = NO_PATHS[given]
    reading = dict(error=VitLensError, advice="copy it")
    cases = {
        "make_directory": (lambda: files.make_directory(value), "OutputError", said),
        "write_atomic": (lambda: files.write_atomic(value, b""), "OutputError", said),
        "append": (lambda: files.append(value, b""), "OutputError", said),
        "exclusive": (lambda: files.exclusive(value).__enter__(), "OutputError", said),
        "save_tensors": (lambda: files.save_tensors({}, value), "OutputError", said),
        "open_safetensors": (lambda: files.open_safetensors(value, **reading), "VitLensError", said),
        "open_tensors": (
            lambda: files.open_tensors(value, ["x"], what="a x", **reading).__enter__(), "VitLensError", said
        ),
        "read_json": (lambda: files.read_json(value, **reading), "VitLensError", said),
        "read_shards": (lambda: files.read_shards(value, **reading), "VitLensError", said),
    }  # fmt: skip
    assert not outcomes(errors, cases)


def test_a_tilde_is_a_home_for_everybody(tmp_path, monkeypatch):
    from vit_lens import TextBank
    from vit_lens.files import as_path
    from vit_lens.images import load_image

    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/a.png", VitLensError) == as_path(Path("~", "a.png"), VitLensError) == tmp_path / "a.png"
    assert as_path("~no-such-user/x", VitLensError) == Path("~no-such-user/x")  # as shells have it
    with pytest.raises(ImageError, match=r"~no-such-user/x: no such file"):
        load_image("~no-such-user/x")
    bank = TextBank(captions=("a",), embeds=torch.ones(1, 3), logit_scale=1.0, logit_bias=None, encoder_id="x")
    assert bank.save("~/below/bank") == tmp_path / "below" / "bank"
    assert TextBank.load("~/below/bank").captions == ("a",)


def test_what_is_no_tensors_is_not_written(tmp_path, errors):
    from vit_lens.files import save_tensors

    cases = {
        "None": (lambda: save_tensors(None, tmp_path / "x"), "OutputError", "tensors is of type NoneType"),
        "numpy": (lambda: save_tensors({"a": [1]}, tmp_path / "x"), "OutputError", "'a' is of type list"),
        "metadata": (lambda: save_tensors({}, tmp_path / "x", ["a"]), "OutputError", "metadata is of type list"),
    }
    assert not outcomes(errors, cases) and not (tmp_path / "x").exists()


# ---- R12: spreadsheets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "'=1", "''=1", "a = b", "'tis", "", "-"])
def test_no_cell_is_a_formula_and_texts_come_back(text):
    import csv
    import io

    import pandas as pd

    from vit_lens.records import csv_bytes, csv_text

    table = pd.DataFrame({"label": [text, "a cup"], "n": [-1, 2], "cosine": [-0.1, float("nan")]})
    head, first, second = csv.reader(io.StringIO(csv_bytes(table).decode(), newline=""))
    assert head == ["label", "n", "cosine"] and first[1:] == ["-1", "-0.1"] and second == ["a cup", "2", ""]
    assert first[0] == text or first[0] == f"'{text}"
    assert not first[0].startswith(("=", "+", "-", "@", "\t")) and csv_text(first[0]) == text


def test_labels_of_a_record_are_no_formulas_and_come_back():
    from vit_lens.records.schema import csv_to_table, table_to_csv, to_table

    table = to_table([{"row": 0, "input": 0, "site": "L0H0", "label": "=HYPERLINK(1)", "norm_h": -0.25}])
    data = table_to_csv(table)
    assert b",'=HYPERLINK(1)," in data and b",-0.25," in data
    assert csv_to_table(data, "here").equals(table)


def test_records_and_pages_have_that_home_too(tmp_path, monkeypatch):
    import vit_lens as vl
    from vit_lens.mini import sample_images

    model = vl.HookedViT.from_pretrained("mini")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(sample_images()[0].read_bytes())
    for part in (0, 1):
        execution = vl.Execution(shard=(part, 2))
        vl.sweep(model, None, "~/pictures", lens="diffusion", sites="mlp", execution=execution, out=f"~/part {part}")
    record = vl.records.merge(["~/part 0", "~/part 1"], "~/whole")
    assert record.path == vl.Record.load("~/whole").path == tmp_path / "whole"
    assert vl.write_report(record, out="~/page.html") == tmp_path / "page.html"
    assert not [path for path in Path().iterdir() if path.name == "~"]
