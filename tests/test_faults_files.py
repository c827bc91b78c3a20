"""Files that anybody may have written go through one door, which takes what is meant and says what is wrong."""

import json

import pytest
import torch

from vit_lens.errors import RecordError, VitLensError

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


def test_json_is_read_from_files_alone_and_not_without_end(tmp_path, monkeypatch):
    import os

    from vit_lens import files

    os.mkfifo(tmp_path / "fifo")
    for name in ("absent", "fifo", "."):
        with pytest.raises(VitLensError, match="no such file; copy it"):
            files.read_json(tmp_path / name, VitLensError, "copy it")
    monkeypatch.setattr(files, "_JSON_BYTES", 20)
    (tmp_path / "long").write_text('{"a": "' + "x" * 30 + '"}')
    with pytest.raises(VitLensError, match="longer than 20 bytes"):
        files.read_json(tmp_path / "long", VitLensError, "copy it")


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
