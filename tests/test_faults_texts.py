"""Captions, addresses and identities as they come in the wild: read rightly, or refused in words."""

import os

import numpy as np
import pytest
import torch

from vit_lens.errors import TextError, UnknownSiteError, VitLensError

pytestmark = pytest.mark.usefixtures("unchecked")


# ---- tracebacks: files of captions ----------------------------------------------------------------------------

LINES = ("a café", "a red star", "星")


@pytest.mark.parametrize("kind", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "crlf"])
def test_captions_in_every_encoding_that_says_itself(kind, tmp_path):
    from vit_lens.texts import read_captions

    text = "\n".join([LINES[0], "", f"  {LINES[1]} ", LINES[0], LINES[2], ""])
    data = text.replace("\n", "\r\n").encode() if kind == "crlf" else text.encode(kind)
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe" + data if kind == "utf-16-le" else data)
    assert read_captions(tmp_path / "c.txt") == LINES


@pytest.mark.parametrize("kind", ["latin-1", "utf-16", "shift-jis"])
def test_captions_in_an_encoding_that_does_not_are_refused(kind, tmp_path):
    from vit_lens.texts import read_captions

    text = {"latin-1": "a café", "utf-16": "a café!", "shift-jis": "星"}[kind]
    data = text.encode(kind)
    (tmp_path / "c.txt").write_bytes(data[:-1] if kind == "utf-16" else data)
    with pytest.raises(TextError, match=r"c\.txt cannot be read as UTF-8.*save it as"):
        read_captions(tmp_path / "c.txt")


def test_what_is_no_file_of_captions(tmp_path):
    from vit_lens.texts import read_captions

    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "none.txt", tmp_path / "fifo"):
        with pytest.raises(TextError, match="no file of captions at"):
            read_captions(path)


@pytest.mark.parametrize(
    "captions", [None, 3, "a red star", [3], [b"a red star"], ["\ud800"], [None], [" "], []], ids=repr
)
def test_captions_that_are_none(captions):
    from vit_lens import TextBank

    with pytest.raises(TextError):
        TextBank.from_pretrained("mini", captions)


@pytest.mark.parametrize(
    "name", ["", "nowhere", "./nowhere", "x" * 300, "ViT-B-32", "ViT-B-32/openai", 3, None], ids=str
)
def test_names_of_text_towers(name):
    from vit_lens import TextBank

    with pytest.raises(VitLensError):
        TextBank.from_pretrained(name, ["a red star"])


def test_a_folder_given_as_captions_on_the_command_line(tmp_path):
    from types import SimpleNamespace

    from vit_lens.cli.intake import read_captions

    tower = SimpleNamespace(model="mini", tag=None, quick_gelu=None, device="cpu")
    with pytest.raises(TextError, match="no file of captions at"):
        read_captions(str(tmp_path), tower)
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa red star\n")
    assert read_captions(str(tmp_path / "list"), tower).captions == ("a red star",)
    assert read_captions("a red star, a blue ring", tower).captions == ("a red star", "a blue ring")


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_a_bias_of_logits_is_finite(bias):
    from vit_lens import TextBank

    fields = dict(captions=("a",), embeds=torch.ones(1, 2), logit_scale=1.0, encoder_id="x")
    assert TextBank(**fields, logit_bias=-2.0).probs(torch.ones(1, 2)).isfinite().all()
    with pytest.raises(TextError, match="logit_bias="):
        TextBank(**fields, logit_bias=bias)


# ---- tracebacks: addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, 3, b"L3H4", ["L3H4"], np.str_, 3.5], ids=repr)
def test_what_is_no_text_is_no_address(given):
    from vit_lens.addresses import Address, Position, Site, find_address, split_addresses

    for read in (Address.parse, Site.parse, Position.parse, find_address, split_addresses):
        with pytest.raises(UnknownSiteError, match=r"an address is of type .* expected str: a text such as 'L3H4'"):
            read(given)


def test_half_a_character_is_no_word():
    from vit_lens.addresses import Address, Position, Site, find_address

    assert find_address('L3H4@"\\ud800"') is None and find_address('L3H4@"é"') is not None
    for wrong in (lambda: Position("word", "\ud800"), lambda: Address.parse('L3H4@"\ud800"'), lambda: Site(3, None)):
        with pytest.raises(UnknownSiteError) as caught:
            wrong()
        assert str(caught.value).encode()


def test_messages_are_text():
    """A file's name may hold bytes that are none."""
    assert str(VitLensError("a\udcff.png")) == "a\\udcff.png"
    assert str(UnknownSiteError("é")) == "é" and str(VitLensError()) == "" and VitLensError(3).args == ("3",)


# ---- R9: identity ---------------------------------------------------------------------------------------------


def test_an_exact_fingerprint_sees_every_bit():
    from vit_lens.identity import exact_fingerprint, fingerprint

    weights = {"a": torch.randn(3, 4), "b": torch.tensor(1.0), "c": torch.zeros(0, 2)}
    nudged = weights | {"a": torch.nextafter(weights["a"], torch.tensor(9.0))}
    assert fingerprint(nudged) == fingerprint(weights) and exact_fingerprint(nudged) != exact_fingerprint(weights)
    assert exact_fingerprint({name: weights[name].clone() for name in reversed(weights)}) == exact_fingerprint(weights)
    for other in (
        {"a": weights["a"].T},
        {"a": weights["a"].double()},
        {"a": -weights["a"]},
        {"a": weights["a"].half()},
    ):
        assert exact_fingerprint(weights | other) != exact_fingerprint(weights)
    with pytest.raises(VitLensError, match="meta device"):
        exact_fingerprint({"a": torch.ones(2, device="meta")})
