"""Dictionaries over time, held to slow ways: norms by stream, FVU by step, features over steps; and maps, spectra."""

import dataclasses
import math

import numpy as np
import pytest
import tiny_dictionaries as tiny
import torch
from test_dictionary_diffusion import FLUX, PROMPTS, UNET, WIDE, origin, seeds, source, tokens
from test_diffusion import flux, hooked, sd

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

SITE = "double.0.hook_resid_post"
RUNS = {
    "flux": (FLUX, ["double.1.hook_resid_post", "double.1.text.hook_resid_post", "single.0.text.hook_resid_post"]),
    "sd": (UNET, ["mid.0.hook_update", "up.0.1.blocks.0.hook_resid_post"]),
    "mini-flux": (dict(height=64, width=64, steps=3), ["double.0.text.hook_resid_post", "single.3.hook_resid_post"]),
    "mini-sd": (dict(steps=3), ["mid.0.hook_resid_post", "up.1.hook_resid_post"]),
}


@pytest.fixture(scope="module")
def models():
    import vit_lens as vl

    made = {"flux": hooked(flux(dtype=WIDE)), "sd": hooked(sd(dtype=WIDE))}
    for name in ("mini-flux", "mini-sd"):
        made[name] = vl.HookedDiffusion.from_pretrained(name)
        made[name].pipeline.set_progress_bar_config(disable=True)
    return made


def by_prompt(model, site, index, at, branch="cond", noise_seed=0, **options):
    """The activations of one prompt's draw, from a plain cache of that prompt alone: [step pos d]."""
    _, cache = model.run_with_cache(
        [PROMPTS[index]], names_filter=[site], branch=branch, seed=seeds([index], noise_seed), output_type="latent",
        **options,
    )  # fmt: skip
    return [cache.at_step(step)[site][0] for step in at]


# ---- norms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_norms_are_those_of_a_cache_of_one_prompt_at_a_time(models, name):
    from vit_lens.dictionaries import stream_norms

    run, sites = RUNS[name]
    found = stream_norms(models[name], PROMPTS, sites, at_steps=[0, 2], noise_seed=3, inputs_at_once=2, **run)
    close = dict(rtol=1e-9, atol=0) if name in ("flux", "sd") else dict(rtol=1e-4, atol=0)
    assert found.sites == tuple(sites) and found.steps == (0, 2)
    assert found.streams == tuple("text" if ".text." in site else "image" for site in sites)
    for i, site in enumerate(sites):
        lengths = [[], []]
        for index in range(len(PROMPTS)):
            for j, x in enumerate(by_prompt(models[name], site, index, (0, 2), noise_seed=3, **run)):
                own = [math.sqrt(sum(value**2 for value in token.tolist())) for token in x]
                assert float(found.by_input[i, j, index]) == pytest.approx(sum(own) / len(own), rel=close["rtol"])
                lengths[j] += own
        for j in (0, 1):
            torch.testing.assert_close(found.mean[i, j], torch.tensor(np.mean(lengths[j])), **close)
            torch.testing.assert_close(found.spread[i, j], torch.tensor(np.std(lengths[j])), **close)
        assert found.n_tokens[i] == len(lengths[0])
    frame = found.to_frame().set_index(["site", "step"])
    assert len(frame) == 2 * len(sites) and frame.loc[(sites[-1], 2), "mean"] == float(found.mean[-1, 1])
    assert frame["block"].iloc[0] == sites[0].rpartition(".")[0].removesuffix(".text")


def test_norms_are_of_every_stream_one_branch_and_the_tokens_asked_for(models):
    from vit_lens.dictionaries import stream_norms

    whole = stream_norms(models["flux"], PROMPTS[:2], **FLUX)
    assert whole.sites == tuple(name for name in models["flux"].hook_dict if name.endswith(".hook_resid_post"))
    assert set(whole.streams) == {"image", "text"} and whole.blocks[0] == "double.0"
    assert whole.n_tokens[:2] == (2 * 15, 2 * 11)
    both = {
        branch: stream_norms(models["sd"], PROMPTS[:2], ["mid.0.update"], branch=branch, tokens="5,2", **UNET)
        for branch in ("cond", "uncond")
    }
    for branch, found in both.items():
        x = by_prompt(models["sd"], "mid.0.hook_update", 1, range(3), branch, **UNET)
        expected = torch.stack([step[[2, 5]].norm(dim=-1).mean() for step in x])
        torch.testing.assert_close(found.by_input[0, :, 1], expected, rtol=1e-9, atol=0)
    assert not torch.allclose(both["cond"].mean, both["uncond"].mean, rtol=1e-3)


def test_norms_of_models_without_steps(vit, pixels, errors):
    import vit_lens as vl
    from vit_lens.dictionaries import stream_norms

    found = stream_norms(vit, pixels, tokens="patches", inputs_at_once=2)
    _, cache = vit.run_with_cache(pixels)
    for i, name in enumerate(found.sites):
        expected = cache[name][:, 1:].norm(dim=-1)
        torch.testing.assert_close(found.by_input[i, 0], expected.mean(1), rtol=1e-9, atol=0)
        torch.testing.assert_close(found.spread[i, 0], expected.std(correction=0), rtol=1e-9, atol=0)
    assert found.steps is None and found.blocks == tuple(f"blocks.{i}" for i in range(3))
    text = vl.HookedTextEncoder.from_pretrained("mini")
    found = stream_norms(text, ["a red star", "a small blue ring on the left"], ["L1.resid_post"])
    own = vl.ActivationSource.of_model(text, ["a red star", "a small blue ring on the left"], "L1.resid_post")
    x, labels = tokens(own)  # without what is filled up
    assert found.n_tokens == (len(x),) and found.streams == ("text",)
    torch.testing.assert_close(found.mean[0, 0], x.double().norm(dim=1).mean(), rtol=1e-5, atol=0)
    second = x[labels[:, 0] == 1].double().norm(dim=1).mean()
    torch.testing.assert_close(found.by_input[0, 0, 1], second, rtol=1e-5, atol=0)
    with pytest.raises(errors.DictionaryError, match=r"is \(3, 5, 5, 7\); lengths are of tokens"):
        stream_norms(vit, pixels, ["blocks.1.attn.hook_z"])
    with pytest.raises(errors.DictionaryError, match="a HookedViT takes no at_steps"):
        stream_norms(vit, pixels, at_steps=[0])


def test_norms_that_cannot_be_are_refused(models, errors):
    from vit_lens.dictionaries import stream_norms

    for sites, run, told in (
        ([], {}, "no hook points"),
        (["double.0.hook_attn_gate"], {}, "is .batch d_model.; a dictionary is of tokens"),
        ([SITE, "double.1.hook_attn_gate"], {}, r"double.1.hook_attn_gate is \(2, 32\); lengths are of tokens"),
        (["double.9.hook_resid_post"], {}, "no hook point 'double.9.hook_resid_post'"),
        ([SITE], {"at_steps": [3]}, "has the steps 0 to 2"),
    ):
        with pytest.raises(errors.VitLensError, match=told):
            stream_norms(models["flux"], PROMPTS[:2], sites, **FLUX, **run)


# ---- some steps of a source --------------------------------------------------------------------------------------


def test_some_steps_of_a_source_are_a_source_of_these(models, tmp_path, errors):
    from vit_lens import ActivationSource

    whole = source(models["flux"], SITE, batch_size=7, buffer=2, **FLUX)
    alone = source(models["flux"], SITE, at_steps=[2, 1], batch_size=7, buffer=2, **FLUX)
    kept = ActivationSource.open(whole.write(tmp_path / "kept", dtype=torch.float32), batch_size=7, buffer=2)
    for own in (whole.at_steps([1, 2]), kept.at_steps([2, 1])):
        (found, labels), (expected, places) = tokens(own), tokens(alone)
        assert torch.equal(labels, places) and torch.allclose(found.double(), expected, atol=1e-5)
        assert own.provenance == alone.provenance
    assert [len(side.inputs) for side in kept.at_steps([0]).split(0.4)] == [3, 2]
    batches = list(kept.at_steps([0]).stream(epochs=1))
    rest = list(kept.at_steps([0]).stream(batches[2].then, epochs=1))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(rest, batches[3:], strict=True)) and rest
    assert len({whole.content, whole.at_steps([0]).content, whole.at_steps([1]).content}) == 3
    for steps in ([], [3], [0, -1]):
        with pytest.raises(errors.DictionaryError, match=r"the tokens are of the steps \[0, 1, 2\]"):
            whole.at_steps(steps)
    with pytest.raises(errors.DictionaryError, match="of no steps"):
        ActivationSource.of_array(torch.randn(5, 4)).at_steps([0])


# ---- FVU by step -------------------------------------------------------------------------------------------------


def slow_explained(dictionary, x, method=None, k=None):
    """FVU, standardised FVU, VE, L0 and dead features of tokens that are all in memory, by numpy."""
    codes = dictionary.encode(x, method, k=k)
    x, y, codes = x.numpy(), dictionary.decode(codes).numpy(), codes.numpy()
    error, variance = ((x - y) ** 2).sum(0), ((x - x.mean(0)) ** 2).sum(0)
    squared = [np.corrcoef(x[:, d], y[:, d])[0, 1] ** 2 for d in range(x.shape[1])]
    return dict(
        fvu=error.sum() / variance.sum(), fvu_standardised=(error / variance).mean(), ve=np.mean(squared),
        l0=(codes != 0).sum(1).mean(), dead=((codes != 0).sum(0) == 0).mean(), n_tokens=len(x),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "method"), [("flux", None), ("flux", "pursuit"), ("sd", None)])
def test_fvu_by_step_is_that_of_the_tokens_in_memory(models, name, method):
    from vit_lens.dictionaries import fvu_by_step, step_and_position

    run, site = {"flux": (FLUX, SITE), "sd": (UNET, "mid.0.hook_update")}[name]
    own = source(models[name], site, batch_size=11, buffer=2, **run)
    x, labels = tokens(own)
    made = {kind: tiny.make(kind, d=32, seed=3, origin=origin(own)) for kind in ("topk", "jumprelu")}
    found = fvu_by_step(made, own, method=method, k=None if method is None else 4)
    steps = torch.tensor([step_and_position(place)[0] for place in labels[:, 1].tolist()])
    assert [(one.name, one.step) for one in found.points] == [(k, s) for k in made for s in (None, 0, 1, 2)]
    for one in found.points:
        mask = steps == one.step if one.step is not None else torch.ones_like(steps, dtype=torch.bool)
        expected = slow_explained(made[one.name], x[mask], method, None if method is None else 4)
        for key, value in expected.items():
            assert getattr(one, key) == pytest.approx(value, rel=1e-9), (one.name, one.step, key)
        variance = (x[mask] - x[mask].mean(0)).square().sum(1).mean()
        for row in range(len(PROMPTS)):
            part = x[mask & (labels[:, 0] == row)]
            codes = made[one.name].encode(part, method, k=None if method is None else 4)
            missed = (part - made[one.name].decode(codes)).square().sum(1).mean()
            torch.testing.assert_close(one.by_input[row], missed / variance, rtol=1e-9, atol=0)
        assert float(one.by_input.mean()) == pytest.approx(one.fvu)
    frame = found.to_frame()
    assert len(frame) == 8 and frame["step"].isna().sum() == 2 and "by_input" not in frame
    assert found.of("topk", 2).sigma == own.provenance.sigmas[2] and found.n_inputs == len(PROMPTS)


def test_fvu_of_each_step_is_what_evaluate_says_of_it(models):
    """Another way to the same: a source of the step alone."""
    from vit_lens.dictionaries import evaluate, fvu_by_step

    own = source(models["flux"], SITE, **FLUX)
    made = tiny.make("topk", d=32)
    found = fvu_by_step(made, own)
    for step in (0, 1, 2):
        alone = evaluate(made, source(models["flux"], SITE, at_steps=[step], **FLUX))
        one = found.of("dictionary", step)
        for key in ("fvu", "fvu_standardised", "l0", "dead", "n_tokens"):
            assert getattr(one, key) == pytest.approx(getattr(alone, key), rel=1e-9)


def test_own_steps_are_told_by_noise_level(models):
    from vit_lens.dictionaries import fvu_by_step

    whole = source(models["flux"], SITE, **FLUX)
    first = tiny.make("topk", d=32, origin=origin(whole.at_steps([0])))
    last = tiny.make("topk", d=32, origin=origin(whole.at_steps([2])))
    every, foreign = tiny.make("topk", d=32, origin=origin(whole)), tiny.make("topk", d=32)
    named = {"first": first, "last": last, "every": every, "foreign": foreign}
    found = fvu_by_step(named, whole)
    assert {name: [one.is_own for one in found.points if one.name == name] for name in named} == {
        "first": [False, True, False, False], "last": [False, False, False, True], "every": [True] * 4,
        "foreign": [False] * 4,
    }  # fmt: skip
    longer = source(models["flux"], SITE, at_steps=[0, 2, 4], **FLUX | dict(steps=6))  # levels 1, 2/3, 1/3
    found = fvu_by_step({"last": last, "every": every}, longer)
    assert [one.is_own for one in found.points] == [False, False, False, True, False, True, True, True]
    unknown = dataclasses.replace(last, origin=dataclasses.replace(last.origin, sigmas=None))
    found = fvu_by_step(unknown, longer)
    assert [one.is_own for one in found.points] == [False, False, True, False]


def test_fvu_without_steps_is_one_row_and_others_are_refused(vit, pixels, models, errors):
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import fvu_by_step

    own = ActivationSource.of_model(vit, pixels, "L1.resid_post", batch_size=4)
    made = tiny.make("topk", d=35)
    found = fvu_by_step({"a": made}, own)
    (one,) = found.points
    expected = slow_explained(made, tokens(own)[0])
    assert one.step is None and one.ve == pytest.approx(expected["ve"]) and not one.is_own
    assert repr(found) == "FVUByStep(1 dictionaries, no steps, 3 inputs)"
    with pytest.raises(errors.DictionaryError, match="nothing of 'a' at step 2"):
        found.of("a", 2)
    wrong = tiny.make("topk", d=32, origin=origin(source(models["flux"], "double.1.hook_resid_post", **FLUX)))
    with pytest.raises(errors.DictionaryError, match=r"is of site 'double\.1\.hook_resid_post'"):
        fvu_by_step(wrong, source(models["flux"], SITE, **FLUX))
    with pytest.raises(errors.DictionaryError, match="no dictionaries"):
        fvu_by_step({}, own)
    same = ActivationSource.of_array(torch.ones(6, 35, dtype=WIDE))
    with pytest.raises(errors.DictionaryError, match="all the same"):
        fvu_by_step(made, same)


# ---- features over steps -----------------------------------------------------------------------------------------


def slow_alike(columns):
    """Correlations between steps of one feature's activations [step input position], pair by pair."""
    n = len(columns)
    found = np.full((n, n), np.nan)
    for s in range(n):
        for t in range(n):
            a, b = columns[s].flatten(), columns[t].flatten()
            if a.std() > 1e-9 and b.std() > 1e-9:
                found[s, t] = np.corrcoef(a, b)[0, 1]
    return found


@pytest.mark.parametrize("name", ["flux", "sd", "mini-flux", "mini-sd"])
def test_features_over_steps_are_correlations_pair_by_pair(models, name):
    import vit_lens as vl
    from vit_lens.dictionaries import features_over_steps

    run = RUNS[name][0]
    site = {"flux": SITE, "sd": "mid.0.hook_update", "mini-flux": "single.1.hook_resid_post"}.get(name, "mid.0.update")
    own = source(models[name], site, batch_size=11, buffer=2, **run)
    if name.startswith("mini"):
        made = vl.dictionaries.ITDA(k=5).from_random(own, 60)
    else:
        made = tiny.make("topk", d=32, n=90, k=9, seed=1)
    fires = (made.encode(tokens(own)[0]) != 0).any(0)
    features = [*fires.nonzero()[:9, 0].tolist(), *(~fires).nonzero()[:2, 0].tolist()]
    n = len(features)
    found = features_over_steps(made, own, features, n_shuffles=2, seed=5)
    n_steps = 3
    codes = made.encode(tokens(own)[0])[:, features].double().numpy()
    codes = codes.reshape(len(PROMPTS), n_steps, -1, len(features))  # [input step position feature]
    generator = torch.Generator().manual_seed(5)
    draws = [[], []]
    for of_input in codes:
        for draw in draws:
            draw.append(of_input[torch.randperm(n_steps, generator=generator).numpy()])
    ways = [np.stack([slow_alike(np.moveaxis(way, 1, 0)[..., f]) for f in range(len(features))])
            for way in (codes, *map(np.stack, draws))]  # fmt: skip
    defined = np.all([np.isfinite(way) for way in ways], axis=0)
    assert defined.any(0).all() and not (defined.all() and fires.all())
    means = [np.nanmean(np.where(defined, way, np.nan), axis=0) for way in (ways[0], (ways[1] + ways[2]) / 2)]
    close = dict(rtol=0, atol=1e-9 if name in ("flux", "sd") else 1e-4)
    torch.testing.assert_close(found.alike, torch.tensor(means[0]), **close)
    torch.testing.assert_close(found.shuffled, torch.tensor(means[1]), **close)
    assert found.n_defined.tolist() == defined.sum(0).tolist()
    neighbours = [[way[f, s, s + 1] for s in (0, 1) if defined[f, s, s + 1]] for way in ways for f in range(n)]
    expected = torch.tensor([np.mean(pair) if pair else np.nan for pair in neighbours]).double().view(3, n)
    torch.testing.assert_close(found.neighbours, expected[0], **close, equal_nan=True)
    torch.testing.assert_close(found.neighbours_shuffled, expected[1:].mean(0), **close, equal_nan=True)
    frame = found.to_frame()
    assert len(frame) == 9 and found.n_positions == codes.shape[2]
    assert frame.loc[(frame["step"] == 0) & (frame["other"] == 2), "alike"].item() == float(found.alike[0, 2])


def test_time_that_goes_is_seen_and_noise_is_not(models):
    """A feature that drifts from step to step is more alike in neighbours than shuffled; one of pure noise is not."""
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import Dictionary, Provenance, Semantics, features_over_steps
    from vit_lens.dictionaries.denoisers import place_of

    n, steps, positions = 60, 5, 4
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, steps, positions, 2, generator=generator, dtype=WIDE)
    x = torch.stack([noise[..., 0].cumsum(1), noise[..., 1]], dim=-1)

    class Reader:
        keys = tuple(map(str, range(n)))
        provenance = Provenance(at_steps=tuple(range(steps)))

        def read(self, inputs):
            places = torch.tensor([place_of(s, p) for s in range(steps) for p in range(positions)])
            labels = torch.stack([torch.tensor([index, place]) for index in inputs for place in places.tolist()])
            return x[list(inputs)].flatten(0, 2), labels

    basis = Dictionary(
        W_dec=torch.eye(2).double(), b_dec=torch.zeros(2).double(), semantics=Semantics.plain("signed", 2)
    )
    found = features_over_steps(basis, ActivationSource(Reader(), tuple(range(n)), buffer=7))
    drift, plain = (found.neighbours - found.neighbours_shuffled).tolist()
    assert drift > 0.08 and abs(plain) < 0.03 and found.alike.diagonal().tolist() == pytest.approx([1.0] * steps)
    assert float(found.alike[0, 1]) > float(found.alike[0, 4])


def test_likeness_that_cannot_be_is_refused(models, vit, pixels, errors):
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import features_over_steps

    own, made = source(models["flux"], SITE, **FLUX), tiny.make("topk", d=32)
    for given, told in (
        (dict(source=own.at_steps([1])), r"of steps \(1,\); likeness over steps"),
        (dict(source=ActivationSource.of_array(torch.randn(4, 32, dtype=WIDE))), "of steps None"),
        (dict(features=[53]), "no feature 53"),
        (dict(features=[]), "no features"),
        (dict(n_shuffles=0), "n_shuffles=0"),
    ):
        with pytest.raises(errors.DictionaryError, match=told):
            features_over_steps(made, **(dict(source=own) | given))


# ---- maps and spectra --------------------------------------------------------------------------------------------


def slow_map(values, grid):
    """Active patches, their share, what the top quarter holds, and the spread, of one map of one feature."""
    sizes = [abs(value) for value in values]
    total, top = sum(sizes), sorted(sizes, reverse=True)[: math.ceil(len(sizes) / 4)]
    places = [divmod(index, grid[1]) for index in range(len(sizes))]
    centre = [sum(size * place[axis] for size, place in zip(sizes, places, strict=True)) / total for axis in (0, 1)]
    square = sum(
        size * sum((place[axis] - centre[axis]) ** 2 for axis in (0, 1))
        for size, place in zip(sizes, places, strict=True)
    )
    active = sum(size > 0 for size in sizes)
    return active, active / len(sizes), sum(top) / total, math.sqrt(square / total)


@pytest.mark.parametrize("name", ["flux", "vit"])
def test_maps_are_measured_one_by_one(models, vit, pixels, name):
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import spatial_features

    if name == "flux":
        own, grid, made = source(models["flux"], SITE, batch_size=7, buffer=2, **FLUX), (3, 5), tiny.make("topk", d=32)
    else:
        own = ActivationSource.of_model(vit, pixels, "L1.resid_post", tokens="patches")
        grid, made = vit.cfg.grid, tiny.make("topk", d=35)
    made = dataclasses.replace(made, W_dec=made.W_dec, b_enc=torch.where(torch.arange(53) == 9, -1e6, made.b_enc))
    codes = made.encode(tokens(own)[0]).view(-1, math.prod(grid), 53)  # [map patch feature]
    found = spatial_features(made, own)
    assert found.grid == grid and found.n_read == len(codes)
    for feature in range(53):
        maps = [slow_map(one[:, feature].tolist(), grid) for one in codes if one[:, feature].any()]
        assert int(found.n_maps[feature]) == len(maps)
        if not maps:
            assert (
                int(found.most[feature]) == 0 and math.isnan(found.area[feature]) and math.isnan(found.spread[feature])
            )
            continue
        assert int(found.most[feature]) == max(one[0] for one in maps)
        for at, key in enumerate(("area", "concentration", "spread"), start=1):
            expected = sum(one[at] for one in maps) / len(maps)
            assert float(getattr(found, key)[feature]) == pytest.approx(expected, abs=1e-9)
    assert int(found.most[9]) == 0
    live = [int(n) for n in found.most if n]
    assert found.sparse(2) == pytest.approx(sum(n <= 2 for n in live) / len(live)) and found.sparse(15) == 1.0
    assert len(found.to_frame()) == 53


def test_maps_that_are_none_are_refused(models, errors):
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import spatial_features

    made = tiny.make("topk", d=32)
    own = ActivationSource.of_array([torch.randn(4, 32, dtype=WIDE), torch.randn(3, 32, dtype=WIDE)])
    with pytest.raises(errors.DictionaryError, match="input 1 has 3 tokens, another 4"):
        spatial_features(made, own)
    with pytest.raises(errors.DictionaryError, match="15 tokens of an image, and a grid of 4 x 4"):
        spatial_features(made, source(models["flux"], SITE, **FLUX), grid=(4, 4))
    silent = dataclasses.replace(made, b_enc=torch.full_like(made.b_enc, -1e6))
    with pytest.raises(errors.DictionaryError, match="none of 53 features fires"):
        spatial_features(silent, source(models["flux"], SITE, **FLUX)).sparse()


def test_a_spectrum_is_that_of_the_covariance(models):
    from vit_lens.dictionaries import spectrum

    own = source(models["flux"], SITE, batch_size=7, **FLUX)
    x = tokens(own)[0].numpy()
    covariance = np.cov(x.T, bias=True)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    found = spectrum(own)
    np.testing.assert_allclose(found.shares.numpy(), values / values.sum(), atol=1e-9)
    widest = np.sort(np.diag(covariance))[::-1]
    np.testing.assert_allclose(found.dimensions.numpy(), widest / widest.sum(), atol=1e-9)
    assert found.n_tokens == len(x) and len(found.to_frame()) == 32
    assert spectrum(own, n_tokens=20).n_tokens == 20


def test_shards_are_loaded_once_for_all_inputs_that_are_read(tmp_path, monkeypatch):
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import reading

    x = torch.randn(12, 3, 5, generator=torch.Generator().manual_seed(0))
    kept = ActivationSource.of_array(x).write(tmp_path / "kept", dtype=torch.float32, inputs_per_shard=4)
    loaded, real = [], reading.open_tensors
    monkeypatch.setattr(
        reading, "open_tensors", lambda path, *a, **k: (loaded.append(path.name), real(path, *a, **k))[1]
    )
    order = [7, 0, 11, 1, 8, 0, 4]
    found, labels = ActivationSource.open(kept).reader.read(order)
    assert torch.equal(found, x[order].flatten(0, 1)) and labels[:, 0].tolist() == [i for i in order for _ in range(3)]
    assert labels[:, 1].tolist() == [0, 1, 2] * 7 and len(loaded) == 3
