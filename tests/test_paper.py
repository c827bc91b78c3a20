"""The paper's figures: every picture is the decoder's of the embedding named, its control below, and says so."""

import importlib
import json
import math
import re

import numpy as np
import pytest
import tiny_kandinsky
import torch
from conftest import randomize
from PIL import Image

N_REFERENCE = 9


@pytest.fixture(scope="module")
def model():
    """A random CLIP tower in float64, as wide as the tiny decoder."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from vit_lens import HookedViT, PreprocessSpec

    config = CLIPVisionConfig(
        hidden_size=33, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3, image_size=20, patch_size=10,
        projection_dim=tiny_kandinsky.D_EMBED, hidden_act="gelu",
    )  # fmt: skip
    spec = PreprocessSpec(
        size=(20, 20), mean=(0.5, 0.4, 0.45), std=(0.3, 0.2, 0.25), interpolation="bicubic", resize_mode="shortest"
    )
    tower = randomize(CLIPVisionModelWithProjection(config).double().eval())
    with torch.no_grad():
        tower.visual_projection.weight.mul_(8)  # a natural length of embedding
    return HookedViT.from_module(tower, preprocess_spec=spec, encoder_id="test/<tower>&").requires_grad_(False)


@pytest.fixture(scope="module")
def decoder():
    from vit_lens import DecodeSettings, KandinskyDecoder

    unet, movq, scheduler = tiny_kandinsky.parts()
    return KandinskyDecoder(
        unet, movq, scheduler, encoder="test/<tower>&",
        defaults=DecodeSettings(steps=1, guidance=1.0, scheduler="ddim", height=32, width=32, seed=4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return [np.random.default_rng(k).integers(0, 256, (31, 25, 3), dtype=np.uint8) for k in range(N_REFERENCE + 1)]


@pytest.fixture(scope="module")
def setup(model, decoder, images, tmp_path_factory):
    from vit_lens.studies.paper import make_paper

    return make_paper(model, decoder, images[1:], out=tmp_path_factory.mktemp("paper"), seed=3, batch_size=4)


@pytest.fixture(scope="module")
def ladder(setup, images):
    from vit_lens.studies.paper import ladder_plate

    return ladder_plate(setup, images[0], alphas=[1.0, 7.0], top=4, command="vit-lens paper <fig4>")


@pytest.fixture(scope="module")
def overlay():
    from vit_lens.studies.overlay.pasting import Overlay

    rgba = np.zeros((6, 6, 4), np.uint8)
    rgba[1:5, 1:5] = (250, 20, 120, 255)
    return Overlay("pink square", rgba, "bottom right")


@pytest.fixture
def nothing_drawn(setup, monkeypatch):
    """Every further call of the decoder is an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr(type(setup.pictures), "draw", refuse)


@pytest.fixture(scope="module")
def by_hand(model, images):
    """Lens embedding, raw and centred similarity to the input of a site of the first image, from hooked runs."""
    from vit_lens.metrics import cosine

    pixels = model.preprocess(images)
    clean, cache = model.run_with_cache(pixels)
    away = clean[0] - clean[1:].mean(0)

    def run(lens, site):
        embeds = model.run_with_hooks(pixels, fwd_hooks=lens.hooks(cache, site))
        return embeds[0], float(cosine(embeds[0], clean[0])), float(cosine(embeds[0] - embeds[1:].mean(0), away))

    return run


@pytest.fixture(scope="module")
def raw(model, by_hand):
    """Raw similarity of every head under D1, alpha 7."""
    from vit_lens import DiffusionSteeringLens, Site

    return {str(site): by_hand(DiffusionSteeringLens(alpha=7.0), site)[1] for site in Site.heads(model)}


def test_other_lenses_are_drawn_behind_the_ladder(setup, images):
    """The counterfactual lens from three reference images, each with a list of its own; projected on all of them."""
    from vit_lens import Anchors, CounterfactualLens
    from vit_lens.studies.paper import ladder_plate

    given = ["counterfactual:share=0.5", "diffusion:project=30"]
    plate = ladder_plate(setup, images[0], alphas=[1.0], lenses=given, top=2)
    titles = [strip.title for strip in plate.strips]
    assert (
        len(titles) == 6
        and [title.startswith("counterfactual, share 0.5, anchor") for title in titles[2:5]] == [True] * 3
    )
    assert titles[5] == "Diffusion Lens, projected (kappa 30)"
    one = CounterfactualLens(anchors=Anchors.of(setup.model, setup.pixels[1:2]), norms=setup.means.differences)
    _, cache = setup.model.run_with_cache(setup.see(images[0]))
    cosines = torch.nn.functional.cosine_similarity(
        one.embed(cache, "heads")[0], setup.model(setup.see(images[0])), dim=-1
    )
    assert plate.strips[3].tiles[3].numbers["cos"] == pytest.approx(float(cosines.max()), abs=1e-4)


def test_an_anchor_stands_beside_what_starts_from_it_and_size_is_of_what_is_added(setup, model, images):
    from vit_lens import JacobianLens, Site
    from vit_lens.lenses import centred_norm
    from vit_lens.studies.overlay import as_seen
    from vit_lens.studies.paper import ladder_plate
    from vit_lens.studies.paper.site_readings import read_sites

    jacobian = JacobianLens.fit(model, setup.pixels[3:], test=False)
    plate = ladder_plate(setup, images[0], alphas=[1.0], lenses=["counterfactual", jacobian], top=2)
    anchors = [[tile for tile in strip.tiles if tile.label == "anchor"] for strip in plate.strips]
    assert [len(found) for found in anchors] == [0, 0, 1, 1, 1, 0]
    for place, (tile,) in enumerate(anchors[2:5]):
        assert (tile.picture == as_seen(model, [images[1 + place]])[0]).all() and not tile.numbers
    first = setup.lenses(["counterfactual"])[0]
    sites, pixels = [Site.parse("L0H1"), Site.parse("L1H2")], setup.see(images[0])
    found = read_sites(setup, pixels, {"a": first, "j": jacobian}, sites)
    _, cache = model.run_with_cache(pixels)
    written = [cache["z", s.layer][0, 0, s.head] @ model.blocks[s.layer].attn.W_O[s.head] for s in sites]
    _, there = model.run_with_cache(setup.pixels[:1])
    before = [there["z", s.layer][0, 0, s.head] @ model.blocks[s.layer].attn.W_O[s.head] for s in sites]
    expected = [float((a - b - (a - b).mean()).norm()) for a, b in zip(written, before, strict=True)]
    assert found["a"][0].size.tolist() == pytest.approx(expected, rel=1e-5)
    mean = [jacobian.jacobians.transport(jacobian.jacobians.mean_written(model, s), s) for s in sites]
    arrived = jacobian.transport(cache, sites)[0] - torch.stack(mean)
    assert found["j"][0].size.tolist() == pytest.approx(centred_norm(arrived[:, None]).tolist(), rel=1e-5)


@pytest.mark.parametrize("strip", [0, 1, 2])
def test_numbers_of_a_list_are_those_of_hooked_runs(model, images, by_hand, ladder, strip):
    """D1 at two strengths, and mean-anchored; S takes each side's mean over the reference images away."""
    from vit_lens import DiffusionSteeringLens, ReferenceMeans

    means = ReferenceMeans.from_images(model, images[1:])
    lenses = [
        DiffusionSteeringLens(alpha=1.0), DiffusionSteeringLens(alpha=7.0),
        DiffusionSteeringLens(alpha=5.0, anchor="mean", reference=means),
    ]  # fmt: skip
    for tile in ladder.strips[strip].tiles[2:]:
        _, raw, S = by_hand(lenses[strip], tile.label)
        assert tile.numbers["cos"] == pytest.approx(raw, abs=1e-9)
        assert tile.numbers["S"] == pytest.approx(S, abs=1e-9)


def test_a_list_is_the_best_of_all_heads_in_order(raw, ladder):
    shown = [tile.label for tile in ladder.strips[1].tiles[2:]]
    assert shown == sorted(raw, key=lambda site: -raw[site])[:4]


@pytest.mark.parametrize("by", ["S", "picture"])
def test_a_list_can_be_ranked_by_another_similarity(setup, images, by):
    from vit_lens.studies.paper import diffusion_plate

    plate = diffusion_plate(setup, images[0], top=6, by=by)
    values = [tile.numbers[by] for tile in plate.strips[0].tiles[2:]]
    assert values == sorted(values, reverse=True) and len(set(values)) == 6
    assert any(what == "Similarity that ranks heads" and ("(S)" if by == "S" else "circular") in here
               for what, here in plate.unknown)  # fmt: skip


def test_pictures_are_the_decoders_with_one_noise(model, decoder, images, by_hand, ladder):
    """Of the embedding named, alone in its batch; and the numbers below are of that picture."""
    from vit_lens import DiffusionSteeringLens
    from vit_lens.metrics import cosine

    tile = ladder.strips[1].tiles[2]
    embed, _, _ = by_hand(DiffusionSteeringLens(alpha=7.0), tile.label)
    picture = decoder.decode(embed[None].float(), negative=None, batch_size=4)[0].numpy()
    assert (tile.picture == picture).all()
    again, clean = model(model.preprocess([picture]))[0], model(model.preprocess([images[0]]))[0]
    assert tile.numbers["drawn"] == pytest.approx(float(cosine(again, embed)), abs=1e-5)
    assert tile.numbers["picture"] == pytest.approx(float(cosine(again, clean)), abs=1e-5)
    own = ladder.strips[1].tiles[1]
    assert own.numbers["drawn"] == pytest.approx(own.numbers["picture"])
    assert (own.picture == decoder.decode(clean[None].float(), negative=None, batch_size=4)[0].numpy()).all()


def test_controls_have_the_sites_size_and_nothing_else_of_it(model, setup, images):
    """Nothing is random where the lens adds nothing; where it adds, draws of equal norm differ from site and draw."""
    from vit_lens import DiffusionSteeringLens, Site
    from vit_lens.studies.paper.site_readings import N_DRAWS, read_sites

    lenses = {str(alpha): DiffusionSteeringLens(alpha=alpha) for alpha in (1.0, 4.0)}
    found = read_sites(setup, model.preprocess(images[:1]), lenses, Site.heads(model))
    (still,), (moved,) = found["1.0"], found["4.0"]
    assert still.control_S.tolist() == pytest.approx([1.0] * 6) and still.control_cos.tolist() == pytest.approx(
        [1.0] * 6
    )
    assert moved.controls.shape[0] == N_DRAWS == 20
    assert len({round(float(x), 9) for x in moved.controls[..., 0].flatten()}) == 20 * 6
    assert not torch.isclose(moved.controls, moved.embeds).all(-1).any()
    cosines = torch.nn.functional.cosine_similarity(moved.controls, moved.clean, dim=-1)
    assert moved.control_cos.tolist() == pytest.approx(cosines.mean(0).tolist(), abs=1e-5)


def test_the_leak_index_is_the_controls_share(ladder):
    """At alpha 1 D1 is the input itself, whatever stands in the site's place: all of it leaks."""
    for tile in ladder.strips[0].tiles[2:]:
        assert tile.numbers["S"] == pytest.approx(1) and tile.numbers["leak"] == pytest.approx(1)
    for tile in ladder.strips[1].tiles[2:]:
        assert [below.label for below in tile.below] == ["control", "other image"]
        for below, name in zip(tile.below, ("leak", "leak_other"), strict=True):
            if (leak := tile.numbers[name]) is not None:  # not applicable where chance gives as much
                assert leak == pytest.approx(below.numbers["S"] / tile.numbers["S"])
            assert (below.picture != tile.picture).any()
        assert tile.numbers["leak_covariance"] is None or tile.numbers["leak_covariance"] < 5


def test_the_residual_strip_starts_constant_and_ends_at_the_input(setup, images):
    from vit_lens.studies.paper import residual_plate

    strip = residual_plate(setup, images[0]).strips[0]
    assert [tile.label for tile in strip.tiles[2:]] == ["L0.resid_pre", "L0.resid_post", "L1.resid_post"]
    first, last = strip.tiles[2], strip.tiles[-1]
    assert first.numbers["S"] is None and first.numbers["leak"] is None  # the class token before attention: no image
    assert last.numbers["cos"] == pytest.approx(1) and last.numbers["S"] == pytest.approx(1)
    assert (last.picture == strip.tiles[1].picture).all()
    thin = residual_plate(setup, images[0], stride=2).strips[0]
    assert [tile.label for tile in thin.tiles[2:]] == ["L0.resid_pre", "L1.resid_post"]


def test_facts_hold_the_ranking_against_size_and_controls(model, images, raw, ladder):
    """At alpha 1 every head scores alike, and no correlation is defined."""
    from scipy import stats

    from vit_lens import Site

    assert set(ladder.strips[0].facts.values()) == {None}
    _, cache = model.run_with_cache(model.preprocess([images[0]]))
    norms = []
    for site in Site.heads(model):
        h = cache["z", site.layer][0, 0, site.head] @ model.blocks[site.layer].attn.W_O[site.head]
        norms.append(float((h - h.mean()).norm()))
    named = ["with the size of what the lens adds", "with the controls' own"]
    named += ["with that of another image", "with that of covariance-matched directions"]
    assert list(ladder.strips[1].facts) == named
    rho = ladder.strips[1].facts["with the size of what the lens adds"]
    assert rho == pytest.approx(stats.spearmanr(list(raw.values()), norms).statistic)


def test_the_overlay_score_is_what_the_overlay_changes(model, setup, images, overlay):
    from vit_lens import DiffusionLens, Site
    from vit_lens.metrics import cosine
    from vit_lens.studies.overlay.pasting import as_seen, paste, pixels_of_seen
    from vit_lens.studies.paper import overlay_plate

    plate = overlay_plate(setup, images[0], overlay, lenses=["diffusion"], top=3)
    base = as_seen(model, [images[0]])[0]
    spec = model.preprocess_spec
    colour = (setup.pixels.mean((0, 2, 3)).numpy() * np.array(spec.std) + np.array(spec.mean)) * 255
    blank = np.broadcast_to(np.rint(colour).astype(np.uint8), base.shape)
    seen = {"both": paste(base, overlay), "base": base, "alone": paste(blank, overlay), "blank": blank}
    pixels = {name: pixels_of_seen(model, picture[None]) for name, picture in seen.items()}
    toward = (model(pixels["alone"]) - model(pixels["blank"]))[0]
    pair = torch.cat([pixels["both"], pixels["base"]])
    _, cache = model.run_with_cache(pair)
    raw = {}
    for site in Site.heads(model):
        hooks = DiffusionLens().hooks(cache, site)
        with_it, without = model.run_with_hooks(pair, fwd_hooks=hooks)
        raw[str(site)] = float(cosine(with_it - without, toward))
    tiles = plate.strips[0].tiles[4:]
    assert [tile.label for tile in tiles] == sorted(raw, key=lambda site: -raw[site])[:3]
    assert [tile.numbers["overlay"] for tile in tiles] == pytest.approx([raw[tile.label] for tile in tiles], abs=1e-5)
    assert [tile.label for tile in tiles[0].below] == ["without", "control", "other image"]
    shown = [tile.picture for tile in plate.strips[0].tiles[:3]]
    assert all((a == b).all() for a, b in zip(shown, (seen["base"], seen["alone"], seen["both"]), strict=True))


def test_nothing_is_drawn_twice(setup, images, ladder, nothing_drawn):
    from vit_lens.studies.paper import ladder_plate

    again = ladder_plate(setup, images[0], alphas=[1.0, 7.0], top=4)
    for old, new in zip(ladder.strips, again.strips, strict=True):
        assert all((a.picture == b.picture).all() for a, b in zip(old.tiles, new.tiles, strict=True))
        assert [tile.describe() for tile in old.tiles] == [tile.describe() for tile in new.tiles]


def test_other_noise_or_a_damaged_picture_is_drawn_anew(model, decoder, images, setup, tmp_path):
    from dataclasses import replace

    from vit_lens import Condition
    from vit_lens.studies.paper.kept_tiles import draw

    own = replace(setup, out=tmp_path)
    embeds = model(own.pixels[:2]).float()
    asked = Condition(pooled=embeds)
    first = draw(own, asked, embeds).pictures
    paths = sorted((tmp_path / "pictures").iterdir())
    paths[0].write_bytes(paths[0].read_bytes()[:60])
    assert all((a == b).all() for a, b in zip(first, draw(own, asked, embeds).pictures, strict=True))
    noisy = replace(own, pictures=replace(own.pictures, settings=decoder.settings(seed=5)))
    assert (draw(noisy, asked, embeds).pictures[0] != first[0]).any()
    assert len(list((tmp_path / "pictures").iterdir())) == 4


def test_the_page_is_whole_escaped_and_says_what_is_unknown(ladder, tmp_path):
    from vit_lens.studies.paper.plate_page import write_plate

    page = write_plate(ladder, tmp_path / "fig4.html").read_text()
    assert "<script" not in page and "<tower>" not in page and "<fig4>" not in page
    assert "test/&lt;tower&gt;&amp;" in page and "vit-lens paper &lt;fig4&gt;" in page
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page))
    assert len(re.findall(r"<img ", page)) == 3 * (2 + 3 * 4)
    words = re.sub(r"\s+", " ", page)
    for said in ("Equations of the lens", "Strength alpha", "Denoising steps", "Guidance", "Resolution", "Noise",
                 "Images", "Similarity that ranks heads", "a ladder: 1, 7", "no guidance", "32 x 32",
                 "D1 (reconstruction), alpha 7", "real weights: not yet run by this project"):  # fmt: skip
        assert said in words, said


def test_what_the_decoder_could_not_draw_says_so_everywhere(ladder, tmp_path):
    """The tiny decoder is random, so both kinds occur only with a threshold between them."""
    from vit_lens.metrics import DRAWN_THRESHOLD
    from vit_lens.studies.paper.figures import plate_figure
    from vit_lens.studies.paper.plate import Plate, Strip, Tile
    from vit_lens.studies.paper.plate_page import write_plate

    picture = np.zeros((4, 4, 3), np.uint8)
    values = {"yes": DRAWN_THRESHOLD, "no": DRAWN_THRESHOLD - 0.01}
    tiles = tuple(Tile(label=name, picture=picture, numbers={"drawn": value}) for name, value in values.items())
    strip = Strip(title="t", tiles=(*tiles, Tile(label="image", picture=picture)))
    plate = Plate(name="p", title="t", words="", strips=(strip,), settings=ladder.settings)
    page = write_plate(plate, tmp_path / "p.html").read_text()
    weak = re.findall(r'class="pic( weak)? site">.*?<b>(\w+)</b>(.*?)</figure>', page, re.S)
    assert [(bool(faded), label, "could not draw this" in rest) for faded, label, rest in weak] == [
        (False, "yes", False), (True, "no", True), (False, "image", False)
    ]  # fmt: skip
    figure = plate_figure(plate)
    assert [image.opacity for image in figure.layout.images] == [1.0, 0.35, 1.0]
    assert [("could" in note.text) for note in figure.layout.annotations] == [False, False, True, False]
    described = json.loads(plate.save(tmp_path).read_text())["strips"][0]["tiles"]
    assert [tile["drawn"] for tile in described] == [True, False, True]


def test_the_figure_holds_every_picture_inside_its_frame(ladder):
    from vit_lens.studies.paper.figures import plate_figure

    figure = plate_figure(ladder)
    images = figure.layout.images
    assert len(images) == 3 * (2 + 3 * 4)
    boxes = {(image.x, image.y) for image in images}
    assert len(boxes) == len(images)
    x, y = figure.layout.xaxis.range, figure.layout.yaxis.range
    assert all(x[0] <= i.x and i.x + i.sizex <= x[1] and y[0] <= i.y - i.sizey and i.y <= y[1] for i in images)
    assert "&lt;tower&gt;&amp;" in figure.layout.title.text


def test_numbers_are_kept_as_json(ladder, tmp_path):
    found = json.loads(ladder.save(tmp_path).read_text())
    assert found["name"] == "fig4" and found["settings"]["reference images"] == N_REFERENCE
    assert found["settings"]["decoder settings"]["seed"] == 4
    tile = found["strips"][1]["tiles"][2]
    assert tile["numbers"] == dict(ladder.strips[1].tiles[2].numbers) and tile["below"][0]["label"] == "control"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda p, s, i, o: p.diffusion_plate(s, i[3]), "same picture as the reference image"),
        (lambda p, s, i, o: p.diffusion_plate(s, i[0], top=7), "top 7 of 6 sites"),
        (lambda p, s, i, o: p.diffusion_plate(s, i[0], top=0), "top 0 of 6 sites"),
        (lambda p, s, i, o: p.diffusion_plate(s, i[0], by="pictures"), "nearest: 'picture'"),
        (lambda p, s, i, o: p.residual_plate(s, i[0], stride=3), "take 1 to 2"),
        (lambda p, s, i, o: p.residual_plate(s, i[0], stride=0), "take 1 to 2"),
        (lambda p, s, i, o: p.ladder_plate(s, i[0], alphas=[]), "at least one"),
        (lambda p, s, i, o: p.ladder_plate(s, i[0], alphas=[2.0, 2.0]), "different strengths"),
        (lambda p, s, i, o: p.overlay_plate(s, i[2], o), "same picture as the reference image"),
        (lambda p, s, i, o: p.overlay_plate(s, i[0], o, lenses=[]), "at least one lens"),
    ],
)
def test_wrong_input_is_refused(setup, images, overlay, nothing_drawn, call, words):
    import vit_lens.studies.paper as paper
    from vit_lens.errors import StudyError

    with pytest.raises(StudyError, match=re.escape(words)):
        call(paper, setup, images, overlay)


def test_an_overlay_that_does_not_fit_or_show_is_refused(setup, images, nothing_drawn):
    from vit_lens.errors import StudyError
    from vit_lens.studies.overlay.pasting import Overlay, as_seen
    from vit_lens.studies.paper import overlay_plate

    with pytest.raises(StudyError, match="larger than the image"):
        overlay_plate(setup, images[0], Overlay("big", np.full((21, 5, 4), 255, np.uint8)))
    seen = as_seen(setup.model, [images[0]])[0]
    own = np.concatenate([seen, np.full((20, 20, 1), 255, np.uint8)], axis=-1)
    with pytest.raises(StudyError, match="changes no pixel"):
        overlay_plate(setup, images[0], Overlay("itself", own))


def test_too_few_reference_images_are_refused(model, decoder, images, tmp_path):
    """Copies of one picture count once."""
    from vit_lens.errors import StudyError
    from vit_lens.studies.paper import make_paper

    with pytest.raises(StudyError, match=r"^7 different reference images"):
        make_paper(model, decoder, [*images[:7], images[0], Image.fromarray(images[1])], out=tmp_path)


@pytest.mark.parametrize("numbers, words", [({"cosine": 1.0}, "no number 'cosine'"), ({"S": math.nan}, "S is nan")])
def test_a_tile_refuses_numbers_without_a_meaning(numbers, words):
    from vit_lens.errors import RecordError
    from vit_lens.studies.paper.plate import Tile

    with pytest.raises(RecordError, match=words):
        Tile(label="L0H0", picture=np.zeros((2, 2, 3), np.uint8), numbers=numbers)


def test_the_command_on_the_embedded_pair(vit_lens, monkeypatch, tmp_path):
    """Without a browser the page is there all the same, and what is missing is said."""
    import vit_lens.figures as figures
    from vit_lens.errors import OutputError

    def no_browser(figure, path):
        raise OutputError("needs a Chrome")

    monkeypatch.setattr(figures, "save", no_browser)
    monkeypatch.setattr(importlib.import_module("vit_lens.studies.paper.command"), "_MINI_REFERENCE", 16)
    status, output, error = vit_lens("paper", "fig3", "--top", 1, "--steps", 1, "--batch-size", 3, "--out", tmp_path)
    assert status == 0, error
    assert f"page: {tmp_path / 'fig3.html'}" in output and "no figure: needs a Chrome" in error
    found = json.loads((tmp_path / "fig3.json").read_text())
    assert found["settings"]["encoder"] == "vit_lens/mini" and found["command"].startswith("vit-lens paper fig3 ")
    assert found["settings"]["reference images"] == 16
    assert len(list((tmp_path / "pictures").iterdir())) == 4


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("fig2", "--model", "ViT-B-32", "--tag", "openai"), "give --images, and --reference-images"),
        (("fig3", "--decoder", "none"), "a --decoder that was made for the model"),
        (("fig3", "--decoder", "mini-rae"), "figures: pooled embeddings alone are read"),
        (("fig5", "--at", "centre"), "place the file of --overlay"),
        (("fig5", "--model", "ViT-B-32", "--tag", "openai"), "give --overlay"),
    ],
)
def test_the_command_refuses_before_anything_is_loaded(vit_lens, arguments, words, tmp_path):
    status, _, error = vit_lens("paper", *arguments, "--out", tmp_path / "out")
    assert status == 2 and words in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("figure", ["fig2", "fig3", "fig4", "fig5"])
def test_every_figure_takes_other_lenses(vit_lens, monkeypatch, tmp_path, figure):
    """Jacobians from a file, and what a projection needs of the reference images."""
    import vit_lens as vl
    import vit_lens.figures as figures

    monkeypatch.setattr(figures, "save", lambda figure, path: path)
    monkeypatch.setattr(importlib.import_module("vit_lens.studies.paper.command"), "_MINI_REFERENCE", 16)
    mini = vl.HookedViT.from_pretrained("mini")
    scenes = vl.studies.study_images(2, seed=5, n_means=8)
    vl.JacobianLens.fit(mini, list(scenes.anchor), test=False).jacobians.save(tmp_path / "j.safetensors")
    given = ["--lens", "jacobian,diffusion:project=30", "--jacobian", tmp_path / "j.safetensors", "--steps", 1]
    top = [] if figure == "fig2" else ["--top", 1]
    status, _, error = vit_lens("paper", figure, *given, *top, "--out", tmp_path)
    assert status == 0, error
    titles = [strip["title"] for strip in json.loads((tmp_path / f"{figure}.json").read_text())["strips"]]
    assert titles[-2].startswith("Jacobian") and titles[-1] == "Diffusion Lens, projected (kappa 30)"
    status, _, error = vit_lens("paper", figure, "--jacobian", tmp_path / "j.safetensors", "--out", tmp_path)
    assert status == 2 and "--jacobian serves the lens jacobian alone" in error
