"""The bench: its truth is true, an oracle gets all that there is, chance gets nothing, and what fails is said."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
SEED = 5


@pytest.fixture(scope="module")
def plants():
    """Five plants, so that there are intervals; effects of ablation are worked out for the first alone."""
    from vit_lens.bench import Plants

    made = Plants([SEED], 5)
    for number, one in enumerate(made.images[1:]):
        one.__dict__["effects"] = np.random.default_rng(number).normal(size=64)
    return made


def lens_of(thing, name="mine"):
    from vit_lens.bench import Candidate

    return Candidate(name=name, kind="lens", thing=thing)


def scores(task, candidate, plants):
    return {score.measure: score for score in task.run(candidate, plants)}


def only(plants, n=1):
    """The first plants, as they are."""
    from vit_lens.bench import Plants

    few = Plants(plants.seeds, n)
    few.__dict__["images"] = plants.images[:n]
    return few


# ---- what is planted


def test_other_seeds_plant_other_things_and_one_seed_the_same(plants):
    from vit_lens.bench import Plants
    from vit_lens.bench.heads import read_heads

    fresh = Plants([SEED], 1)
    again, other, first = fresh.images[0], Plants([SEED + 1], 1).images[0], plants.images[0]

    def said(plant):
        return plant.attribute.captions, str(plant.plant.site), tuple(map(str, plant.decoys)), str(plant.named)

    assert said(again) == said(first) != said(other)
    assert torch.equal(again.pixels, first.pixels)
    assert all(torch.equal(x, y) for x, y in zip(again.model.parameters(), first.model.parameters(), strict=True))
    assert len({said(one) for one in plants.images}) == len(plants.images)
    read = [read_heads(lens_of("dsl-mean:alpha=5"), one, one.model, 1) for one in (again, first)]
    assert all(np.array_equal(x, y) for x, y in zip(*read, strict=True))  # and placebos


def double(model):
    from vit_lens.towers import working_copy

    return working_copy(model, torch.float64, device=model.device).requires_grad_(False)


def test_one_head_tells_the_attribute_and_decoys_tell_the_output_nothing(plants):
    """By brute force, in float64: heads silenced by hooks, one after the other."""
    plant = plants.images[0]
    model, before = double(plant.model), double(plant.plant.model)
    pixels = plant.pixels.double()

    def gap(site=None):
        hooks = []
        if site is not None:

            def average(z, hook):
                z[:, :, site.head] = z[:, :, site.head].mean(0)
                return z

            hooks = [(site.hook_name, average)]
        return float(plant.gap(plant.contrast(model.run_with_hooks(pixels, fwd_hooks=hooks))))

    whole = gap()
    assert gap(plant.plant.site) < 0.5 * whole
    for decoy in plant.decoys:
        assert abs(gap(decoy) / gap() - 1) < 0.2  # what it writes of its own is still there
    # Weights are kept in float32, whose rounding is all that is left of decoys four times as loud as any head.
    assert float((model(pixels) - before(pixels)).abs().max()) < 1e-5 * float(before(pixels).abs().max())
    _, cache = model.run_with_cache(pixels)
    written = {}
    for site in plant.heads:
        weight = model.attention_of(site).W_O[site.head]
        out = cache[site.hook_name][:, 0, site.head] @ weight
        written[str(site)] = float((out - out.mean(0)).square().sum(-1).mean().sqrt())
    loud = [written.pop(str(site)) for site in plant.decoys]
    assert min(loud) > 2 * max(written.values())


def test_effects_are_those_of_silenced_heads(plants):
    from vit_lens import ReferenceMeans

    plant = plants.images[0]
    rows = np.concatenate([np.flatnonzero(plant.label == value)[:12] for value in (0, 1)])
    pixels, label = plant.pixels[torch.from_numpy(rows)], plant.label[rows]
    means = ReferenceMeans.from_images(plant.host, plant.reference, positions="all")
    base = plant.gap(plant.contrast(plant.host(pixels)), label)
    for index in (3, 41, 60):
        site = plant.heads[index]

        def put(z, hook, site=site):
            z[:, :, site.head] = means.z_of(site)[:, site.head]
            return z

        gone = plant.gap(plant.contrast(plant.host.run_with_hooks(pixels, fwd_hooks=[(site.hook_name, put)])), label)
        assert abs(float(base - gone) - plant.effects[index]) < 1e-3 * plant.apart


# ---- lenses


class _Said:
    """A lens that knows the truth of the plants: the caption of the class at the planted head, nothing elsewhere."""

    def __init__(self, plants):
        self.plants = plants

    def __call__(self, model, pixels):
        from vit_lens import Condition, Lens

        plant = next(one for one in self.plants.images if model in (one.model, one.plant.model, one.host, one.blank))
        told = plant.texts.embeds[[plant.texts.index(caption) for caption in plant.attribute.captions]].float()

        class Oracle(Lens):
            def reads(self, site):
                return True

            def read(self, cache, sites):
                embeds = told.mean(0).repeat(len(plant.label), len(plant.heads), 1)
                if model in (plant.model, plant.plant.model):
                    embeds[:, plant.heads.index(plant.plant.site)] = told[torch.from_numpy(plant.label)]
                return Condition(pooled=embeds)

        return Oracle()


def test_an_oracle_gets_one_less_chance_and_shows_nothing_where_nothing_is(plants):
    from vit_lens.bench.heads import HEADS

    found = scores(HEADS, lens_of(_Said(plants)), plants)
    assert found["planted"].raw == 1 and found["planted"].n == 5
    assert found["planted"].estimate.value == pytest.approx(1 - found["planted"].less)
    assert found["planted"].less >= 0.5  # its placebo deals the classes at random, since it has no control
    assert found["decoys"].values == (0.0,) * 5 and found["random weights"].values == (0.0,) * 5


def test_a_random_lens_gets_nothing(plants):
    from vit_lens.bench import named_candidate
    from vit_lens.bench.heads import HEADS

    found = scores(HEADS, named_candidate("lens", "random"), plants)
    for measure in ("planted", "decoys", "random weights"):
        estimate = found[measure].estimate
        assert estimate.low <= 0 <= estimate.high, (measure, str(estimate))


def test_decoys_fool_a_lens_without_the_norm_and_no_other(plants):
    from vit_lens.bench import named_candidate
    from vit_lens.bench.heads import read_heads

    fooled = []
    for plant in plants.images:  # how far the classes lie apart along the norm's direction is chance
        others = ~plant.at(plant.plant.site, *plant.decoys)
        bare, right = (
            [np.abs(read_heads(named_candidate("lens", name), plant, model, 1)[0]) for model in
             (plant.model, plant.plant.model)] for name in ("no-norm", "diffusion")
        )  # fmt: skip
        carries = plant.heads.index(plant.decoys[0])  # the other decoy is loud, and says nothing of the classes
        fooled.append(bare[0][carries] > bare[0][others].max() and bare[1][carries] < bare[1][others].max())
        np.testing.assert_allclose(*right, atol=1e-4)
        assert right[0].argmax() == plant.heads.index(plant.plant.site)
    assert any(fooled), fooled


def test_a_placebo_below_chance_earns_nothing():
    from vit_lens.bench.measuring import measured

    assert measured("t", "planted", [1.0, 1.0], [0.1, 0.3], chance=0.5).values == (0.5, 0.5)
    assert measured("t", "planted", [1.0, 1.0], [0.6, 0.8], chance=0.5).values == pytest.approx((0.4, 0.2))
    own = measured("t", "planted", [1.0, None], [0.6, 0.8])
    assert own.values == (0.4, None) and own.n == 1


def test_scores_that_differ_by_rounding_are_ties():
    from vit_lens.bench.measuring import auc_at

    positive = np.array([False, False, True])
    assert auc_at(np.array([0.0, 0.0, 1e-5]), positive, np.ones(3, dtype=bool)) == 0.5
    assert auc_at(np.array([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), positive, np.ones(3, dtype=bool)) == 0.5


# ---- text encoders


@pytest.mark.parametrize("task", ["names", "relations"])
def test_one_mlp_alone_tells_prompts_apart(task):
    from vit_lens.bench import named_candidate
    from vit_lens.bench.names import _plant as names
    from vit_lens.bench.relations import _plant as relations
    from vit_lens.bench.text_plants import run_on_text

    grow = {"names": names, "relations": relations}[task]
    plant = grow((SEED, 0, 1))
    clean, tower = plant.run.condition.tokens, plant.run.tower("text_encoder")
    torch.testing.assert_close(plant.before.condition.tokens, clean, rtol=0, atol=1e-3)

    def apart(hooks):
        tokens = plant.run.edited("text_encoder", hooks).condition.tokens
        return plant.shares(clean, tokens[:, None])[0]

    assert apart([]) == pytest.approx(1, abs=1e-6)
    silent = [(plant.planted.hook_name, lambda act, hook: act * 0)]
    assert abs(apart(silent)) < 0.5
    assert apart([(plant.decoy.hook_name, lambda act, hook: act * 0)]) == pytest.approx(1, abs=1e-3)
    _, cache = tower.run_with_cache(plant.run.ids["text_encoder"], attention_mask=plant.run.masks["text_encoder"])
    loud = float(cache[plant.decoy.hook_name].norm(dim=-1).max())
    assert loud > 2 * float(cache[plant.planted.hook_name].norm(dim=-1).max())
    found = {one.measure: one for one in run_on_text(task, named_candidate("lens", "text-diffusion"), [plant])}
    assert found["planted"].raw == 1 and found["decoys"].values == (0.0,)


def test_relations_are_told_from_their_opposite():
    from vit_lens.bench.relations import _plant

    plant = _plant((SEED, 0, 1))
    for prompt, other in zip(plant.host.prompts, plant.other.tolist(), strict=True):
        pairs = {"left": "right", "right": "left", "above": "below", "below": "above"}
        assert [pairs.get(word, word) for word in prompt.split()] == plant.host.prompts[other].split()


# ---- steering, dictionaries


def test_placebos_of_hooks_change_as_much_in_one_direction():
    from vit_lens.bench.steering import _at_random

    act = torch.randn(2, 3, 7, dtype=torch.float64)

    def in_place(x, hook):
        x[:, 1] *= 3
        return x

    noise = _at_random(in_place, torch.Generator().manual_seed(0))
    change = noise(act.clone(), None) - act
    torch.testing.assert_close(change.norm(dim=-1)[:, 1], 2 * act[:, 1].norm(dim=-1))
    assert float(change[:, [0, 2]].abs().max()) == 0
    ways = change[:, 1] / change[:, 1].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(ways[0], ways[1])


def test_steering_is_the_share_of_the_way_and_pushing_the_readout_is_seen(plants):
    from vit_lens.bench import OWN
    from vit_lens.bench.steering import steer_on

    plant = plants.images[0]
    there, nothing = (steer_on(OWN["steer"]["captions"], plant, model) for model in (plant.model, plant.barren))
    assert there.less > 0.6 and there.kept > 0.8
    assert nothing.less > 0.5  # it knows nothing of the encoder
    none = steer_on(lambda model, target, strength: [("blocks.7.hook_resid_post", lambda act, hook: act)], plant,
                    plant.model)  # fmt: skip
    assert (none.effect, none.placebo, none.kept) == (0, 0, 1)


def test_an_oracle_of_a_dictionary_is_above_random_features(plants):
    from vit_lens import Dictionary
    from vit_lens.bench.features import _direction, _placebo_of, _read, _told
    from vit_lens.dictionaries import ActivationSource, Semantics

    plant, trained = plants.images[0], Dictionary.from_pretrained("mini-topk")
    site = trained.check(plant.host)
    way = _direction(_read(trained, plant.host, site, plant.reference[:96]),
                     torch.from_numpy(plant.attribute.anchor[:96]))  # fmt: skip
    way = (way / way.norm())[None]
    oracle = Dictionary(
        W_dec=way, b_dec=torch.zeros(128), W_enc=way.T.clone(), b_enc=torch.tensor([50.0]),
        semantics=Semantics.plain("relu"), origin=trained.origin,
    )  # fmt: skip
    source = ActivationSource.of_model(plant.host, plant.reference[:32], site, tokens="patches")
    untrained, other = map(_placebo_of(oracle, source), (0, 1))
    assert untrained.n_features == 1 and not torch.equal(untrained.W_dec, other.W_dec)
    (there, blind), (random, _) = _told((oracle, untrained), plant, plant.host, site)
    assert there > 0.85 and there > random + 0.1
    assert blind is not None and abs(blind - 0.5) < 0.25


# ---- wrong candidates, and what is written

GOOD = """
import torch
import vit_lens as vl


class Good(vl.Lens):
    def reads(self, site):
        return True

    def read(self, cache, sites):
        return vl.DiffusionLens().read(cache, sites)


class Short(Good):
    def read(self, cache, sites):
        return vl.Condition(pooled=super().read(cache, sites).pooled[:, :-1])


class Narrow(Good):
    def read(self, cache, sites):
        return vl.Condition(pooled=super().read(cache, sites).pooled[..., :-1])


class Nan(Good):
    def read(self, cache, sites):
        return vl.Condition(pooled=super().read(cache, sites).pooled * float("nan"))


class Raises(Good):
    def read(self, cache, sites):
        raise RuntimeError("out of ideas")


def steers_nothing(model, target, strength):
    return None


def steers_to_nan(model, target, strength):
    return [("blocks.0.hook_resid_post", lambda act, hook: act * float("nan"))]


number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own in the current folder, under a name of its own."""
    import sys

    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_names_that_there_are_not_are_said_with_the_nearest(module):
    from vit_lens.bench import named_candidate
    from vit_lens.errors import DictionaryError, InterventionError, LensError

    for kind, spec, error, message in [
        ("lens", "diffusoin", LensError, "nearest: 'diffusion'"),
        ("lens", f"{module[:-1]}:Good", LensError, module),
        ("lens", f"{module}:Goood", LensError, "nearest: 'Good'"),
        ("lens", "dsl:alhpa=3", LensError, "dsl:alpha=NUMBER"),
        ("steer", f"{module}:steers_nothin", InterventionError, "'steers_nothing'"),
        ("steer", "mean-diference", InterventionError, "'mean-difference'"),
        ("dictionary", "mini-topp", DictionaryError, "'mini-topk'"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            named_candidate(kind, spec)
    Path("broken.py").write_text("1 / 0")
    with pytest.raises(LensError, match="cannot be imported"):
        named_candidate("lens", "broken:Lens")
    Path("needs.py").write_text("import not_there_at_all")
    with pytest.raises(LensError, match="needs 'not_there_at_all'"):
        named_candidate("lens", "needs:Lens")


def test_what_fails_is_said_and_the_others_go_on(module, plants, monkeypatch, vit_lens, tmp_path):
    from vit_lens.bench import load_bench, running, schema_errors

    monkeypatch.setattr(running, "Plants", lambda seeds, n: only(plants))
    lenses = [f"{module}:{name}" for name in ("Good", "Short", "Narrow", "Nan", "Raises", "number")]
    words = [word for lens in lenses for word in ("--lens", lens)]
    words += ["--steer", f"{module}:steers_nothing", "--steer", f"{module}:steers_to_nan", "--n-plants", 1]
    status, output, _ = vit_lens("bench", *words, "--plant-seed", SEED, "--out", tmp_path / "out")
    assert status == 1
    assert output.count("failed: ") == 7 and "RuntimeError: out of ideas" in output
    found = load_bench(tmp_path / "out")
    errors = {one.name.partition(":")[2]: one.error for one in found.outcomes}
    assert errors["Good"] is None and len(found.outcomes[0].scores) == 4
    for name, message in [
        ("Short", "rows [48, 63]"), ("Narrow", "(48, 64, 127)"), ("Nan", "nan or infinity"), ("number", "is a int"),
        ("steers_nothing", "returned a NoneType"), ("steers_to_nan", "NaN or inf"),
    ]:  # fmt: skip
        assert message in errors[name], (name, errors[name])
    line = next(n for n, text in enumerate(Path(f"{module}.py").read_text().splitlines(), 1) if "out of ideas" in text)
    assert errors["Raises"].endswith(f"({module}.py:{line})")
    kept = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert schema_errors(kept) == [] and kept["command"].startswith("vit-lens bench")
    rows = (tmp_path / "out" / "bench.csv").read_text().splitlines()
    assert rows[0].startswith("candidate,kind,task,measure,value,low,high,n") and len(rows) == 5
    status, _, error = vit_lens("bench", "--out", tmp_path / "none")
    assert status == 2 and "nothing to ask" in error and not (tmp_path / "none").exists()


def test_whoever_runs_the_bench_keeps_its_random_numbers():
    import random

    from vit_lens.bench.running import _same_start

    def drawn():
        return random.random(), float(np.random.random()), float(torch.rand(()))

    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(state[0]), np.random.set_state(state[1]), torch.set_rng_state(state[2])
    found = []
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of a candidate"), _same_start(7):
            found.append(drawn())
            raise RuntimeError("of a candidate")
    assert found[0] == found[1] and drawn() == expected


def test_the_schema_refuses_what_is_wrong():
    from vit_lens.bench import Bench, Outcome, schema_errors
    from vit_lens.bench.measuring import measured

    score = measured("heads", "planted", [1.0, 0.5], [0.5, 0.5], chance=0.5)
    outcome = Outcome(name="a", kind="lens", tasks=("heads",), scores=(score,), error=None, seconds=1.0)
    good = Bench(seeds=(0,), n_plants=2, outcomes=(outcome,)).to_dict()
    assert schema_errors(good) == []
    for path, value, message in [
        (("format",), "vit_lens.bench.2", "not 'vit_lens.bench.1'"), (("seeds",), [-1], "below 0"),
        (("scores", 0, "measure"), "truth", "none of 'planted'"), (("scores", 0, "value"), float("nan"), "no number"),
        (("scores", 0, "n"), True, "no integer"), (("scores", 0, "more"), 1, "which the schema does not"),
    ]:  # fmt: skip
        wrong = json.loads(json.dumps(good))
        at = wrong
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value
        assert any(message in one for one in schema_errors(wrong)), path
    del good["candidates"][0]["error"]
    assert schema_errors(good) == ["candidates[0] lacks error"]


# ---- the page


def test_the_page_has_the_numbers_of_the_results():
    from vit_lens.bench import OWN, load_bench

    page = (ROOT / "docs" / "benchmark.md").read_text()
    found = load_bench(ROOT / "docs" / "results" / "bench")
    assert len(found.seeds) > 1 and not found.failed
    assert {(one.kind, one.name) for one in found.outcomes} == {(kind, name) for kind, of in OWN.items() for name in of}
    tables = re.findall(r"<!-- bench (\w+): (.*?) -->\n((?:\|.*\n)+)", page)
    assert {task for task, _, _ in tables} == {task for one in found.outcomes for task in one.tasks}
    for task, measures, rows in tables:
        told = {one.name: {s.measure: s for s in one.scores if s.task == task} for one in found.outcomes}
        lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()[2:]]
        assert {line[0].strip("`") for line in lines} == {n for n, row in told.items() if row}
        for name, *cells in lines:
            expected = [str(told[name.strip("`")][measure].estimate) for measure in measures.split(" | ")]
            assert [cell.strip("*") for cell in cells] == expected, (task, name)
