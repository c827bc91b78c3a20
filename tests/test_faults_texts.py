"""Captions, addresses and identities as they come in the wild: read rightly, or refused in words."""

import os

import numpy as np
import pytest
import torch
from faults import outcomes

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


# ---- arguments ------------------------------------------------------------------------------------------------


def test_texts_refuse_what_they_cannot_read(vit, errors):
    from vit_lens import TextBank, ZeroShotLabels
    from vit_lens.identity import aliases, canonical_encoder_id, fingerprint, same_encoder

    embeds = torch.randn(2, 13)
    fields = dict(captions=("a", "b"), embeds=embeds, logit_scale=90.0, logit_bias=None, encoder_id="x")
    bank, labels = TextBank(**fields), ZeroShotLabels({"colour": ("red", "blue")}, {"colour": embeds})

    def of(**change):
        return lambda: TextBank(**fields | change)

    one, text = "VitLensError", "TextError"
    cases = {
        "captions": (of(captions=None), text, "captions is of type NoneType"),
        "captions 3": (of(captions=3), text, "captions is of type int"),
        "embeds": (of(embeds=embeds.tolist()), text, "embeds is of type list"),
        "embeds of one axis": (of(embeds=embeds[0]), text, "torch.float32 of shape (13,); expected floats [caption"),
        "embeds of counts": (of(embeds=embeds.long()), text, "torch.int64 of shape (2, 13)"),
        "scale": (of(logit_scale="90"), text, "logit_scale is of type str"),
        "scale None": (of(logit_scale=None), text, "logit_scale is of type NoneType"),
        "bias": (of(logit_bias="1"), text, "logit_bias is of type str"),
        "encoder": (of(encoder_id=3), text, "encoder_id is of type int"),
        "templates None": (lambda: TextBank.mini(["a red star"], templates=None), text, "templates=None; expected"),
        "templates 3": (lambda: TextBank.mini(["a red star"], templates=[3]), text, "the template 3 has no {}"),
        "one template": (lambda: TextBank.mini(["red"], templates="a {}"), text, "templates='a {}'; expected a list"),
        "device": (lambda: TextBank.from_pretrained("mini", ["a red star"], device="gpu"), text, "device='gpu' ("),
        "open_clip None": (lambda: TextBank.from_open_clip(None, "openai", ["a"]), text, "name is of type NoneType"),
        "open_clip tag": (lambda: TextBank.from_open_clip("ViT-B-32", None, ["a"]), text, "tag is of type NoneType"),
        "open_clip NUL": (lambda: TextBank.from_open_clip("ViT-B-32", "a\0b", ["a"]), text, "no file can be at 'a"),
        "cosines": (lambda: bank.cosines(None), text, "image_embeds is of type NoneType"),
        "cosines of numpy": (lambda: bank.probs(embeds.numpy()), text, "image_embeds is of type ndarray"),
        "cosines of counts": (lambda: bank.logits(embeds.long()), text, "image_embeds are torch.int64"),
        "cosines of a number": (lambda: bank.cosines(embeds[0, 0]), text, "of shape (); expected floats"),
        "to logits": (lambda: bank.to_logits([0.1]), text, "cosines is of type list"),
        "to probs": (lambda: bank.to_probs(None), text, "logits is of type NoneType"),
        "index": (lambda: bank.index(3), text, "caption is of type int"),
        "check": (lambda: bank.check("mini"), text, "expected a HookedViT, not str"),
        "labels": (lambda: ZeroShotLabels(None, {}), one, "names is of type NoneType"),
        "labels' embeds": (lambda: ZeroShotLabels({"a": ("x",)}, {"a": [1]}), one, "embeds['a'] is of type list"),
        "label": (lambda: labels.label(None), one, "image_embeds is of type NoneType"),
        "label of width 5": (lambda: labels.label(torch.zeros(2, 5)), one, "the labels have widths {'colour': 13}"),
        "canonical": (lambda: canonical_encoder_id(None), one, "an encoder's id is of type NoneType"),
        "same": (lambda: same_encoder("mini", 3), one, "an encoder's id is of type int"),
        "aliases": (lambda: aliases(b"mini"), one, "an encoder's id is of type bytes"),
        "fingerprint": (lambda: fingerprint(embeds), one, "state_dict is of type Tensor"),
        "fingerprint of lists": (lambda: fingerprint({"a": [1]}), one, "'a' is of type list"),
    }  # fmt: skip
    assert not outcomes(errors, cases)


def test_addresses_are_of_models_and_configs(vit, errors):
    from vit_lens.addresses import Address, Position, Site

    kind, no_cfg = (
        "UnknownSiteError",
        "cfg is of type HookedViT; expected TowerConfig: the config of the model, model.cfg",
    )
    cases = {
        **{
            f"{read.__name__} of {value!r}": (lambda read=read, value=value: read(value), kind, "expected a model")
            for read in (Site.heads, Site.attns, Site.mlps, Site.residuals) for value in (None, 3, "mini", [vit])
        },
        "residuals": (lambda: Site.residuals(vit, "nose"), kind, "unknown kind of site 'nose'"),
        "resolve": (lambda: Site.resolve("heads", vit), kind, no_cfg),
        "check": (lambda: Site.parse("L0H0").check(vit), kind, no_cfg),
        "kind": (lambda: Site(0, ["head"], 1), kind, "unknown kind of site ['head']"),
        "sigma": (lambda: Address(block="L", layer=3, sigma="x"), kind, "is no address: could not convert"),
        "hook": (lambda: Address(block="L", layer=3, hook=3), kind, "is no address: sequence item"),
        "spliced": (lambda: Address.parse("L5.f3").resolve_feature(None), kind, "spliced=None; expected a list"),
        "spliced text": (lambda: Address.parse("L5.f3").resolve_feature("L5.mlp"), kind, "spliced='L5.mlp'"),
        "position": (lambda: Position([3], 1), kind, "is no position"),
    }  # fmt: skip
    assert not outcomes(errors, cases)


def test_texts_are_embedded_as_wide_as_their_tower():
    from vit_lens import TextBank

    plain = TextBank.mini(["star", "ring"], templates=["a red {}", "a blue {}"]).embeds
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(TextBank.mini(["star", "ring"], templates=["a red {}", "a blue {}"]).embeds, plain)


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
