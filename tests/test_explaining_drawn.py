"""Explanations of dictionaries of diffusion models: oracle, units, pictures and the command, against slow code."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import test_diffusion
import tiny_dictionaries as tiny
import torch
from PIL import Image
from test_explaining import RIGHT, server  # noqa: F401

from vit_lens.errors import DictionaryError, ExplanationError, OutputError, VitLensError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2


def scenes_of(n, seed=0):
    from vit_lens.mini import still_life

    drawn = still_life.sample(n, np.random.default_rng(seed), still_life.Lexicon(0), held_out=None)
    return [one.scene for one in drawn]


def pictures_of(scenes, times=1):
    from vit_lens.mini import still_life

    drawn = still_life.draw(scenes, np.random.default_rng(1))
    return [Image.fromarray(one.repeat(times, 0).repeat(times, 1)) for one in drawn]


@pytest.fixture(scope="module")
def oracle():
    from vit_lens.explaining import StillLifeOracle

    scenes = scenes_of(300)
    return StillLifeOracle(pictures_of(scenes), scenes)


# ---- the oracle


def words_of(scene):
    """What one would say of a scene."""
    from vit_lens.mini import still_life

    places = {"alone": ["middle"], "beside": ["left", "right"], "stacked": ["top", "bottom"]}[scene.layout]
    said = {f"layout {scene.layout}": list(range(len(places)))}
    for number, (place, where) in zip(scene.objects, enumerate(places), strict=True):
        for kind, value in zip(("colour", "texture", "shape"), still_life.object_of(number), strict=True):
            said.setdefault(f"{kind} {value}", []).append(place)
            said[f"{kind} {value} at {where}"] = [place]
    return said


def test_the_oracle_explains_and_judges_drawn_pictures_as_one_would_by_hand(oracle):
    assert len(oracle.values) == 16 + 3 + 5 * 16 == len(set(oracle.values))
    said, generator = [words_of(scene) for scene in oracle.scenes], np.random.default_rng(0)
    assert set().union(*said) == set(oracle.values)
    for _ in range(20):
        rows = generator.choice(300, 5, replace=False)
        lift = {v: sum(v in said[r] for r in rows) / 5 - sum(v in one for one in said) / 300 for v in oracle.values}
        best = next(v for v in oracle.values if lift[v] > max(lift.values()) - 1e-12)
        assert oracle.explain([oracle.pictures[r] for r in rows], [torch.zeros(4, 4)] * 5) == best
        for row in range(20):
            assert oracle.judge(oracle.pictures[row], best) == float(best in said[row])


def test_the_oracle_marks_the_patches_on_which_an_object_is_drawn(oracle):
    """Against pixels that are not the ground; a patch that is at the edge of counting may fall on either side."""
    from vit_lens.explaining import StillLifeOracle
    from vit_lens.mini import still_life

    other, seen = StillLifeOracle(oracle.pictures, oracle.scenes, grid=(2, 8)), set()
    n_clear = n_all = 0
    for row, scene in enumerate(oracle.scenes[:40]):
        painted = (np.asarray(oracle.pictures[row]).astype(int) != 200).any(2).astype(float)
        for value, places in words_of(scene).items():
            own = np.zeros((32, 32))
            for place in places:
                own[still_life.window(scene.layout, place)] = painted[still_life.window(scene.layout, place)]
            for one, (height, width) in ((oracle, (4, 4)), (other, (2, 8))):
                share = own.reshape(height, 32 // height, width, 32 // width).mean((1, 3))
                marks, clear = one.localise(oracle.pictures[row], value).numpy(), abs(share - share.max() / 2) > 0.15
                n_clear, n_all = n_clear + clear.sum(), n_all + clear.size
                assert (marks == (share >= share.max() / 2))[clear].all(), (scene, value)
                seen.add((value.partition(" ")[0], int(marks.sum())))
        absent = next(value for value in oracle.values if value not in words_of(scene))
        assert oracle.localise(oracle.pictures[row], absent).sum() == 0
    assert n_clear > 0.7 * n_all
    assert {kind for kind, _ in seen} == {"colour", "texture", "shape", "layout"} and len(seen) > 10


def test_the_judge_reads_pictures_and_leaves_out_what_is_no_scene():
    from vit_lens.explaining import StillLifeOracle

    scenes = scenes_of(7, seed=3)
    pictures = pictures_of(scenes, times=2)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    given = [pictures[0], noise, *pictures[1:5], Image.new("RGB", (64, 64), (200, 200, 200)), *pictures[5:]]
    found = StillLifeOracle.of_drawn(given, grid=(2, 2))
    assert found.kept == (0, 2, 3, 4, 5, 7, 8) and list(found.scenes) == scenes
    assert found.pictures == pictures and found.grid == (2, 2)
    with pytest.raises(ExplanationError, match=r"the oracle does not know this image of 64 x 64 pixels; it knows 7"):
        found.judge(noise, "colour red")
    with pytest.raises(ExplanationError, match=r"no value 'colour red at lft' .* nearest: 'colour red at left'"):
        found.judge(pictures[0], "colour red at lft")
    for wrong, model, message in [
        ([noise, noise], "mini-flux", r"none of 2 pictures is a scene .* at most 0\.00024"),
        ([noise.resize((40, 40))], "mini-flux", "pictures of 40 x 40 pixels; the judge reads multiples of 32"),
        ([noise, pictures_of(scenes[:1])[0]], "mini-flux", "2 pictures of different sizes"),
        (pictures, "mini-fluxx", r"give mini-flux, mini-sd, or a folder"),
    ]:
        with pytest.raises(ExplanationError, match=message):
            StillLifeOracle.of_drawn(wrong, model)
    with pytest.raises(ExplanationError, match="1 images and 2 scenes"):
        StillLifeOracle(pictures[:1], scenes[:2])


# ---- units


@pytest.fixture(scope="module")
def flux():
    """A pipeline of random weights whose pictures are 3 x 5 cells, and a dictionary of a block at two of its steps."""
    import vit_lens as vl

    model = vl.HookedDiffusion.from_pipeline(test_diffusion.flux())
    model.pipeline.set_progress_bar_config(disable=True)
    prompts = ["a red star", "", "a ring", "two blue crosses", "a heart"]
    run = dict(height=6, width=10, max_sequence_length=11, steps=3, at_steps=[0, 2])
    source = vl.ActivationSource.of_model(model, prompts, "double.1.hook_resid_post", **run)
    x = source.reader.read(range(5))[0]
    rows = torch.nn.functional.normalize(tiny.randn(19, x.shape[1], seed=4, dtype=torch.float32), dim=1)
    made = vl.dictionaries.random_dictionary(x.shape[1], 19, k=3)
    said = {name: getattr(source.provenance, name) for name in ("site", "fingerprint", "at_steps", "branch", "run")}
    origin = replace(made.origin, **said)
    return model, prompts, replace(made, W_dec=rows, W_enc=rows.T.clone(), b_dec=x.mean(0), origin=origin)


def test_a_unit_fires_on_a_drawn_picture_as_on_its_strongest_token_and_step(flux):
    """Against a hooked run of each prompt alone, step by step; the source is a part of another."""
    from vit_lens.dictionaries import patch_grid, source_like
    from vit_lens.explaining import Units

    model, prompts, dictionary = flux
    whole = source_like(dictionary, model, prompts, noise_seed=7, inputs_at_once=2)
    assert whole.provenance.run["noise_seed"] == 7 and patch_grid(whole) == (3, 5)
    parts = (0, 2, 3, 4)
    units = Units.of_dictionary(dictionary, replace(whole, inputs=parts, buffer=3))
    codes = torch.zeros(4, 2, 15, 19)
    for row, index in enumerate(parts):
        (seed,) = whole.reader.seeds([index])
        _, cache = model.run_with_cache(
            prompts[index], names_filter="double.1.hook_resid_post", seed=seed, steps=3, height=6, width=10,
            max_sequence_length=11, output_type="latent",
        )  # fmt: skip
        for place, step in enumerate((0, 2)):
            for position in range(15):
                token = cache.at_step(step)["double.1.hook_resid_post"][0, position]
                codes[row, place, position] = dictionary.encode(token[None])[0]
    assert (codes != 0).any((2, 3)).all() and not torch.equal(codes[:, 0], codes[:, 1])
    assert np.allclose(units.strongest(), codes.amax((1, 2)).numpy(), atol=1e-4)
    assert np.allclose(units.rates([1, 3]), (codes[[1, 3]] > 0).double().mean((0, 1, 2)).numpy())
    for unit in range(19):
        for image in range(4):
            assert torch.allclose(units.map(unit, image), codes[image, :, :, unit].amax(0), atol=1e-4)
    with pytest.raises(ExplanationError, match="reads an input twice"):
        Units.of_dictionary(dictionary, replace(whole, inputs=(0, 2, 0)))


def test_dense_units_are_cut_on_the_images_that_are_named():
    import vit_lens as vl
    from vit_lens.explaining import Units

    x = tiny.randn(30, 4, 3, dtype=torch.float32)
    source = replace(vl.ActivationSource.of_array(x), inputs=tuple(range(5, 25)), buffer=7)
    units = Units.cut("axes", lambda tokens: tokens, torch.eye(3), source, 0.25, [0, 1, 19])
    cuts = np.quantile(x[[5, 6, 24]].flatten(0, 1).numpy(), 0.75, axis=0)
    own = np.where(x[5:25].numpy() > np.maximum(cuts, 0), x[5:25].numpy(), 0).max(1)
    assert np.allclose(units.strongest(), own)


def test_units_are_explained_on_pictures_and_their_maps_are_over_the_steps(oracle):
    import vit_lens as vl
    from vit_lens.dictionaries import Provenance
    from vit_lens.explaining import Halves, Units, explain

    tokens = tiny.randn(300, 3 * 16, 9, seed=1, dtype=torch.float32)
    red = oracle.values.index("colour red")
    for image in np.flatnonzero(oracle.holds[:, red]):  # the first unit fires where something red is, at the last step
        marks = oracle.localise(oracle.pictures[image], "colour red").flatten()
        tokens[image, 32:, 0] += 9 * marks
    provenance = Provenance(site="double.1.hook_resid_post", at_steps=(0, 3, 6))
    source = vl.ActivationSource.of_array(tokens, provenance)
    kept = replace(source, inputs=tuple(range(20, 300)))
    units = Units.cut("axes", lambda x: x, torch.eye(9), kept, 0.03, range(280))
    pictures = oracle.pictures[20:]
    found = explain([units], pictures, oracle, least=20)
    row = found.rows[0]
    assert row.unit == 0 and row.text == "colour red" and row.score > 0.75 and row.localisation > 0.95
    assert not {*row.explained_on} & {*row.positives, *row.negatives}
    assert {*row.explained_on} <= {*Halves.of(280, seed=0).explain}
    holds = oracle.holds[20:, red]
    hits = [holds[i] for i in row.positives], [not holds[i] for i in row.negatives]
    assert row.score == pytest.approx((np.mean(hits[0]) + np.mean(hits[1])) / 2)
    others = [one.score for one in found.rows[1:]]
    assert len(others) == 8 and np.mean(others) < 0.65
    steps = tokens.view(300, 3, 16, 9)[20 + row.positives[0], :, :, 0]
    top = units.map(0, row.positives[0])
    assert top.shape == (16,) and torch.equal(top[top > 0], steps.amax(0)[top > 0])
    paper = explain([units], pictures, oracle, protocol="paper", least=20)
    row = paper.rows[0]
    said = [*holds[list(row.positives)], *(1 - holds[list(row.negatives)])]
    assert row.text == "colour red" and row.score == pytest.approx(np.mean(said)) and all(said[:5])
    said = replace(found, no_scene=20)
    assert "280 images; 20 others drawn, which are no scene" in str(said)


def test_a_prompt_is_on_one_side(flux):
    import vit_lens as vl
    from vit_lens.explaining import Units, explain

    model, _, dictionary = flux
    source = vl.dictionaries.source_like(
        dictionary, model, ["a ring", *(f"a star {k}" for k in range(18)), "a ring"] * 2
    )
    oracle = vl.explaining.AttributeOracle.of_world(40)
    with pytest.raises(ExplanationError, match=r"\d+ prompts, such as 'a .*', are drawn among the images that explain"):
        explain([Units.of_dictionary(dictionary, source)], oracle.pictures, oracle, least=10)


# ---- pictures, sources, neurons


def test_pictures_are_those_of_the_noise_that_tokens_are_read_from(flux, tmp_path, monkeypatch):
    from vit_lens.dictionaries import drawn_pictures, source_like

    model, prompts, dictionary = flux
    source = replace(source_like(dictionary, model, prompts, inputs_at_once=2), inputs=(4, 0, 1))
    alone = [
        model(prompts[k], seed=source.reader.seeds([k]), steps=3, height=6, width=10, max_sequence_length=11)[0]
        for k in (4, 0, 1)
    ]
    found = drawn_pictures(source, tmp_path / "kept")
    for one, other in zip(found, alone, strict=True):
        assert abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1  # a batch rounds otherwise
    assert len(list((tmp_path / "kept").glob("*.png"))) == 3
    drawn = []
    monkeypatch.setattr(type(model), "forward", lambda own, given, **_: drawn.extend(given) or found[: len(given)])
    assert drawn_pictures(source, tmp_path / "kept") == found and drawn == []
    monkeypatch.undo()
    other = replace(source_like(dictionary, model, ["other", *prompts[1:]]), inputs=(1, 0))
    again = drawn_pictures(other, tmp_path / "kept")
    assert again[0] == found[2] and len(list((tmp_path / "kept").glob("*.png"))) == 4
    one = min((tmp_path / "kept").glob("*.png"))
    one.write_bytes(one.read_bytes()[:50])
    with pytest.raises(DictionaryError, match=r"is no whole picture .*; remove it"):
        drawn_pictures(replace(source, inputs=(4, 0, 1)), tmp_path / "kept")
        drawn_pictures(other, tmp_path / "kept")
    with pytest.raises(DictionaryError, match="draws nothing; give one of"):
        drawn_pictures(type(source).of_array(torch.randn(4, 3)))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        drawn_pictures(source, tmp_path / "file")


def test_a_source_is_like_that_which_was_learnt_from(flux):
    import vit_lens as vl
    from vit_lens.dictionaries import source_like
    from vit_lens.explaining import neurons_site

    model, prompts, dictionary = flux
    mlp = neurons_site(model, "double.1.hook_resid_post")
    assert mlp == "double.1.mlp.hook_post" and neurons_site(model, "double.1.text.hook_resid_post").startswith(
        "double.1.text.mlp"
    )
    for site in (None, mlp):
        found = source_like(dictionary, model, prompts, site)
        by_hand = vl.ActivationSource.of_model(
            model, prompts, site or "double.1.hook_resid_post", at_steps=[0, 2], steps=3, height=6, width=10,
            max_sequence_length=11,
        )  # fmt: skip
        assert found.content == by_hand.content
        assert torch.equal(found.reader.read([3])[0], by_hand.reader.read([3])[0])
    with pytest.raises(DictionaryError, match=r"no hook point 'double\.7\.hook_resid_post'"):
        source_like(dictionary, model, prompts, "double.7.hook_resid_post")
    with pytest.raises(DictionaryError, match="this dictionary is of"):
        source_like(replace(dictionary, origin=replace(dictionary.origin, fingerprint="0" * 16)), model, prompts)


def test_rows_of_neurons_are_what_they_write(flux):
    import vit_lens as vl

    model = flux[0]
    names = ["mlp.hook_post", "hook_mlp_gate", "hook_mlp_out"]
    names = [f"double.1.{text}{name}" for text in ("", "text.") for name in names]
    names += ["single.2.attn.hook_z", "single.2.mlp.hook_post", "single.2.hook_gate", "single.2.hook_update"]
    _, cache = model.run_with_cache("a red star", names_filter=names, steps=1, height=6, width=10, output_type="latent")
    block = model.denoiser.transformer_blocks[1]
    for text, ff in (("", block.ff), ("text.", block.ff_context)):
        post, gate, out = (
            cache[f"double.1.{text}{name}"][0] for name in ("mlp.hook_post", "hook_mlp_gate", "hook_mlp_out")
        )
        rows = model.neuron_rows(f"double.1.{text}mlp.hook_post")
        assert rows.shape[0] == post.shape[-1] != rows.shape[1]
        assert torch.allclose(gate[:, None] * (post @ rows + ff.net[2].bias), out, atol=1e-4)
    single = model.denoiser.single_transformer_blocks[2].proj_out
    z, post, gate, out = (cache[name][0] for name in names[-4:])
    rows, heads = model.neuron_rows("single.2.mlp.hook_post"), z.flatten(-2)
    written = heads @ single.weight[:, : heads.shape[-1]].T + post @ rows + single.bias
    assert torch.allclose(gate[:, None] * written, out, atol=1e-4)
    sd = vl.HookedUNet.from_pretrained("mini-sd")
    names = [f"mid.0.blocks.0.{name}" for name in ("mlp.hook_post", "hook_mlp_out")]
    _, cache = sd.run_with_cache("a red star", names_filter=names, steps=1, output_type="latent")
    bias = sd.denoiser.mid_block.attentions[0].transformer_blocks[0].ff.net[2].bias
    assert torch.allclose(cache[names[0]] @ sd.neuron_rows(names[0]) + bias, cache[names[1]], atol=1e-4)
    with pytest.raises(VitLensError, match=r"single\.2\.hook_update is no hook point of neurons"):
        model.neuron_rows("single.2.hook_update")


# ---- the command

SMALL = ["--scenes", "90", "--units", "4", "--least", "10", "--strips", "1"]


def test_the_command_on_the_embedded_model_goes_on(vit_lens, tmp_path):
    import vit_lens as vl
    from vit_lens.explaining import Explanations, StillLifeOracle

    out = tmp_path / "out"
    small = [*SMALL, "--steps", "2", "--at-steps", "1", "--beside", "neurons"]
    command = ("dict", "explain", "mini-flux-topk", *small, "--out", out)
    status, told, err = vit_lens(*command)
    assert status == 0, err
    assert {one.name for one in out.iterdir()} == {
        "activations", "explanations.csv", "explanations.json", "features", "index.html", "neurons", "pictures",
        "scores.html", "settings.json", "shown", "steered", "strips",
    }  # fmt: skip
    found = Explanations.load(out / "explanations.json")
    assert found.kinds == ["dictionary", "neurons"] and len(found.values("dictionary")) == 4
    assert f"{found.no_scene} of 90 pictures are no scene, and are left out" in told
    assert len(list((out / "pictures").iterdir())) == 90
    assert len(set(found.images)) == found.n_images == (90 - found.no_scene) - round(0.2 * (90 - found.no_scene))

    # what the first row says is so of the pictures that its prompts drew
    flux, topk = vl.HookedDiffusion.from_pretrained("mini-flux"), vl.Dictionary.from_pretrained("mini-flux-topk")
    flux.pipeline.set_progress_bar_config(disable=True)
    row = found.rows[0]
    with open(out / "activations" / "activations.json") as file:
        prompts = json.load(file)["keys"]
    seen = [prompts.index(found.images[k]) for k in (*row.positives, *row.negatives)]
    source = vl.dictionaries.source_like(topk, flux, prompts, noise_seed=27_000, steps=2, at_steps=[1])
    drawn = vl.dictionaries.drawn_pictures(replace(source, inputs=tuple(seen)))
    judge = StillLifeOracle.of_drawn(drawn)
    assert len(judge.scenes) == 20
    said = [judge.judge(picture, row.text) for picture in drawn]
    assert row.score == pytest.approx((np.mean(said[:10]) + 1 - np.mean(said[10:])) / 2)
    codes = topk.encode(source.reader.read(seen)[0]).view(20, -1, 1024)[..., row.unit].amax(1)
    assert (codes[:10] > 0).all() and (codes[10:] == 0).all()

    before = (out / "explanations.json").read_bytes()
    lost = min((out / "pictures").iterdir())
    stay = {
        path: path.stat().st_mtime_ns for path in (*(out / "pictures").iterdir(), *(out / "neurons").glob("*.safe*"))
    }
    lost.unlink()
    (out / "explanations.json").unlink()
    assert vit_lens(*command)[0] == 0 and (out / "explanations.json").read_bytes() == before
    assert lost.is_file() and {path for path in stay if path.stat().st_mtime_ns != stay[path]} <= {lost}
    status, _, err = vit_lens(*command, "--decoder-seed", "3")
    assert status == 2 and "other settings" in err


def test_an_endpoint_explains_what_prompts_of_a_file_draw(vit_lens, server, tmp_path):  # noqa: F811
    import vit_lens as vl
    from vit_lens.dictionaries import random_dictionary
    from vit_lens.explaining import Explanations
    from vit_lens.mini import still_life

    sd = vl.HookedDiffusion.from_pretrained("mini-sd")
    source = vl.ActivationSource.of_model(sd, ["a star", "a red ring"], "mid.0.hook_update", steps=2)
    rows = random_dictionary(112, 40, k=6, site="mid.0.hook_update")
    rows = replace(rows, b_dec=source.reader.read([0, 1])[0].mean(0)).save(tmp_path / "rows.safetensors")
    words = ("red", "blue", "green", "pink", "cyan", "yellow"), ("solid", "shaded"), still_life.SHAPES
    prompts = [f"a {colour} {texture} {shape}" for colour, texture, shape in product(*words)]
    (tmp_path / "prompts.txt").write_text("\n".join([*prompts, "a star"]))
    server.answers = RIGHT
    out = tmp_path / "out"
    ask = ["--explainer", "endpoint:m", "--base-url", server.url, "--model", "mini-sd", "--steps", "2"]
    small = [
        "--prompts",
        tmp_path / "prompts.txt",
        "--prompts",
        "a red solid star",
        "--units",
        "1",
        "--least",
        "10",
        "--beside",
        "none",
    ]
    status, told, err = vit_lens("dict", "explain", rows, *small, *ask, "--at-steps", "1", "--out", out)
    assert status == 0, err
    assert "neurons are left out: mid.0.hook_update is in no block with an MLP" in err
    assert "1 prompts are others again; 73 are drawn, each once" in told and "no scene" not in told
    found = Explanations.load(out / "explanations.json")
    assert found.rows[0].text == "red stars" and found.no_scene is None and set(found.images) <= {*prompts, "a star"}
    assert len(list((out / "pictures").iterdir())) == 73 and not (out / "neurons").exists()
    assert (out / "replies.jsonl").is_file() and server.asked


def test_dictionaries_and_options_that_are_refused(vit_lens, tmp_path):
    from vit_lens.dictionaries import random_dictionary

    def rows(name, site, tokens="all", **origin):
        made = random_dictionary(128, 40, k=2, site=site)
        said = replace(made.origin, tokens=tokens, **origin)
        return replace(made, origin=said).save(tmp_path / f"{name}.safetensors")

    text, some = rows("text", "double.1.text.hook_resid_post"), rows("some", "double.1.hook_resid_post", "0,5")
    words = rows("words", "blocks.1.hook_resid_post", model="vit_lens/mini#text")
    update = rows("update", "mid.0.hook_update")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model_index.json").write_text("{}")
    flux = ["--model", "mini-flux"]
    for given, message in [
        ([text, *flux], "text.safetensors is of double.1.text.hook_resid_post, the text stream of mini-flux, whose "
         "tokens are words; expected one of the image stream, such as double.1.hook_resid_post"),
        (["mini-sd-topk"], "of a text encoder, vit_lens/mini-sd, whose inputs are words; expected one of patches"),
        ([words], "words.safetensors is of blocks.1.hook_resid_post of a text encoder, vit_lens/mini#text"),
        ([some, *flux], "is of tokens '0,5'; explain reads what features do on all of a picture"),
        (["mini-topk", "--prompts", "a star"], "--prompts would have no effect: mini-topk is of blocks.5"),
        (["mini-topk", "--steps", "3"], "--steps would have no effect here"),
        (["mini-flux-topk", "--images", tmp_path], "--images would have no effect on --prompts"),
        (["mini-flux-topk", "--model", tmp_path / "theirs"],
         "--explainer oracle reads pictures of the embedded models alone"),
        (["mini-flux-topk", "--model", tmp_path / "theirs", "--explainer", "endpoint:m"], "model_index.json"),
        (["mini-flux-topk", "--feature", "1024"], "no unit 1024 of dictionary: there are 1024, counted from 0"),
        ([update, "--model", "mini-sd", "--beside", "neurons"], "is in no block with an MLP; leave it out"),
    ]:  # fmt: skip
        status, _, err = vit_lens("dict", "explain", *given, *SMALL, "--out", tmp_path / "out")
        assert status == 2 and message in " ".join(err.split()) and "Traceback" not in err, (given, err)
        assert not (tmp_path / "out").exists()
