"""Sites are read as researchers write them, and what is wrong with one is said."""

import pytest
import torch


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
