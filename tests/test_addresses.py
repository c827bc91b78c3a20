"""Addresses and sites are read as researchers write them, and what is wrong with one is said."""

import csv
import io
import re
import shlex
import subprocess
import sys
import urllib.parse

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

NUMBERS = st.integers(0, 10**18 - 1)
NASTY = ('"', "\\", '\\"', " a, b ", "@cls~3", "#%2C+&=", "a\nb\tc\0", "(1,2)", "\u2028", "stár 星 🌟", "", "'$HOME`")


@st.composite
def addresses(draw, words=True):
    """Any address: a part of the table, with numbers, and perhaps a tower, position and step."""
    from vit_lens.addresses import Address, Position
    from vit_lens.addresses.grammar import HOOKS

    key = draw(st.sampled_from(sorted(HOOKS)))
    unit = {"H": "head", "N": "neuron"}.get(key[-1:])
    kind = key.removesuffix(key[-1:] if unit else "")
    block = {"": None, "U": None, "T": None, "TL": "L"}.get(kind, kind)
    made = {"block": block, "hook": draw(st.sampled_from(HOOKS[key])) or None}
    made |= {name: draw(NUMBERS) for name in (unit, "layer" if block in ("L", "D", "S") else None) if name}
    if kind[:1] in ("U", "T"):
        numbers = [draw(st.sampled_from(["down", "mid", "up"]))]
        numbers += [draw(NUMBERS) for _ in range((numbers[0] != "mid") + (kind != "U"))]
        made["within"] = ".".join(map(str, numbers))
    spliced = made["hook"] is None or re.search(r"(attn2?|mlp|update|img|txt|resid_\w+)$", made["hook"])
    if (block or kind) and not unit and spliced and draw(st.booleans()):
        made["feature"] = draw(NUMBERS)
    kinds = {
        None: st.just(None), "cls": st.just(None), "eos": st.just(None), "pad": st.just(None),
        "patches": st.just(None), "registers": st.just(None), "index": NUMBERS, "patch": NUMBERS,
        "register": NUMBERS, "place": st.tuples(NUMBERS, NUMBERS),
        "word": st.text() | st.sampled_from(NASTY) | st.text(alphabet="\"\\ ,@~#%'()+\n"),
    }  # fmt: skip
    kind = draw(st.sampled_from([kind for kind in kinds if words or kind not in ("word", "place")]))
    if kind is not None:
        made["position"] = Position(kind, draw(kinds[kind]))
    made["tower"] = draw(st.none() | st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True))
    time = draw(st.sampled_from([None, "step", "sigma"]))
    if time is not None:
        sigmas = st.floats(0, allow_infinity=False).filter(lambda x: str(x)[0] != "-")
        made[time] = draw(NUMBERS if time == "step" else sigmas)
    return Address(**made)


@pytest.fixture(autouse=True, scope="module")
def loaded():
    """Imported before a strategy draws: what imports do with random numbers is not the strategy's."""
    import vit_lens.addresses
    import vit_lens.models  # noqa: F401


@given(addresses())
def test_every_address_reads_back(address):
    from vit_lens.addresses import Address, find_address, spelled, split_addresses

    text = str(address)
    assert Address.parse(text) == address == find_address(f" {text} ") and spelled(text) == text
    assert hash(Address.parse(text)) == hash(address) and str(Address.parse(text)) == text
    if '"' not in text:
        assert Address.parse(text.upper()) == address == Address.parse(text.lower())
    assert split_addresses(f"{text},L3,{text}") == [text, "L3", text]


@given(addresses())
def test_addresses_pass_through_tables_and_links(address):
    """Of records and reports: a cell of a CSV file, and a link's fragment, as encodeURIComponent writes it."""
    from vit_lens.addresses import Address

    text, file = str(address), io.StringIO(newline="")
    csv.writer(file).writerow([text, "1"])
    file.seek(0)
    assert [Address.parse(cell) for cell in next(csv.reader(file))[:1]] == [address]
    fragment = urllib.parse.quote(text, safe="!'()*-._~")
    assert not set(fragment) & set(' "#<>`') and Address.parse(urllib.parse.unquote(fragment)) == address


def test_addresses_without_words_and_places_need_no_quotes_in_a_shell():
    from vit_lens.addresses import Address

    texts = []
    given(addresses(words=False))(lambda address: texts.append(str(address)))()
    out = subprocess.run(["sh", "-c", f"printf '%s\\n' {' '.join(texts)}"], capture_output=True, text=True, check=True)
    assert out.stdout.split() == texts and len(texts) > 50
    quoted = ("L5@(3,7)", 't5:L3@"it\'s"')
    code = f"printf '%s\\n' {' '.join(map(shlex.quote, quoted))}"
    out = subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=True)
    assert tuple(out.stdout.split()) == quoted and all(Address.parse(text) for text in quoted)


@given(st.text() | st.text(alphabet='LHNDS0123.@~:"\\(),fsqattnpool_ '))
@example("L3~s1e999")
@example("L" + "9" * 5000)
@example("L3@" + '"' + "\\" * 5000)
def test_what_is_no_address_is_said(text):
    from vit_lens.addresses import Address, find_address
    from vit_lens.errors import UnknownSiteError

    if find_address(text) is None:
        with pytest.raises(UnknownSiteError, match=r"no (address|position) .*nearest: '"):
            Address.parse(text)


def test_the_grammar_in_the_docstring_is_the_one_that_is_read():
    """Its examples parse, in the spelling that is printed, and it has every hook of the table."""
    import vit_lens.addresses as module
    from vit_lens.addresses.grammar import HOOKS

    examples = [text for line in re.findall(r"\(\* (.*?) \*\)", module.__doc__) for text in line.split()]
    assert len(examples) > 30 and [str(module.Address.parse(text)) for text in examples] == examples
    grammar = set(re.findall(r'"\.?([\w.:@~]+)"', module.__doc__))
    for hook in (hook for hooks in HOOKS.values() for hook in hooks if hook):
        assert hook in grammar or set(hook.split(".")) <= grammar, hook


def test_addresses_are_parsed_without_torch():
    code = "import sys, vit_lens.addresses as a; a.Address.parse('L3H4@cls'); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L3.mpl", "no address 'L3.mpl'; nearest: 'L3.mlp'"),
        ("vision:L3.mpl@cls", "nearest: 'vision:L3.mlp'"),
        ("D5.attn", r"nearest: 'D5\.(img|txt)\.attn'"),
        ("S5.resid_mid", r"nearest: 'S5\.resid_pre'"),
        ("poolN3", "nearest: 'pool', 'poolH0'"),
        ("L5@clss", "no position 'clss'; nearest: 'cls'"),
        ('L5@"\\q"', "a word of the prompt in double quotes"),
        ("L3H4.f3", "no address"),
        ("L3.b_O.f3", "no address"),
        ("D5N3", "nearest: 'D5', 'D5N0.txt', 'D5N0.img'"),
        ("L3attn", "nearest: 'L3.attn'"),
        ("mid.0.updat", "nearest: 'mid.0.update'"),
        ("down.2.1.L0.cross_atn@3", "no address .*nearest: 'down.2.1.L0.cross_attn'"),
        ("mid.L0", "nearest: 'mid'"),
        ("down.2.1H3", "no address"),
        ("mid.0D5", "no address"),
        ("down.2.1.L0.update", "no address"),
        ("S5.img.gate", "nearest: .*'S5.gate'"),
        ("L3~", "no address"),
    ],
)
def test_a_wrong_address_names_the_nearest(text, message):
    from vit_lens.addresses import Address
    from vit_lens.errors import UnknownSiteError

    with pytest.raises(UnknownSiteError, match=message):
        Address.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"layer": 3}, {"block": "L"}, {"block": "L", "layer": -1}, {"block": "L", "layer": True},
        {"block": "L", "layer": 1.0}, {"block": "pool", "layer": 3}, {"block": "L", "layer": 3, "hook": "nose"},
        {"block": "L", "layer": 3, "head": 1, "neuron": 2}, {"hook": "L3"}, {"block": "L", "layer": 3, "hook": "q"},
        {"block": "L", "layer": 3, "step": 1, "sigma": 1.0}, {"hook": "embed", "sigma": -1.0},
        {"hook": "embed", "sigma": float("nan")}, {"hook": "embed", "tower": "a b"}, {"hook": "embed", "feature": 3},
        {"block": "L", "layer": 10**18},
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_make_no_address_are_refused(fields):
    from jaxtyping import config

    from vit_lens.addresses import Address
    from vit_lens.errors import UnknownSiteError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config, "jaxtyping_disable", True)
        with pytest.raises(UnknownSiteError, match="is no address"):
            Address(**fields)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("patch", None), ("cls", 3), ("index", -1), ("index", True), ("place", (1,)), ("place", None), ("word", None),
     ("word", 3), ("index", "cls"), ("patch17", None), ("place", (0, 1.0))],
)  # fmt: skip
def test_values_that_make_no_position_are_refused(kind, value):
    from jaxtyping import config

    from vit_lens.addresses import Position
    from vit_lens.errors import UnknownSiteError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config, "jaxtyping_disable", True)
        with pytest.raises(UnknownSiteError, match="is no position"):
            Position(kind, value)


def test_numbers_of_any_kind_become_those_of_python():
    from jaxtyping import config

    from vit_lens.addresses import Address

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config, "jaxtyping_disable", True)
        address = Address(block="L", layer=np.int64(3), head=torch.tensor(4), sigma=np.float64(0.5))
    assert address == Address.parse("L3H4~s0.5")
    assert [type(x) for x in (address.layer, address.head, address.sigma)] == [int, int, float]


def test_an_index_and_a_sigma_are_two_steps():
    from vit_lens.addresses import Address

    index, sigma = Address.parse("S3~2"), Address.parse("S3~s2")
    assert index != sigma and (index.step, sigma.sigma) == (2, 2.0) and str(sigma) == "S3~s2.0"


def test_a_feature_is_of_the_one_dictionary_that_is_spliced_there():
    from vit_lens.addresses import Address
    from vit_lens.errors import UnknownSiteError

    short, spliced = Address.parse("L5.f3796@cls"), ["L5.resid_post", Address.parse("L6.mlp"), "l6.resid_post"]
    assert str(short.resolve_feature(spliced)) == "L5.resid_post.f3796@cls"
    assert str(Address.parse("L6.mlp.f1").resolve_feature(spliced)) == "L6.mlp.f1"
    assert str(Address.parse("L5.f1").resolve_feature(["vision:L5.mlp"])) == "vision:L5.mlp.f1"
    both = ["D5.img.mlp", "D5.txt.resid_post", "mid.0.update"]
    for text, full in (("D5.img.f7", "D5.img.mlp.f7"), ("D5.txt.f7@3~2", "D5.txt.resid_post.f7@3~2"),
                       ("mid.0.f7", "mid.0.update.f7")):  # fmt: skip
        assert str(Address.parse(text).resolve_feature(both)) == full
    for text, where, message in [
        ("L6.f1", spliced, r"several dictionaries, L6\.mlp, L6\.resid_post"),
        ("L7.f1", spliced, r"dictionaries at L5\.resid_post, L6\.mlp, L6\.resid_post"),
        ("L6.attn.f1", spliced, "no dictionary is spliced there"),
        ("t5:L5.f1", ["clip:L5.mlp"], r"dictionaries at clip:L5\.mlp"),
        ("L5.f1", ["clip:L5.mlp", "t5:L5.mlp"], r"several dictionaries, clip:L5\.mlp, t5:L5\.mlp"),
        ("L5.f1", [], "dictionaries at nowhere"),
        ("D5.txt.f1", ["D5.img.mlp"], r"dictionaries at D5\.img\.mlp"),
        ("L5.f1", ["mid.0.L5.mlp"], r"dictionaries at mid\.0\.L5\.mlp"),
        ("L5.mlp", spliced, "L5.mlp is no feature"),
    ]:
        with pytest.raises(UnknownSiteError, match=message):
            Address.parse(text).resolve_feature(where)


def test_sites_and_addresses_are_the_same_spellings(vit, pooling_vit):
    from vit_lens import Site
    from vit_lens.addresses import Address

    for model in (vit, pooling_vit):
        sites = Site.heads(model) + Site.attns(model) + Site.mlps(model) + Site.residuals(model, "resid_mid")
        for site in sites:
            assert site.address.site == site and str(site.address) == str(site)
            assert (site.address.kind, site.address.hook_name) == (site.kind, site.hook_name)
        assert Site.resolve([site.address for site in sites], model.cfg) == sites
    for text in (
        "mid.0.L1H2",
        "mid.0.L1.mlp",
        "L3",
        "L3N1",
        "D5H2",
        "L2H1.q",
        "L5.mlp.f3",
        "embed",
        "L0.b_O",
        "pool",
        "S3.mlp",
    ):
        assert Address.parse(text).site is None
    assert Address.parse("L1N17").hook_name == "blocks.1.mlp.hook_post"


@pytest.mark.parametrize("text", ["L1H2@cls", "vision:L1H2", "L1H2~3", "l1h2~S0.5"])
def test_a_site_has_no_tower_position_or_step(text, cfg):
    from vit_lens import Site
    from vit_lens.errors import UnknownSiteError

    with pytest.raises(UnknownSiteError, match="without tower, position or step: 'L1H2'"):
        Site.parse(text)
    with pytest.raises(UnknownSiteError, match="without tower, position or step: 'L1H2'"):
        Site.resolve(["heads", text], cfg)


@pytest.fixture
def cfg(vit):
    return vit.cfg


def test_parse_and_print_are_inverse(vit):
    from vit_lens import Site

    sites = Site.heads(vit) + Site.attns(vit) + Site.mlps(vit)
    for kind in ("resid_pre", "resid_mid", "resid_post"):
        sites += Site.residuals(vit, kind)
    assert len(set(sites)) == 3 * 5 + 3 * 5
    assert [Site.parse(str(s)) for s in sites] == sites
    assert Site.parse(" l2h4 ") == Site(2, "head", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L3.mpl", r"nearest: 'L3\.mlp'"),
        ("head 4", "A site is a head 'L36H4'"),
        ("L3.head", "no site 'L3.head'"),
        ("", "no site ''"),
        ("L3H", "no site 'L3H'"),
    ],
)
def test_a_wrong_site_names_the_nearest(text, message):
    from vit_lens import Site
    from vit_lens.errors import UnknownSiteError

    with pytest.raises(UnknownSiteError, match=message):
        Site.parse(text)


def test_out_of_range_says_the_range(cfg):
    from vit_lens import Site
    from vit_lens.errors import UnknownSiteError

    with pytest.raises(UnknownSiteError, match="layers L0 to L2"):
        Site.resolve("L3.mlp", cfg)
    with pytest.raises(UnknownSiteError, match="layer 1 has heads H0 to H4"):
        Site.resolve(["L1H5"], cfg)
    with pytest.raises(UnknownSiteError, match="no sites given"):
        Site.resolve([], cfg)
    with pytest.raises(UnknownSiteError, match="a head index goes with kind 'head' or 'pool_head' alone"):
        Site(1, "mlp", 2)
    with pytest.raises(UnknownSiteError, match="count from 0"):
        Site(-1, "mlp")


def test_groups_expand_in_layer_order_without_repeats(cfg):
    from vit_lens import Site

    found = Site.resolve(["L2.mlp", "mlp", "heads"], cfg)
    assert [str(s) for s in found[:3]] == ["L2.mlp", "L0.mlp", "L1.mlp"]
    assert len(found) == 3 + 15
    assert [str(s) for s in Site.resolve("L0H1, L2.attn", cfg)] == ["L0H1", "L2.attn"]


def test_same_weights_under_two_names_are_one_encoder():
    from vit_lens.identity import aliases, canonical_encoder_id, same_encoder

    assert same_encoder(
        "open_clip/ViT-bigG-14/laion2b_s39b_b160k", "hf/kandinsky-community/kandinsky-2-2-prior:image_encoder"
    )
    assert not same_encoder("vit_lens/mini", "open_clip/ViT-bigG-14/laion2b_s39b_b160k")
    assert same_encoder("local/mine@0123", "module@0123") and not same_encoder("local/mine@0123", "local/mine@4567")
    assert canonical_encoder_id("hf/me/mine") == "hf/me/mine" and aliases("hf/me/mine") == ()
    assert "open_clip/ViT-bigG-14/laion2b_s39b_b160k" in aliases(
        "hf/kandinsky-community/kandinsky-2-2-prior:image_encoder"
    )


def test_the_shipped_encoder_has_the_fingerprint_that_stands_for_its_name():
    """So its weights are known in memory and by path, and edited ones are not taken for them."""
    from vit_lens import HookedViT, ReferenceMeans
    from vit_lens.identity import MINI_FINGERPRINT, same_encoder

    model = HookedViT.from_pretrained("mini")
    assert model.fingerprint == MINI_FINGERPRINT == ReferenceMeans.load("mini").fingerprint
    assert same_encoder("vit_lens/mini", f"module@{MINI_FINGERPRINT}")
    assert not same_encoder("vit_lens/mini", "module@0123456789abcdef")


def test_fingerprint_follows_the_content(vit):
    import copy

    from vit_lens.identity import fingerprint

    same = copy.deepcopy(vit)
    assert same.fingerprint == vit.fingerprint
    assert same.bfloat16().fingerprint == vit.fingerprint == same.float().fingerprint
    same.blocks[1].mlp.W_in[17, 3] += 0.05
    assert same.fingerprint != vit.fingerprint
    assert len(fingerprint({"large": torch.zeros(27_525_120, dtype=torch.bfloat16)})) == 16  # past float32's integers
    assert fingerprint({"a": vit.embed.W_E}) != fingerprint({"b": vit.embed.W_E})


def test_sites_of_attention_pooling(pooling_vit, cfg):
    from vit_lens import Site
    from vit_lens.errors import UnknownSiteError

    pool = pooling_vit.cfg.attn_pool
    heads = Site.heads(pooling_vit)
    assert len(heads) == 9 + pool.n_heads and str(heads[-1]) == f"poolH{pool.n_heads - 1}"
    assert Site.resolve(["heads"], pooling_vit.cfg) == heads
    for text in ("poolH1", "pool.attn"):
        assert str(Site.parse(text)) == text and Site.parse(text.upper()) == Site.parse(text)
        with pytest.raises(UnknownSiteError, match="has no attention pooling"):
            Site.resolve(text, cfg)
    with pytest.raises(UnknownSiteError, match=f"heads H0 to H{pool.n_heads - 1}"):
        Site.resolve("poolH7", pooling_vit.cfg)
    if not pool.d_mlp:
        with pytest.raises(UnknownSiteError, match="has no MLP"):
            Site.resolve("pool.mlp", pooling_vit.cfg)
    with pytest.raises(UnknownSiteError, match="have no layer"):
        Site(3, "pool_attn")
    with pytest.raises(UnknownSiteError, match="nearest"):
        Site.parse("pool.resid")
