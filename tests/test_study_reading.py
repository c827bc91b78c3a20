"""Reading: measures by brute force and by splices, and the study end to end, interrupted, refused and pooled."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_dictionaries as tiny
import torch

from vit_lens.errors import StudyError

pytestmark = pytest.mark.filterwarnings("ignore:.*features fired on none:UserWarning")
SIZES = dict(scenes=240, learn=140, features=40, k=6, n_tokens=3000, units=8, least=10)


def material(out, **said):
    import vit_lens as vl
    from vit_lens.studies.reading.material import Sizes, make_material
    from vit_lens.studies.reading.study import captions

    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    texts = vl.TextBank.mini(captions())
    return make_material(model, texts, Sizes(**SIZES), out, **said)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    from vit_lens.studies.reading.study import reading_study

    out = tmp_path_factory.mktemp("reading")
    own = material(out)
    result = reading_study(own, seeds=(0, 1), command="it")
    result.save(out)
    return own, result, out


def test_scenes_that_test_were_never_learnt_from(found):
    from vit_lens.mini import world

    own, _, _ = found
    tested = {row.tobytes() for row in world.encode(own.oracle.scenes)}
    assert len(tested) == 240 and not tested & {row.tobytes() for row in own.learn_codes}
    assert all(world.is_held_out(scene) for scene in own.oracle.scenes)
    explain, test = own.halves
    assert sorted([*explain, *test]) == list(range(240)) and abs(len(explain) - len(test)) <= 1


def test_captions_are_in_the_order_of_the_values(found):
    own, _, _ = found
    assert len(own.texts.captions) == len(own.oracle.values)
    for value, caption in zip(own.oracle.values, own.texts.captions, strict=True):
        assert value.partition(" ")[2].split()[0] in caption


def test_what_tells_a_value_by_brute_force():
    from vit_lens.explaining import Halves
    from vit_lens.studies.reading.measures import tells

    generator = np.random.default_rng(0)
    holds = generator.random((60, 5)) < 0.4
    holds[:, 4] = False
    strengths = np.maximum(generator.normal(size=(60, 7)), 0)
    strengths[:, 2] += 5 * holds[:, 1]
    halves = Halves.of(60, seed=0)
    covered, probed = tells(strengths, holds, halves)

    def by_hand(half, unit, value):
        pairs = [
            (strengths[i, unit], strengths[j, unit]) for i in half for j in half if holds[i, value] > holds[j, value]
        ]
        return np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])

    for value in range(4):
        known = [by_hand(halves.explain, unit, value) for unit in range(7)]
        tested = [by_hand(halves.test, unit, value) for unit in range(7)]
        assert probed[value] == pytest.approx(tested[int(np.argmax(known))])
        assert covered[value] == (max(tested) >= 0.9)
    assert covered[1] == 1 and covered[:4].sum() < 4 and np.isnan(covered[4]) and np.isnan(probed[4])


def test_low_activation_by_hand(found):
    from vit_lens.explaining import Explanations
    from vit_lens.studies.reading.kinds import units_of
    from vit_lens.studies.reading.measures import low_activation

    own, _, out = found
    rows = Explanations.load(out / "kinds" / "TopK-0-mended.json").rows
    strengths = units_of(own, "TopK", 0).strongest()
    values = low_activation(rows, strengths, own.oracle, own.halves)
    for row, value in zip(rows, values, strict=True):
        name, _, said = row.text.partition(" ")
        firing = sorted(
            (i for i in own.halves.test if strengths[i, row.unit] > 0), key=lambda i: -strengths[i, row.unit]
        )
        lowest = firing[-(len(firing) // 4) :]
        share = np.mean([getattr(own.oracle.scenes[i], name) == said for i in lowest])
        base = np.mean([getattr(own.oracle.scenes[i], name) == said for i in own.halves.test])
        assert value == pytest.approx(share - base)


@torch.no_grad()
def test_causes_are_those_of_a_splice_whose_code_is_zero(found):
    """A feature taken out through the dictionary, image by image; a random direction of equal length by a hook."""
    from vit_lens.explaining import Explanations
    from vit_lens.studies.reading.kinds import units_of
    from vit_lens.studies.reading.measures import causal

    own, _, out = found
    rows = Explanations.load(out / "kinds" / "TopK-0-mended.json").rows[:3]
    units, dictionary = units_of(own, "TopK", 0), own.topk(0)
    values = causal(rows, units, own.model, own.texts, own.resid, 6, own.oracle.values, seed=5)
    generator = torch.Generator().manual_seed(5)
    for row, value in zip(rows, values, strict=True):
        length = dictionary.W_dec[row.unit].norm()
        other = torch.nn.functional.normalize(torch.randn(128, generator=generator), dim=0) * length
        pixels = own.model.preprocess([own.pictures[i] for i in row.positives])
        plain = own.texts.logits(own.model(pixels))

        def silence(codes, hook, unit=row.unit):
            codes[..., unit] = 0
            return codes

        def instead(resid, hook, unit=row.unit, other=other):
            codes = dictionary.encode(resid[:, 1:])[..., unit]
            resid[:, 1:] -= codes[..., None] * other
            return resid

        with own.model.spliced(dictionary, edit=silence):
            without = own.texts.logits(own.model(pixels))
        random = own.texts.logits(own.model.run_with_hooks(pixels, fwd_hooks=[("blocks.5.hook_resid_post", instead)]))
        at = own.oracle.values.index(row.text)
        rest = [k for k in range(len(own.oracle.values)) if k != at]
        more = [(f[:, at] - f[:, rest].mean(1)).mean() for f in (plain - without, plain - random)]
        assert value == pytest.approx(float(more[0] - more[1]), rel=1e-3, abs=5e-5)
    assert max(abs(values)) > 0.01


def test_partners_and_planted_directions():
    from vit_lens.studies.reading.measures import matched, stability

    rows, more = tiny.randn(20, 30), tiny.randn(11, 30, seed=1)
    assert stability(rows, []).shape == (20,) and np.isnan(stability(rows, [])).all()
    twin = torch.cat([more, 3 * rows[:4] + 0.1 * tiny.randn(4, 30, seed=2), -rows[4:6]])
    assert stability(rows, [twin]).tolist() == [1.0] * 4 + [0.0] * 16
    assert stability(rows, [twin, rows]).tolist() == [1.0] * 4 + [0.5] * 16
    assert matched(twin, rows[:7]).tolist() == [1.0] * 4 + [0.0] * 3


def test_planted_directions_are_added_where_they_should_be(found):
    own, _, _ = found
    change = (own.planted - own.learnt).flatten(0, 1)
    codes = torch.linalg.lstsq(own.directions.T, change.T).solution
    size = 0.25 * own.learnt.norm(dim=-1).mean()
    hit = codes > size / 2
    assert torch.allclose(codes[hit], size, rtol=1e-3) and codes[~hit].abs().max() < 1e-2 * size
    assert float(hit.double().mean()) == pytest.approx(0.02, abs=0.004)


def test_scores_are_those_of_the_kinds(found):
    from vit_lens.explaining import Explanations
    from vit_lens.studies.reading.kinds import KINDS
    from vit_lens.studies.reading.study import CONTRASTS, MEASURES

    _, result, out = found
    load = {
        (kind, seed, protocol): Explanations.load(out / "kinds" / f"{kind.replace(' ', '-')}-{seed}-{protocol}.json")
        for kind in KINDS for seed in (0, 1) for protocol in ("mended", "paper")
    }  # fmt: skip
    mean = {
        (kind, protocol): np.mean([load[kind, seed, protocol].values(kind).mean() for seed in (0, 1)])
        for kind in KINDS for protocol in ("mended", "paper") if all(load[kind, s, protocol].rows for s in (0, 1))
    }  # fmt: skip
    assert ("TopK", "mended") in mean and ("supervised probe", "paper") in mean
    for (kind, protocol), value in mean.items():
        score = result.score({"mended": "detection, mended", "paper": "score, paper"}[protocol], kind, "embedding")
        assert score.estimate.value == pytest.approx(value) and score.controls["constant judge"] == 0.5
    for headline, (kind, other) in CONTRASTS.items():
        value = result.score(headline, "score, paper", "embedding").estimate.value
        assert value == pytest.approx(mean[kind, "paper"] - mean[other, "paper"])
    for measure in MEASURES:
        pair = [result.score(measure, kind, "embedding").estimate.value for kind in ("TopK", "untrained")]
        found_as = result.score(f"separates: {measure}", "TopK minus untrained", "embedding").estimate.value
        assert found_as == pytest.approx(pair[0] - pair[1], abs=1e-9)
    assert result.score("coverage", "TopK", "embedding").n == 47
    assert result.score("causal", "untrained model", "embedding").estimate.value is None


def test_the_study_goes_on_where_it_stopped(found, monkeypatch):
    from vit_lens.studies.reading import study as module

    _, result, out = found
    made = []
    plain = module.units_of
    monkeypatch.setattr(module, "units_of", lambda material, *job: made.append(job) or plain(material, *job))
    (out / "kinds" / "PCA-1-paper.json").unlink()
    (out / "kinds" / "neurons-0-measures.json").unlink()
    again = module.reading_study(material(out), seeds=(0, 1), command="it")
    assert made == [("neurons", 0), ("PCA", 1)] and again.to_dict()["scores"] == result.to_dict()["scores"]


def test_pooled_over_models(found, tmp_path):
    from vit_lens.studies import load_result, pool
    from vit_lens.studies.reading import figures_of

    _, result, out = found
    other = replace(result, setup={**result.setup, "encoder": "other", "fingerprint": "other"})
    pooled = pool([load_result(out), other])
    score = pooled.score("(c) TopK above untrained", "detection, mended", "embedding")
    assert score.n == 2 and score.unit == "encoders"
    for one, n in ((result, "units"), (pooled, "encoders")):
        figures = figures_of(one)
        assert set(figures) == {"detection", "paper", "separates"}
        assert n in figures["detection"].layout.title.text and n in figures["separates"].layout.title.text
        assert "measures separate TopK from both" in figures["separates"].layout.title.text


def test_what_is_refused(found, tmp_path):
    import vit_lens as vl
    from vit_lens.studies.reading.material import Sizes, make_material
    from vit_lens.studies.reading.study import reading_study

    own, _, out = found
    with pytest.raises(StudyError, match=r"seeds=\[1, 1\]; expected one or more, each once"):
        reading_study(own, seeds=(1, 1))
    with pytest.raises(StudyError, match="holds the study of another model or other sizes"):
        make_material(own.model, own.texts, Sizes(**{**SIZES, "k": 5}), out)
    edited = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    edited.W_E.data.mul_(1.5)
    edited.forget_fingerprint()
    strange = make_material(edited, own.texts, Sizes(**SIZES), tmp_path / "other", dictionaries=own.kept)
    with pytest.raises(StudyError, match=r"topk-0.safetensors is of .* give the dictionaries of this model"):
        strange.topk(0)


def test_the_command(vit_lens, found, tmp_path):
    """With the dictionaries that are there; of one seed there are no partners."""
    _, _, made = found
    out = tmp_path / "out"
    small = [word for name, value in SIZES.items() for word in (f"--{name.replace('_', '-')}", value)]
    given = ["--dictionaries", made / "dictionaries", "--dictionary-seed", 0]
    status, told, err = vit_lens("study", "reading", *small, *given, "--out", out)
    assert status == 0, err
    assert "(c) TopK above untrained" in told and "stability" in told and f"figure: {out / 'separates.html'}" in told
    assert not (out / "dictionaries").exists()
    found_here = json.loads((out / "result.json").read_text())
    assert found_here["setup"]["site"] == "L5.resid_post" and found_here["options"]["dictionary_seeds"] == [0]
