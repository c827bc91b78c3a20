"""What is wrong is refused with a reason, and whole numbers of numpy and torch are whole numbers.

Functions are called as users call them, without the type checks of this suite.
"""

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.tl3, pytest.mark.usefixtures("unchecked")]


@pytest.fixture(scope="module")
def cache(vit, pixels):
    return vit.run_with_cache(pixels)[1]


# ---- interventions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images",
    [np.array([1, 0, 2]), [np.int64(1), 0, torch.tensor(2)], torch.tensor([1, 0, 2]), (1, 0, 2)],
    ids=["array", "mixed", "tensor", "tuple"],
)
def test_images_of_a_patch_are_whole_numbers_of_any_kind(vit, pixels, cache, images):
    from vit_lens.interventions import patch

    expected = vit.run_with_hooks(pixels, fwd_hooks=patch(vit, "L1.mlp", cache, images=[1, 0, 2]))
    found = vit.run_with_hooks(pixels, fwd_hooks=patch(vit, "L1.mlp", cache, images=images))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (expected - vit(pixels)).abs().max() > 1e-3


@pytest.mark.parametrize("image", [np.int64(2), torch.tensor(2), np.array(2)], ids=["numpy", "torch", "array"])
def test_one_image_goes_to_all(vit, pixels, cache, image):
    from vit_lens.interventions import patch

    expected = vit.run_with_hooks(pixels[:2], fwd_hooks=patch(vit, "L1.mlp", cache, images=2))
    found = vit.run_with_hooks(pixels[:2], fwd_hooks=patch(vit, "L1.mlp", cache, images=image))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "images",
    [torch.tensor([True, False, True]), np.array([True, False]), [1.7, 0.2], True, [True, False], 1.0, "0", ["0"],
     torch.tensor([1.7]), torch.tensor(1.0), torch.tensor([[1]]), slice(2), [None]],
    ids=str,
)  # fmt: skip
def test_images_that_are_no_numbers_are_refused(vit, cache, images, errors):
    from vit_lens.interventions import patch

    with pytest.raises(errors.InterventionError, match="expected the number of a cached image"):
        patch(vit, "L0H0", cache, images=images)


SHADOWED = [
    ("L1.mlp", "L1.resid_post"), ("L1H1", "L1.resid_mid"), ("L1.attn", "L1.resid_mid"), ("L2H4", "L2.resid_post"),
    ("L1N3", "L1.resid_post"), ("L0.resid_mid", "L0.resid_post"), ("L1.mlp", "L2.resid_pre"),
    ("L1.resid_post", "L2.resid_pre"),
]  # fmt: skip
CARRIED_ON = [
    ("L1.resid_pre", "L1.resid_mid"), ("L0.mlp", "L1.resid_mid"), ("L0.resid_post", "L1.resid_post"),
    ("L1.resid_mid", "L1.mlp"), ("L1.resid_pre", "L2.resid_pre"), ("L0H1", "L1.resid_mid"),
]  # fmt: skip


def edited(vit, pixels, cache, sites):
    """The embeddings with sites patched at CLS, each by hooks of its own, so that nothing can be refused."""
    from vit_lens.interventions import patch

    hooks = [hook for site in sites for hook in patch(vit, site, cache, images=[1, 2, 0], tokens=["cls", 2])]
    return vit.run_with_hooks(pixels, fwd_hooks=hooks)


@pytest.mark.parametrize("sites", SHADOWED, ids="+".join)
def test_what_is_overwritten_at_the_same_tokens_is_refused(vit, pixels, cache, sites, errors):
    from vit_lens.interventions import patch

    both, later = edited(vit, pixels, cache, sites), edited(vit, pixels, cache, sites[1:])
    torch.testing.assert_close(both, later, rtol=0, atol=0)
    for given in (sites, sites[::-1]):
        with pytest.raises(errors.InterventionError, match=f"{sites[0]} would have no effect: {sites[1]}"):
            patch(vit, given, cache, images=[1, 2, 0], tokens=["cls", 2])


@pytest.mark.parametrize("sites", CARRIED_ON, ids="+".join)
def test_what_other_tokens_carry_on_is_patched(vit, pixels, cache, sites, errors):
    from vit_lens.interventions import patch

    both, later = edited(vit, pixels, cache, sites), edited(vit, pixels, cache, sites[1:])
    assert (both - later).abs().max() > 1e-6
    hooks = patch(vit, list(sites), cache, images=[1, 2, 0], tokens=["cls", 2])
    torch.testing.assert_close(vit.run_with_hooks(pixels, fwd_hooks=hooks), both, rtol=0, atol=0)


def test_tokens_that_are_all_tokens_carry_nothing_on(vit, errors):
    from vit_lens.interventions import zero

    with pytest.raises(errors.InterventionError, match=r"L0H1 would have no effect: L1\.resid_mid"):
        zero(vit, ["L0H1", "L1.resid_mid"], tokens=["cls", "patches"])


@pytest.mark.parametrize(
    "tokens", [np.int64(2), torch.tensor(2), [np.int32(2)], (np.int64(0), torch.tensor(1))], ids=str
)
def test_tokens_are_whole_numbers_of_any_kind(vit, tokens):
    from vit_lens.tokens import resolve_tokens

    assert resolve_tokens(tokens, vit.cfg) == [2]


@pytest.mark.parametrize("tokens", [1.0, np.float64(1), torch.tensor(True), (0, 1.0), (True, 0), [np.True_]], ids=str)
def test_tokens_that_are_none_are_refused(vit, tokens, errors):
    from vit_lens.tokens import resolve_tokens

    with pytest.raises(errors.InterventionError, match=r"expected 'cls'|mask of tokens"):
        resolve_tokens(tokens, vit.cfg)


def refused_by_interventions():
    """Calls of (interventions, model, pixels, cache), with the error and what it says."""
    return {
        "sites=3": (lambda iv, m, x, c: iv.zero(m, 3), "UnknownSiteError", "3 is no site; expected"),
        "sites=None": (lambda iv, m, x, c: iv.patch(m, None, c), "UnknownSiteError", "None is no site; expected"),
        "sweep": (lambda iv, m, x, c: iv.ablate_each(m, x, iv.cosine_to(m(x)), 3, replacement="zero"),
                  "UnknownSiteError", "3 is no site; expected"),
        "bare pair": (lambda iv, m, x, c: iv.run_many(m, x, iv.zero(m, "L0H0")), "InterventionError", "list of lists"),
        "hook without name": (lambda iv, m, x, c: iv.run_many(m, x, [[torch.relu]]), "InterventionError", "list of l"),
        "set of text": (lambda iv, m, x, c: iv.run_many(m, x, ["blocks.0.hook_mlp_out"]), "InterventionError", "list"),
        "no receivers": (lambda iv, m, x, c: iv.patch_paths(m, x, x, iv.cosine_to(m(x)), receivers=[]),
                         "InterventionError", "no receivers"),
        "receivers=3": (lambda iv, m, x, c: iv.patch_paths(m, x, x, iv.cosine_to(m(x)), receivers=3),
                        "UnknownSiteError", "3 is no site"),
        "senders=3": (lambda iv, m, x, c: iv.patch_paths(m, x, x, iv.cosine_to(m(x)), 3), "UnknownSiteError",
                      "3 is no site; expected"),
        "other width": (lambda iv, m, x, c: iv.cosine_to(torch.randn(5))(m(x)), "InterventionError", r"shape \(5,\)"),
        "other batch": (lambda iv, m, x, c: iv.cosine_to(m(x)[:2])(m(x)), "InterventionError", "or one for each"),
        "zero target": (lambda iv, m, x, c: iv.cosine_to(torch.zeros(13)), "InterventionError", "zero or not finite"),
        "nan target": (lambda iv, m, x, c: iv.cosine_to(torch.full((13,), torch.nan)), "InterventionError", "finite"),
        "one zero": (lambda iv, m, x, c: iv.logit_difference(torch.eye(2), torch.diag(torch.tensor([1.0, 0]))),
                     "InterventionError", "zero or not finite"),
        "target of text": (lambda iv, m, x, c: iv.cosine_to("a star"), "InterventionError", "the target is a str"),
        "means of text": (lambda iv, m, x, c: iv.mean(m, "L0H0", "means"), "InterventionError",
                          "reference is of type str; expected ReferenceMeans"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refused_by_interventions().values(), ids=list(refused_by_interventions()))
def test_interventions_say_what_they_expected(vit, pixels, cache, case, errors):
    import vit_lens.interventions as iv

    call, kind, says = case
    with pytest.raises(getattr(errors, kind), match=says):
        call(iv, vit, pixels, cache)


def test_one_target_or_one_for_each(vit, pixels):
    from vit_lens.interventions import cosine_to

    embeds = vit(pixels)
    expected = embeds @ embeds[0] / embeds.norm(dim=-1) / embeds[0].norm()
    for target in (embeds[0], embeds[:1]):
        torch.testing.assert_close(cosine_to(target)(embeds), expected)
    torch.testing.assert_close(cosine_to(embeds)(embeds), torch.ones(3, dtype=embeds.dtype))


# ---- attribution ---------------------------------------------------------------------------------------------

ONES = [1, np.int64(1), torch.tensor(1), [np.int64(1)], np.array([1]), torch.tensor([1]), range(1, 2)]


@pytest.mark.parametrize("layers", ONES, ids=repr)
def test_layers_are_whole_numbers_of_any_kind(vit, cache, layers):
    from vit_lens import attribution as at

    torch.testing.assert_close(at.token_parts(cache, layers=layers), at.token_parts(cache, layers=[1]), rtol=0, atol=0)
    found, expected = (at.split_embedding(cache, neuron_layers=given) for given in (layers, [1]))
    assert found.labels == expected.labels and "L1N3" in found.labels
    names = at.hook_names(vit, tokens=True, neuron_layers=layers, layers=layers)
    assert names == at.hook_names(vit, tokens=True, neuron_layers=[1], layers=[1])
    torch.testing.assert_close(at.neuron_parts(cache, 1, layers)["L1N1"], expected["L1N1"])


@pytest.mark.parametrize("one", [np.int64(1), torch.tensor(1)], ids=repr)
def test_a_layer_and_a_head_are_whole_numbers_of_any_kind(cache, one):
    from vit_lens import Site
    from vit_lens import attribution as at

    found, expected = at.attention_map(cache, one, one, (one, one)), at.attention_map(cache, 1, 1, (1, 1))
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    assert found.title == expected.title
    assert at.split_embedding(cache, start_layer=one).labels == at.split_embedding(cache, start_layer=1).labels
    assert at.neuron_parts(cache, one, [3]).labels == ["L1N3"]
    assert Site(one, "head", one) == Site.parse("L1H1")


@pytest.fixture(scope="module")
def bank(vit):
    from vit_lens import TextBank

    embeds = torch.randn(3, 13, generator=torch.Generator().manual_seed(5))
    return TextBank(
        captions=("a cup", "a dog", "a car"), embeds=embeds, logit_scale=90.0, logit_bias=None,
        encoder_id=vit.encoder_id,
    )  # fmt: skip


def refused_by_attribution():
    """Calls of (attribution, model, cache, bank), with the error and what it says."""
    nan = torch.full((13,), torch.nan)
    return {
        "early neurons": (lambda at, m, c, b: at.split_embedding(c, start_layer=2, neuron_layers=[1]),
                          "LensError", r"stays in the one term L2.resid_pre"),
        "hooks of layer 99": (lambda at, m, c, b: at.hook_names(m, tokens=True, layers=[99]), "LensError", "0 to 2"),
        "layers of no tokens": (lambda at, m, c, b: at.hook_names(m, layers=[1]), "LensError", "nothing to restrict"),
        "neurons of layer 99": (lambda at, m, c, b: at.hook_names(m, neuron_layers=[99]), "LensError", "layer 99"),
        "layer True": (lambda at, m, c, b: at.token_parts(c, layers=[True]), "LensError", r"\[True\]: expected whole"),
        "layer 1.0": (lambda at, m, c, b: at.token_parts(c, layers=1.0), "LensError", "expected whole numbers"),
        "layer of text": (lambda at, m, c, b: at.split_embedding(c, neuron_layers="1"), "LensError", "expected whole"),
        "mask of layers": (lambda at, m, c, b: at.split_embedding(c, neuron_layers=torch.tensor([True, False])),
                           "LensError", "expected whole"),
        "start True": (lambda at, m, c, b: at.split_embedding(c, start_layer=True), "LensError", "layer True"),
        "mask of neurons": (lambda at, m, c, b: at.neuron_parts(c, 0, [True]), "LensError", r"neurons \[True\]"),
        "head True": (lambda at, m, c, b: at.attention_map(c, 1, True), "UnknownSiteError", "whole numbers"),
        "query": (lambda at, m, c, b: at.attention_map(c, 1, 1, query=1.5), "LensError", "query=1.5"),
        "dict": (lambda at, m, c, b: at.direct_attribution(dict(c), b), "LensError", "run_with_cache, not dict"),
        "dict of patterns": (lambda at, m, c, b: at.attention_map(dict(c), 0, 0), "LensError", "not dict"),
        "dict of the pool": (lambda at, m, c, b: at.pool_attention_map(dict(c), 0), "LensError", "not dict"),
        "list of captions": (lambda at, m, c, b: at.direct_attribution(c, ["a cup"]), "LensError", "TextBank"),
        "one caption": (lambda at, m, c, b: at.direct_attribution(c, b, captions="a cup"), "LensError", "one text"),
        "nan": (lambda at, m, c, b: at.direct_attribution(c, nan), "LensError", "not finite"),
        "nan dot": (lambda at, m, c, b: at.direct_attribution(c, nan, units="dot"), "LensError", "not finite"),
        "minus nan": (lambda at, m, c, b: at.direct_attribution(c, b, minus=nan), "LensError", "not finite"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refused_by_attribution().values(), ids=list(refused_by_attribution()))
def test_attribution_says_what_it_expected(vit, cache, bank, case, errors):
    from vit_lens import attribution as at

    call, kind, says = case
    with pytest.raises(getattr(errors, kind), match=says):
        call(at, vit, cache, bank)


def test_directions_are_as_exact_as_the_model(vit, cache, bank, pixels):
    from vit_lens.attribution import direct_attribution

    found = direct_attribution(cache, bank, units="logit").total
    torch.testing.assert_close(found, bank.logits(vit(pixels)), rtol=0, atol=1e-11)


def test_a_run_under_autocast_is_named_as_a_cause(vit, errors):
    from vit_lens.attribution import split_embedding

    model = type(vit)(vit.cfg).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(dict(vit.named_parameters())[name])
        with torch.autocast("cpu", torch.bfloat16):
            _, half = model.run_with_cache(torch.randn(2, 3, 22, 22, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(errors.LensError, match="autocast"):
        split_embedding(half)


# ---- read-outs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(vit, pixels):
    from vit_lens import ReferenceMeans

    return ReferenceMeans.from_images(vit, pixels)


def refused_by_readouts():
    """Calls of (readouts, model, cache, bank, reference means), with the error and what it says."""
    site = "L1.resid_post"
    bank = "bank is of type list; expected TextBank"
    means = "means is of type ReferenceMeans; expected SiteMeans"
    return {
        "captions": (lambda ro, m, c, b, r: ro.zero_shot_lens(c, ["a star"]), "TextError", bank),
        "captions of maps": (lambda ro, m, c, b, r: ro.zero_shot_maps(c, ["a star"]), "TextError", bank),
        "captions of sites": (lambda ro, m, c, b, r: ro.read_sites(c, ro_lens(), site, bank=["a star"]), "TextError",
                              bank),
        "captions of spans": (lambda ro, m, c, b, r: ro.text_spans(m, torch.zeros(2, 3, 22, 22), ["a star"], "L0H0"),
                              "TextError", bank),
        "means": (lambda ro, m, c, b, r: ro.zero_shot_lens(c, b, site, means=r), "LensError", means),
        "means of maps": (lambda ro, m, c, b, r: ro.zero_shot_maps(c, b, site, means=r), "LensError", means),
        "means of sites": (lambda ro, m, c, b, r: ro.read_sites(c, ro_lens(), site, bank=b, means=r), "LensError",
                           means),
        "list of means": (lambda ro, m, c, b, r: ro.read_sites(c, ro_lens(), site, bank=b, means=[r]), "LensError",
                          means),
        "scenes": (lambda ro, m, c, b, r: ro.retrieval_lens(c, [1, 2], site, images=None), "GalleryError",
                   "gallery is of type list; expected Gallery"),
        "lens": (lambda ro, m, c, b, r: ro.zero_shot_lens(c, b, site, lens="diffusion"), "LensError",
                 "lens is of type str; expected Lens"),
        "dict": (lambda ro, m, c, b, r: ro.zero_shot_maps(dict(c), b, site), "LensError", "not dict"),
        "names": (lambda ro, m, c, b, r: ro.Gallery.from_images(m, [1, 2], names="ab"), "GalleryError",
                  "names='ab'; expected a list"),
    }  # fmt: skip


def ro_lens():
    from vit_lens import DiffusionLens

    return DiffusionLens()


@pytest.mark.parametrize("case", refused_by_readouts().values(), ids=list(refused_by_readouts()))
def test_readouts_say_what_they_expected(vit, cache, bank, reference, case, errors):
    from vit_lens import readers

    call, kind, says = case
    with pytest.raises(getattr(errors, kind), match=says):
        call(readers, vit, cache, bank, reference)


def test_means_of_another_kind_are_no_means_of_a_gallery(vit, cache, reference, errors):
    from vit_lens.readers import Gallery, retrieval_lens

    gallery = Gallery(
        encoder_id=vit.encoder_id, fingerprint=vit.fingerprint, preprocess={}, folder="", names=("a", "b"),
        hashes=("1", "2"), stamps=("", ""), embeds=torch.eye(2, 13),
    )  # fmt: skip
    with pytest.raises(errors.LensError, match="expected SiteMeans"):
        retrieval_lens(cache, gallery, "L1.resid_post", images=None, k=1, means=reference)


def test_spans_are_found_by_text_and_not_made_under_hooks(vit, pixels, bank, errors):
    from vit_lens import Site
    from vit_lens.readers import text_spans

    spans, _ = text_spans(vit, pixels, bank, ["L1H2", "L2H0"], k=2)
    assert spans["L1H2"] is spans["l1h2"] is spans[Site.parse("L1H2")]
    for missing in ("L0H0", Site.parse("L0H0")):
        with pytest.raises(errors.UnknownSiteError, match="no span of L0H0; nearest: 'L"):
            spans[missing]
    with pytest.raises(errors.UnknownSiteError, match="no site"):
        spans["nose"]
    with (
        pytest.warns(UserWarning, match="never fired"),
        vit.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda act, hook: act * 0)]),
        pytest.raises(errors.VitLensError, match="hooks are on"),
    ):
        text_spans(vit, pixels, bank, ["L1H2"], k=2)


def test_a_site_of_a_table_is_written_as_everywhere(cache, bank):
    from vit_lens.readers import read_sites

    read = read_sites(cache, ro_lens(), ["L1H0"], bank=bank, controls=())
    assert read.of(0, "l1h0") == read.of(0, "L1H0")


# ---- texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("templates", [(), ("a {}", "the {}")], ids=["plain", "templates"])
@pytest.mark.parametrize("apart", [0, 300], ids=["one batch", "two batches"])
def test_captions_that_are_the_same_to_the_tower_are_refused(templates, apart, errors, monkeypatch):
    from vit_lens.texts import text_towers as towers

    calls = []

    def encode(texts):
        calls.append(len(texts))
        return torch.eye(4)[[len(text) % 4 for text in texts]]

    def tokenise(texts):
        return [[ord(letter) for letter in text.lower()] for text in texts]

    tower = towers.TextTower(encode=encode, tokenise=tokenise, logit_scale=1.0, logit_bias=None)
    between = [f"star {i}" for i in range(apart)]
    towers.embed_captions(tower, ["star", *between, "heart"], templates)
    with pytest.raises(errors.TextError, match="'star' and 'Star' are the same tokens"):
        towers.embed_captions(tower, ["star", *between, "Star"], templates)


def test_mini_does_not_tell_capitals_apart(errors):
    from vit_lens import TextBank

    with pytest.raises(errors.TextError, match="'a star' and 'A Star' are the same tokens"):
        TextBank.mini(["a star", "A Star", "a heart"])


@pytest.mark.parametrize("name", [None, 3])
def test_a_model_name_is_a_text_or_a_path(name):
    from vit_lens import HookedViT
    from vit_lens.errors import CheckpointError

    with pytest.raises(CheckpointError, match='expected "mini"'):
        HookedViT.from_pretrained(name)
