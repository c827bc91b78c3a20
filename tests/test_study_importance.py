"""Head importance: closed forms and nulls against hooked runs and slow loops, and the study end to end."""

import importlib

import numpy as np
import pytest
import tiny_kandinsky
import torch
from conftest import open_clip_tower, pooling_config, randomize

LENSES = ["diffusion", "dsl:alpha=4", "dsl:share=0.7", "dsl-mean:alpha=3", "dsl-mean:share=1.2"]
TOWERS = {
    "cls": {}, "patches": {"pool_type": "avg"},
    "pooled": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}, "map": None, "coca": None,
}  # fmt: skip


def images_of(size, n, seed=0):
    generator = np.random.default_rng(seed)
    return list(generator.integers(0, 256, (n, *size, 3), dtype=np.uint8))


def spec_of(size):
    from vit_lens import PreprocessSpec

    return PreprocessSpec(
        size=size, mean=(0.5, 0.4, 0.45), std=(0.3, 0.2, 0.25), interpolation="bicubic", resize_mode="squash"
    )


def model_of(kind):
    """A tower in float64 for each kind of read-out."""
    from vit_lens import HookedViT

    if TOWERS[kind] is not None:
        tower = open_clip_tower(**TOWERS[kind])
        return HookedViT.from_module(tower, preprocess_spec=spec_of((21, 21))).requires_grad_(False)
    model = randomize(HookedViT(pooling_config(kind), preprocess_spec=spec_of((23, 21)))).double()
    model.pos_embed.W_pos.data[1 : model.cfg.n_prefix] = 0
    return model.requires_grad_(False)


def setup_of(model, folder, n=4, lenses=LENSES, **options):
    from vit_lens.studies import StudyImages, make_setup

    drawn = images_of(model.preprocess_spec.size, n + 14)
    return make_setup(
        model, StudyImages(drawn[:n], drawn[n : n + 6], drawn[n + 6 :]), lenses=list(lenses), out=folder, seed=3,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module", params=list(TOWERS))
def setup(request, tmp_path_factory):
    return setup_of(model_of(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return setup_of(model_of("cls"), tmp_path_factory.mktemp("plain"), n=6)


@pytest.fixture
def few_resamples(monkeypatch):
    from functools import partial

    from vit_lens.studies.importance import correlating
    from vit_lens.studies.importance import head_correlations as importance_scores

    monkeypatch.setattr(importance_scores, "image_weights", partial(correlating.image_weights, n_draws=40))


def heads_of(setup):
    from vit_lens.addresses import Site

    return [head for head in Site.heads(setup.model) if not head.is_pool]


def written_of(setup):
    from vit_lens.studies.importance.head_outputs import Origins, measured
    from vit_lens.studies.similarities import caches

    (cache,) = caches(setup.model, setup.pixels)
    heads = heads_of(setup)
    return measured(cache, heads, setup.clean), Origins.of(setup.anchor, cache, heads)


def replacing(setup, cache, head, donors, kind):
    """Set one head's z at every token, as a hook: what each ablation puts there."""
    value = {
        "mean": setup.ablation.z[head.layer][None, :, head.head], "zero": torch.zeros(()),
        "resample": cache[head.hook_name][donors][:, :, head.head],
    }[kind]  # fmt: skip

    def put(z, hook):
        z = z.clone()
        z[:, :, head.head] = value
        return z

    return head.hook_name, put


def turned(a, b):
    return 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)


# ---- effects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "resample", "zero"])
def test_direct_effects_are_those_of_a_run_with_everything_later_frozen(setup, kind):
    from vit_lens.lenses.residual import site_outputs
    from vit_lens.studies.importance.head_effects import direct_effects

    model, (written, _) = setup.model, written_of(setup)
    donors = torch.tensor([2, 3, 1, 0])
    means = setup.ablation.at_readout(model)
    other = site_outputs(model.run_with_cache(setup.pixels[donors], rows="readout")[1], written.heads)
    found = direct_effects(written, other, torch.stack([means.output(model, head) for head in written.heads]))
    assert set(found) == {("direct", "mean"), ("direct", "resample"), ("direct", "zero")}
    cache = model.run_with_cache(setup.pixels)[1]

    def freeze_at(name):
        return name, lambda act, hook: cache[hook.name]

    for row, head in enumerate(written.heads):
        hook = replacing(setup, cache, head, donors, kind)
        later = [f"blocks.{layer}.hook_attn_out" for layer in range(head.layer + 1, model.cfg.n_layers)]
        later += [f"blocks.{layer}.hook_mlp_out" for layer in range(head.layer, model.cfg.n_layers)]
        slow = model.run_with_hooks(setup.pixels, fwd_hooks=[hook, *map(freeze_at, later)])
        torch.testing.assert_close(found["direct", kind][:, row], turned(slow, setup.clean), atol=1e-12, rtol=1e-9)
    assert found["direct", kind].amin() > 1e-9  # every head of a random tower turns the embedding


def test_total_effects_are_those_of_single_runs_and_are_kept(setup, tmp_path, monkeypatch):
    from vit_lens.studies.importance import head_effects

    monkeypatch.setattr(head_effects, "_IMAGES", 3)  # 4 images: a batch and a rest
    donors, heads = torch.tensor([2, 3, 1, 0]), heads_of(setup)
    options = dict(reference=setup.ablation, heads=heads, folder=tmp_path)
    found = head_effects.total_effects(setup.model, setup.pixels, donors, **options)
    cache = setup.model.run_with_cache(setup.pixels)[1]
    for kind in head_effects.REPLACEMENTS:
        for row, head in enumerate(heads):
            hook = replacing(setup, cache, head, donors, kind)
            slow = setup.model.run_with_hooks(setup.pixels, fwd_hooks=[hook])
            torch.testing.assert_close(found["total", kind][:, row], turned(slow, setup.clean), atol=1e-12, rtol=1e-9)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2

    def never(*args, **kwargs):
        raise AssertionError("finished images were run again")

    monkeypatch.setattr(head_effects, "run_many", never)
    again = head_effects.total_effects(setup.model, setup.pixels, donors, **options)
    assert all(torch.equal(again[key], found[key]) for key in found)
    with pytest.raises(AssertionError):  # other donors are other results
        head_effects.total_effects(setup.model, setup.pixels, donors.flip(0), **options)


# ---- nulls --------------------------------------------------------------------------------------------------


def test_outputs_are_read_as_the_lenses_read_them(setup):
    written, origins = written_of(setup)
    from vit_lens.studies.importance.head_outputs import other_image, placebo

    control = placebo(written, origins, torch.Generator().manual_seed(5))
    other = other_image(written, written.outputs.roll(-1, 0), origins)
    for lens in setup.lenses.values():
        exact = dict(atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(written.embed(lens), lens.embed(written.cache, written.heads), **exact)
        slow = lens.placebo(written.cache, written.heads, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(control.embed(lens), slow, **exact)
        torch.testing.assert_close(other.embed(lens), lens.other_image(written.cache, written.heads), **exact)


def test_parts_are_all_parts(setup):
    from vit_lens.lenses.residual import site_outputs
    from vit_lens.studies.importance.head_outputs import _rest

    written, origins = written_of(setup)
    rest = site_outputs(written.cache, _rest(written.cache)) - origins.rest
    last = origins.last + (written.outputs - origins.heads).sum(1) + rest.sum(1)
    torch.testing.assert_close(last, written.last, atol=1e-11, rtol=1e-9)


def test_a_world_without_content_has_the_measured_sizes_and_adds_up(setup):
    from vit_lens.lenses.residual import centred_norm
    from vit_lens.studies.importance.head_outputs import no_content

    written, origins = written_of(setup)
    made, other = no_content(written, origins, torch.Generator().manual_seed(1))
    sizes = centred_norm(written.outputs - origins.heads)
    torch.testing.assert_close(centred_norm(made.outputs - origins.heads), sizes)
    torch.testing.assert_close(centred_norm(other - origins.heads), sizes.roll(1, 0))
    assert torch.equal(made.clean, setup.model.embed_rows(made.last))
    # A head taken out of the sum leaves what the other parts wrote.
    left = made.last - made.outputs[:, 1]
    torch.testing.assert_close(made.replaced(torch.zeros_like(other))[:, 1], setup.model.embed_rows(left))
    noise, real = made.outputs - origins.heads, written.outputs - origins.heads
    cosines = torch.nn.functional.cosine_similarity(noise.flatten(-2), real.flatten(-2), dim=-1)
    assert cosines.abs().mean() < 0.5  # nothing of the measured directions is left
    again, _ = no_content(written, origins, torch.Generator().manual_seed(1))
    assert torch.equal(again.outputs, made.outputs)


def test_baselines_by_hand(plain):
    from vit_lens.metrics import cosine

    model, (written, origins) = plain.model, written_of(plain)
    found = written.baselines(origins.heads)
    cache = model.run_with_cache(plain.pixels)[1]
    last = cache["blocks.2.hook_resid_post"][:, 0]
    scale = cache["ln_final.hook_scale"][:, 0]
    for row, head in enumerate(written.heads):
        h = cache[head.hook_name][:, 0, head.head] @ model.blocks[head.layer].attn.W_O[head.head]
        share = ((h - h.mean(-1, keepdim=True)) / scale * model.ln_final.w) @ model.W_U
        unit = plain.clean / plain.clean.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(found["norm of h"][:, row], h.norm(dim=-1))
        mean = plain.anchor.output(model, head)[0]
        torch.testing.assert_close(found["norm of h minus its mean"][:, row], (h - mean).norm(dim=-1))
        torch.testing.assert_close(found["cosine with the residual"][:, row], cosine(h, last))
        torch.testing.assert_close(found["direct attribution"][:, row], (share * unit).sum(-1))
        assert (found["layer index"][:, row] == head.layer).all()


# ---- scores -------------------------------------------------------------------------------------------------


def test_scores_are_those_of_a_slow_loop_whatever_the_batches(plain, monkeypatch):
    from vit_lens.studies.importance import head_scores
    from vit_lens.studies.similarities import centred_similarity, read_lens, similarity

    heads, donors = heads_of(plain), torch.tensor([1, 2, 3, 4, 5, 0])
    found = head_scores.read_heads(plain, heads, donors, draws=2)
    for spec, lens in plain.lenses.items():
        embeds = read_lens(plain.model, plain.pixels, lens, heads).double()
        anchor = read_lens(plain.model, plain.anchor_pixels, lens, heads).double().mean(0, keepdim=True)
        centred = centred_similarity(embeds, plain.clean, anchor, plain.centre)
        loose = dict(atol=1e-5, rtol=1e-4)  # read_lens keeps float32
        real = {kind: torch.tensor(found.real[kind, spec]) for kind in head_scores.SIMILARITIES}
        torch.testing.assert_close(real["raw similarity"], similarity(embeds, plain.clean), **loose)
        torch.testing.assert_close(real["centred similarity"], centred, **loose)
    monkeypatch.setattr(head_scores, "_NUMBERS", 4 * len(heads) * plain.model.cfg.d_model)  # 4 images at a time
    again = head_scores.read_heads(plain, heads, donors, draws=2)
    for name in ("real", "direct", "other"):
        pairs = zip(getattr(found, name).values(), getattr(again, name).values(), strict=True)
        assert all(np.allclose(a, b, atol=1e-9) for a, b in pairs), name
    shape = (2, len(heads))
    assert found.placebo["centred similarity", "diffusion"].shape == shape
    assert found.no_content_direct["direct", "mean"].shape == shape
    draws = found.placebo["centred similarity", "dsl-mean:alpha=3"]
    assert not np.allclose(draws[0], draws[1])
    assert not np.allclose(draws.mean(0), found.real["centred similarity", "dsl-mean:alpha=3"].mean(0))


def test_correlations_of_many_draws_are_those_of_one():
    from vit_lens.studies.importance.correlating import correlate, image_weights
    from vit_lens.studies.statistics import bootstrap, partial_spearman, spearman

    generator = np.random.default_rng(0)
    a, b, c, d = generator.normal(size=(4, 30, 9))
    b, c = b + a, np.round(c + a)  # ties
    a[3], b[4], c[5] = 1.0, np.nan, 2.0
    plain, given = correlate(a, b), correlate(a, b, (c, d))
    for row in range(30):
        for slow, fast in (
            (spearman(a[row], b[row]), plain),
            (partial_spearman(a[row], b[row], [c[row], d[row]]), given),
        ):
            assert (slow is None and np.isnan(fast[row])) or slow == pytest.approx(fast[row], abs=1e-9)
    assert np.isnan(plain[[3, 4]]).all() and np.isnan(given[[3, 4, 5]]).all() and np.isnan(plain).sum() == 2
    assert np.isnan(correlate(a[:2], b[:2], (a[:2], d[:2]))).all()  # explained whole
    assert np.isnan(correlate(a[:2, :4], b[:2, :4], (c[:2, :4], d[:2, :4]))).all()  # too few heads
    values, does = generator.normal(size=(2, 12, 9))
    weights = image_weights(12, seed=4)
    assert np.allclose(weights[0] @ values, values.mean(0)) and np.allclose(weights.sum(1), 1)
    slow = bootstrap(lambda rows: spearman(values[rows].mean(0), does[rows].mean(0)), 12, seed=4)
    fast = correlate(weights @ values, weights @ does)
    assert (slow.value, slow.low, slow.high) == pytest.approx(
        (fast[0], *np.quantile(fast[1:], [0.025, 0.975])), abs=0.03
    )


# ---- the study ----------------------------------------------------------------------------------------------


def mirror():
    """Pictures that show exactly what they were asked for."""
    from vit_lens import Condition
    from vit_lens.studies import Pictures, Seen

    class Mirror(Pictures):
        judge, decoder, calls = None, None, []

        def __init__(self):
            object.__setattr__(self, "calls", [])

        def see(self, embeds, *, noise_seed, label="pictures"):
            self.calls.append((noise_seed, len(embeds)))
            return Seen(Condition.of(embeds), None)

    return Mirror()


def test_pictures_are_placed_and_scored(plain):
    from dataclasses import replace

    from vit_lens.studies.importance.head_pictures import picture_scores
    from vit_lens.studies.importance.head_scores import read_heads
    from vit_lens.studies.similarities import left_out_centred, read_lens

    drawer = mirror()
    shown = replace(plain, pictures=drawer, noise_seeds=(8, 5))
    heads, spec = heads_of(plain), "dsl-mean:alpha=3"
    found = picture_scores(shown, heads, [spec], n=3, draws=2)
    assert drawer.calls == [(8, 2 * len(heads)), (5, len(heads))] * 3  # images 0 and 2, then 1; two placebos
    raw = read_heads(plain, heads, torch.arange(6).roll(1), draws=0).real["raw similarity", spec]
    assert np.allclose(found.real["raw similarity, own encoder (circular)", spec], raw[:3], atol=1e-5)
    embeds = read_lens(plain.model, plain.pixels[:3], plain.lenses[spec], heads)
    slow = left_out_centred(embeds, plain.clean[:3])
    assert np.allclose(found.real["centred similarity, own encoder (circular)", spec], slow, atol=1e-5)
    draws = found.placebo["centred similarity, own encoder (circular)", spec]
    assert draws.shape == (2, len(heads)) and not np.allclose(draws[0], draws[1])


def test_the_study_end_to_end(tmp_path, few_resamples):
    from scipy import stats

    from vit_lens import DecodeSettings, HookedViT, KandinskyDecoder
    from vit_lens.studies import Judge, load_result
    from vit_lens.studies.importance.study import importance_study

    def tower(name, seed, width):
        made = open_clip_tower(output_dim=width).float()
        return HookedViT.from_module(
            randomize(made, seed), preprocess_spec=spec_of((21, 21)), encoder_id=name
        ).requires_grad_(False)

    decoder = KandinskyDecoder(
        *tiny_kandinsky.parts(), encoder="test/tower",
        defaults=DecodeSettings(steps=1, guidance=1.0, scheduler="ddim", height=32, width=32),
    )  # fmt: skip
    lenses = ["dsl:alpha=1", "diffusion", "dsl-mean:alpha=5"]
    setup = setup_of(
        tower("test/tower", 0, tiny_kandinsky.D_EMBED), tmp_path, n=5, lenses=lenses, decoder=decoder,
        judge=Judge(tower("test/judge", 1, 13)), batch_size=16,
    )  # fmt: skip
    result = importance_study(setup, n_decoded=3, decoded=["diffusion"], draws=3, command="vit-lens study importance")
    loaded = load_result(result.save(tmp_path))
    assert loaded.scores == result.scores and loaded.tables == result.tables
    rows = result.frame("heads")
    assert len(rows) == 9 and list(rows["site"][:4]) == ["L0H0", "L0H1", "L0H2", "L1H0"]
    effect, measure = "total effect, mean ablation", "centred similarity with total effect, mean ablation"
    score = result.score(measure, "diffusion", "embedding")
    slow = stats.spearmanr(rows["centred similarity: diffusion"], rows[effect]).statistic
    assert score.estimate.value == pytest.approx(slow) and score.n == 5 and score.estimate.low is not None
    nulls = {name: null.n_draws for name, null in score.nulls.items()}
    assert nulls == {"equal-norm placebo": 3, "covariance-matched placebo": 3, "no content": 3, "heads shuffled": 200}
    larger = max(score.nulls["equal-norm placebo"].mean, score.nulls["no content"].mean)
    assert score.controls["excess over the larger null"] == pytest.approx(score.estimate.value - larger)
    assert set(score.controls) == {"excess over the larger null", "same head, other image", "random weights"}
    assert abs(score.controls["random weights"] - score.estimate.value) > 1e-6
    assert result.score(f"{measure}, given the norms", "diffusion", "embedding").estimate.value is not None
    # A lens that shows the input whatever the head: constant scores, so nothing is correlated.
    constant = result.score("raw similarity with total effect, mean ablation", "dsl:alpha=1", "embedding")
    assert constant.estimate.value is None and "are equal" in constant.estimate.why
    assert constant.controls["excess over the larger null"] is None
    for reader in ("own encoder (circular)", "judge"):
        drawn = result.score(f"centred similarity, {reader} with {effect}", "diffusion", "decoded")
        slow = stats.spearmanr(rows[f"decoded, centred similarity, {reader}: diffusion"], rows[effect]).statistic
        assert drawn.estimate.value == pytest.approx(slow) and drawn.n == 3
        assert drawn.nulls["equal-norm placebo"].n_draws == 1 and "no interval" in drawn.estimate.why
    names = ("leak index", "leak index, another image's output", "leak index, covariance-matched placebo")
    for name in names:
        value, low, high = (rows[f"{name}{end}: diffusion"] for end in ("", ", low", ", high"))
        known = value.notna()
        assert (rows["centred similarity: diffusion"][known] > 0).all() and low.notna().tolist() == known.tolist()
        assert (low[known] <= value[known]).all() and (value[known] <= high[known]).all()
    effects = result.frame("effects")
    assert len(effects) == 6 and (effects["between halves"] <= 1).all()
    assert effects[effect][0] == pytest.approx(1)
    assert {score.level for score in result.scores} == {"embedding", "decoded"}


@pytest.mark.parametrize("kind", ["cls", "patches", "map"])
def test_the_study_before_decoding_on_any_read_out(kind, tmp_path, few_resamples):
    from safetensors.torch import load_file

    from vit_lens.studies.importance.head_scores import read_heads
    from vit_lens.studies.importance.study import importance_study
    from vit_lens.studies.statistics import spearman

    setup = setup_of(model_of(kind), tmp_path)
    result = importance_study(setup, draws=2, untrained=False)
    assert {score.level for score in result.scores} == {"embedding"} and len(result.frame("heads")) == 9
    assert result.options["n_decoded"] == 0
    score = result.score("no lens with direct effect, mean ablation", "norm of h minus its mean", "embedding")
    assert "random weights" not in score.controls
    found = read_heads(setup, heads_of(setup), torch.arange(4).roll(1), draws=2)  # the nulls do not know the donors
    effect = (setup.out / "effects").glob("*.safetensors")
    total = torch.cat([load_file(path)["mean"] for path in effect]).mean(0)
    key, measure = ("centred similarity", "diffusion"), "centred similarity with total effect, mean ablation"
    nulls = result.score(measure, "diffusion", "embedding").nulls
    made = zip(found.no_content[key], found.no_content_direct["direct", "mean"], strict=True)
    assert nulls["no content"].mean == pytest.approx(np.mean([spearman(a, b) for a, b in made]))
    size_alone = np.mean([spearman(a, total.numpy()) for a in found.placebo[key]])
    assert nulls["equal-norm placebo"].mean == pytest.approx(size_alone)
    if kind == "cls":  # built in: in a world of noise, size is what matters
        assert score.nulls["no content"].mean > 0.8
    score = result.score("no lens with direct effect, mean ablation", "direct attribution", "embedding")
    assert score.estimate.value is not None
    assert ("no content" in score.nulls) == (kind != "map")  # the pattern of attention pooling has no world of noise


def test_random_weights_keep_sizes_and_nothing_else(plain):
    from vit_lens.studies.untrained import with_random_weights

    other = with_random_weights(plain, seed=5)
    assert other.model.fingerprint != plain.model.fingerprint
    assert other.model.fingerprint == with_random_weights(plain, seed=5).model.fingerprint
    own, fresh = plain.model.blocks[1].mlp.W_in, other.model.blocks[1].mlp.W_in
    assert fresh.std() == pytest.approx(float(own.std()), rel=0.1)
    assert abs(np.corrcoef(own.flatten(), fresh.flatten())[0, 1]) < 0.1
    assert torch.equal(other.pixels, plain.pixels) and other.ablation.fingerprint == other.model.fingerprint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"draws": 0}, "at least one draw"),
        ({"picture_draws": 0}, "at least one draw"),
        ({"n_decoded": 7}, "3 to 6"),
        ({"n_decoded": 2}, "3 to 6"),
        ({"decoded": ["diffusion", "dsl:alpha=77"]}, "dsl:alpha=77"),
        ({"decoded": []}, "no lens"),
    ],
)
def test_wrong_options(plain, changes, said):
    from dataclasses import replace

    from vit_lens.errors import StudyError
    from vit_lens.studies.importance.study import importance_study

    shown = replace(plain, pictures=mirror())
    with pytest.raises(StudyError, match=said):
        importance_study(shown, **({"n_decoded": 3, "decoded": ["diffusion"]} | changes))


def test_lenses_of_other_rows_or_images_are_refused_before_anything_runs(plain, tmp_path, monkeypatch, errors):
    """What is replaced lies at the read-out rows: a Jacobian lens would take it for what arrives from all rows."""
    from vit_lens import JacobianCounterfactualLens, JacobianLens
    from vit_lens.lenses import Anchors
    from vit_lens.studies import importance_study, make_setup
    from vit_lens.studies.importance import study as module

    images, held_out = plain.anchor_pixels[:2], plain.pixels[:2]
    made = JacobianLens.fit(plain.model, images, held_out=held_out).jacobians
    anchors = Anchors.of(plain.model, plain.anchor_pixels[2:3], rows="all")
    monkeypatch.setattr(module, "_tables", lambda *given: pytest.fail("it ran"))
    for lens in (
        "counterfactual:share=0.5", JacobianLens(jacobians=made),
        JacobianCounterfactualLens(jacobians=made, anchors=anchors),
    ):  # fmt: skip
        setup = make_setup(plain.model, plain.images, lenses=["diffusion", lens], out=tmp_path)
        with pytest.raises(
            errors.StudyError, match=r"replaces what heads write at the read-out rows .* something else"
        ):
            importance_study(setup, draws=1)


def test_too_few_images(tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.importance.study import importance_study

    with pytest.raises(StudyError, match="2 test images"):
        importance_study(setup_of(model_of("cls"), tmp_path, n=2))


# ---- figures and command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(plain):
    from vit_lens.studies.importance.study import importance_study

    return importance_study(plain, draws=2, untrained=False)


def test_figures_draw_the_tables_and_refuse_others(result):
    import pandas as pd

    from vit_lens.errors import RecordError
    from vit_lens.studies.importance.figures import importance_heads, importance_scores

    figure = importance_scores(result.frame())
    dots = next(trace for trace in figure.data if trace.name == "score, 95% interval")
    score = result.score("centred similarity with total effect, mean ablation", "dsl:alpha=4", "embedding")
    assert dots.x[list(dots.y).index("dsl:alpha=4 (embedding)")] == pytest.approx(score.estimate.value)
    assert "norm of h (no lens)" in dots.y and len(dots.y) == 5 + len(LENSES)
    assert not any("excess" in (trace.name or "") for trace in figure.data)
    ticks = next(trace for trace in figure.data if trace.name == "null: no content, mean")
    assert ticks.x[-1] == pytest.approx(result.score(score.measure, LENSES[-1], "embedding").nulls["no content"].mean)
    assert "given the norms" in importance_scores(result.frame(), given=True).layout.title.text
    heads = importance_heads(result.frame("heads"), "diffusion")
    assert list(heads.data[0].x) == pytest.approx(list(result.frame("heads")["centred similarity: diffusion"]))
    with pytest.raises(RecordError, match="study importance"):
        importance_scores(result.frame(), effect="total effect, no ablation")
    with pytest.raises(RecordError, match="dsl:alpha=9"):
        importance_heads(result.frame("heads"), "dsl:alpha=9")
    with pytest.raises(RecordError, match="site"):
        importance_heads(pd.DataFrame({"a": [1]}), "diffusion")


def test_the_command(plain, result, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from vit_lens.cli import app
    from vit_lens.studies import load_result

    asked, ran = {}, {}

    def opened(study, sets, out, **options):
        asked.update(options, n=len(sets.test))
        return plain

    def run(setup, **options):
        assert setup is plain
        ran.update(options)
        return result

    monkeypatch.setattr(importlib.import_module("vit_lens.studies.command_parts"), "open_setup", opened)
    monkeypatch.setattr(importlib.import_module("vit_lens.studies.importance.study"), "importance_study", run)
    line = ["study", "importance", "--lens", "diffusion,dsl:alpha=4", "--decode", "dsl:share=0.7", "--n", "6"]
    line += ["--draws", "2", "--n-decoded", "4", "--picture-draws", "3", "--no-untrained", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert asked["lenses"] == ["diffusion", "dsl:alpha=4", "dsl:share=0.7"] and asked["n"] == 6
    command = ran.pop("command")
    assert command.startswith("vit-lens")
    assert ran == {
        "n_decoded": 4, "decoded": ["dsl:share=0.7"], "draws": 2, "picture_draws": 3, "untrained": False
    }  # fmt: skip
    assert load_result(tmp_path).scores == result.scores
    assert {path.name for path in tmp_path.glob("*.html")} == {"scores.html", "scores_given_norms.html", "heads.html"}
