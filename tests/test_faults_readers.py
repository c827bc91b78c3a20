"""Hostile input to readers: nothing silent, no bare error, nothing shared."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from faults import outcomes, pickled
from PIL import Image

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def seeing(hf_tower):
    from vit_lens import HookedViT, PreprocessSpec

    spec = PreprocessSpec(
        size=(22, 22), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bicubic", resize_mode="shortest"
    )
    return HookedViT.from_module(hf_tower, preprocess_spec=spec).requires_grad_(False)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)) for _ in range(6)]


@pytest.fixture(scope="module")
def cache(seeing, pictures):
    return seeing.run_with_cache(seeing.preprocess(pictures[:3]))[1]


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for index, picture in enumerate(pictures):
        picture.save(path / f"{index}.png")
    return path


@pytest.fixture(scope="module")
def gallery(seeing, folder):
    from vit_lens.readers import Gallery

    return Gallery.from_folder(seeing, folder)


@pytest.fixture(scope="module")
def bank(seeing):
    from vit_lens import TextBank

    embeds = torch.randn(3, 13, generator=torch.Generator().manual_seed(5))
    return TextBank(
        captions=("a cup", "a dog", "a car"), embeds=embeds, logit_scale=90.0, logit_bias=None,
        encoder_id=seeing.encoder_id,
    )  # fmt: skip


# ---- H9: no form without what it needs --------------------------------------------------------------------------


def test_neighbours_without_means_have_the_raw_form_alone(seeing, cache, gallery, bank, pictures, errors):
    """The gallery's mean is not what a site shares: all images got the same neighbour at a head, and one at a site that
    holds the same for all images."""
    from vit_lens import DiffusionLens
    from vit_lens.figures import contact_sheet
    from vit_lens.readers import SiteMeans, read_sites, retrieval_lens

    sites = ["L0.resid_pre", "L1H2"]
    near = retrieval_lens(cache, gallery, sites, images=pictures[:3], k=1, controls=[])
    assert list(near.index) == [("raw", "")] and set(near.to_frame()["form"]) == {"raw"}
    with pytest.raises(errors.LensError, match=r"no form 'centred'; there are \['raw'\]"):
        contact_sheet(near, pictures[0], form="centred")
    (means,) = SiteMeans.of_gallery(seeing, gallery, [DiffusionLens()], sites)
    near = retrieval_lens(cache, gallery, sites, images=pictures[:3], k=1, means=means, controls=[])
    assert (near.index["centred", ""][:, 0] == -1).all() and near.cosine["centred", ""][:, 0].isnan().all()
    assert len(near.index["centred", ""][:, 1].unique()) > 1
    read = read_sites(cache, DiffusionLens(), sites, bank=bank, gallery=gallery, images=pictures[:3], k=1)
    assert list(read.of(0, "L1H2")["images"]) == list(read.of(0, "L1H2")["captions"]) == ["raw"]


# ---- H7: what is not finite passes no means and no gallery ------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_make_no_means_and_no_gallery(seeing, pictures, folder, tmp_path, value, errors):
    from vit_lens.readers import Gallery, SiteMeans, head_contributions

    model = copy.deepcopy(seeing)
    model.blocks[1].mlp.W_in.data[0, 0] = value
    pixels, said = seeing.preprocess(pictures), r"(?i)nan\b|not finite|infinit"
    calls = {
        "means": lambda: SiteMeans.from_images(model, pixels, "L1.mlp"),
        "means of patches": lambda: SiteMeans.from_images(model, pixels, "L1.resid_post", patches=True),
        "gallery": lambda: Gallery.from_images(model, pictures),
        "folder": lambda: Gallery.from_folder(model, folder, out=tmp_path / "gallery"),
        "contributions": lambda: head_contributions(model, pixels, "L0H0"),
    }
    for call in calls.values():
        with pytest.raises(errors.VitLensError, match=said):
            call()
    assert not (tmp_path / "gallery").exists()


def test_a_spoilt_cache_has_no_maps(seeing, cache, bank, errors):
    from vit_lens.readers import zero_shot_maps

    spoilt = copy.copy(cache)
    spoilt.cache_dict = dict(cache.cache_dict)
    spoilt.cache_dict["blocks.1.hook_resid_post"] = cache["blocks.1.hook_resid_post"].clone()
    spoilt.cache_dict["blocks.1.hook_resid_post"][2, -1, 0] = torch.nan
    with pytest.raises(
        errors.LensError, match=r"L1\.resid_post at a patch reads as nan.*image 2: so is blocks\.1\.hook_r"
    ):
        zero_shot_maps(spoilt, bank, "L1.resid_post")


@pytest.mark.parametrize("spoilt", ["contributions", "texts"])
def test_one_text_of_nan_is_not_the_best_caption(spoilt, errors):
    from vit_lens.readers import text_span

    given = {"contributions": torch.randn(6, 13), "texts": torch.nn.functional.normalize(torch.randn(4, 13), dim=-1)}
    given[spoilt][3, 5] = torch.nan
    with pytest.raises(errors.LensError, match=f"{spoilt} hold nan or infinity"):
        text_span(**given, captions=list("abcd"), k=2)


def test_galleries_and_means_hold_one_finite_vector_for_each(seeing, gallery, pictures, errors):
    from vit_lens.readers import SiteMeans

    means = SiteMeans.from_images(seeing, pictures, "heads")
    spoilt = gallery.embeds.clone()
    spoilt[2, 0] = torch.nan  # which a search would rank first
    cases = {
        "nan": (lambda: dataclasses.replace(gallery, embeds=spoilt), "GalleryError", "a finite embedding, a hash and"),
        "names": (lambda: dataclasses.replace(gallery, names=("a",)), "GalleryError", "a float tensor [1 d_embed]"),
        "hashes": (lambda: dataclasses.replace(gallery, hashes=("a",)), "GalleryError", "a hash and a stamp for each"),
        "counts": (lambda: dataclasses.replace(gallery, embeds=gallery.embeds.long()), "GalleryError", "torch.int64"),
        "nan means": (lambda: dataclasses.replace(means, values=means.values * torch.nan), "LensError", "not finite"),
        "few means": (lambda: dataclasses.replace(means, values=means.values[:2]), "LensError", "[15 d_embed]"),
        "no images": (lambda: dataclasses.replace(means, n=0), "LensError", "n=0; expected a whole number, at least 1"),
    }
    assert not outcomes(errors, cases)


# ---- R9: weights that differ by less than bfloat16 shows are others ---------------------------------------------


def kept_of(model, images, folder, out):
    """A call for each kind of what is kept of a model, which gives the check that a model is its own."""
    from vit_lens import DiffusionLens, ReferenceMeans
    from vit_lens.readers import Gallery, SiteMeans

    means, lens = SiteMeans.from_images(model, images, "L1.mlp"), DiffusionLens()
    reference, gallery = ReferenceMeans.from_images(model, images), Gallery.from_folder(model, folder, out=out)
    places = [out.with_name("means"), out.with_name("reference")]
    means, reference = SiteMeans.load(means.save(places[0])), ReferenceMeans.load(reference.save(places[1]))
    return {
        "ReferenceMismatchError: read-out": lambda other: means.of(other, lens, means.sites),
        "ReferenceMismatchError: reference": reference.check,
        "GalleryError: gallery": Gallery.load(out).check,
        "GalleryError: resumed": lambda other: Gallery.from_folder(other, folder, out=out),
    }, (means, reference, gallery)


def nudged(model):
    """A copy with one weight moved by one unit in the last place."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        weight = other.blocks[1].attn.W_V
        weight[0, 0, 0] = torch.nextafter(weight[0, 0, 0], torch.tensor(torch.inf, dtype=weight.dtype))
    return other


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_kept_knows_weights_to_the_last_bit(seeing, pictures, folder, tmp_path, dtype, errors):
    model = copy.deepcopy(seeing).to(dtype)
    checks, kept = kept_of(model, pictures, folder, tmp_path / "gallery")
    other = nudged(model)
    assert other.fingerprint == model.fingerprint and other.exact_fingerprint() != model.exact_fingerprint()
    assert {one.weights for one in kept} == {model.exact_fingerprint()}
    for name, check in checks.items():
        check(copy.deepcopy(model))
        with pytest.raises(
            errors.VitLensError, match=r"made with module@.*differ by less than bfloat16 shows"
        ) as caught:
            check(other)
        assert type(caught.value).__name__ == name.split(":")[0] and model.exact_fingerprint() in str(caught.value)


def test_a_cast_keeps_what_is_kept(seeing, pictures, folder, tmp_path, errors):
    """To a wider type always, where it is compared at the narrower one; to bfloat16, which rounds what was nudged."""
    model = copy.deepcopy(seeing).float()
    checks, _ = kept_of(model, pictures, folder, tmp_path / "gallery")
    del checks["GalleryError: resumed"]
    for check in checks.values():
        for cast in (torch.float64, torch.bfloat16):
            check(copy.deepcopy(model).to(cast))
        with pytest.raises(errors.VitLensError, match="differ by less than bfloat16 shows"):
            check(nudged(model).double())


def test_files_of_an_earlier_version_are_known_by_their_fingerprint(seeing, pictures, folder, tmp_path, errors):
    from vit_lens.readers import Gallery

    model = copy.deepcopy(seeing).float()
    _, (_, reference, gallery) = kept_of(model, pictures, folder, tmp_path / "gallery")
    old = dataclasses.replace(gallery, weights="")
    assert old.check(nudged(model)) and dataclasses.replace(reference, weights="").check(nudged(model))
    with pytest.raises(errors.GalleryError, match="this gallery was made with"):
        dataclasses.replace(old, fingerprint="0" * 16).check(model)
    old = dataclasses.replace(old, embeds=old.embeds + 1)  # whoever made it, the rows are embedded again
    old.save(tmp_path / "gallery")
    resumed = Gallery.from_folder(model, folder, out=tmp_path / "gallery")
    assert resumed.weights == model.exact_fingerprint() and torch.equal(resumed.embeds, gallery.embeds)


def test_weights_are_hashed_once(seeing, monkeypatch):
    from vit_lens.towers import tower

    calls, digits = [], tower.exact_fingerprint
    monkeypatch.setattr(tower, "exact_fingerprint", lambda *given: calls.append(given) or digits(*given))
    model = copy.deepcopy(seeing)
    for _ in range(3):
        assert model.fingerprint == seeing.fingerprint and model.exact_fingerprint() == seeing.exact_fingerprint()
    assert len(calls) <= 4  # two of the copy, and at most two of the other
    with torch.no_grad():
        model.ln_final.w[0] += 1
    assert model.exact_fingerprint() != seeing.exact_fingerprint() and model.fingerprint != seeing.fingerprint


# ---- silent, wrong ----------------------------------------------------------------------------------------------


def test_no_neighbour_has_no_picture(gallery, errors):
    """``nearest`` answers -1 where there is none, which is the last place of a list."""
    for index in (-1, len(gallery), "0", 1.0, None, True):
        for look in (gallery.path, gallery.picture):
            with pytest.raises(errors.GalleryError, match=r"the gallery has 6, counted from 0; -1 is no neighbour"):
                look(index)
    assert gallery.path(np.int64(5)) == gallery.path(torch.tensor(5)) == gallery.path(5)


def test_pictures_without_a_direction_come_last(gallery):
    """One that is the mean of all has no deviation: its cosine is no number, which a search would rank first."""
    embeds = gallery.embeds.clone()
    embeds[2] = 0
    index, cosine = dataclasses.replace(gallery, embeds=embeds).nearest(embeds[:2], 6)
    assert index[:, -1].tolist() == [-1, -1] and cosine[:, -1].isnan().all()
    assert index[:, 0].tolist() == [0, 1] and cosine[:, :-1].isfinite().all() and 2 not in index
    embeds[2] = (embeds.sum(0) - embeds[2]) / 5  # now the mean of all
    index, cosine = dataclasses.replace(gallery, embeds=embeds).nearest(embeds[:2], 6, origins=embeds[2:3])
    assert index[:, -1].tolist() == [-1, -1] and index[:, 0].tolist() == [0, 1] and 2 not in index


def test_a_gallery_of_another_model_gives_no_means(seeing, gallery, errors):
    from vit_lens import DiffusionLens
    from vit_lens.readers import SiteMeans

    with pytest.raises(errors.GalleryError, match="this gallery was made with"):
        SiteMeans.of_gallery(seeing, dataclasses.replace(gallery, fingerprint="0" * 16), [DiffusionLens()], "L1H2")


def test_two_means_of_one_lens_are_not_one_silently(seeing, cache, bank, pictures, errors):
    from vit_lens import DiffusionLens
    from vit_lens.readers import SiteMeans, read_sites

    heads, mlps = (SiteMeans.from_images(seeing, pictures, sites) for sites in ("heads", "mlp"))
    with pytest.raises(errors.LensError, match="2 means of Diffusion Lens: give one, of all its sites"):
        read_sites(cache, DiffusionLens(), "heads", bank=bank, means=[heads, mlps])


# ---- pickle, repr -----------------------------------------------------------------------------------------------


def test_results_print_in_a_line_and_go_through_pickle(seeing, cache, bank, gallery, pictures):
    from vit_lens import DiffusionLens
    from vit_lens import readers as ro

    spans, _ = ro.text_spans(seeing, pictures, bank, "heads", k=1)
    zero_shot = ro.zero_shot_lens(cache, bank, "heads", controls=["random"])
    assert repr(spans) == "TextSpans(<15>)" and repr(zero_shot.embeddings) == (
        "SiteEmbeddings(sites=<15>, lens=DiffusionLens(), values={'': [3, 15, 13], 'random': [3, 15, 13]})"
    )
    found = [
        spans, spans["L0H0"], zero_shot, ro.zero_shot_maps(cache, bank, "L1.resid_post"), gallery,
        ro.top_captions(zero_shot.of(), bank, 2), ro.retrieval_lens(cache, gallery, "heads", images=None, k=1),
        ro.read_sites(cache, DiffusionLens(), "heads", bank=bank), ro.SiteMeans.from_images(seeing, pictures, "heads"),
    ]  # fmt: skip
    for one in found:
        assert len(repr(one)) < 450 and "tensor" not in repr(one) and "\n" not in repr(one), repr(one)
        assert repr(pickled(one)) == repr(one)


# ---- arguments --------------------------------------------------------------------------------------------------


def test_numbers_are_of_any_kind(cache, bank, gallery, seeing):
    from vit_lens.readers import text_span, zero_shot_lens

    read = zero_shot_lens(cache, bank, "L1H2")
    assert len(read.to_frame(np.int64(2))) == len(read.to_frame(torch.tensor(2))) == 6
    queries = read.embeddings.values[""][:, 0]
    assert torch.equal(gallery.nearest(queries, np.int64(2))[0], gallery.nearest(queries, 2)[0])
    assert [part.shape for part in gallery.nearest(queries[:0], 2)] == [(0, 2), (0, 2)]
    texts = torch.eye(4)
    assert len(text_span(torch.randn(6, 4), texts, list("abcd"), k=np.int64(2), rank=torch.tensor(3)).captions) == 2


def test_wrong_arguments_are_refused_in_words(seeing, cache, bank, gallery, pictures, errors):
    from vit_lens import DiffusionLens
    from vit_lens import readers as ro

    m, c, lens, site = seeing, cache, DiffusionLens(), "L1H2"
    means, read = ro.SiteMeans.from_images(m, pictures, "heads"), ro.zero_shot_lens(c, bank, site)
    queries, unit = read.embeddings.values[""][:, 0], torch.eye(4)
    data, names = torch.randn(6, 4), list("abcd")
    one, near, no_model = "LensError", "GalleryError", "expected a HookedViT, not"
    span, no_lens = ro.text_span, "expected Lens: such as DiffusionLens(), or a list of lenses"
    answers, maps = ro.read_sites(c, lens, site, bank=bank), ro.zero_shot_maps(c, bank, "L1.resid_post")
    long = torch.tensor([1.0, 1, 1, 100])[:, None] * unit
    cases = {
        "controls of text": (lambda: ro.zero_shot_lens(c, bank, controls="random"), one, "controls='random'; expected"),
        "controls 3": (lambda: ro.zero_shot_lens(c, bank, controls=3), one, "controls=3; expected a list of any of"),
        "controls None": (lambda: ro.zero_shot_lens(c, bank, controls=None), one, "controls=None; expected a list"),
        "control 3": (lambda: ro.zero_shot_lens(c, bank, controls=[3]), one, "no control 3"),
        "generator": (lambda: ro.zero_shot_lens(c, bank, controls=["random"], generator=0), one, "expected Generator"),
        "k of text": (lambda: read.to_frame("3"), one, "k='3': the text bank has 3 captions"),
        "k 2.0": (lambda: read.to_frame(2.0), one, "k=2.0: the text bank has 3 captions"),
        "k True": (lambda: read.to_frame(True), one, "k=True: the text bank"),
        "cosines of others": (lambda: ro.top_captions(torch.randn(2, 2), bank), one, "a float tensor [*batch 3]"),
        "cosines of numpy": (lambda: ro.top_captions(np.zeros((2, 3)), bank), one, "cosines is a ndarray"),
        "cosines of no bank": (lambda: ro.top_captions(torch.zeros(2, 3), None), "TextError", "expected TextBank"),
        "widths": (lambda: ro.deviations(torch.randn(2, 3), torch.randn(4)), one, "expected a float tensor [*batch 3]"),
        "deviations of numpy": (lambda: ro.deviations(np.ones(3), torch.ones(3)), one, "values is a ndarray"),
        "deviations of counts": (lambda: ro.deviations(torch.ones(3).long(), torch.ones(3)), one, "torch.int64"),
        "nearest k": (lambda: gallery.nearest(queries, "2"), near, "k='2': the gallery has 6 different pictures"),
        "nearest k 1.0": (lambda: gallery.nearest(queries, 1.0), near, "k=1.0: the gallery"),
        "nearest width": (lambda: gallery.nearest(torch.randn(2, 5), 1), near, "a float tensor [query 13]"),
        "nearest of one": (lambda: gallery.nearest(queries[0], 1), near, "a float tensor [query 13]"),
        "nearest of numpy": (lambda: gallery.nearest(queries.numpy(), 1), near, "queries is a ndarray"),
        "nearest of counts": (lambda: gallery.nearest(torch.ones(1, 13).long(), 1), near, "torch.int64"),
        "nearest on meta": (lambda: gallery.nearest(queries.to("meta"), 1), near, "on meta"),
        "nan origins": (lambda: gallery.nearest(queries, 1, origins=queries * torch.nan), near, "of origins is not"),
        "origins' width": (lambda: gallery.nearest(queries, 1, origins=torch.zeros(1, 3)), near, "origins is torch.fl"),
        "origins' number": (lambda: gallery.nearest(queries, 1, origins=queries[:2]), near, "each of the 3 queries"),
        "few left out": (lambda: gallery.nearest(queries, 1, leave_out=[None]), near, "each of the 3 queries"),
        "names 5": (lambda: ro.Gallery.from_images(m, pictures, names=5), near, "names=5; expected a list"),
        "names of numbers": (lambda: ro.Gallery.from_images(m, pictures[:2], names=[1, 2]), near, "names=[1, 2]; exp"),
        "gallery of a name": (lambda: ro.Gallery.from_images("mini", pictures), near, f"{no_model} str"),
        "folder of a name": (lambda: ro.Gallery.from_folder("mini", "."), near, f"{no_model} str"),
        "check of a name": (lambda: gallery.check("mini"), near, f"{no_model} str"),
        "hash of a path": (lambda: ro.picture_hash("a.png"), "ImageError", "picture is of type str; expected Image"),
        "means of no model": (lambda: ro.SiteMeans.from_images(None, pictures, "heads"), one, f"{no_model} NoneType"),
        "means by a name": (lambda: ro.SiteMeans.from_images(m, pictures, site, lens="dsl"), one, "expected Lens: "),
        "means of a folder": (lambda: ro.SiteMeans.of_gallery(m, "photos", [lens], site), near, "expected Gallery"),
        "means of lenses": (lambda: ro.SiteMeans.of_gallery(m, gallery, ["dsl"], site), one, no_lens),
        "means read by a name": (lambda: means.reads("dsl"), one, "expected Lens: such"),
        "lens by name": (lambda: ro.read_sites(c, "diffusion", site, bank=bank), one, no_lens),
        "lenses by name": (lambda: ro.read_sites(c, ["diffusion"], site, bank=bank), one, no_lens),
        "lens None": (lambda: ro.read_sites(c, None, site, bank=bank), one, no_lens),
        "each by name": (lambda: ro.sites_of_each(m, "dsl", site), one, no_lens),
        "each of a name": (lambda: ro.sites_of_each("mini", lens, site), one, f"{no_model} str"),
        "seed of text": (lambda: ro.read_sites(c, lens, site, bank=bank, seed="x"), one, "seed='x'; expected a whole"),
        "seed None": (lambda: ro.read_sites(c, lens, site, bank=bank, seed=None), one, "seed=None; expected a whole"),
        "k of neighbours": (lambda: ro.retrieval_lens(c, gallery, site, images=None, k="2"), near, "k='2'"),
        "heads of no model": (lambda: ro.head_contributions(None, pictures, "L0H0"), one, f"{no_model} NoneType"),
        "span k": (lambda: span(data, unit, names, k="2"), one, "k='2': there are 4 captions"),
        "span k 2.0": (lambda: span(data, unit, names, k=2.0), one, "k=2.0: there are 4 captions"),
        "span rank": (lambda: span(data, unit, names, k=1, rank="3"), one, "rank='3': the contributions span 4"),
        "span rank 2.0": (lambda: span(data, unit, names, k=1, rank=2.0), one, "rank=2.0"),
        "span of one axis": (lambda: span(data[0], unit, names, k=1), one, "contributions is torch.float32 of s"),
        "span of numpy": (lambda: span(data, unit.numpy(), names, k=1), one, "texts is a ndarray"),
        "span of counts": (lambda: span(data.long(), unit, names, k=1), one, "contributions is torch.int64"),
        "span of nothing": (lambda: span(data, unit * 0, names, k=1), one, "texts are not of length 1"),
        "span of lengths": (lambda: span(data, long, names, k=1), one, "texts are not of length 1"),
        "span of a text": (lambda: span(data, unit, "abcd", k=1), one, "captions='abcd'; expected a list"),
        "span of 4": (lambda: span(data, unit, 4, k=1), one, "captions=4; expected a list"),
        "queries None": (lambda: gallery.nearest(None, 1), near, "queries is a NoneType"),
        "left out 3": (lambda: gallery.nearest(queries, 1, leave_out=3), near, "leave_out=3; expected a hash or None"),
        "left out text": (lambda: gallery.nearest(queries, 1, leave_out="abc"), near, "leave_out='abc'; expected a"),
        "no names": (lambda: dataclasses.replace(gallery, names=None), near, "names is of type NoneType"),
        "hashes 3": (lambda: dataclasses.replace(gallery, hashes=3), near, "hashes is of type int"),
        "means' sites": (lambda: dataclasses.replace(means, sites=None), one, "sites is of type NoneType"),
        "means of None": (lambda: means.of(None, lens, means.sites), one, f"{no_model} NoneType"),
        "means of no sites": (lambda: means.of(m, lens, None), one, "sites is of type NoneType"),
        "means of no lens": (lambda: means.of(m, [], means.sites), one, "expected Lens: such as DiffusionLens()"),
        "cache of a model": (lambda: ro.read_sites(m, lens, site, bank=bank), one, "expected the cache of HookedViT"),
        "k of both": (lambda: ro.read_sites(c, lens, site, bank=bank, k=None), one, "k=None; expected a whole number"),
        "answer None": (lambda: answers.of(None, site), one, "image=None; expected a whole number, at least 0"),
        "answer of reading": (lambda: answers.of(0, site, reading="x"), one, "reading='x'; expected a whole number"),
        "answer of control": (lambda: answers.of(0, site, control=[1]), one, "control is of type list"),
        "answer of no site": (lambda: answers.of(0, None), "UnknownSiteError", "an address is of type NoneType"),
        "form": (lambda: read.of(["raw"]), one, "no form ['raw']"),
        "form of maps": (lambda: maps.of({}), one, "no form {} here; there are ['raw']"),
        "spans of no model": (lambda: ro.text_spans(None, pictures, bank, "heads"), "TextError", f"{no_model} NoneTyp"),
        "reconstruct": (lambda: span(data, unit, names, k=1).reconstruct(torch.zeros(2, 5)), one, "[image 4]"),
    }  # fmt: skip
    assert not outcomes(errors, cases)
