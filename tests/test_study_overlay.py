"""The overlay study: pasting, rankings and removal against slow ones, controls that can tell, wrong input."""

import itertools

import numpy as np
import pytest
import tiny_kandinsky
import torch
from conftest import randomize
from PIL import Image

from vit_lens.errors import StudyError

SIZE = 22
rng = np.random.default_rng(5)


def pictures(n, seed, size=(SIZE, SIZE)):
    """Smooth random pictures, so that a paste is a change of some patches."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BILINEAR)) for one in coarse]


def spec(**changes):
    from vit_lens import PreprocessSpec

    fixed = dict(
        size=(SIZE, SIZE), mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25), interpolation="bicubic", resize_mode="shortest"
    )
    return PreprocessSpec(**(fixed | changes))


@pytest.fixture(scope="module")
def model():
    """Three layers of five heads in float64, random weights, the tiny decoder's width."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from vit_lens import HookedViT

    config = CLIPVisionConfig(
        hidden_size=35, intermediate_size=44, num_hidden_layers=3, num_attention_heads=5, image_size=SIZE,
        patch_size=11, projection_dim=tiny_kandinsky.D_EMBED, hidden_act="quick_gelu",
    )  # fmt: skip
    tower = randomize(CLIPVisionModelWithProjection(config).double().eval(), seed=3)
    return HookedViT.from_module(tower, preprocess_spec=spec()).requires_grad_(False)


@pytest.fixture(scope="module")
def overlays():
    from vit_lens.studies.overlay import Overlay

    spot = np.zeros((9, 8, 4), np.uint8)
    spot[2:, 1:] = (250, 10, 30, 255)
    ring = np.zeros((SIZE, SIZE, 4), np.uint8)
    ring[12:, 13:] = (5, 240, 90, 201)
    return [Overlay("spot", spot, "top left"), Overlay("ring", ring, "full")]


@pytest.fixture(scope="module")
def setup(model, tmp_path_factory):
    from vit_lens.studies import StudyImages, make_setup

    images = StudyImages(pictures(9, 0), pictures(13, 1), pictures(12, 2))
    lenses = ("diffusion", "dsl:alpha=3", "dsl-mean:alpha=5")
    return make_setup(model, images, lenses=lenses, out=tmp_path_factory.mktemp("overlay"), seed=4)


@pytest.fixture(scope="module")
def scenes(setup, overlays):
    from vit_lens.studies.overlay.ranking import compose

    return compose(setup, setup.images.test[:4], overlays)


@pytest.fixture(scope="module")
def removal(setup, scenes):
    from vit_lens import Site
    from vit_lens.studies.overlay.removal import Removal

    return Removal(setup.model, scenes, Site.heads(setup.model), setup.ablation, folder=setup.out / "fixture")


# ---- pasting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "top", "left"),
    [("top left", 0, 0), ("top right", 0, 13), ("bottom left", 11, 0), ("bottom right", 11, 13), ("centre", 6, 6)],
)
def test_an_overlay_goes_where_it_is_told_pixel_by_pixel(at, top, left):
    from vit_lens.studies.overlay import Overlay, paste

    base = rng.integers(0, 256, (17, 19, 3), dtype=np.uint8)
    rgba = rng.integers(0, 256, (6, 6, 4), dtype=np.uint8)
    found, before = paste(base, Overlay("noise", rgba, at)), base.copy()
    for row, column, channel in itertools.product(range(17), range(19), range(3)):
        expected = float(base[row, column, channel])
        if top <= row < top + 6 and left <= column < left + 6:
            *colour, alpha = (int(x) for x in rgba[row - top, column - left])
            expected = (255 - alpha) / 255 * expected + alpha / 255 * colour[channel]
        assert abs(found[row, column, channel] - expected) <= 0.5 + 1e-9, (row, column)
    assert (base == before).all()


def test_a_share_of_the_width_keeps_the_overlays_own_shape():
    from vit_lens.studies.overlay import Overlay, paste

    wide = Overlay("wide", np.full((10, 40, 4), 255, np.uint8), "bottom right", 0.5)
    changed = (paste(np.zeros((30, 32, 3), np.uint8), wide) == 255).all(-1)
    assert changed.sum() == 16 * 4 and changed[26:, 16:].all()


def test_a_full_overlay_is_stretched_over_the_whole_image():
    from vit_lens.studies.overlay import Overlay, paste

    left = np.zeros((2, 2, 4), np.uint8)
    left[:, 0] = (200, 100, 50, 255)
    found = paste(np.zeros((8, 12, 3), np.uint8), Overlay("half", left, "full"))
    assert (found[:, :2] == (200, 100, 50)).all() and (found[:, -2:] == 0).all()


def test_overlays_of_the_world_are_what_the_world_paints():
    from dataclasses import replace

    from vit_lens.mini import world
    from vit_lens.studies.overlay import paste
    from vit_lens.studies.overlay.mini_set import MINI_OVERLAYS, study_overlays

    bare = world.sample_scenes(6, np.random.default_rng(0), overlay=0.0)
    bases = world.render(bare)
    for (symbol, corner), overlay in zip(MINI_OVERLAYS, study_overlays(), strict=True):
        painted = world.render([replace(scene, symbol=symbol, corner=corner) for scene in bare]).astype(int)
        pasted = np.stack([paste(base, overlay) for base in bases]).astype(int)
        assert abs(painted - pasted).max() <= 1 and (painted == pasted).mean() > 0.98
        assert (painted != bases).any(-1).sum() > 6 * 200


def test_what_a_model_sees_is_pasted_on_and_not_cut_again(model):
    from vit_lens import HookedViT
    from vit_lens.studies.overlay.pasting import as_seen, pixels_of_seen

    cropping, images = HookedViT(model.cfg, preprocess_spec=spec(resize_edge=26)), pictures(2, 3, size=(31, 40))
    seen = as_seen(cropping, images)
    assert seen.shape == (2, SIZE, SIZE, 3)
    assert torch.equal(pixels_of_seen(cropping, seen), cropping.preprocess(images))


def test_an_overlay_is_read_from_a_file_with_transparency(tmp_path):
    from vit_lens.studies.overlay import Overlay

    rgba = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "noise.png")
    overlay = Overlay.from_file(tmp_path / "noise.png", at="centre", scale=0.5)
    assert (overlay.rgba == rgba).all() and (overlay.name, overlay.at, overlay.scale) == ("noise", "centre", 0.5)
    palette = Image.fromarray(rng.integers(0, 4, (5, 7), dtype=np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    palette.save(tmp_path / "palette.png", transparency=1)
    alpha = Overlay.from_file(tmp_path / "palette.png").rgba[..., 3]
    assert (alpha == np.where(np.asarray(palette) == 1, 0, 255)).all()


def test_files_that_are_no_overlay_are_refused(tmp_path):
    from vit_lens.studies.overlay import Overlay

    Image.new("RGB", (4, 4)).save(tmp_path / "opaque.png")
    Image.new("RGBA", (4, 4)).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for name, message in (
        ("opaque.png", "has no alpha channel"),
        ("empty.png", "transparent everywhere"),
        ("broken.png", "cannot be read"),
        ("absent.png", "cannot be read"),
    ):
        with pytest.raises(StudyError, match=message):
            Overlay.from_file(tmp_path / name)


def test_an_overlay_that_does_not_fit_is_refused(setup):
    from vit_lens.studies.overlay import Overlay, paste
    from vit_lens.studies.overlay.ranking import compose

    rgba, base = np.full((5, 30, 4), 255, np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)
    with pytest.raises(StudyError, match="30 x 5 pixels, larger than the image, which is 22 x 22"):
        paste(base, Overlay("wide", rgba))
    with pytest.raises(StudyError, match="larger than the image"):
        paste(base, Overlay("tall", np.full((30, 5, 4), 255, np.uint8), "centre", 1))
    with pytest.raises(StudyError, match="no position 'top'; nearest: 'top left'"):
        Overlay("wide", rgba, "top")
    with pytest.raises(StudyError, match=r"scale=1\.2; expected"):
        Overlay("wide", rgba, scale=1.2)
    with pytest.raises(StudyError, match=r"leave scale=0\.5"):
        Overlay("wide", rgba, "full", 0.5)
    faint = np.zeros((4, 4, 4), np.uint8)
    faint[..., 3] = 1
    with pytest.raises(StudyError, match="'faint' changes no pixel of image 0"):
        compose(setup, [np.zeros((SIZE, SIZE, 3), np.uint8)], [Overlay("faint", faint)])


# ---- rankings -----------------------------------------------------------------------------------------------


def toward(model, scenes, overlay):
    alone, blank = (model(model.preprocess([one])) for one in (scenes.alone[overlay], scenes.blank[0]))
    return alone[0] - blank[0]


def test_the_blank_is_the_mean_colour_of_the_anchor_images(setup, scenes):
    colour = np.mean([image.mean((0, 1)) for image in setup.images.anchor], axis=0)
    assert abs(scenes.blank[0].astype(float) - colour).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("name", ["diffusion", "dsl:alpha=3", "dsl-mean:alpha=5"])
def test_a_lens_ranks_by_the_cosine_of_its_change_with_the_overlays(setup, scenes, name):
    from vit_lens import Site
    from vit_lens.studies.overlay.ranking import from_embeddings

    model, lens, sites = setup.model, setup.lenses[name], Site.heads(setup.model)
    found = from_embeddings(model, scenes, lens, sites)
    for overlay, site in ((0, 2), (1, 13)):
        cosines = []
        for base, both in zip(scenes.base, scenes.both[overlay], strict=True):
            read = []
            for image in (base, both):
                pixels = model.preprocess([image])
                _, cache = model.run_with_cache(pixels)
                read.append(model.run_with_hooks(pixels, fwd_hooks=lens.hooks(cache, sites[site]))[0])
            change = read[1] - read[0]
            cosines.append(float(torch.nn.functional.cosine_similarity(change, toward(model, scenes, overlay), dim=0)))
        assert found[overlay, site] == pytest.approx(np.mean(cosines), abs=1e-5)  # lens embeddings are kept in float32


def test_a_head_that_writes_nothing_shows_nothing_of_an_overlay(setup, scenes):
    import copy

    from vit_lens import Site
    from vit_lens.lenses import DiffusionLens
    from vit_lens.studies.overlay.ranking import from_embeddings

    silent = copy.deepcopy(setup.model)
    silent.blocks[1].attn.W_O.data[2] = 0
    found = from_embeddings(silent, scenes, DiffusionLens(), Site.heads(silent))
    assert (found[:, 7] == 0).all() and (np.delete(found, 7, axis=1) != 0).all()


def test_pictures_rank_by_what_readers_see_of_them_with_nested_noise(setup, scenes, tmp_path):
    from dataclasses import replace

    from vit_lens import HookedViT, KandinskyDecoder, Site
    from vit_lens.studies import Judge, Pictures
    from vit_lens.studies.overlay.ranking import from_pictures

    model, sites = setup.model, [Site.parse("L0H1"), Site.parse("L2H4")]
    decoder = KandinskyDecoder(*tiny_kandinsky.parts(), encoder=model.encoder_id, decoder_id="tiny")
    other = randomize(HookedViT(model.cfg, preprocess_spec=spec(), encoder_id="other").double(), seed=9)
    judge = Judge(other.requires_grad_(False), None)
    drawer = Pictures(
        model=model,
        decoder=decoder,
        judge=judge,
        settings=decoder.settings(steps=1, guidance=1.0, height=16, width=16),
        folder=tmp_path,
        batch_size=8,
    )
    drawn = replace(setup, pictures=drawer, noise_seeds=(7, 3))
    few = replace(scenes, base=scenes.base[:3], both=scenes.both[:, :3])
    lens = setup.lenses["diffusion"]
    found = from_pictures(drawn, few, lens, sites, label="test")
    assert set(found) == {"own", "judge"}
    for reader, seer in (("own", model), ("judge", other)):
        expected = np.zeros((2, 2))
        for overlay, base in itertools.product(range(2), range(3)):
            seen = []
            for image in (few.base[base], few.both[overlay, base]):
                _, cache = model.run_with_cache(model.preprocess([image]))
                shown, _ = drawer.draw(lens.embed(cache, sites)[0].float(), noise_seed=(7, 3, 7)[base])
                seen.append(seer(seer.preprocess(list(shown.numpy()))).float())
            along = toward(seer, few, overlay).float()
            expected[overlay] += torch.nn.functional.cosine_similarity(seen[1] - seen[0], along[None]).numpy() / 3
        assert found[reader] == pytest.approx(expected, abs=0.02)  # pictures are rounded to 8 bits


def test_pictures_of_several_anchors_rank_by_their_mean(setup, scenes, tmp_path):
    from dataclasses import replace

    import tiny_kandinsky

    from vit_lens import CounterfactualLens, KandinskyDecoder, Site
    from vit_lens.lenses import Anchors
    from vit_lens.studies import Pictures
    from vit_lens.studies.overlay.ranking import from_pictures

    model, sites = setup.model, [Site.parse("L0H1"), Site.parse("L2H4")]
    decoder = KandinskyDecoder(*tiny_kandinsky.parts(), encoder=model.encoder_id, decoder_id="tiny")
    few = replace(scenes, base=scenes.base[:2], both=scenes.both[:, :2])
    drawer = Pictures(
        model=model, decoder=decoder, judge=None, folder=tmp_path, batch_size=8,
        settings=decoder.settings(steps=1, guidance=1.0, height=16, width=16),
    )  # fmt: skip
    drawn = replace(setup, pictures=drawer)
    lens = CounterfactualLens(
        anchors=Anchors.of(model, setup.anchor_pixels[:2]), norms=setup.anchor.differences, share=0.7
    )
    seen = []

    def how(one):
        seen.append(one.anchors.names)
        return lambda cache: one.embed(cache, sites)

    found = from_pictures(drawn, few, lens, sites, label="both")["own"]
    each = [from_pictures(drawn, few, one, sites, label="one")["own"] for one in lens.each()]
    assert found == pytest.approx(np.mean(each, axis=0), abs=1e-9) and np.abs(each[0] - each[1]).max() > 1e-4
    assert from_pictures(drawn, few, lens, sites, label="how", how=how)["own"] == pytest.approx(found, abs=1e-9)
    assert seen == [("anchor 0",), ("anchor 1",)]


def test_norms_are_those_of_what_heads_write_at_the_readout_row(setup, scenes):
    from vit_lens import Site
    from vit_lens.studies.overlay.ranking import norms

    model, sites = setup.model, Site.heads(setup.model)
    found = norms(setup, scenes, sites)

    def written(image, site):
        _, cache = model.run_with_cache(model.preprocess([image]))
        return cache[site.hook_name][0, 0, site.head] @ model.blocks[site.layer].attn.W_O[site.head]

    def size(x):
        return float((x - x.mean()).norm())

    for overlay, place in itertools.product(range(2), (3, 11)):
        site, expected = sites[place], {"norm of h": 0.0, "norm of h minus its mean": 0.0, "norm of h's change": 0.0}
        mean = torch.stack([written(image, site) for image in setup.images.anchor]).mean(0)
        for base, both in zip(scenes.base, scenes.both[overlay], strict=True):
            h = written(both, site)
            values = (size(h), size(h - mean), size(h - written(base, site)))
            expected = {name: expected[name] + value / 4 for name, value in zip(expected, values, strict=True)}
        for name, value in expected.items():
            assert found[name][overlay, place] == pytest.approx(value, rel=1e-9)


# ---- removal ------------------------------------------------------------------------------------------------


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def removed(setup, scenes, overlay, base, heads):
    """One image, its heads set to their means by hand, in a run from the pixels: to base, to overlay, left."""
    model = setup.model

    def to_mean(act, hook):
        out = act.clone()
        for site in heads:
            if site.hook_name == hook.name:
                out[:, :, site.head] = setup.ablation.z[site.layer][:, site.head]
        return out

    hooks = [(name, to_mean) for name in {site.hook_name for site in heads}]
    clean = model(model.preprocess([scenes.base[base]]))[0]
    pixels = model.preprocess([scenes.both[overlay, base]])
    whole, found = model(pixels)[0], model.run_with_hooks(pixels, fwd_hooks=hooks)[0]
    alone = model(model.preprocess([scenes.alone[overlay]]))[0]
    left = float((found - clean) @ (whole - clean) / (whole - clean).norm() ** 2)
    return np.array([cosine(found, clean), cosine(found, alone), left])


def t_of(setup, scenes, overlay, heads):
    reads = [removed(setup, scenes, overlay, base, heads) for base in range(len(scenes.base))]
    return float(np.mean([to_base - to_overlay for to_base, to_overlay, _ in reads]))


def test_heads_are_taken_away_as_hooks_would(setup, scenes, removal):
    from vit_lens.studies.overlay.removal import random_orders

    order = random_orders(1, 2, 15, np.random.default_rng(0))[0]
    assert (order[0] != order[1]).any()
    (found,) = removal.run([order], [0, 1, 4, 15])
    for overlay, base, (place, k) in itertools.product(range(2), range(4), enumerate([0, 1, 4, 15])):
        heads = [removal.sites[i] for i in order[overlay, :k]]
        expected = removed(setup, scenes, overlay, base, heads)
        assert found[:, overlay, base, place] == pytest.approx(expected, abs=1e-10)
    assert found[2, :, :, 0] == pytest.approx(1.0)


def test_total_effects_and_the_greedy_order_are_those_of_one_run_after_the_other(setup, scenes, removal):
    found, greedy = removal.alone(), removal.greedy(2)
    for overlay in range(2):
        before = t_of(setup, scenes, overlay, [])
        own = [t_of(setup, scenes, overlay, [site]) - before for site in removal.sites]
        assert found[overlay] == pytest.approx(own, abs=1e-10)
        taken = []
        for _ in range(2):
            left = [i for i in range(15) if i not in taken]
            values = [t_of(setup, scenes, overlay, [removal.sites[j] for j in [*taken, i]]) for i in left]
            taken.append(left[int(np.argmax(values))])
        rest = sorted((i for i in range(15) if i not in taken), key=lambda i: -own[i])
        assert greedy[overlay].tolist() == [*taken, *rest]


def test_the_greedy_order_takes_no_head_twice_though_every_further_loss_hurts(setup, scenes, removal, tmp_path):
    from dataclasses import replace

    from vit_lens.studies.overlay.removal import Removal

    one = replace(scenes, base=scenes.base[:1], both=scenes.both[:1, :1], alone=scenes.alone[:1])
    order = Removal(setup.model, one, removal.sites, setup.ablation, folder=tmp_path).greedy(14)
    assert sorted(order[0].tolist()) == list(range(15))


def test_direct_effects_are_those_of_a_run_with_later_outputs_frozen(setup, scenes, removal):
    model, found = setup.model, removal.directly()
    for overlay, place in itertools.product(range(2), (0, 6, 13)):
        site, rises = removal.sites[place], []
        for base in range(4):
            pixels = model.preprocess([scenes.both[overlay, base]])
            clean, alone = (model(model.preprocess([x]))[0] for x in (scenes.base[base], scenes.alone[overlay]))
            whole, cache = model.run_with_cache(pixels)

            def to_mean(act, hook, site=site):
                out = act.clone()
                out[:, :, site.head] = setup.ablation.z[site.layer][:, site.head]
                return out

            later = [f"blocks.{site.layer}.hook_mlp_out"] + [
                f"blocks.{n}.hook_{part}" for n in range(site.layer + 1, 3) for part in ("attn_out", "mlp_out")
            ]
            frozen = [(name, lambda act, hook, value=cache[name]: value) for name in later]
            edited = model.run_with_hooks(pixels, fwd_hooks=[(site.hook_name, to_mean), *frozen])[0]
            t = [cosine(x, clean) - cosine(x, alone) for x in (whole[0], edited)]
            rises.append(t[1] - t[0])
        assert found[overlay, place] == pytest.approx(np.mean(rises), abs=1e-10)


def test_direct_ablation_in_closed_form_on_every_read_out(readout_vit, pooling_vit, pooling_pixels):
    from vit_lens import ReferenceMeans, Site
    from vit_lens.studies.overlay.ranking import ablated_directly

    generator = torch.Generator().manual_seed(1)
    vit = readout_vit[0]
    pixels = torch.randn(4, 3, *vit.cfg.image_size, dtype=torch.float64, generator=generator)
    for model, images in ((vit, pixels), (pooling_vit, pooling_pixels)):
        means = ReferenceMeans.from_images(model, images.flip(-1))
        _, cache = model.run_with_cache(images)
        sites = Site.heads(model)
        found = ablated_directly(cache, sites, means)
        for place, site in enumerate(sites):
            delta = means.output(model, site) - _readout(cache, model, site)
            if site.is_pool:
                expected = model.readout.read_pooled(model.attn_pool.finish(_pool_sum(cache) + delta[:, 0]))
            else:
                last = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
                expected = model.embed_rows(model.readout_rows(last) + delta)
            assert (found[:, place] - expected).abs().max() < 1e-10


def _readout(cache, model, site):
    """What a head writes at the read-out rows."""
    z = cache[site.hook_name][:, :, site.head]
    attn = model.attn_pool.attn if site.is_pool else model.blocks[site.layer].attn
    return (z if site.is_pool else model.readout_rows(z)) @ attn.W_O[site.head]


def _pool_sum(cache):
    parts = [cache[name] for name in ("attn_pool.hook_attn_out", "attn_pool.hook_mlp_out") if name in cache.cache_dict]
    return torch.stack(parts).sum(0)[:, 0]


def test_removal_goes_on_from_what_is_kept(setup, scenes, removal, monkeypatch, tmp_path):
    from vit_lens.studies.overlay import removal as room

    order = np.stack([np.arange(15), np.arange(15)[::-1]])
    fresh = room.Removal(setup.model, scenes, removal.sites, setup.ablation, folder=tmp_path)
    (first,) = fresh.run([order], [0, 2, 5])

    def refuse(*args):
        raise AssertionError("a finished run was run again")

    again = room.Removal(setup.model, scenes, removal.sites, setup.ablation, folder=tmp_path)
    monkeypatch.setattr(room, "run_and_read", refuse)
    assert (again.run([order], [0, 2, 5])[0] == first).all()
    few = room.Removal(setup.model, scenes, removal.sites[::-1], setup.ablation, folder=tmp_path)
    with pytest.raises(AssertionError, match="run again"):
        few.run([order], [0, 2, 5])


# ---- scores -------------------------------------------------------------------------------------------------


def test_the_area_is_the_mean_of_t_over_the_logarithm():
    from vit_lens.studies.overlay.scoring import area

    found = rng.normal(size=(3, 2, 5, 4))
    steps, t = [0, 1, 3, 7], found[0] - found[1]  # log2(1 + k) is 0, 1, 2, 3
    expected = (t[..., 0] / 2 + t[..., 1] + t[..., 2] + t[..., 3] / 2) / 3
    assert area(found, steps) == pytest.approx(expected, abs=1e-12)


def test_an_area_is_scaled_between_random_and_greedy():
    from vit_lens.studies.overlay.scoring import scaled

    low, high = rng.normal(size=(2, 3, 4))
    high += 9
    assert scaled(low, low, high) == pytest.approx(0) and scaled(high, low, high) == pytest.approx(1)
    assert scaled(2 * high - low, low, high) == pytest.approx(2)
    assert scaled(low, high, low) is None


def test_scores_stand_beside_nulls_and_the_order_of_another_overlay(removal):
    from vit_lens.studies.overlay.orders import Ranking
    from vit_lens.studies.overlay.removal import random_orders, sorted_by
    from vit_lens.studies.overlay.scoring import AREA, Trial, area, left_after

    greedy, steps = removal.greedy(4), [0, 1, 2, 4, 8, 15]
    randoms = random_orders(3, 2, 15, np.random.default_rng(1))
    trial = Trial(removal, greedy, randoms, steps=steps, seed=0)
    best = -greedy.argsort(axis=1).astype(float)
    placebo = rng.normal(size=(2, 15))
    scores = {s.measure: s for s in trial.scores(Ranking(reading="best", scores=best, placebos=[placebo]))}
    assert scores[AREA].estimate.value == pytest.approx(1.0) and scores[AREA].n == 4
    assert scores[AREA].nulls["random order"].mean == pytest.approx(0.0, abs=1e-9)
    measured = removal.run([*randoms, greedy, sorted_by(placebo), np.roll(greedy, 1, axis=0)], steps)
    areas = np.array([area(one, steps).mean() for one in measured])
    floor, ceiling = areas[:3].mean(), areas[3]
    assert scores[AREA].nulls["equal-norm placebo"].mean == pytest.approx((areas[4] - floor) / (ceiling - floor))
    beside = {"other": [placebo], "covariance": [best, placebo]}
    more = Ranking(reading="best", scores=best, stand_ins=beside)
    nulls = next(s.nulls for s in trial.scores(more) if s.measure == AREA)
    assert "equal-norm placebo" not in nulls and nulls["covariance-matched placebo"].n_draws == 2
    assert nulls["another image's output"].mean == pytest.approx((areas[4] - floor) / (ceiling - floor))
    assert scores[AREA].controls["order of another overlay"] == pytest.approx((areas[5] - floor) / (ceiling - floor))
    assert scores[left_after()].estimate.value == pytest.approx(measured[3][2, :, :, 3].mean())
    row = next(r for r in trial.trajectories if r["reading"] == "best" and r["heads"] == 4)
    assert row["T"] == pytest.approx((measured[3][0] - measured[3][1])[..., 3].mean())
    assert row["left"] == pytest.approx(measured[3][2, ..., 3].mean())


def test_where_greedy_gains_nothing_the_area_is_undefined(removal):
    from vit_lens.studies.overlay.orders import Ranking
    from vit_lens.studies.overlay.scoring import AREA, Trial

    order = removal.greedy(1)
    trial = Trial(removal, order, [order], steps=[0, 1, 15], seed=0)
    (score,) = trial.scores(Ranking(reading="best", scores=-order.argsort(axis=1).astype(float)))
    assert score.measure == AREA and score.estimate.value is None and "no better" in score.estimate.why
    assert score.nulls["random order"].n_draws == 0


# ---- the study ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(setup, overlays):
    from vit_lens.studies.overlay.study import overlay_study

    return overlay_study(setup, overlays, n=5, n_rank=2, greedy_steps=2, draws=2, decoded=(), command="made by hand")


def test_the_study_scores_every_lens_and_baseline_beside_its_controls(result, setup, tmp_path):
    from vit_lens.studies import load_result
    from vit_lens.studies.overlay.scoring import AREA, left_after

    lenses = ["diffusion", "dsl:alpha=3", "dsl-mean:alpha=5"]
    plain = ["norm of h", "norm of h minus its mean", "norm of h's change", "direct effect", "total effect (static)"]
    for measure in (AREA, left_after()):
        assert [s.reading for s in result.scores if s.measure == measure] == [*lenses, *plain]
    for score in result.scores:
        assert set(score.controls) == {"order of another overlay", "untrained encoder"}
        beside = {"equal-norm placebo", "another image's output", "covariance-matched placebo"}
        before = score.reading in lenses
        assert set(score.nulls) == {"random order"} | (beside if before else set())
        assert not before or {score.nulls[name].n_draws for name in beside} == {2}
        assert score.n == 5 and (score.estimate.low is None or score.estimate.low <= score.estimate.value)
    assert load_result(result.save(tmp_path)).scores == result.scores
    assert "made by hand" in (tmp_path / "result.json").read_text()
    heads = result.frame("heads")
    assert len(heads) == 30 and sorted(heads["greedy place"][:15]) == list(range(1, 16))
    assert result.options["n_select"] == 4 and result.options["steps"] == [0, 1, 2, 3, 4, 6, 8, 12]


def test_the_study_chooses_orders_on_other_images_than_it_tests(setup, overlays, result):
    """Orders come from the selection images alone: with other bases they are the same."""
    from dataclasses import replace

    from vit_lens.studies import StudyImages
    from vit_lens.studies.overlay.study import overlay_study

    other = StudyImages([*pictures(5, 77), *setup.images.test[5:]], setup.images.anchor, setup.images.ablation)
    moved = replace(setup, images=other)
    again = overlay_study(moved, overlays, n=5, n_rank=2, greedy_steps=2, draws=2, decoded=(), untrained=False)
    assert again.tables["heads"] == result.tables["heads"]
    assert again.tables["trajectories"] != result.tables["trajectories"]


def test_the_only_head_that_writes_is_found(setup, scenes, tmp_path):
    import copy
    from dataclasses import replace

    from vit_lens import ReferenceMeans, Site
    from vit_lens.lenses import DiffusionLens
    from vit_lens.studies.overlay.ranking import from_embeddings, norms
    from vit_lens.studies.overlay.removal import Removal

    lone, sites = copy.deepcopy(setup.model), Site.heads(setup.model)
    for site, block in ((site, lone.blocks[site.layer]) for site in sites if str(site) != "L1H3"):
        block.attn.W_O.data[site.head] = 0
        block.mlp.W_out.data.zero_()
    anchor, ablation = (
        ReferenceMeans.from_images(lone, images, positions=positions)
        for images, positions in ((setup.images.anchor, "readout"), (setup.images.ablation, "all"))
    )
    removal = Removal(lone, scenes, sites, ablation, folder=tmp_path)
    found = norms(replace(setup, model=lone, anchor=anchor), scenes, sites)
    found |= {"lens": from_embeddings(lone, scenes, DiffusionLens(), sites)}
    found |= {"total": removal.alone(), "direct": removal.directly()}
    for name, scores in found.items():
        assert (scores[:, 8] != 0).all() and abs(np.delete(scores, 8, axis=1)).max() < 1e-12, name
    assert found["total"] == pytest.approx(found["direct"], abs=1e-12)  # nothing after it reads it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(n=8, n_rank=2), "9 test images for 8 bases and at least 2 others"),
        (dict(n=4), "at least 5 are bases"),
        (dict(overlays=[]), "give at least one"),
        (dict(overlays=[0, 0]), "each under a name of its own"),
        (dict(decoded=("dsl:share=1",)), "the setup's lenses are diffusion"),
        (dict(decoded=("diffusion",)), "needs a decoder"),
        (dict(decoded_placebos=("diffusion",)), "not among decoded=\\[\\]"),
        (dict(draws=0), "draws=0: give at least 1"),
    ],
)
def test_what_cannot_be_studied_is_said(setup, overlays, changes, message):
    from vit_lens.studies.overlay.study import overlay_study

    changes = dict(n=5, n_rank=2, decoded=()) | changes
    chosen = [overlays[i] for i in changes.pop("overlays", [0, 1])]
    with pytest.raises(StudyError, match=message):
        overlay_study(setup, chosen, **changes)


# ---- figure and command -------------------------------------------------------------------------------------


def test_the_figure_draws_every_order_once(result):
    from vit_lens.studies.overlay.figures import trajectory_figure

    frame = result.frame("trajectories")
    frame["reading"] = frame["reading"].str.replace("norm of h's", "<b>norm")
    figure = trajectory_figure(frame)
    names = [trace.name for trace in figure.data]
    assert len(names) == 11 and "random orders, 95%" in names and "dsl-mean:alpha=5 (embedding)" in names
    assert not any("<b>" in name for name in names)
    best = next(trace for trace in figure.data if trace.name == "greedy (upper bound)")
    assert list(best.y) == frame.loc[frame["reading"] == "greedy (upper bound)", "T"].tolist()


def test_the_command_names_what_does_not_go_together(tmp_path):
    from vit_lens.studies.command_parts import decoded
    from vit_lens.studies.overlay.command import _overlays

    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "a.png")
    files = [tmp_path / "a.png"] * 2
    found = _overlays(files, ["centre"], [0.25, 0.5], None)
    assert [(o.at, o.scale) for o in found] == [("centre", 0.25), ("centre", 0.5)]
    assert len(_overlays(None, None, None, None)) == 4
    with pytest.raises(StudyError, match="--at is given 3 times for 2 overlays"):
        _overlays(files, ["centre"] * 3, None, None)
    with pytest.raises(StudyError, match="--images, --at and --scale go with --overlay"):
        _overlays(None, None, None, [tmp_path])
    with pytest.raises(StudyError, match="--decoder none draws none"):
        decoded(["diffusion"], [], "none")
    assert decoded([], ["diffusion"], "mini") == ["diffusion"] and decoded([], [], "none") == []
