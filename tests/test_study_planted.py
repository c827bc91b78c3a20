"""Planted truth: the planted head alone tells the attribute, by brute force; and the study end to end."""

import numpy as np
import pytest
import tiny_kandinsky
import torch
from conftest import open_clip_tower, pooling_config, randomize

CAPTIONS = ("a cat", "a dog")
LENSES = ("diffusion", "dsl:alpha=4", "dsl-mean:alpha=3")
N_ANCHOR, N_TEST = 120, 26
SITE, BAR = "L1H2", 0.3


def bank_of(model, seed=3, captions=CAPTIONS):
    from vit_lens import TextBank

    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(captions), model.cfg.d_embed, generator=generator, dtype=torch.float64)
    return TextBank(captions=captions, embeds=embeds, logit_scale=7.0, logit_bias=None, encoder_id=model.encoder_id)


def model_of(seed=0, **changes):
    """A tower in float64 with random weights and biases, wide enough for the tiny decoder."""
    from vit_lens import HookedViT, PreprocessSpec

    spec = PreprocessSpec(
        size=(21, 21), mean=(0.5, 0.4, 0.45), std=(0.3, 0.2, 0.25), interpolation="bicubic", resize_mode="squash"
    )
    tower = randomize(open_clip_tower(output_dim=tiny_kandinsky.D_EMBED, **changes), seed)
    return HookedViT.from_module(tower, preprocess_spec=spec).requires_grad_(False)


def contrast_of(texts, embeds, captions=CAPTIONS):
    unit = embeds / embeds.norm(dim=-1, keepdim=True)
    rows = [texts.embeds[texts.captions.index(caption)] for caption in captions]
    return texts.logit_scale * (unit @ (rows[1] / rows[1].norm()) - unit @ (rows[0] / rows[0].norm()))


class World:
    """A host, its images, and an attribute that one of its heads can tell."""

    def __init__(self, folder):
        from vit_lens import Site
        from vit_lens.studies import StudyImages, make_setup
        from vit_lens.studies.planted.labelled import LabelledAttribute
        from vit_lens.studies.planted.planted_weights import readout_direction, remove_direction
        from vit_lens.studies.planted.soil import Soil

        self.host, self.site = model_of(), Site.parse(SITE)
        self.texts, self.folder = bank_of(self.host), folder
        drawn = list(np.random.default_rng(0).integers(0, 256, (N_TEST + N_ANCHOR + 8, 21, 21, 3), dtype=np.uint8))
        self.images = StudyImages(drawn[:N_TEST], drawn[N_TEST:-8], drawn[-8:])
        direction = readout_direction(self.host, self.texts, CAPTIONS)
        bare = remove_direction(self.host, direction)
        pixels = self.host.preprocess(drawn[:-8])
        _, cache = bare.run_with_cache(pixels)
        told = cache[self.site.hook_name][:, 0, self.site.head] @ torch.linspace(-1, 1, bare.cfg.d_head).double()
        label = (told > told.median()).long().numpy()
        last = self.host.run_with_cache(pixels)[1]["blocks.2.hook_resid_post"][N_TEST:, 0].numpy() @ direction
        leans = last[label[N_TEST:] == 1].mean() > last[label[N_TEST:] == 0].mean()
        label = label if leans else 1 - label
        label[[0, 1]] = -1  # of two test images it is not known
        self.attribute = LabelledAttribute(name="pet", captions=CAPTIONS, anchor=label[N_TEST:], test=label[:N_TEST])
        self.setup = make_setup(self.host, self.images, lenses=LENSES, out=folder, seed=3)
        self.soil = Soil.of(self.host, self.texts, self.attribute, self.setup.anchor_pixels)
        self.plants = {kind: self.soil.plant(self.site, kind, bar=BAR) for kind in ("loud", "quiet")}
        self.pixels = self.setup.pixels[2:]
        self.label = label[2:N_TEST]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def result(world):
    from vit_lens.studies.planted.study import planted_study

    return planted_study(world.setup, world.texts, [world.attribute], n_heads=1, bar=BAR, n_draws=3, decoded=())


# ---- the weights ------------------------------------------------------------------------------------------


def test_the_direction_is_what_the_contrast_reads(world):
    """Before it is divided by norms, the contrast is linear in the last residual along it, and blind to the rest."""
    host = world.host
    rows = torch.randn(5, 1, host.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along = torch.from_numpy(world.soil.direction)
    both = world.texts.embeds / world.texts.embeds.norm(dim=-1, keepdim=True)
    scale = ((rows - rows.mean(-1, keepdim=True)).pow(2).mean(-1) + host.cfg.eps).sqrt()
    read = (host.embed_rows(rows) - host.embed_rows(torch.zeros_like(rows))) @ (both[1] - both[0])
    factor = (read * scale[:, 0]) / (rows[:, 0] @ along)
    assert factor[0] > 0
    torch.testing.assert_close(factor, factor[:1].expand(5), rtol=1e-9, atol=0)
    assert along.norm().item() == pytest.approx(1, abs=1e-12)


@torch.no_grad()
def test_no_block_writes_along_the_direction_before_planting_and_one_head_does_after(world):
    along = torch.from_numpy(world.soil.direction)

    def written(model):
        model.set_use_attn_result(True)
        _, cache = model.run_with_cache(world.pixels)
        model.set_use_attn_result(False)
        outputs = {f"L{i}.{part}": cache[f"blocks.{i}.hook_{part}_out"] for i in range(3) for part in ("attn", "mlp")}
        outputs |= {f"L{i}H{h}": cache[f"blocks.{i}.attn.hook_result"][:, :, h] for i in range(3) for h in range(3)}
        return {name: float((out @ along).std(0).amax()) for name, out in outputs.items()}

    assert min(written(world.host).values()) > 1e-2
    assert max(written(world.soil.bare).values()) < 1e-12
    for plant in world.plants.values():
        found = written(plant.model)
        assert {name for name, spread in found.items() if spread > 1e-12} == {SITE, "L1.attn"}
        assert found[SITE] > 1e-2


@torch.no_grad()
def test_a_loud_plant_puts_both_classes_where_the_encoder_has_them(world):
    along, label = torch.from_numpy(world.soil.direction), world.attribute.anchor

    def levels(model):
        _, cache = model.run_with_cache(world.setup.anchor_pixels)
        told = (cache["blocks.2.hook_resid_post"][:, 0] @ along).numpy()
        return told[label == 0].mean(), told[label == 1].mean()

    host, loud, quiet = (levels(m) for m in (world.host, *(plant.model for plant in world.plants.values())))
    assert host[1] - host[0] > 1e-3
    assert loud == pytest.approx(host, rel=1e-9)
    assert sum(quiet) == pytest.approx(sum(host), rel=1e-9)
    assert quiet[1] - quiet[0] != pytest.approx(host[1] - host[0], rel=1e-3)


@torch.no_grad()
def test_a_quiet_plant_has_the_size_that_the_head_had(world):
    along = torch.from_numpy(world.soil.direction)

    def deviation(model):
        model.set_use_attn_result(True)
        _, cache = model.run_with_cache(world.setup.anchor_pixels)
        model.set_use_attn_result(False)
        out = cache["blocks.1.attn.hook_result"][:, 0, 2]
        out = out - out.mean(0)
        return out - out.mean(-1, keepdim=True)

    had, has = (deviation(m) for m in (world.soil.bare, world.plants["quiet"].model))
    assert has.pow(2).sum(-1).mean().item() == pytest.approx(had.pow(2).sum(-1).mean().item(), rel=1e-9)
    assert (has @ along).pow(2).mean().item() == pytest.approx(had.pow(2).sum(-1).mean().item() / 2, rel=1e-9)
    loud = deviation(world.plants["loud"].model)
    torch.testing.assert_close(loud - (loud @ along)[:, None] * along, had)  # what else it writes


def test_a_planted_model_stands_in_the_encoders_space_and_leaves_it_alone(world):
    before = world.host.fingerprint
    plant = world.soil.plant(world.site, "loud", bar=BAR)
    assert world.host.fingerprint == before != plant.model.fingerprint
    assert plant.model.encoder_id == world.host.encoder_id
    assert not plant.model.edited
    assert world.texts.check(plant.model) is world.texts
    assert plant.model.preprocess_spec == world.host.preprocess_spec


def test_r_squared_is_that_of_images_that_the_probe_has_not_seen(world):
    from dataclasses import replace

    soil, generator = world.soil, np.random.default_rng(0)
    assert soil.r_squared(world.site) > BAR
    noise = replace(soil, z=generator.normal(size=soil.z.shape))
    x = np.column_stack([noise.z[:, 1, 2], np.ones(N_ANCHOR)])
    in_sample = 1 - np.linalg.lstsq(x, soil.sign, rcond=None)[1][0] / ((soil.sign - soil.sign.mean()) ** 2).sum()
    assert in_sample > 0.03 > noise.r_squared(world.site)
    told = noise.z.copy()
    told[:, 1, 2, 4] = 3 * soil.sign - 1
    assert replace(soil, z=told).r_squared(world.site) == pytest.approx(1)


# ---- the truth --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_patching_agrees_with_hooks_and_shows_one_head(world):
    from vit_lens import Site
    from vit_lens.studies.planted.recovery import patched

    for plant in world.plants.values():
        model, found = plant.model, patched(plant, world.texts, world.pixels, world.label)
        n = min((world.label == 0).sum(), (world.label == 1).sum())
        base, partner = (world.pixels[torch.from_numpy(np.flatnonzero(world.label == v)[:n])] for v in (0, 1))
        (clean, cache), (_, other) = (model.run_with_cache(some) for some in (base, partner))
        full = (contrast_of(world.texts, model(partner)) - contrast_of(world.texts, clean)).mean()
        heads = Site.heads(model)
        for index, site in enumerate(heads):

            def from_partner(act, hook, site=site, other=other):
                out = act.clone()
                out[:, :, site.head] = other[hook.name][:, :, site.head]
                return out

            def frozen(act, hook, cache=cache):
                return cache[hook.name]

            later = [f"blocks.{site.layer}.hook_mlp_out"]
            later += [f"blocks.{i}.hook_{part}_out" for i in range(site.layer + 1, 3) for part in ("attn", "mlp")]
            own = (site.hook_name, from_partner)
            for values, hooks in ((found.total, [own]), (found.direct, [own, *((name, frozen) for name in later)])):
                embeds = model.run_with_hooks(base, fwd_hooks=hooks)
                share = (contrast_of(world.texts, embeds) - contrast_of(world.texts, clean)).mean() / full
                assert values[index] == pytest.approx(float(share), abs=1e-9)
        at = heads.index(plant.site)
        assert found.direct[at] > 0.5
        assert np.argmax(np.abs(found.direct)) == at


@torch.no_grad()
def test_gaps_agree_with_a_slow_loop(world):
    from vit_lens import ReferenceMeans, Site
    from vit_lens.lenses import parse_lens
    from vit_lens.studies.planted.recovery import lens_gaps

    model, heads = world.plants["loud"].model, Site.heads(world.host)
    means = ReferenceMeans.from_images(model, world.setup.anchor_pixels)
    lenses = {name: parse_lens(name, means) for name in LENSES}
    found = lens_gaps(model, world.pixels, lenses, world.texts, CAPTIONS, world.label, n_draws=2, seed=(1, 2))
    _, cache = model.run_with_cache(world.pixels)
    for name, lens in lenses.items():
        for index in (0, 5):
            told = contrast_of(
                world.texts, model.run_with_hooks(world.pixels, fwd_hooks=lens.hooks(cache, heads[index]))
            )
            slow = told[world.label == 1].mean() - told[world.label == 0].mean()
            assert found[name].real[index] == pytest.approx(float(slow), abs=1e-8)
        assert found[name].placebo.shape == found[name].shuffled.shape == (2, len(heads))
        assert np.ptp(found[name].placebo, axis=0).min() > 0
        assert np.ptp(found[name].shuffled, axis=0).min() > 0
    again = lens_gaps(model, world.pixels, lenses, world.texts, CAPTIONS, world.label, n_draws=2, seed=(1, 2))
    assert all((again[name].placebo == found[name].placebo).all() for name in LENSES)


# ---- the study --------------------------------------------------------------------------------------------


def test_the_study_finds_the_head(world, result, tmp_path):
    from vit_lens.studies import load_result

    measure = "AUC of the planted head, quiet plants"
    for name in LENSES:
        score = result.score(measure, name, "embedding")
        beside = {"another image's output", "covariance-matched placebo"} if score.level == "embedding" else set()
        assert {null.n_draws for null in score.nulls.values()} == {3}
        assert set(score.nulls) == {"equal-norm placebo", "classes shuffled"} | beside
        assert score.controls["before planting"] is not None
        assert (score.n, score.unit) == (1, "plants")
    assert result.score(measure, "dsl-mean:alpha=3", "embedding").estimate.value == 1
    assert [row["site"] for row in result.tables["heads"] if row["is planted"]] == [SITE]
    assert len(result.tables["heads"]) == 9
    result.save(tmp_path)
    assert load_result(tmp_path).frame().equals(load_result(tmp_path / "result.json").frame())


def test_a_plant_that_does_not_stand_out_is_left_out_and_said(result):
    """Random weights tell the captions apart by next to nothing, so that a loud plant is a faint one."""
    (note,) = [note for note in result.notes if "left out" in note]
    assert note.startswith(f"pet, loud, in {SITE} was left out: patching this head alone carries ")
    assert {row["kind"] for row in result.tables["plants"]} == {"quiet"}
    assert not [score for score in result.scores if "loud" in score.measure]


def test_the_clean_anchor_shows_the_attribute_in_heads_that_do_not_write_it(result):
    measure = "shown by the median other head, as a share of the head that shows most, quiet plants"
    leak, mean = (
        result.score(measure, name, "embedding").estimate.value for name in ("dsl:alpha=4", "dsl-mean:alpha=3")
    )
    assert leak > 0.1 > abs(mean)


def test_the_same_seed_gives_the_same_study(world, result):
    from vit_lens.studies.planted.study import planted_study

    again = planted_study(world.setup, world.texts, [world.attribute], n_heads=1, bar=BAR, n_draws=3, decoded=())
    assert again.frame().equals(result.frame())
    assert again.tables == result.tables


def test_statistics_of_one_plant():
    from vit_lens.studies.planted.plant_tables import _auc, _first, _leaks

    scores = np.array([1.0, -2.0, 4.0, 3.0, 0.0])
    assert (_auc(scores, 2), _first(scores, 2)) == (1.0, 1.0)
    assert (_auc(scores, 3), _first(scores, 3)) == (0.75, 0.0)
    assert _leaks(scores, 2) == pytest.approx(0.5 / 4)
    assert _leaks(scores, 1) == pytest.approx(2 / 4)
    assert _leaks(-np.abs(scores), 2) is None
    tied = np.zeros(5)
    assert (_auc(tied, 0), _first(tied, 0), _leaks(tied, 0)) == (0.5, 0.0, None)


@pytest.fixture(scope="module")
def drawing(world, tmp_path_factory):
    """The same study with a decoder of random weights and a judge of its own."""
    from vit_lens import KandinskyDecoder
    from vit_lens.studies import Judge, make_setup

    decoder = KandinskyDecoder(*tiny_kandinsky.parts(), encoder=world.host.encoder_id)
    other = model_of(seed=5)
    settings = decoder.settings(steps=1, guidance=1.0, height=32, width=32)
    return make_setup(
        world.host, world.images, lenses=LENSES[1:], out=tmp_path_factory.mktemp("drawn"), seed=3, decoder=decoder,
        judge=Judge(other, bank_of(other)), settings=settings, batch_size=4,
    )  # fmt: skip


def test_pictures_are_read_by_the_judge_in_pairs_of_one_noise(world, drawing):
    from vit_lens import ReferenceMeans
    from vit_lens.lenses import parse_lens
    from vit_lens.studies.planted.decoded import decoded_gaps

    plant = world.plants["loud"]
    means = ReferenceMeans.from_images(plant.model, drawing.anchor_pixels)
    lens = parse_lens("dsl-mean:alpha=3", means)
    found = decoded_gaps(drawing, plant, {"lens": lens}, n_images=4, n_heads=2, n_draws=2, seed=(1,))
    assert found.heads[0] == plant.site
    assert len(found.heads) == 2
    rows = [np.flatnonzero(world.attribute.test == value)[:2] for value in (0, 1)]
    told = np.zeros((2, 2, 2))  # class, pair, head
    for value in (0, 1):
        for pair in range(2):
            pixels = drawing.pixels[[int(rows[value][pair])]]
            embeds = lens.embed(plant.model.run_with_cache(pixels)[1], found.heads)[0]
            pictures, _ = drawing.pictures.draw(embeds, noise_seed=pair)
            judge = drawing.pictures.judge
            told[value, pair] = contrast_of(judge.texts, judge.model(judge.model.preprocess(list(pictures.numpy()))))
    slow = told[1].mean(0) - told[0].mean(0)
    np.testing.assert_allclose(found.gaps["lens"].real, slow, atol=0.02 * np.abs(told).max())  # 8-bit pictures
    assert np.abs(slow).min() > 0.1 * np.abs(told).max() or np.abs(found.gaps["lens"].placebo - slow).min() > 0


def test_pictures_of_several_anchors_are_read_apart_and_averaged(world, drawing):
    from vit_lens import CounterfactualLens, ReferenceMeans
    from vit_lens.lenses import Anchors
    from vit_lens.studies.planted.decoded import decoded_gaps

    plant = world.plants["loud"]
    norms = ReferenceMeans.from_images(plant.model, drawing.anchor_pixels).differences
    lens = CounterfactualLens(anchors=Anchors.of(plant.model, drawing.anchor_pixels[:2]), norms=norms)

    def gaps(one):
        return decoded_gaps(drawing, plant, {"lens": one}, n_images=4, n_heads=2, n_draws=2, seed=(1,)).gaps["lens"]

    both, (first, second) = gaps(lens), [gaps(one) for one in lens.each()]
    for name in ("real", "placebo", "shuffled"):
        ours, each = getattr(both, name), [getattr(one, name) for one in (first, second)]
        np.testing.assert_allclose(ours, np.mean(each, axis=0), atol=1e-9)  # placebos: the same directions for each
    assert np.abs(first.real - second.real).max() > 1e-6


def test_wrong_input_says_what_to_do(world, drawing, errors):
    from vit_lens import HookedViT
    from vit_lens.studies.planted.labelled import LabelledAttribute
    from vit_lens.studies.planted.planted_weights import readout_direction
    from vit_lens.studies.planted.study import planted_study

    def run(setup=world.setup, attributes=(world.attribute,), **options):
        return planted_study(setup, world.texts, attributes, **({"n_draws": 1, "decoded": ()} | options))

    attribute = world.attribute
    with pytest.raises(errors.StudyError, match="needs attributes with labels and captions"):
        run(attributes=())
    with pytest.raises(errors.StudyError, match="n_heads=0"):
        run(n_heads=0)
    with pytest.raises(errors.StudyError, match="not in the setup, which has"):
        run(setup=drawing, decoded=["dsl:alpha=99"])
    with pytest.raises(errors.StudyError, match="needs a judge"):
        run(decoded=["diffusion"])
    with pytest.raises(errors.StudyError, match="n_decoded=5; give an even number"):
        run(setup=drawing, decoded=[LENSES[1]], n_decoded=5)
    with pytest.raises(errors.StudyError, match="n_heads_decoded=1; the planted head needs others"):
        run(setup=drawing, decoded=[LENSES[1]], n_heads_decoded=1)
    with pytest.raises(errors.StudyError, match="26 decoded images need 13 test images of each class, there are"):
        run(setup=drawing, decoded=[LENSES[1]], n_decoded=26)
    with pytest.raises(errors.StudyError, match=r"no head can tell|heads can tell it"):
        run(bar=0.9999)
    with pytest.raises(errors.StudyError, match=r"below the bar of 1\.1: what is planted"):
        world.soil.plant(world.site, "loud", bar=1.1)
    turned = LabelledAttribute(
        name="pet", captions=CAPTIONS, anchor=np.where(attribute.anchor < 0, -1, 1 - attribute.anchor),
        test=attribute.test,
    )  # fmt: skip
    with pytest.raises(errors.StudyError, match="do not lean toward 'a dog'"):
        run(attributes=[turned])
    short = LabelledAttribute(name="pet", captions=CAPTIONS, anchor=attribute.anchor[:-1], test=attribute.test)
    with pytest.raises(errors.StudyError, match="labels 119 anchor images, the setup has 120"):
        run(attributes=[short])
    other = LabelledAttribute(name="x", captions=("a cat", "a cow"), anchor=attribute.anchor, test=attribute.test)
    with pytest.raises(errors.TextError, match="a cow"):
        run(attributes=[other])
    pooled = randomize(HookedViT(pooling_config("map")).double())
    with pytest.raises(errors.StudyError, match="where the class token is read"):
        readout_direction(pooled, bank_of(pooled), CAPTIONS)
    with pytest.raises(errors.StudyError, match="at least 8 of each"):
        LabelledAttribute(name="few", captions=CAPTIONS, anchor=np.array([0] * 50 + [1] * 3), test=attribute.test)
    with pytest.raises(errors.StudyError, match="give two that differ"):
        LabelledAttribute(name="x", captions=("a", "a"), anchor=attribute.anchor, test=attribute.test)


# ---- labels -----------------------------------------------------------------------------------------------


def write_images(folder, n):
    from PIL import Image

    generator = np.random.default_rng(4)
    for index in range(n):
        Image.fromarray(generator.integers(0, 256, (21, 21, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def test_labels_of_a_file_follow_their_images(tmp_path):
    from vit_lens.studies.planted.labelled import LabelledImages

    write_images(tmp_path, 120)
    pets = [("a dog", "a cat", "")[i % 3] for i in range(120)]
    lines = ["image,pet,time", *(f"{i}.png,{pets[i]},{('by day', 'at night')[i % 2]}" for i in range(120))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = LabelledImages.from_csv(tmp_path / "labels.csv", 24, seed=1)
    pet, time = found.attributes
    assert (pet.captions, time.captions) == (("a cat", "a dog"), ("at night", "by day"))
    assert found.captions == ["a cat", "a dog", "at night", "by day"]
    for kind in ("test", "anchor"):
        for image, label in zip(getattr(found.images, kind), getattr(pet, kind), strict=True):
            assert ("a cat", "a dog", "")[label] == pets[int(image.stem)]
    assert len(found.images.test) == 24


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("picture,pet\n0.png,a cat", "expected 'image' and one for each attribute"),
        ("image\n0.png", "expected 'image' and one for each attribute"),
        (
            "image,pet\n" + "\n".join(f"{i}.png,{'abc'[i % 3]}" for i in range(60)),
            r"has the captions \['a', 'b', 'c'\]",
        ),
        ("image,pet\n" + "\n".join(f"{i}.png,a" for i in range(60)), r"has the captions \['a'\]"),
        ("image,pet\n" + "\n".join(f"{i}.png,{'ab'[i < 3]}" for i in range(60)), "at least 8 of each"),
        ("image,pet\n,a cat", "without an image"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, errors, text, said):
    from vit_lens.studies.planted.labelled import LabelledImages

    write_images(tmp_path, 60)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(errors.StudyError, match=said):
        LabelledImages.from_csv(tmp_path / "labels.csv", 24)
    with pytest.raises(errors.StudyError, match="cannot be read as a table"):
        LabelledImages.from_csv(tmp_path / "none.csv", 24)


def test_labels_of_the_embedded_world_are_what_its_encoder_reads():
    from vit_lens import HookedViT, TextBank
    from vit_lens.studies.planted.mini_set import labelled_images

    known = labelled_images(40, seed=7, n_means=40)
    model, texts = HookedViT.from_pretrained("mini"), TextBank.mini(known.captions)
    assert [a.name for a in known.attributes] == ["colour", "size", "row", "overlay"]
    with torch.no_grad():
        for kind in ("test", "anchor"):
            embeds = model(model.preprocess(list(getattr(known.images, kind))))
            for attribute in known.attributes:
                read = contrast_of(texts, embeds, attribute.captions).numpy() > 0
                assert (read == (getattr(attribute, kind) == 1)).mean() > 0.9, attribute.name


# ---- the figure and the command ---------------------------------------------------------------------------


def test_the_figure_shows_planted_heads_apart(result, errors):
    from vit_lens.studies.planted.figures import planted_figure

    heads = result.frame("heads")
    figure = planted_figure(heads, LENSES)
    traces = {(trace.name, trace.showlegend): trace for trace in figure.data}
    planted = [trace for trace in figure.data if trace.name == "planted head"]
    assert len(planted) == len(LENSES)
    assert len(planted[0].x) == 1
    assert len(traces["other heads", True].x) == 8
    assert list(planted[2].x) == [1.0]
    assert max(abs(x) for trace in figure.data for x in trace.x) == 1.0
    with pytest.raises(errors.RecordError, match="lacks columns"):
        planted_figure(heads, ["dsl:alpha=99"])


def test_the_command(tmp_path):
    from typer.testing import CliRunner

    from vit_lens.cli import app
    from vit_lens.studies import load_result
    from vit_lens.studies.planted.mini_set import labelled_images

    known = labelled_images(16, seed=1, n_means=40)
    lines = ["image,overlay"]
    overlay = known.attributes[3]
    for kind in ("anchor", "test"):
        for index, image in enumerate(getattr(known.images, kind)):
            from PIL import Image

            Image.fromarray(image).save(tmp_path / f"{kind}{index}.png")
            lines.append(f"{kind}{index}.png,{overlay.captions[getattr(overlay, kind)[index]]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = [
        "--labels",
        tmp_path / "labels.csv",
        "--n",
        16,
        "--heads",
        1,
        "--decoder",
        "none",
        "--out",
        tmp_path / "out",
    ]
    done = CliRunner().invoke(app, ["study", "planted", *map(str, options), "--lens", "dsl-mean:alpha=5"])
    assert done.exit_code == 0, done.output
    assert "AUC of the planted head, loud plants" in done.output
    found = load_result(tmp_path / "out")
    assert found.study == "planted"
    assert (tmp_path / "out" / "heads_quiet.html").exists()


def test_lenses_of_planted_encoders_are_made_of_these(world, tmp_path):
    """Anchors and Jacobians of the host would be refused; what is spelt is made anew, of the anchor images."""
    from vit_lens import DiffusionLens
    from vit_lens.studies import make_setup
    from vit_lens.studies.findings import StudyError
    from vit_lens.studies.planted.examined import examine, read_bare

    specs = ("counterfactual:share=0.5", "jacobian:alpha=2", "jacobian:share=0.5", "diffusion:project=30")
    setup = make_setup(world.host, world.images, lenses=specs, out=tmp_path, seed=3)
    plant = world.plants["quiet"]
    found = examine(setup, world.texts, plant, before=read_bare(setup, world.texts, world.soil), n_draws=2, seed=(1,))
    assert list(found.gaps) == list(specs)
    assert found.lenses["jacobian:alpha=2"].jacobians.weights == plant.model.exact_fingerprint()
    assert found.lenses["counterfactual:share=0.5"].anchors.weights == plant.model.exact_fingerprint()
    for spec in specs:
        assert np.isfinite(found.gaps[spec].real).all() and len(found.gaps[spec].real) == 9
    given = make_setup(world.host, world.images, lenses=[DiffusionLens()], out=tmp_path, seed=3)
    with pytest.raises(StudyError, match="lenses of another model are made from their spellings: no lens"):
        given.lenses_of(plant.model, setup.anchor)
