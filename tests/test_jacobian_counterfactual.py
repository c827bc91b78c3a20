"""The counterfactual lens by Jacobians: closed form, hooks and definition; its unit; spelling, files and refusals."""

from itertools import combinations

import pytest
import torch
from test_interventions import images, random_vit
from test_jacobian_lens import moved, read, written
from test_jacobians import KINDS, last_of

pytestmark = pytest.mark.tl3

EXACT = 1e-11  # float64
SITES = ["L0H1", "L1.attn", "L0.mlp", "L2.mlp"]


@pytest.fixture(scope="module", params=list(KINDS))
def measured(request):
    """A model of every kind of read-out, with Jacobians whose error was measured on others, and those images."""
    from vit_lens import JacobianLens

    given = {name: one() if callable(one) else one for name, one in KINDS[request.param].items()}
    model = random_vit(**given)
    held_out = images(model, 4, seed=12)
    made = JacobianLens.fit(model, images(model, 3, seed=11), held_out=held_out).jacobians
    return model, made, held_out


@pytest.fixture(scope="module")
def small():
    from vit_lens import JacobianLens

    model = random_vit(n_layers=2)
    return model, JacobianLens.fit(model, images(model, 3, seed=11), held_out=images(model, 3, seed=12)).jacobians


def size_of(state):
    return (state - state.mean(-1, keepdim=True)).norm(dim=-1)


def test_closed_form_hooks_and_definition_agree(measured):
    from vit_lens import JacobianCounterfactualLens, JacobianLens
    from vit_lens.lenses import Anchors

    model, made, held_out = measured
    x, start = images(model, 2, seed=4), images(model, 1, seed=5)
    _, cache = model.run_with_cache(x)
    _, there = model.run_with_cache(start)
    _, others = model.run_with_cache(held_out)
    anchors = Anchors.of(model, start, rows="all")
    lens = JacobianCounterfactualLens(jacobians=made, anchors=anchors, share=0.7)
    raw = JacobianLens(jacobians=made, alpha=None)
    last = last_of(model, there[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"])
    closed = lens.embed(cache, SITES)
    for index, name in enumerate(SITES):
        ours, theirs = (moved(model, raw, name, written(model, one, name)) for one in (cache, there))
        arrived = moved(model, raw, name, written(model, others, name))
        pairs = torch.stack([size_of(a - b) ** 2 for a, b in combinations(arrived, 2)])
        strength = 0.7 * size_of(last) / pairs.mean().sqrt()
        state = last + strength[:, None] * (ours - theirs)
        assert (closed[:, index] - read(model, state)).abs().max() < EXACT, name
        hooked = model.run_with_hooks(x, fwd_hooks=lens.hooks(cache, name))
        assert (hooked - closed[:, index]).abs().max() < EXACT, name
    assert (lens.embed(cache, SITES[::-1]) - closed.flip(1)).abs().max() < EXACT


def test_at_the_last_mlp_it_is_patching_at_some_strength():
    """There nothing runs later, so that the Jacobian is the identity at the class token and 0 elsewhere."""
    from vit_lens import CounterfactualLens, JacobianCounterfactualLens, JacobianLens, ReferenceMeans
    from vit_lens.lenses import Anchors

    model = random_vit()
    held_out = images(model, 5, seed=12)
    made = JacobianLens.fit(model, images(model, 2, seed=11), held_out=held_out).jacobians
    norms = ReferenceMeans.from_images(model, held_out).differences
    _, cache = model.run_with_cache(images(model, 2, seed=4))
    anchors = Anchors.of(model, images(model, 2, seed=5), rows="all")
    ours = JacobianCounterfactualLens(jacobians=made, anchors=anchors, share=0.3)
    plain = CounterfactualLens(anchors=anchors, norms=norms, share=0.3)
    assert (ours.embed(cache, "L2.mlp") - plain.embed(cache, "L2.mlp")).abs().max() < EXACT
    assert (ours.embed(cache, "L1.mlp") - plain.embed(cache, "L1.mlp")).abs().max() > 1e-3


def test_of_several_anchors_it_reads_the_mean_direction(small):
    from vit_lens import JacobianCounterfactualLens
    from vit_lens.lenses import Anchors, average_reading

    model, made = small
    _, cache = model.run_with_cache(images(model, 2, seed=4))
    lens = JacobianCounterfactualLens(
        jacobians=made, anchors=Anchors.of(model, images(model, 3, seed=5), names=["a", "b", "c"], rows="all")
    )
    each = torch.stack([one.embed(cache, ["L0H0", "L0.mlp"]) for one in lens.each()])
    assert [one.label for one in lens.each()][1] == "Jacobian counterfactual, share 0.5, anchor b"
    assert torch.equal(lens.embed(cache, ["L0H0", "L0.mlp"]), average_reading(each))
    assert torch.equal(lens.embed_each(cache, ["L0H0", "L0.mlp"]), each)


def test_a_control_is_as_long_as_the_difference_that_arrives(small):
    """With random directions what is added keeps its length, and with another image's it is that image's."""
    from vit_lens import JacobianCounterfactualLens
    from vit_lens.controls import Against, ControlBank
    from vit_lens.lenses import Anchors

    model, made = small
    start = images(model, 1, seed=5)
    lens = JacobianCounterfactualLens(jacobians=made, anchors=Anchors.of(model, start, rows="all"))
    _, cache = model.run_with_cache(images(model, 2, seed=4))
    kept = []
    read_last = type(lens)._embed

    def spy(self, stream, states):
        kept.append(states[:, :, 0])
        return read_last(self, stream, states)

    bank = ControlBank.from_images(model, images(model, 1, seed=6), rows="all")
    against = Against(control="other", generator=torch.Generator(), others=bank.others(["", ""]))
    try:
        type(lens)._embed = spy
        lens.embed(cache, "L0.mlp")
        lens.placebo(cache, "L0.mlp", generator=torch.Generator().manual_seed(0))
        lens.pooled_against(cache, "L0.mlp", against)
        _, other = model.run_with_cache(images(model, 1, seed=6))
        lens.embed(other, "L0.mlp")
    finally:
        type(lens)._embed = read_last
    last = lens._last(lens.anchors.cache, [])[0]
    own, random, stand_in, whole = (size_of(one - last)[:, 0] for one in kept)
    assert torch.allclose(random, own, atol=EXACT, rtol=0) and torch.allclose(stand_in, own, atol=EXACT, rtol=0)
    a, b = (kept[2] - last)[:, 0], (kept[3] - last)[:, 0]
    centred = [one - one.mean(-1, keepdim=True) for one in (a, b.expand_as(a))]
    assert (torch.cosine_similarity(*centred, dim=-1) - 1).abs().max() < EXACT
    assert (whole - own).abs().max() > 1e-3


def test_how_far_differences_move_is_kept_with_the_error_and_told_apart(small, tmp_path, errors):
    from vit_lens import JacobianCounterfactualLens, JacobianLens
    from vit_lens.lenses import Anchors
    from vit_lens.reference import Jacobians

    model, made = small
    again = Jacobians.load(made.save(tmp_path / "j.safetensors"))
    assert set(again.moved) == {"head", "attn", "mlp"}
    assert all(torch.equal(again.moved[kind], made.moved[kind]) for kind in made.moved)
    anchors = Anchors.of(model, images(model, 1, seed=5), rows="all")
    plain = JacobianLens.fit(model, images(model, 3, seed=11), test=False).jacobians
    merged = Jacobians.merge([made])
    for unmeasured in (plain, merged):
        with pytest.raises(errors.LensError, match="do not know how far they usually move a difference"):
            JacobianCounterfactualLens(jacobians=unmeasured, anchors=anchors)
    measured = JacobianLens(jacobians=plain).measure(model, images(model, 3, seed=12)).jacobians
    assert torch.allclose(measured.moved["mlp"], made.moved["mlp"])


@pytest.mark.usefixtures("unchecked")
def test_what_it_cannot_read_is_refused(small, errors):
    from vit_lens import JacobianCounterfactualLens
    from vit_lens.lenses import Anchors

    model, made = small
    start = images(model, 1, seed=5)
    anchors = Anchors.of(model, start, rows="all")
    lens = JacobianCounterfactualLens(jacobians=made, anchors=anchors)
    _, cache = model.run_with_cache(images(model, 2, seed=4))
    _, rows = model.run_with_cache(images(model, 2, seed=4), rows="readout")
    _, itself = model.run_with_cache(start)
    other = random_vit(n_layers=2, d_mlp=20)
    _, elsewhere = other.run_with_cache(images(other, 1, seed=4))
    cases = [
        (lambda: JacobianCounterfactualLens(jacobians=made, anchors=Anchors.of(model, start)), "rows='all'"),
        (lambda: Anchors.of(model, start, rows="some"), "rows='some'"),
        (lambda: JacobianCounterfactualLens(jacobians=made, anchors=anchors, share=0), "share=0"),
        (lambda: JacobianCounterfactualLens(jacobians=None, anchors=anchors), "jacobians"),
        (lambda: JacobianCounterfactualLens(jacobians=made, anchors="a.png"), "anchors"),
        (lambda: lens.embed(cache, "L1.resid_post"), r"L1\.resid_post: what differs is written by heads"),
        (lambda: lens.embed(rows, "L1.mlp"), "at all rows"),
        (lambda: lens.embed(itself, "L1.mlp"), "the anchor 'anchor 0' itself"),
        (lambda: lens.embed(elsewhere, "L1.mlp"), "were made with module@"),
        (lambda: lens.read_writes(cache, "L1.mlp", torch.zeros(2, 1, 1, 8)), "reads changes"),
    ]
    for call, said in cases:
        with pytest.raises(errors.VitLensError, match=said):
            call()


def test_it_is_spelt(small, errors):
    from vit_lens.lenses import needs_anchors, parse_lens, parse_lenses

    model, made = small
    given = images(model, 2, seed=5)
    found = parse_lenses(["jacobian:share=0.25", "jacobian:alpha=5"], model, None, made, anchors=given)
    labels = [one.label for one in found]
    assert labels[:2] == [f"Jacobian counterfactual, share 0.25, anchor {place}" for place in (0, 1)]
    assert labels[2].startswith("Jacobian lens, mean-anchored") and not needs_anchors("jacobian")
    for text, said in [
        ("jacobian:share=0.5", "jacobian:share starts from other images: give --anchors"),
        ("jacobian:share=0.5:alpha=5", "give its strength as jacobian:alpha=NUMBER, or with anchors"),
        ("jacobian:share=-1", "share=-1"),
    ]:
        with pytest.raises(errors.LensError, match=said):
            parse_lens(text, None, made)
    with pytest.raises(errors.LensError, match="anchors= serve the lenses counterfactual and jacobian:share"):
        parse_lenses("jacobian:alpha=5", model, None, made, anchors=given)


def test_a_sweep_draws_each_anchor_and_the_command_asks_for_what_it_lacks(vit_lens, tmp_path):
    import numpy as np
    from PIL import Image

    import vit_lens as vl
    from vit_lens.mini import world

    scenes = world.render_codes(world.sample_codes(13, np.random.default_rng(3), held_out=False))
    paths = [tmp_path / f"{number}.png" for number in range(len(scenes))]
    for path, scene in zip(paths, scenes, strict=True):
        Image.fromarray(scene).save(path)
    made = tmp_path / "j.safetensors"
    assert vit_lens("jacobian", *paths[3:], "--out", made)[0] == 0
    given = ["sweep", paths[0], "--lens", "jacobian:share=0.5", "--sites", "L0.mlp,L3H2", "--decoder", "none"]
    status, _, error = vit_lens(*given, "--jacobian", made, "--out", tmp_path / "lacks")
    assert status == 2 and "jacobian:share=0.5 starts from other images: give --anchors" in error
    status, _, error = vit_lens(
        *given, "--jacobian", made, "--anchors", paths[1], "--anchors", paths[2], "--out", tmp_path / "run"
    )
    assert status == 0, error
    record = vl.Record.load(tmp_path / "run")
    labels = {one.label for one in record.readings.values()}
    assert labels == {f"Jacobian counterfactual, share 0.5, anchor {name}" for name in ("1.png", "2.png")}
    model = vl.HookedViT.from_pretrained("mini")
    (lens, _) = vl.lenses.parse_lenses(
        "jacobian:share=0.5", model, None, vl.reference.Jacobians.load(made), anchors=paths[1:3]
    )
    _, cache = model.run_with_cache(model.preprocess([paths[0]]))
    rows = record.table[record.table["reading"] == lens.describe().id]
    stored = record.embeddings["lens"][rows["row"].tolist()]
    assert torch.allclose(stored, lens.embed(cache, rows["site"].tolist())[0], atol=1e-5)
