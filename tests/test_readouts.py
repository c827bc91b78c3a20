"""Read-outs without a decoder, held against slow references: hooked runs, loops, and numpy written for the purpose."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.tl3

TOLERANCE = 1e-11


def bank_for(model, n=6, seed=0, bias=None):
    from vit_lens import TextBank

    embeds = torch.randn(n, model.cfg.d_embed, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TextBank(
        captions=tuple(f"caption {i}" for i in range(n)), embeds=embeds, logit_scale=8.5, logit_bias=bias,
        encoder_id=model.encoder_id,
    )  # fmt: skip


def own_cosines(embeds, bank):
    """Cosines by numpy, one at a time."""
    texts = bank.embeds.numpy()
    flat = embeds.reshape(-1, embeds.shape[-1]).numpy()
    values = [[e @ t / np.sqrt((e @ e) * (t @ t)) for t in texts] for e in flat]
    return torch.tensor(np.array(values)).reshape(*embeds.shape[:-1], len(texts))


def random_pixels(model, n=3, seed=11):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, *model.cfg.image_size, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def seeing_vit(hf_tower):
    """``vit`` with a preprocessing, so that it reads pictures."""
    from vit_lens import HookedViT, PreprocessSpec

    spec = PreprocessSpec(
        size=(22, 22), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bicubic", resize_mode="shortest"
    )
    return HookedViT.from_module(hf_tower, preprocess_spec=spec).requires_grad_(False)


def picture(seed, size=(30, 24)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def folder(tmp_path):
    """Seven pictures, two of them twice, one folder down, and files that are none."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for seed in range(4):
        picture(seed).save(root / f"{seed}.png")
    picture(1).save(root / "more" / "one again.png")
    picture(4).save(root / "more" / "4.PNG")
    picture(1).save(root / "9_one.bmp")
    picture(8).save(root / ".hidden" / "8.png")
    (root / "notes.txt").write_text("no picture")
    return root


def pictures_of(folder):
    return [folder / f"{i}.png" for i in range(3)]


# ---- the zero-shot lens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["all", "readout"])
@pytest.mark.parametrize("bias", [None, -3.0])
def test_the_last_layer_is_the_models_own_zero_shot_result(readout_vit, rows, bias):
    from vit_lens.readers import zero_shot_lens

    model, _ = readout_vit
    bank, pixels = bank_for(model, bias=bias), random_pixels(model)
    out, cache = model.run_with_cache(pixels, rows=rows)
    read = zero_shot_lens(cache, bank)
    assert [str(site) for site in read.embeddings.sites] == ["L0.resid_pre", *(f"L{i}.resid_post" for i in range(3))]
    assert (read.logits()[:, -1] - bank.logits(out)).abs().max() < TOLERANCE
    assert (read.probs()[:, -1] - bank.probs(out)).abs().max() < TOLERANCE
    expected = (own_cosines(out, bank) * 8.5 + (bias or 0.0)).sigmoid()
    if bias is None:
        expected = (own_cosines(out, bank) * 8.5).softmax(-1)
    assert (read.probs()[:, -1] - expected).abs().max() < TOLERANCE


def test_the_last_layer_of_attention_pooling_too(pooling_vit, pooling_pixels):
    from vit_lens.readers import zero_shot_lens

    bank = bank_for(pooling_vit)
    out, cache = pooling_vit.run_with_cache(pooling_pixels, rows="readout")
    read = zero_shot_lens(cache, bank, ["resid_post", "poolH1", "pool.attn", "L1H2"])
    assert (read.logits()[:, 2] - bank.logits(out)).abs().max() < TOLERANCE
    assert read.of().shape == (3, 6, 6)


def test_every_site_is_read_by_the_lens(vit, pixels):
    """Against the model run with the lens's hooks: what it outputs is compared with the captions."""
    from vit_lens import DiffusionLens, DiffusionSteeringLens
    from vit_lens.readers import zero_shot_lens

    bank = bank_for(vit)
    _, cache = vit.run_with_cache(pixels)
    for lens in (DiffusionLens(), DiffusionSteeringLens(alpha=4.0)):
        sites = ["L1H3", "L0.attn", "L2.mlp"]
        read = zero_shot_lens(cache, bank, sites, lens=lens)
        for index, site in enumerate(sites):
            hooked = vit.run_with_hooks(pixels, fwd_hooks=lens.hooks(cache, site))
            assert (read.of()[:, index] - own_cosines(hooked, bank)).abs().max() < TOLERANCE, site


def test_the_centred_form_takes_the_mean_of_the_sites_embeddings_away(readout_vit):
    from vit_lens import DiffusionLens
    from vit_lens.readers import SiteMeans, zero_shot_lens

    model, _ = readout_vit
    bank, others = bank_for(model), random_pixels(model, n=5, seed=2)
    sites = ["L1H1", "L2.resid_post", "L0.mlp"]
    means = SiteMeans.from_images(model, others, sites, batch_size=2)
    slow = torch.zeros(3, model.cfg.d_embed, dtype=torch.float64)
    for image in others:
        _, cache = model.run_with_cache(image[None])
        slow += DiffusionLens().embed(cache, sites)[0] / 5
    assert (means.values - slow).abs().max() < TOLERANCE
    _, cache = model.run_with_cache(random_pixels(model), rows="readout")
    embeds = DiffusionLens().embed(cache, ["L2.resid_post", "L1H1"])
    read = zero_shot_lens(cache, bank, ["L2.resid_post", "L1H1"], means=means)
    assert (read.of("centred") - own_cosines(embeds - slow[[1, 0]], bank)).abs().max() < TOLERANCE
    assert (read.of("raw") - own_cosines(embeds, bank)).abs().max() < TOLERANCE


def test_the_frame_is_the_tensors(vit, pixels):
    from vit_lens.readers import SiteMeans, zero_shot_lens

    bank = bank_for(vit)
    _, cache = vit.run_with_cache(pixels, rows="readout")
    means = SiteMeans.from_images(vit, random_pixels(vit, 4), ["L1H4", "L2.mlp"])
    read = zero_shot_lens(cache, bank, ["L1H4", "L2.mlp"], means=means, controls=["random"])
    frame = read.to_frame(k=2)
    assert len(frame) == 3 * 2 * 2 * 2 * 2
    for row in frame.to_dict("records"):
        site = ["L1H4", "L2.mlp"].index(row["site"])
        cosines = read.of(row["form"], row["control"])[row["image"], site]
        order = np.argsort(-cosines.numpy(), kind="stable")
        caption = int(order[row["rank"]])
        assert row["caption"] == bank.captions[caption]
        assert row["cosine"] == pytest.approx(float(cosines[caption]), abs=1e-12)
        assert row["logit"] == pytest.approx(8.5 * float(cosines[caption]), abs=1e-12)
        whole = np.exp(8.5 * cosines.numpy())
        assert row["prob"] == pytest.approx(whole[caption] / whole.sum(), abs=1e-12)
    head = frame[frame["site"] == "L1H4"].iloc[0]
    assert (head["layer"], head["head"], head["site_type"], head["lens"]) == (1, 4, "head", "diffusion")
    assert frame[frame["site"] == "L2.mlp"]["head"].isna().all()
    assert len(read.to_frame()) == 3 * 2 * 2 * 2 * 6


def test_controls_are_the_lenses(vit, pixels):
    from vit_lens import DiffusionSteeringLens
    from vit_lens.readers import site_embeddings

    lens = DiffusionSteeringLens(alpha=3.0)
    _, cache = vit.run_with_cache(pixels)
    sites = ["L1H2", "L0.mlp"]
    read = site_embeddings(
        cache, sites, lens=lens, controls=["random", "other"], generator=torch.Generator().manual_seed(4)
    )
    placebo = lens.placebo(cache, sites, generator=torch.Generator().manual_seed(4))
    assert torch.equal(read.values["random"], placebo)
    w, b, W_U = vit.ln_final.w, vit.ln_final.b, vit.W_U
    final = cache["blocks.2.hook_resid_post"][:, 0]
    own = torch.stack([cache["z", 1][:, 0, 2] @ vit.blocks[1].attn.W_O[2], cache["mlp_out", 0][:, 0]], 1)
    for image in range(3):
        for site in range(2):
            other = own[(image + 1) % 3, site]
            mine = own[image, site]
            push = other * (mine - mine.mean()).norm() / (other - other.mean()).norm()
            x = final[image] + 2.0 * push
            x = (x - x.mean()) / (((x - x.mean()) ** 2).mean() + vit.cfg.eps).sqrt() * w + b
            assert (read.values["other"][image, site] - x @ W_U).abs().max() < TOLERANCE


def test_other_needs_another_image_and_controls_have_names(vit, pixels):
    from vit_lens.errors import LensError
    from vit_lens.readers import site_embeddings

    _, cache = vit.run_with_cache(pixels[:1])
    with pytest.raises(LensError, match="needs another image"):
        site_embeddings(cache, "L1H2", controls=["other"])
    with pytest.raises(LensError, match="no control 'randm'; nearest: 'random'"):
        site_embeddings(cache, "L1H2", controls=["randm"])


def test_refusals(vit, pixels):
    from vit_lens import DiffusionSteeringLens, VitLensError
    from vit_lens.errors import LensError, ReferenceMismatchError, TextError
    from vit_lens.readers import SiteMeans, zero_shot_lens

    bank = bank_for(vit)
    _, cache = vit.run_with_cache(pixels)
    with pytest.raises(TextError, match="made for elsewhere"):
        zero_shot_lens(cache, dataclasses.replace(bank, encoder_id="elsewhere"))
    with pytest.raises(LensError, match="is the stream itself"):
        zero_shot_lens(cache, bank, "L1.resid_post", lens=DiffusionSteeringLens(alpha=2))
    means = SiteMeans.from_images(vit, pixels, ["L1H1"])
    with pytest.raises(LensError, match="lack 1 of the sites, such as L1H2"):
        zero_shot_lens(cache, bank, ["L1H1", "L1H2"], means=means)
    with pytest.raises(LensError, match="read-out means are of"):
        zero_shot_lens(cache, bank, ["L1H1"], means=means, lens=DiffusionSteeringLens(alpha=2))
    with pytest.raises(ReferenceMismatchError, match="were made with"):
        zero_shot_lens(cache, bank, ["L1H1"], means=dataclasses.replace(means, fingerprint="0" * 16))
    read = zero_shot_lens(cache, bank, ["L1H1"])
    with pytest.raises(LensError, match="no form 'centred'"):
        read.of("centred")
    with pytest.raises(LensError, match="k=7: the text bank has 6"):
        read.to_frame(7)
    with pytest.raises(LensError, match="at least one image"):
        SiteMeans.from_images(vit, [], ["L1H1"])
    vit.add_hook("hook_embed", lambda act, hook: act)
    try:
        with pytest.raises(VitLensError, match="saved means"):
            SiteMeans.from_images(vit, pixels, ["L1H1"])
    finally:
        vit.reset_hooks()


def test_means_are_kept(vit, pixels, tmp_path):
    from vit_lens import DiffusionSteeringLens, ReferenceMeans
    from vit_lens.errors import LensError
    from vit_lens.readers import SiteMeans

    reference = ReferenceMeans.from_images(vit, random_pixels(vit, 4))
    lens = DiffusionSteeringLens(alpha=2.5, anchor="mean", reference=reference)
    means = SiteMeans.from_images(vit, pixels, ["L1H1", "L2.mlp"], lens=lens)
    again = SiteMeans.load(means.save(tmp_path / "means.safetensors"))
    for name in ("encoder_id", "fingerprint", "n", "lens", "sites", "patches"):
        assert getattr(again, name) == getattr(means, name)
    assert torch.equal(again.values, means.values) and again.n == 3
    assert torch.equal(again.of(vit, lens, again.sites[1:]), means.values[1:])
    whole = (tmp_path / "means.safetensors").read_bytes()
    for cut in (0, 30, len(whole) - 3):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(LensError, match="not a whole safetensors file"):
            SiteMeans.load(tmp_path / "cut")
    with pytest.raises(LensError, match="no read-out means at"):
        SiteMeans.load(tmp_path / "none")
    bank_for(vit).save(tmp_path / "bank")
    with pytest.raises(LensError, match=r"format 'vit_lens\.text_bank\.1'"):
        SiteMeans.load(tmp_path / "bank")


def test_what_is_the_same_for_all_images_is_not_named(seeing_vit, folder):
    """Before the first block CLS knows nothing of the image; what is left of it, centred, is rounding."""
    from vit_lens import DiffusionLens
    from vit_lens.figures import caption_atlas, contact_sheet, zero_shot_layers
    from vit_lens.readers import Gallery, SiteMeans, read_sites, retrieval_lens, zero_shot_lens

    model, sites = seeing_vit, ["L0.resid_pre", "L2.resid_post"]
    bank, gallery, images = bank_for(model), Gallery.from_folder(model, folder), pictures_of(folder)
    _, cache = model.run_with_cache(model.preprocess(images), rows="readout")
    means = SiteMeans.from_images(model, random_pixels(model, 7), sites, batch_size=3)
    noisy = dataclasses.replace(means, values=means.values * (1 + 4e-16))
    for mean in (means, noisy):
        read = zero_shot_lens(cache, bank, sites, means=mean)
        assert read.of("centred")[:, 0].isnan().all() and read.of("centred")[:, 1].isfinite().all()
        assert read.of("raw").isfinite().all()
        frame = read.to_frame(1)
        silent = (frame["form"] == "centred") & (frame["site"] == "L0.resid_pre")
        assert frame.loc[silent, "caption"].isna().all() and frame.loc[~silent, "caption"].notna().all()
        near = retrieval_lens(cache, gallery, sites, images=images, k=2, means=mean, controls=[])
        assert (near.index["centred", ""][:, 0] == -1).all() and near.cosine["centred", ""][:, 0].isnan().all()
        assert (near.index["centred", ""][:, 1] >= 0).all() and near.cosine["centred", ""][:, 1].isfinite().all()
    table = near.to_frame()
    assert table.loc[table["index"] == -1, "name"].isna().all() and (table["index"] == -1).sum() == 6
    captions = [note.text for note in contact_sheet(near, images[0], form="centred").layout.annotations]
    assert captions[:3] == ["L0.resid_pre", *["the same for<br>all images"] * 2]
    assert np.isnan(np.array(zero_shot_layers(read, value="cosine").data[1].z)[0]).all()
    both = read_sites(cache, DiffusionLens(), sites, bank=bank, gallery=gallery, images=images, means=[means], k=1)
    assert both.of(0, "L0.resid_pre")["captions"]["centred"][0]["caption"] is None
    with pytest.raises(Exception, match="no head was read"):
        caption_atlas(read)


# ---- patch maps ------------------------------------------------------------------------------------------------


def check_maps(model, pixels):
    """Each token, put in the place of every token of the last residual, must give the map's cosines."""
    from vit_lens.readers import SiteMeans, zero_shot_maps

    bank, sites = bank_for(model), ["L0.resid_pre", "L1.resid_mid", "L2.resid_post"]
    names = [f"blocks.{s[1]}.hook_{s[3:]}" for s in sites]
    _, cache = model.run_with_cache(pixels, names_filter=names)
    others = torch.cat([pixels.flip(-1), pixels[:1] * 0.5])
    means = SiteMeans.from_images(model, others, sites, patches=True, batch_size=3)
    maps = zero_shot_maps(cache, bank, sites, means=means)
    rows, columns = model.cfg.grid
    assert maps.of().shape == (len(pixels), 3, rows, columns, 6)

    def alone(residual):
        return model(residual[:, None].expand(-1, model.cfg.n_ctx, -1), start_at_layer=model.cfg.n_layers)

    _, other_cache = model.run_with_cache(others)
    for index, name in enumerate(names):
        mean = sum(
            alone(other_cache[name][:, model.cfg.n_prefix + i]).mean(0) / (rows * columns)
            for i in range(rows * columns)
        )
        for row in range(rows):
            for column in range(columns):
                embeds = alone(cache[name][:, model.cfg.n_prefix + row * columns + column])
                assert (maps.of()[:, index, row, column] - own_cosines(embeds, bank)).abs().max() < TOLERANCE
                centred = own_cosines(embeds - mean, bank)
                assert (maps.of("centred")[:, index, row, column] - centred).abs().max() < TOLERANCE
    return maps, bank


def test_patch_maps(readout_vit):
    model, _ = readout_vit
    check_maps(model, random_pixels(model, 2))


def test_patch_maps_of_attention_pooling(pooling_vit, pooling_pixels):
    maps, bank = check_maps(pooling_vit, pooling_pixels[:2])
    frame = maps.to_frame(k=2)
    assert len(frame) == 2 * 3 * 3 * 3 * 2 * 2
    row = frame[(frame["row"] == 2) & (frame["column"] == 1) & (frame["form"] == "raw") & (frame["rank"] == 0)].iloc[4]
    assert (row["image"], row["site"]) == (1, "L1.resid_mid")
    best = int(maps.of()[1, 1, 2, 1].argmax())
    assert row["caption"] == bank.captions[best] and row["prob"] == float(maps.probs()[1, 1, 2, 1, best])


def test_patches_that_are_averaged_last_add_up_to_the_embedding():
    from conftest import open_clip_tower

    from vit_lens import HookedViT, Site
    from vit_lens.readers.patches import patch_embeddings

    model = HookedViT.from_module(open_clip_tower(pool_type="avg"))
    out, cache = model.run_with_cache(random_pixels(model, 2))
    assert (patch_embeddings(cache, Site(2, "resid_post")).mean((1, 2)) - out).abs().max() < TOLERANCE


def test_maps_need_every_token_of_the_stream(vit, pixels):
    from vit_lens import DiffusionSteeringLens
    from vit_lens.errors import LensError, UnknownHookError
    from vit_lens.readers import SiteMeans, zero_shot_maps

    bank = bank_for(vit)
    _, cache = vit.run_with_cache(pixels, rows="readout")
    with pytest.raises(LensError, match=r"need blocks.1.hook_resid_post at every token.*rows='readout'"):
        zero_shot_maps(cache, bank, "L1.resid_post")
    _, cache = vit.run_with_cache(pixels, pos_slice=[0, 1])
    with pytest.raises(LensError, match="rows='cut'"):
        zero_shot_maps(cache, bank, "L1.resid_post")
    _, cache = vit.run_with_cache(pixels, names_filter="blocks.1.hook_resid_post")
    with pytest.raises(UnknownHookError, match=r"does not hold 'blocks.2.hook_resid_post'"):
        zero_shot_maps(cache, bank, "L2.resid_post")
    with pytest.raises(LensError, match="read the residual stream, for example 'resid_post', not L1H2"):
        zero_shot_maps(cache, bank, ["L1.resid_post", "L1H2"])
    with pytest.raises(LensError, match="DiffusionLens"):
        SiteMeans.from_images(vit, pixels, ["L1.mlp"], lens=DiffusionSteeringLens(alpha=2), patches=True)
    rows = SiteMeans.from_images(vit, pixels, ["L1.resid_post"])
    with pytest.raises(LensError, match="patches=False; asked for"):
        zero_shot_maps(cache, bank, "L1.resid_post", means=rows)
    with pytest.raises(LensError, match="no form 'centred'"):
        zero_shot_maps(cache, bank, "L1.resid_post").of("centred")


# ---- galleries -------------------------------------------------------------------------------------------------

NAMES = ["0.png", "1.png", "2.png", "3.png", "9_one.bmp", "more/4.PNG", "more/one again.png"]


def test_a_gallery_holds_the_models_embeddings(seeing_vit, folder, tmp_path):
    from vit_lens.readers import Gallery

    gallery = Gallery.from_folder(seeing_vit, folder, batch_size=3)
    assert list(gallery.names) == NAMES
    for name, embed in zip(NAMES, gallery.embeds, strict=True):
        alone = seeing_vit(seeing_vit.preprocess(folder / name))[0]
        assert (alone - embed).abs().max() < TOLERANCE
    assert gallery.duplicates == [("1.png", "9_one.bmp", "more/one again.png")]
    assert gallery.distinct == (0, 1, 2, 3, 5)
    assert (gallery.mean - gallery.embeds[[0, 1, 2, 3, 5]].mean(0)).abs().max() < TOLERANCE
    again = Gallery.load(gallery.save(tmp_path / "g.safetensors")).check(seeing_vit)
    for field in dataclasses.fields(Gallery):
        if field.name != "embeds":
            assert getattr(again, field.name) == getattr(gallery, field.name)
    assert torch.equal(again.embeds, gallery.embeds)
    assert again.path(5) == folder / "more" / "4.PNG"
    assert again.picture(0).tobytes() == picture(0).tobytes()


def slow_nearest(query, gallery, k, origin=None, leave_out=None):
    """Cosines one at a time, sorted by numpy; every picture once."""
    seen, rows = set(), []
    for index, digest in enumerate(gallery.hashes):
        if digest not in seen and digest != leave_out:
            rows.append(index)
        seen.add(digest)
    everyone = gallery.embeds[list(gallery.distinct)].numpy()
    mean = everyone.mean(0) if origin is not None else 0.0
    q = query.numpy() - (0.0 if origin is None else origin.numpy())
    found = []
    for index in rows:
        g = gallery.embeds[index].numpy() - mean
        found.append((q @ g / np.sqrt((q @ q) * (g @ g)), index))
    best = sorted(found, key=lambda pair: -pair[0])[:k]
    return [index for _, index in best], [cosine for cosine, _ in best]


def test_nearest_against_loops(seeing_vit, folder, monkeypatch):
    from vit_lens.readers import Gallery, cosines

    gallery = Gallery.from_folder(seeing_vit, folder)
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(5, 13, generator=generator, dtype=torch.float64)
    origins = torch.randn(5, 13, generator=generator, dtype=torch.float64)
    leave_out = [None, gallery.hashes[1], gallery.hashes[5], "not in it", gallery.hashes[6]]
    monkeypatch.setattr(cosines, "_CHUNK_NUMBERS", 11)  # two queries at a time
    for origin in (None, origins):
        index, cosine = gallery.nearest(queries, 4, origins=origin, leave_out=leave_out)
        for row in range(5):
            rows, values = slow_nearest(
                queries[row], gallery, 4, None if origin is None else origin[row], leave_out[row]
            )
            assert index[row].tolist() == rows
            assert cosine[row].tolist() == pytest.approx(values, abs=1e-12)


def test_the_retrieval_lens(seeing_vit, folder):
    from vit_lens import DiffusionSteeringLens
    from vit_lens.readers import Gallery, SiteMeans, retrieval_lens

    gallery, images = Gallery.from_folder(seeing_vit, folder), pictures_of(folder)
    _, cache = seeing_vit.run_with_cache(seeing_vit.preprocess(images), rows="readout")
    sites, lens = ["L1H3", "L2.mlp"], DiffusionSteeringLens(alpha=3.0)
    means = SiteMeans.from_images(seeing_vit, random_pixels(seeing_vit, 4), sites, lens=lens)
    read = retrieval_lens(
        cache, gallery, sites, images=images, k=3, lens=lens, means=means, controls=["random", "other"],
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert sorted(read.index) == sorted((f, c) for f in ("raw", "centred") for c in ("", "random", "other"))
    for (form, control), index in read.index.items():
        for image in range(3):
            for site in range(2):
                origin = means.values[site] if form == "centred" else None
                query = read.embeddings.values[control][image, site]
                rows, values = slow_nearest(query, gallery, 3, origin, gallery.hashes[image])
                assert index[image, site].tolist() == rows
                assert read.cosine[form, control][image, site].tolist() == pytest.approx(values, abs=1e-12)
    without = retrieval_lens(cache, gallery, "L2.resid_post", images=None, k=2, controls=[])
    assert without.index["raw", ""][:, 0, 0].tolist() == [0, 1, 2]
    assert without.cosine["raw", ""][:, 0, 0].tolist() == pytest.approx([1.0] * 3)
    assert list(without.index) == list(without.cosine) == [("raw", "")]
    frame = read.to_frame()
    assert len(frame) == 3 * 2 * 2 * 3 * 3
    for row in frame.to_dict("records"):
        place = (row["image"], sites.index(row["site"]), row["rank"])
        assert row["index"] == int(read.index[row["form"], row["control"]][place])
        assert row["cosine"] == float(read.cosine[row["form"], row["control"]][place])
        assert row["name"] == gallery.names[row["index"]]
        assert row["copies"] == (3 if row["index"] == 1 else 1)
    assert 1 not in set(frame[frame["image"] == 1]["index"])


def test_galleries_refuse(seeing_vit, vit, folder, tmp_path):
    from vit_lens import HookedViT
    from vit_lens.errors import GalleryError, LensError
    from vit_lens.readers import Gallery, retrieval_lens

    gallery, images = Gallery.from_folder(seeing_vit, folder), pictures_of(folder)
    _, cache = seeing_vit.run_with_cache(seeing_vit.preprocess(images), rows="readout")
    with pytest.raises(GalleryError, match="k=5: the gallery has 4 different pictures"):
        retrieval_lens(cache, gallery, "L1H1", images=images, k=5)
    with pytest.raises(GalleryError, match="k=6: the gallery has 5"):
        retrieval_lens(cache, gallery, "L1H1", images=None, k=6)
    with pytest.raises(LensError, match="2 images for a cache of 3"):
        retrieval_lens(cache, gallery, "L1H1", images=images[:2], k=1)
    with pytest.raises(GalleryError, match="not finite"):
        gallery.nearest(torch.full((1, 13), torch.nan, dtype=torch.float64), 1)
    single = Gallery.from_images(seeing_vit, [picture(0), picture(0)])
    assert single.nearest(gallery.embeds[:1], 1)[0].tolist() == [[0]]
    with pytest.raises(GalleryError, match="at least two different pictures"):
        single.nearest(gallery.embeds[:1], 1, origins=gallery.embeds[1:2])
    other = dataclasses.replace(gallery, fingerprint="0" * 16)
    with pytest.raises(GalleryError, match="was made with"):
        retrieval_lens(cache, other, "L1H1", images=None)
    squash = dataclasses.replace(seeing_vit.preprocess_spec, resize_mode="squash")
    same_weights = HookedViT(vit.cfg, preprocess_spec=squash).double()
    same_weights.load_state_dict(vit.state_dict())
    with pytest.raises(GalleryError, match=r"preprocessing .*shortest"):
        gallery.check(same_weights)
    with pytest.raises(GalleryError, match="is not a folder"):
        Gallery.from_folder(seeing_vit, folder / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GalleryError, match="holds no image"):
        Gallery.from_folder(seeing_vit, tmp_path / "empty")
    path = gallery.save(tmp_path / "g")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(GalleryError, match="not a whole safetensors file"):
        Gallery.load(path)


def test_a_gallery_shows_nothing_outside_its_folder(seeing_vit, folder, tmp_path):
    from vit_lens.errors import GalleryError
    from vit_lens.readers import Gallery

    gallery, outside = Gallery.from_folder(seeing_vit, folder), tmp_path / "outside.png"
    picture(9).save(outside)
    for name in ("../outside.png", str(outside)):
        changed = dataclasses.replace(gallery, names=(name, *gallery.names[1:]))
        with pytest.raises(GalleryError, match="does not lie in"):
            changed.picture(0)
    assert Gallery.from_images(seeing_vit, [outside]).path(0) == outside


def test_a_batch_holds_an_image(seeing_vit, folder):
    from vit_lens import ReferenceMeans
    from vit_lens.errors import VitLensError
    from vit_lens.readers import Gallery, SiteMeans, head_contributions

    images = [picture(0), picture(1)]
    for batch_size in (0, -1):
        for make in (
            lambda n: ReferenceMeans.from_images(seeing_vit, images, batch_size=n),
            lambda n: SiteMeans.from_images(seeing_vit, images, ["L1H1"], batch_size=n),
            lambda n: head_contributions(seeing_vit, images, "heads", batch_size=n),
            lambda n: Gallery.from_images(seeing_vit, images, batch_size=n),
            lambda n: Gallery.from_folder(seeing_vit, folder, batch_size=n),
        ):
            with pytest.raises(VitLensError, match=f"batch_size={batch_size}; a batch holds at least one image"):
                make(batch_size)


def test_a_gallery_is_of_the_model_without_hooks(seeing_vit, folder):
    from vit_lens.errors import VitLensError
    from vit_lens.readers import Gallery

    seeing_vit.add_hook("hook_embed", lambda act, hook: act * 2)
    try:
        with pytest.raises(VitLensError, match="a gallery"):
            Gallery.from_folder(seeing_vit, folder)
        with pytest.raises(VitLensError, match="a gallery"):
            Gallery.from_images(seeing_vit, [picture(0)])
    finally:
        seeing_vit.reset_hooks()


def test_galleries_from_memory(seeing_vit):
    from vit_lens.errors import GalleryError
    from vit_lens.readers import Gallery

    images = [picture(0), np.asarray(picture(1)), picture(2)]
    gallery = Gallery.from_images(seeing_vit, images, batch_size=2)
    assert gallery.names == ("image 0", "image 1", "image 2")
    assert (gallery.embeds - seeing_vit(seeing_vit.preprocess(images))).abs().max() < TOLERANCE
    with pytest.raises(GalleryError, match="cannot show its picture"):
        gallery.picture(0)
    for names in (["a", "a", "b"], ["a"]):
        with pytest.raises(GalleryError, match="3 images and"):
            Gallery.from_images(seeing_vit, images, names=names)
    with pytest.raises(GalleryError, match="0 images"):
        Gallery.from_images(seeing_vit, [])


def test_a_stopped_gallery_goes_on_and_is_refused_until_then(seeing_vit, folder, tmp_path, monkeypatch):
    from vit_lens.errors import GalleryError
    from vit_lens.readers import Gallery, indexing

    monkeypatch.setattr(indexing, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(indexing, "_CHECKPOINT_SHARE", 0)
    out, embedded = tmp_path / "g.safetensors", []
    embed = indexing._embed

    def stop_later(model, images, names, found, stamps):
        if len(embedded) >= 4:
            raise KeyboardInterrupt
        embedded.extend(names)
        embed(model, images, names, found, stamps)

    monkeypatch.setattr(indexing, "_embed", stop_later)
    with pytest.raises(KeyboardInterrupt):
        Gallery.from_folder(seeing_vit, folder, out=out, batch_size=2)
    with pytest.raises(GalleryError, match="is not finished: it holds 4 images"):
        Gallery.load(out)
    embedded.clear()
    monkeypatch.setattr(indexing, "_embed", lambda *a: (embedded.extend(a[2]), embed(*a)))
    gallery = Gallery.from_folder(seeing_vit, folder, out=out, batch_size=2)
    assert embedded == NAMES[4:]
    assert list(gallery.names) == NAMES and Gallery.load(out).names == gallery.names
    assert torch.equal(gallery.embeds, Gallery.from_folder(seeing_vit, folder, batch_size=2).embeds)
    embedded.clear()
    picture(20).save(folder / "2.png")
    picture(21).save(folder / "5.png")
    (folder / "3.png").unlink()
    newer = Gallery.from_folder(seeing_vit, folder, out=out)
    assert embedded == ["2.png", "5.png"]
    assert list(newer.names) == ["0.png", "1.png", "2.png", "5.png", *NAMES[4:]]
    fresh = Gallery.from_folder(seeing_vit, folder)
    assert (newer.embeds - fresh.embeds).abs().max() < TOLERANCE and newer.hashes == fresh.hashes
    with pytest.raises(GalleryError, match=r"is the gallery of .*photos, not of"):
        Gallery.from_folder(seeing_vit, folder / "more", out=out)


def test_unreadable_files_are_named(seeing_vit, folder, tmp_path):
    from vit_lens.errors import GalleryError
    from vit_lens.readers import Gallery

    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (4000, 1)).save(folder / "wide.png")
    with pytest.warns(UserWarning, match=r"1 files of .* such as 2.png"):
        gallery = Gallery.from_folder(seeing_vit, folder, out=tmp_path / "g")
    assert "2.png" in gallery.skipped and "2.png" not in gallery.names and "wide.png" in gallery.names
    assert Gallery.load(tmp_path / "g").skipped == gallery.skipped
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no")
    with pytest.raises(GalleryError, match=r"none of the 1 images"):
        Gallery.from_folder(seeing_vit, tmp_path / "bad")


# ---- TEXTSPAN --------------------------------------------------------------------------------------------------


def slow_text_span(contributions, texts, k, rank):
    """Algorithm 1 in plain numpy, by projections on growing sets instead of deflation."""
    vectors = np.linalg.eigh(contributions.T @ contributions)[1][:, ::-1][:, :rank]
    words = texts @ vectors @ vectors.T
    data = contributions - contributions.mean(0)
    chosen, shares, total = [], [], (data**2).sum()
    for _ in range(k):
        if chosen:
            basis = np.linalg.qr(words[chosen].T)[0]
            left = np.eye(data.shape[1]) - basis @ basis.T
        else:
            left = np.eye(data.shape[1])
        scores = [np.var(data @ left @ left @ word) for word in words]
        for taken in chosen:
            scores[taken] = -1.0
        chosen.append(int(np.argmax(scores)))
        basis = np.linalg.qr(words[chosen].T)[0]
        shares.append(((data @ basis) ** 2).sum() / total)
    return chosen, np.diff([0.0, *shares]), basis


@pytest.mark.parametrize("seed", range(4))
def test_text_span_against_numpy(seed):
    from vit_lens.readers import text_span

    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(6, 15, generator=generator, dtype=torch.float64)
    data = (
        torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.arange(1, 7) @ weights + 3.0 * weights[0]
    )
    texts = torch.randn(50, 15, generator=generator, dtype=torch.float64)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    names = [str(i) for i in range(50)]
    for rank in (None, 4):
        found = text_span(data, texts, names, k=4, rank=rank)
        chosen, shares, basis = slow_text_span(data.numpy(), texts.numpy(), 4, 6 if rank is None else rank)
        assert list(found.indices) == chosen and found.captions == tuple(map(str, chosen))
        assert found.explained.numpy() == pytest.approx(shares, abs=1e-12)
        projection = found.directions.T @ found.directions
        assert projection.numpy() == pytest.approx(basis @ basis.T, abs=1e-10)
        gram = found.directions @ found.directions.T
        assert (gram - torch.eye(4)).abs().max() < 1e-12
        assert (found.explained > 0).all() and found.explained.sum() <= 1 + 1e-12
        mean = data.mean(0)
        expected = mean + (data - mean) @ torch.from_numpy(basis @ basis.T)
        assert (found.reconstruct(data) - expected).abs().max() < 1e-10
        left = ((data - expected) ** 2).sum() / ((data - mean) ** 2).sum()
        assert float(1 - left) == pytest.approx(float(found.explained.sum()), abs=1e-12)
        assert found.rows()[2]["cumulative"] == pytest.approx(sum(shares[:3]), abs=1e-12)


def test_the_projection_on_the_heads_span_matters():
    """A text that is long outside the span must not win by it; without projection it would."""
    from vit_lens.readers import text_span

    data = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=torch.float64)
    texts = torch.tensor([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [0.55, 0.0, -0.83]], dtype=torch.float64)
    span = text_span(data, texts, ["a", "b", "c"], k=3)
    assert span.captions == ("a", "b")  # c, projected, lies along a: nothing of it is left
    assert span.explained.tolist() == pytest.approx([0.9, 0.1])
    assert torch.equal(span.directions[0].abs(), torch.tensor([1.0, 0, 0], dtype=torch.float64))


def test_the_span_of_float32_contributions_is_not_their_rounding():
    from vit_lens.readers import text_span
    from vit_lens.readers.text_span import _span

    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(60, 5, generator=generator) @ torch.randn(5, 20, generator=generator)) / 3
    assert len(_span(data.double(), None, torch.finfo(torch.float32).eps)) == 5
    texts = torch.nn.functional.normalize(torch.randn(30, 20, generator=generator), dim=-1)
    found = text_span(data, texts, [str(i) for i in range(30)], k=12)
    assert len(found.captions) == 5 and float(found.explained.sum()) == pytest.approx(1.0, abs=1e-6)


def test_text_span_refuses():
    from vit_lens.errors import LensError
    from vit_lens.readers import text_span

    data, texts = torch.randn(5, 4), torch.eye(4)
    with pytest.raises(LensError, match="k=5: there are 4 captions"):
        text_span(data, texts, list("abcd"), k=5)
    with pytest.raises(LensError, match="rank=9: the contributions span 4"):
        text_span(data, texts, list("abcd"), k=1, rank=9)
    with pytest.raises(LensError, match="at least two images"):
        text_span(data[:1], texts, list("abcd"), k=1)
    with pytest.raises(LensError, match="3 texts of shape"):
        text_span(data, texts[:2], list("abc"), k=1)
    with pytest.raises(LensError, match="the same for all images"):
        text_span(torch.ones(5, 4), texts, list("abcd"), k=1)
    rounding = torch.tensor([[1.0], [1 + 2 * torch.finfo(torch.float32).eps], [1.0]]).expand(3, 4)
    with pytest.raises(LensError, match="the same for all images"):
        text_span(rounding, texts, list("abcd"), k=1)
    assert text_span(rounding.double(), texts.double(), list("abcd"), k=1).captions == ("a",)


def test_head_contributions_by_hand(vit, pixels):
    from vit_lens.readers import head_contributions

    values = head_contributions(vit, pixels, ["L2H4", "L0H1"], batch_size=2)
    _, cache = vit.run_with_cache(pixels)
    final = cache["blocks.2.hook_resid_post"][:, 0]
    scale = (((final - final.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + vit.cfg.eps).sqrt()
    for i, (layer, head) in enumerate([(2, 4), (0, 1)]):
        out = cache["z", layer][:, 0, head] @ vit.blocks[layer].attn.W_O[head]
        expected = (out - out.mean(-1, keepdim=True)) / scale * vit.ln_final.w @ vit.W_U
        assert (values[i] - expected).abs().max() < TOLERANCE


def test_text_spans_of_every_read_out(readout_vit):
    from vit_lens import Site
    from vit_lens.attribution import split_embedding
    from vit_lens.errors import LensError, TextError
    from vit_lens.readers import text_span, text_spans

    model, _ = readout_vit
    pixels, bank = random_pixels(model, 9), bank_for(model, 30)
    spans, frame = text_spans(model, pixels, bank, ["L1H2", "L2H0"], k=3, batch_size=4)
    _, cache = model.run_with_cache(pixels, rows="readout")
    for site in spans:
        own = text_span(split_embedding(cache)[site], bank.unit, bank.captions, k=3)
        assert own.captions == spans[site].captions
        rows = frame[frame["site"] == str(site)]
        assert tuple(rows["caption"]) == own.captions and list(rows["rank"]) == [0, 1, 2]
        assert rows["cumulative"].iloc[-1] == pytest.approx(float(own.explained.sum()), abs=1e-9)
    assert list(spans) == [Site(1, "head", 2), Site(2, "head", 0)]
    with pytest.raises(LensError, match=r"is about heads, not L1\.mlp"):
        text_spans(model, pixels, bank, ["L1.mlp"])
    with pytest.raises(TextError):
        text_spans(model, pixels, dataclasses.replace(bank, encoder_id="elsewhere"), ["L1H0"])
    with pytest.raises(LensError, match="no images"):
        text_spans(model, [], bank, ["L1H0"])


def test_heads_of_attention_pooling(pooling_vit, pooling_pixels):
    from vit_lens.attribution import split_embedding, split_pooling
    from vit_lens.readers import head_contributions

    values = head_contributions(pooling_vit, pooling_pixels, ["poolH1", "L1H2"])
    _, cache = pooling_vit.run_with_cache(pooling_pixels)
    assert (values[0] - split_pooling(cache)["poolH1"]).abs().max() < TOLERANCE
    assert (values[1] - split_embedding(cache)["L1H2"]).abs().max() < TOLERANCE


# ---- all of it, side by side -----------------------------------------------------------------------------------


def test_read_sites(seeing_vit, folder):
    from vit_lens import DiffusionLens, DiffusionSteeringLens
    from vit_lens.readers import Gallery, SiteMeans, read_sites, retrieval_lens, zero_shot_lens

    gallery, images, bank = Gallery.from_folder(seeing_vit, folder), pictures_of(folder), bank_for(seeing_vit)
    _, cache = seeing_vit.run_with_cache(seeing_vit.preprocess(images), rows="readout")
    lenses = [DiffusionSteeringLens(alpha=3.0), DiffusionLens()]
    sites = ["L1H3", "L2.resid_post"]
    means = SiteMeans.from_images(seeing_vit, random_pixels(seeing_vit, 4), sites)
    read = read_sites(
        cache, lenses, sites, bank=bank, gallery=gallery, images=images, means=[means], k=2, seed=5,
        controls=["random", "other"],
    )  # fmt: skip
    for reading, own in enumerate((["L1H3"], sites)):
        common = dict(lens=lenses[reading], means=[None, means][reading], controls=["random", "other"])
        shown = zero_shot_lens(cache, bank, own, generator=torch.Generator().manual_seed(5), **common)
        near = retrieval_lens(
            cache, gallery, own, images=images, k=2, generator=torch.Generator().manual_seed(5), **common
        )
        for table, expected in ((read.captions, shown.to_frame(2)), (read.images, near.to_frame())):
            part = table[table["reading"] == reading].drop(columns="reading").reset_index(drop=True)
            assert part.equals(expected)
    beside = read.of(1, "L1H3", control="random", reading=1)
    assert list(beside["captions"]) == ["raw", "centred"] and len(beside["images"]["centred"]) == 2
    table = read.captions
    first = table[
        (table["image"] == 1) & (table["site"] == "L1H3") & (table["control"] == "random")
        & (table["reading"] == 1) & (table["form"] == "raw") & (table["rank"] == 0)
    ].iloc[0]  # fmt: skip
    assert beside["captions"]["raw"][0] == {name: first[name] for name in ("caption", "cosine", "logit", "prob")}
    assert list(read.of(0, "L1H3")["captions"]) == ["raw"]
    json.dumps(beside)


def test_read_sites_refuses(vit, pixels):
    from vit_lens import DiffusionLens, DiffusionSteeringLens
    from vit_lens.errors import LensError
    from vit_lens.readers import SiteMeans, read_sites

    bank = bank_for(vit)
    _, cache = vit.run_with_cache(pixels, rows="readout")
    with pytest.raises(LensError, match="nothing to read with"):
        read_sites(cache, DiffusionLens(), "L1H1")
    with pytest.raises(LensError, match=r"none of the lenses is defined on L1\.resid_post"):
        read_sites(cache, [DiffusionSteeringLens(alpha=2)], ["L1H1", "L1.resid_post"], bank=bank)
    with pytest.raises(LensError, match="is the stream itself"):
        read_sites(cache, DiffusionSteeringLens(alpha=2), ["L1H1", "L1.resid_post"], bank=bank)
    means = SiteMeans.from_images(vit, pixels, ["L1H1"])
    with pytest.raises(LensError, match="belongs to none of the lenses"):
        read_sites(cache, DiffusionSteeringLens(alpha=2), "L1H1", bank=bank, means=[means])
    read = read_sites(cache, DiffusionLens(), "L1H1", bank=bank)
    assert read.images is None and list(read.of(0, "L1H1")) == ["captions"]
    with pytest.raises(LensError, match="no row for image 0, site L2H2"):
        read.of(0, "L2H2")


def test_mini_reads_what_it_sees():
    """On the embedded pair, without a download: the last layers name the sample images' shapes."""
    from vit_lens import DiffusionLens, HookedViT, TextBank
    from vit_lens.mini.shipped import sample_images
    from vit_lens.readers import Gallery, read_sites, zero_shot_lens

    model, images = HookedViT.from_pretrained("mini"), sample_images()
    bank = TextBank.mini([f"a {shape}" for shape in ("circle", "star", "heart", "moon")])
    _, cache = model.run_with_cache(model.preprocess(images), rows="readout")
    frame = zero_shot_lens(cache, bank).to_frame(k=1)
    assert list(frame[frame["site"] == "L7.resid_post"]["caption"]) == ["a star", "a heart"]
    gallery = Gallery.from_images(model, images)
    read = read_sites(cache, DiffusionLens(), "L7.resid_post", bank=bank, gallery=gallery, images=images, k=1)
    assert read.of(0, "L7.resid_post")["images"]["raw"][0]["name"] == str(images[1])


# ---- figures ---------------------------------------------------------------------------------------------------


def test_layers_are_drawn_raw_beside_centred(vit, pixels):
    from vit_lens.errors import LensError
    from vit_lens.figures import zero_shot_layers
    from vit_lens.readers import SiteMeans, zero_shot_lens

    bank, sites = bank_for(vit, 15), ["resid_post"]
    _, cache = vit.run_with_cache(pixels, rows="readout")
    means = SiteMeans.from_images(vit, random_pixels(vit, 4), sites)
    read = zero_shot_lens(cache, bank, sites, means=means, controls=["random"])
    figure = zero_shot_layers(read, 1, value="cosine", captions=["caption 3", "caption 0"])
    assert [list(heat.x) for heat in figure.data] == [["caption 3", "caption 0"]] * 2
    for heat, form in zip(figure.data, ("raw", "centred"), strict=True):
        assert np.array(heat.z) == pytest.approx(read.of(form)[1][:, [3, 0]].numpy())
        assert list(heat.y) == ["L0.resid_post", "L1.resid_post", "L2.resid_post"] and heat.zmin == -heat.zmax
        assert heat.zmax == pytest.approx(max(float(read.of(f)[1][:, [3, 0]].abs().max()) for f in ("raw", "centred")))
    control = zero_shot_layers(read, 1, control="random", captions=["caption 2"])
    assert np.array(control.data[1].z)[:, 0] == pytest.approx(read.probs("centred", "random")[1, :, 2].numpy())
    assert "control: random direction" in control.layout.title.text
    shown = [int(name.split()[1]) for name in zero_shot_layers(read).data[0].x]
    best = set(read.probs()[0].amax(0).argsort(descending=True)[:12].tolist())
    assert set(shown) == best and len(shown) == 12
    for wrong in (dict(image=3), dict(value="x"), dict(control="other")):
        with pytest.raises(LensError):
            zero_shot_layers(read, **wrong)


def test_captions_are_not_markup(vit, pixels):
    from vit_lens.figures import zero_shot_layers
    from vit_lens.readers import zero_shot_lens

    bank = dataclasses.replace(bank_for(vit, 2), captions=("a <b>cup</b>", "a & b"))
    _, cache = vit.run_with_cache(pixels, rows="readout")
    figure = zero_shot_layers(zero_shot_lens(cache, bank, "L1H1"))
    assert list(figure.data[0].x) == ["a &lt;b&gt;cup&lt;/b&gt;", "a &amp; b"]


def test_the_atlas_names_every_head(vit, pixels, pooling_vit, pooling_pixels):
    from vit_lens.errors import LensError
    from vit_lens.figures import caption_atlas
    from vit_lens.readers import zero_shot_lens

    for model, x in ((vit, pixels), (pooling_vit, pooling_pixels)):
        bank = bank_for(model, 9)
        _, cache = model.run_with_cache(x, rows="readout")
        read = zero_shot_lens(cache, bank, "heads")
        heat = caption_atlas(read, 2).data[0]
        for index, site in enumerate(read.embeddings.sites):
            row = list(heat.y).index("pool" if site.layer is None else str(site.layer))
            cosine, best = read.of()[2, index].max(-1)
            assert heat.z[row][site.head] == pytest.approx(float(cosine))
            assert heat.text[row][site.head] == bank.captions[int(best)]
        assert len(heat.y) == 3 + (model is pooling_vit)
    with pytest.raises(LensError, match="no head was read"):
        caption_atlas(zero_shot_lens(cache, bank, "resid_post"))


def test_patches_are_drawn_where_they_lie(seeing_vit):
    from vit_lens.figures import zero_shot_patches
    from vit_lens.readers import zero_shot_maps

    image, bank = picture(3, size=(60, 44)), bank_for(seeing_vit)
    _, cache = seeing_vit.run_with_cache(seeing_vit.preprocess([image]))
    maps = zero_shot_maps(cache, bank, ["L0.resid_post", "L2.resid_post"])
    thin = zero_shot_patches(maps, image, "caption 4", seeing_vit.preprocess_spec, opacity=0.3)
    assert {trace.opacity for trace in thin.data if trace.type == "heatmap"} == {0.3}
    figure = zero_shot_patches(maps, image, "caption 4", seeing_vit.preprocess_spec)
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    for index, heat in enumerate(heats):
        assert np.array(heat.z) == pytest.approx(maps.of()[0, index, :, :, 4].numpy())
        assert (heat.x0, heat.dx, heat.y0, heat.dy) == (5.0, 11.0, 5.0, 11.0)  # 22 pixels from -0.5, two patches
    assert [note.text for note in figure.layout.annotations] == ["L0.resid_post raw", "L2.resid_post raw"]


def test_the_contact_sheet_shows_the_neighbours(seeing_vit, folder):
    import base64
    import io

    from vit_lens.errors import LensError
    from vit_lens.figures import contact_sheet
    from vit_lens.readers import Gallery, SiteMeans, retrieval_lens

    gallery, images = Gallery.from_folder(seeing_vit, folder), pictures_of(folder)
    _, cache = seeing_vit.run_with_cache(seeing_vit.preprocess(images), rows="readout")
    means = SiteMeans.from_images(seeing_vit, random_pixels(seeing_vit, 4), ["L1H3", "L2.mlp"])
    near = retrieval_lens(cache, gallery, ["L1H3", "L2.mlp"], images=images, k=2, means=means, controls=["random"])
    figure = contact_sheet(near, images[1], 1, form="centred", sites=["L2.mlp"])
    shown = [Image.open(io.BytesIO(base64.b64decode(t.source.split(",")[1]))).convert("RGB") for t in figure.data]
    expected = [picture(1)]
    expected += [gallery.picture(i) for i in near.index["centred", ""][1, 1].tolist()]
    expected += [picture(1)]
    expected += [gallery.picture(i) for i in near.index["centred", "random"][1, 1].tolist()]
    assert [a.tobytes() for a in shown] == [b.tobytes() for b in expected]
    captions = [note.text for note in figure.layout.annotations]
    assert captions[0] == "L2.mlp" and captions[3] == "L2.mlp<br><i>random direction</i>"
    assert captions[1].startswith(f"{float(near.cosine['centred', ''][1, 1, 0]):.3f}<br>")
    with pytest.raises(LensError, match="L0H0 was not read"):
        contact_sheet(near, images[1], 1, sites=["L0H0"])
    with pytest.raises(LensError, match="no form 'best'"):
        contact_sheet(near, images[1], 1, form="best")


# ---- the command line ------------------------------------------------------------------------------------------


def run_cli(*args):
    from typer.testing import CliRunner

    from vit_lens.cli import app

    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_command_reads_mini(tmp_path):
    import pandas as pd

    from vit_lens.mini.shipped import sample_images

    star, heart = sample_images()
    out = tmp_path / "read"
    result = run_cli(
        "readout", star, heart, "--captions", "a star,a heart, a moon", "--gallery", star.parent, "--reference-images",
        star.parent, "--sites", "L7.resid_post,L5H2", "-k", 1, "--controls", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"{star.name}  L7.resid_post  raw: a star (" in result.output
    table = pd.read_csv(out / "captions.csv")
    last = table[(table["site"] == "L7.resid_post") & (table["form"] == "raw") & table["control"].isna()]
    assert list(last["caption"]) == ["a star", "a heart"] and list(last["image_name"]) == [str(star), str(heart)]
    near = pd.read_csv(out / "images.csv")
    assert set(near.loc[near["image"] == 0, "name"]) == {heart.name}
    assert (out / "gallery.safetensors").is_file()


def test_the_command_takes_files_of_captions(tmp_path, monkeypatch):
    from vit_lens import TextBank
    from vit_lens.cli import readers
    from vit_lens.mini.shipped import sample_images

    star, heart = sample_images()
    (tmp_path / "words.txt").write_text("a star\n\na heart\na star\n")
    TextBank.mini(["a moon", "a heart"]).save(tmp_path / "bank.safetensors")
    monkeypatch.setattr(readers, "_BATCH", 1)
    for captions, expected in (("words.txt", "a star"), ("bank.safetensors", "a heart")):
        result = run_cli("readout", star, heart, "--captions", tmp_path / captions, "-k", 1, "--sites", "L7.resid_post")
        assert result.exit_code == 0, result.output
        lines = [line.split(" raw: ")[1].rsplit(" (", 1)[0] for line in result.output.splitlines()]
        assert lines[1] == "a heart" and (captions == "bank.safetensors" or lines[0] == expected)
    assert len(run_cli("readout", star, "--sites", "L7.resid_post").output.split("), ")) == 5
    for args, message in (
        (["--captions", tmp_path / "none.txt"], "no file of captions"),
        (["--model", "ViT-B-32", "--tag", "openai"], "give --captions"),
        (["--captions", "an elephant"], "does not know 'elephant'"),
    ):
        result = run_cli("readout", star, *args)
        assert message in str(result.exception)


def test_the_command_makes_the_bank_of_the_model(monkeypatch):
    from vit_lens import TextBank
    from vit_lens.cli.flags import Tower
    from vit_lens.cli.intake import read_captions

    asked = []
    monkeypatch.setattr(TextBank, "from_open_clip", lambda *a, **k: asked.append(("open_clip", *a, k["quick_gelu"])))
    monkeypatch.setattr(TextBank, "from_pretrained", lambda *a, **k: asked.append(("hf", *a)))
    for model, tag in (
        ("ViT-B-32", "openai"), ("ViT-B-32/openai", None), ("open_clip/ViT-B-32/openai", None), ("me/clip", None),
    ):  # fmt: skip
        read_captions("a, b", Tower(model=model, tag=tag, quick_gelu=True))
    assert asked == [("open_clip", "ViT-B-32", "openai", ["a", "b"], True)] * 3 + [("hf", "me/clip", ["a", "b"])]


# ---- the guide -------------------------------------------------------------------------------------------------


def test_the_guide_runs_as_written(tmp_path, monkeypatch):
    import re
    from pathlib import Path

    guide = (Path(__file__).parent.parent / "docs" / "readouts.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(snippets) == 9
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile("\n".join(snippets), "readouts.md", "exec"), names)
    assert list(names["table"].columns) == ["site", "layer", "head", "rank", "caption", "explained", "cumulative"]
    for frame, columns in (
        (names["layers"].to_frame(1), "image, site, form, rank, caption, cosine, logit, prob"),
        (names["near"].to_frame(), "image, site, control, form, rank, name, cosine, copies"),
    ):
        assert set(columns.split(", ")) <= set(frame.columns)
