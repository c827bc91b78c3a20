"""The figures of Shabalin et al. on models at hand: numbers held to dictionaries and sources by hand, kept, gone on."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

SITES = ["double.1.hook_resid_post", "single.3.hook_resid_post"]
SMALL = ["--n-inputs", 10, "--held-out", 0.5, "--features", 24, "--k", 3, "--n-tokens", 600]
LINE = ["paper", "shabalin", *SMALL, "--steps", 2, "--ks", 2, "--ks", 3, "--widths", 24, "--blocks", ",".join(SITES)]
TABLES = {
    "norms": ["norms", "growth"], "spectrum": ["shares"], "explained_by_k": ["explained"],
    "explained_by_width": ["explained"], "explained_by_block": ["explained"], "explained_by_step": ["by_step"],
    "features_over_steps": ["pairs", "neighbours"], "spatial": ["sparse", "maps"],
    "steering": ["moved", "strips"],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the command on mini-flux, which ran once."""
    from typer.testing import CliRunner

    from vit_lens.cli import app

    out = tmp_path_factory.mktemp("shabalin") / "out"
    result = CliRunner().invoke(app, [*map(str, LINE), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "scores: left out, 5 different prompts are held out, and 40 are needed" in result.output
    return out, result.output


@pytest.fixture(scope="module")
def sources():
    """Tokens of held-out inputs, and the others', straight from the model."""
    import vit_lens as vl
    from vit_lens.mini import still_life

    model = vl.HookedDiffusion.from_pretrained("mini-flux")
    model.pipeline.set_progress_bar_config(disable=True)
    drawn = still_life.sample(1000, np.random.default_rng(0), still_life.Lexicon(0))
    prompts = [one.text for one in drawn][:10]
    run = dict(height=64, width=64, steps=2)
    made = {site: vl.ActivationSource.of_model(model, prompts, site, **run) for site in SITES}
    return model, prompts, run, {site: one.split(0.5) for site, one in made.items()}


def rows_of(out, figure, table):
    said = json.loads((out / f"{figure}.json").read_text())
    assert said["format"] == "vit_lens.shabalin.1" and said["about"]["model"] == "vit_lens/mini-flux"
    return said["tables"][table]


def test_every_figure_has_numbers_a_page_and_a_title_that_says_what_was_found(made):
    out, told = made
    page = (out / "index.html").read_text()
    for figure, tables in TABLES.items():
        said = json.loads((out / f"{figure}.json").read_text())
        assert list(said["tables"]) == tables and said["finding"] in told
        for table in tables:
            frame = pd.read_csv(out / f"{figure}_{table}.csv")
            pd.testing.assert_frame_equal(frame, pd.DataFrame(said["tables"][table]), check_dtype=False)
        drawn = (out / f"{figure}.html").read_text()
        assert "n = " in said["finding"] and said["finding"].split(" ")[0] in drawn and f"{figure}.json" in page
    assert page.count("plotly.js v") == 1 and "vit-lens" in json.loads((out / "norms.json").read_text())["command"]
    assert "n = 5 held-out prompts" in told and f"page: {out / 'index.html'}" in told
    assert {path.name for path in (out / "dictionaries").iterdir()} == {
        *(f"{kind}_{SITES[0]}_k{k}_w24.safetensors" for kind in ("topk", "itda") for k in (2, 3)),
        *(f"{kind}_{SITES[1]}_k3_w24.safetensors" for kind in ("topk", "itda")),
        *(f"topk_{SITES[0]}_k3_w24_{what}.safetensors" for what in ("steps0", "steps1", "n2")),
    }  # fmt: skip


def test_what_is_explained_is_what_evaluate_says(made, sources):
    from vit_lens import Dictionary
    from vit_lens.dictionaries import data_points_control, evaluate, pca_control, untrained_control

    out, split = made[0], sources[3]
    rows = rows_of(out, "explained_by_k", "explained") + rows_of(out, "explained_by_block", "explained")
    assert len(rows) == 4 * 6
    for row in rows:
        train, held = split[row["block"]]
        kept = {kind: Dictionary.load(out / "dictionaries" / f"{kind}_{row['block']}_k{row['k']}_w24.safetensors")
                for kind in ("topk", "itda")}  # fmt: skip
        own = {
            "TopK": kept["topk"], "TopK, by pursuit": kept["topk"], "ITDA": kept["itda"],
            "untrained": untrained_control(kept["topk"], train),
            "data points": data_points_control(kept["topk"], train), "PCA": pca_control(kept["topk"], train),
        }[row["dictionary"]]  # fmt: skip
        pursued = dict(method="pursuit", k=row["k"]) if "pursuit" in row["dictionary"] else {}
        expected = evaluate(own, held, **pursued)
        assert row["fvu"] == pytest.approx(expected.fvu, rel=2e-3), row
        assert row["fvu_standardised"] == pytest.approx(expected.fvu_standardised, rel=2e-3)
        assert (row["n_tokens"], row["n_features"]) == (expected.n_tokens, own.n_features)
        assert row["l0"] == pytest.approx(expected.l0, abs=0.02) and row["low"] <= row["fvu"] <= row["high"]
        assert kept["topk"].statistics["training"]["n_inputs"] == 5


def test_steps_norms_and_spectra_are_of_the_model(made, sources):
    from vit_lens import Dictionary
    from vit_lens.dictionaries import evaluate, spectrum, stream_norms

    out, (model, prompts, run, split) = made[0], sources
    train, held = split[SITES[0]]
    by_step = {(row["dictionary"], row["step"]): row for row in rows_of(out, "explained_by_step", "by_step")}
    assert [by_step["step 1 alone", step]["is_own"] for step in (None, 0, 1)] == [False, False, True]
    alone = Dictionary.load(out / "dictionaries" / f"topk_{SITES[0]}_k3_w24_steps1.safetensors")
    assert alone.origin.at_steps == (1,)
    expected = evaluate(alone, held.at_steps([1]))
    assert by_step["step 1 alone", 1]["fvu"] == pytest.approx(expected.fvu, rel=2e-3)
    few = Dictionary.load(out / "dictionaries" / f"topk_{SITES[0]}_k3_w24_n2.safetensors")
    assert few.statistics["training"]["n_inputs"] == 2  # of 5, at two steps: as many tokens as of one step
    norms = stream_norms(model, [prompts[index] for index in held.inputs], **run)
    rows = rows_of(out, "norms", "norms")
    assert [row["mean"] for row in rows] == pytest.approx(norms.mean.flatten().tolist(), rel=1e-4)
    growth = {row["site"]: row for row in rows_of(out, "norms", "growth")}
    ratio = norms.by_input[norms.sites.index(SITES[1])]
    expected = float((ratio[1] / ratio[0]).log().mean().exp())
    assert growth[SITES[1]]["value"] == pytest.approx(expected, rel=1e-4)
    both = torch.cat([batch.tokens for side in (train, held) for batch in side.in_order()]).double()
    values = torch.linalg.svdvals(both - both.mean(0)).square()
    first = next(row for row in rows_of(out, "spectrum", "shares") if row["block"] == SITES[0])
    assert first["share"] == pytest.approx(float(values[0] / values.sum()), rel=1e-4) and first["component"] == 1
    assert {row["tokens"] for row in rows_of(out, "spectrum", "shares")} == {"all steps", "step 0", "step 1"}
    assert spectrum(train).n_tokens == 5 * 32


def test_features_and_maps_are_those_of_the_library(made, sources):
    from vit_lens import Dictionary
    from vit_lens.dictionaries import features_over_steps, spatial_features

    out, held = made[0], sources[3][SITES[0]][1]
    topk = Dictionary.load(out / "dictionaries" / f"topk_{SITES[0]}_k3_w24.safetensors")
    found = features_over_steps(topk, held)
    pairs = [row for row in rows_of(out, "features_over_steps", "pairs") if row["dictionary"] == "TopK"]
    assert [row["alike"] for row in pairs] == pytest.approx(found.alike.flatten().tolist(), abs=2e-3)
    maps = spatial_features(topk, held)
    sparse = {(row["dictionary"], row["n"]): row for row in rows_of(out, "spatial", "sparse")}
    assert maps.grid == (4, 4) and sparse["TopK", 5]["value"] == pytest.approx(maps.sparse(5), abs=0.05)
    assert sparse["TopK", 16]["value"] == 1.0 and len(sparse) == 16 * 5


def test_pictures_move_as_far_as_by_a_hook_by_hand(made, sources):
    """The features are the most active that are not dense; what is added is in mean norms of each step's own tokens."""
    from vit_lens.dictionaries import Dictionary, random_dictionary

    out, model, prompts, run, split = made[0], *sources
    dictionary = Dictionary.load(out / "dictionaries" / f"topk_{SITES[0]}_k3_w24.safetensors")
    held = split[SITES[0]][1]
    codes = torch.cat([dictionary.encode(batch.tokens) for batch in held.in_order()]).double()
    rate, mean = (codes != 0).double().mean(0), codes.mean(0)
    order = [i for i in mean.argsort(descending=True).tolist() if 0 < rate[i] <= 0.1][:4]
    strips, moved = rows_of(out, "steering", "strips"), rows_of(out, "steering", "moved")
    assert list(dict.fromkeys(row["feature"] for row in strips)) == order and order
    others = random_dictionary(128, len(order), k=1, seed=0).W_dec
    inputs = list(held.inputs)
    seeds = held.reader.seeds(inputs)
    texts = [prompts[i] for i in inputs]
    plain = np.rint(model(texts, seed=seeds, output_type="np", **run) * 255)
    found = {(row["feature"], row["direction"], row["strength"]): row for row in moved}
    for row, direction in ((dictionary.W_dec[order[0]], "feature"), (others[0], "random direction")):

        def hook(x, hook, row=row):
            return x + 0.4 * x.norm(dim=-1).mean(1)[:, None, None] * row / row.norm()

        drawn = model.run_with_hooks(texts, seed=seeds, fwd_hooks=[(SITES[0], hook)], output_type="np", **run)
        by_hand = np.abs(np.rint(drawn * 255) - plain).reshape(len(texts), -1).mean(1) / 255
        own = found[str(order[0]), direction, 0.4]
        assert own["value"] == pytest.approx(by_hand.mean(), abs=1e-4) and own["n_inputs"] == 5 and own["value"] > 1e-3
        assert own["low"] < own["value"] < own["high"]
        several = [found[str(i), direction, 0.8]["value"] for i in order]
        assert found["all", direction, 0.8]["value"] == pytest.approx(np.mean(several))
    unsteered = {row["png"] for row in strips if row["strength"] == 0}
    assert len(unsteered) == 1 and len({row["png"] for row in strips}) == 1 + 6 * len(order)


def test_the_same_command_goes_on_and_another_is_refused(made, tmp_path, vit_lens):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    before = json.loads((out / "explained_by_k.json").read_text())["tables"]
    lost = out / "dictionaries" / f"topk_{SITES[0]}_k2_w24.safetensors"
    (out / "explained_by_k.json").unlink()
    lost.unlink()
    stay = {path: path.stat().st_mtime_ns for path in [*(out / "dictionaries").iterdir(), out / "spatial.json"]}
    status, _, errors = vit_lens(*LINE, "--out", out)
    assert status == 0, errors
    assert json.loads((out / "explained_by_k.json").read_text())["tables"] == before and lost.is_file()
    assert stay == {path: path.stat().st_mtime_ns for path in stay}
    for more in (["--k", 4], ["--branch", "cond", "--learning-seed", 1], ["--n-inputs", 11]):
        status, _, errors = vit_lens(*LINE, *more, "--out", out)
        assert status == 2 and "holds figures of another model, other inputs or other sizes" in " ".join(errors.split())
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    status, _, errors = vit_lens(*LINE, "--out", foreign)
    assert status == 2 and "holds thesis.tex already" in errors


def test_a_plan_says_what_it_would_take_and_leaves_nothing(tmp_path, vit_lens):
    status, told, errors = vit_lens(*LINE, "--plan", "--out", tmp_path / "out")
    assert status == 0 and not (tmp_path / "out").exists(), errors
    assert "25 inputs run (2 hook points), 9 dictionaries, 328 kB of activations, 125 pictures; about" in told, told


def test_scores_are_those_of_explain(tmp_path, vit_lens):
    """The same as sources, pictures and explanations by hand; the plan counts neurons and pictures."""
    import vit_lens as vl
    from vit_lens import explaining as ve
    from vit_lens.dictionaries import drawn_pictures, source_like

    out = tmp_path / "out"
    line = ["paper", "shabalin", "--figure", "scores", "--n-inputs", 110, "--held-out", 0.8, "--features", 40, "--k", 4]
    line = [*line, "--n-tokens", 3000, "--steps", 2, "--at-steps", 1, "--widths", 24, "--out", out]
    status, told, errors = vit_lens(*line, "--plan")
    assert status == 0 and not out.exists(), errors
    n = int(told.split(" inputs run (2 hook points), 2 dictionaries, ")[0].split()[-1]) - 2 * 110  # pictures, each once
    assert 70 < n <= 88 and "4.51 MB of activations" in told, told  # 110 x 16 tokens of width 128 and 512
    status, told, errors = vit_lens(*line)
    assert status == 0, errors
    said = json.loads((out / "scores.json").read_text())
    assert len(list((out / "pictures").iterdir())) == n
    prompts = json.loads((out / "activations" / "double.1.hook_resid_post" / "activations.json").read_text())["keys"]
    flux = vl.HookedDiffusion.from_pretrained("mini-flux")
    flux.pipeline.set_progress_bar_config(disable=True)
    topk = vl.Dictionary.load(out / "dictionaries" / "topk_double.1.hook_resid_post_k4_w40.safetensors")
    live = source_like(topk, flux, prompts)
    held = live.split(0.8)[1].inputs
    held = [index for k, index in enumerate(held) if prompts[index] not in [prompts[other] for other in held[:k]]]
    assert len(held) == n and not {prompts[k] for k in held} & {prompts[k] for k in live.split(0.8)[0].inputs}
    oracle = ve.StillLifeOracle.of_drawn(drawn_pictures(replace(live, inputs=tuple(held))))
    own = replace(live, inputs=tuple(held[k] for k in oracle.kept))
    for protocol in ve.PROTOCOLS:
        units = ve.Units.of_dictionary(topk, own, name="TopK")
        found = ve.explain([units], oracle.pictures, oracle, protocol=protocol, least=10)
        rows = [row for row in said["tables"]["units"] if (row["kind"], row["protocol"]) == ("TopK", protocol)]
        expected = [(row.unit, row.text, pytest.approx(row.score)) for row in found.rows]
        assert [(row["unit"], row["text"], row["score"]) for row in rows] == expected and len(rows) > 5
    score = {(row["protocol"], row["kind"]): row for row in said["tables"]["scores"]}
    assert {kind for _, kind in score} >= {"TopK", "random directions", "untrained"}
    less = next(
        row for row in said["tables"]["differences"] if (row["protocol"], row["less"]) == ("mended", "untrained")
    )
    gap = score["mended", "TopK"]["value"] - score["mended", "untrained"]["value"]
    assert less["value"] == pytest.approx(gap) and less["low"] < less["value"] < less["high"]
    assert "Scores of explanations, TopK minus random directions: " in told and "n = " in told
    assert f"on {len(oracle.kept)} held-out prompts that are scenes" in said["finding"]


def test_other_models_have_the_figures_that_make_sense(tmp_path, vit_lens):
    small = [*SMALL, "--ks", 3, "--widths", 24, "--figure", "norms,explained_by_k,explained_by_step,spatial,scores"]
    image = [*small, "--n-inputs", 120]
    status, told, errors = vit_lens("paper", "shabalin", "mini", *image, "--out", tmp_path / "image")
    assert status == 0, errors
    assert "explained_by_step: left out, it is read at no steps" in told and "n = 60 held-out images" in told
    about = json.loads((tmp_path / "image" / "norms.json").read_text())["about"]
    assert about["block"] == "blocks.3.hook_resid_post" and about["tokens"] == "patches" and about["steps"] is None
    assert "on 60 held-out images that are scenes" in told
    assert "explained_by_step: not drawn" in (tmp_path / "image" / "index.html").read_text()
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {colour} {shape}" for colour in ("red", "blue", "green", "pink")
                                                    for shape in ("star", "ring", "cross")))  # fmt: skip
    text = ["--prompts", tmp_path / "prompts.txt", "--at-block", "L1.resid_post", "--n-inputs", 12, "--features", 12]
    small = [*small, "--widths", 12]
    status, told, errors = vit_lens("paper", "shabalin", "mini", *small, *text, "--out", tmp_path / "text")
    assert status == 0, errors
    assert (
        "spatial: left out, its tokens are no patches" in told
        and "scores: left out, its tokens are no" in told
        and (tmp_path / "text" / "explained_by_k.html").is_file()
    )
    status, told, errors = vit_lens("paper", "shabalin", "mini-sd", *SMALL, "--figure", "norms", "--steps", 2, "--plan")
    assert status == 0 and "norms: How long" in told, errors


def test_strips_of_embeddings_are_drawn_by_a_decoder(tmp_path, vit_lens):
    line = ["paper", "shabalin", "mini", *SMALL, "--ks", 3, "--widths", 24, "--figure", "steering"]
    status, told, errors = vit_lens(*line, "--plan", "--out", tmp_path / "plan")
    assert status == 0 and "1 dictionaries" in told and "125 pictures" in told, errors
    out = tmp_path / "out"
    status, told, errors = vit_lens(*line, "--out", out)
    assert status == 0 and "pixels move by" in told and "n = 5 held-out images" in told, errors
    said = json.loads((out / "steering.json").read_text())
    assert said["about"]["drawing"]["steps"] == 3 and len(list((out / "strips").iterdir())) <= 25
    assert min(row["value"] for row in said["tables"]["moved"] if row["strength"] == 0.8) > 0
    before = {path: path.stat().st_mtime_ns for path in (out / "strips").iterdir()}
    (out / "steering.json").unlink()
    assert vit_lens(*line, "--out", out)[0] == 0  # the pictures are kept
    assert before == {path: path.stat().st_mtime_ns for path in (out / "strips").iterdir()}
    assert json.loads((out / "steering.json").read_text())["tables"] == said["tables"]
    status, told, _ = vit_lens(*line, "--decoder", "none", "--plan")
    assert status == 0 and "steering: left out, nothing draws its embeddings" in told and ", 0 pictures" in told
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {colour} {shape}" for colour in ("red", "blue", "green", "pink")
                                                    for shape in ("star", "ring", "cross")))  # fmt: skip
    text = ["--prompts", tmp_path / "prompts.txt", "--at-block", "L1.resid_post", "--n-inputs", 12, "--features", 12]
    status, told, errors = vit_lens(*line, *text, "--widths", 12, "--plan")
    assert status == 0 and "steering: left out, a text encoder draws nothing" in told, errors
    status, _, errors = vit_lens("paper", "shabalin", *SMALL, "--steps", 2, "--decoder", "mini-ip", "--plan")
    assert status == 2 and "--decoder mini-ip would have no effect" in errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--figure", "spectra"], "no figure 'spectra'; nearest: 'spectrum'"),
        (["--at-block", "double.7.hook_resid_post"], "no hook point 'double.7.hook_resid_post'"),
        (["--blocks", "double.1.hook_rsid_post"], "nearest: 'double.1.hook_resid_post'"),
        (["--widths", 4000], "160 tokens of 5 inputs are learnt from, and 4000 features asked for"),
        (["--at-steps", 5], "has the steps 0 to 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_kept(more, message, tmp_path, vit_lens):
    status, _, errors = vit_lens(*LINE, *more, "--out", tmp_path / "out")
    assert status == 2 and message in " ".join(errors.split()) and not (tmp_path / "out").exists()


def test_another_figure_is_one_of_these_in_the_table(made, tmp_path, monkeypatch, vit_lens):
    import plotly.graph_objects as go

    from vit_lens.studies.paper import PaperFigure, shabalin
    from vit_lens.studies.paper.shabalin_lines import Finding

    own = PaperFigure(
        name="widths", words="How wide <it> is.", measure=lambda bench: {"d": [{"d": bench.d, "no": float("nan")}]},
        finding=lambda tables, about: Finding(f"d = {tables['d'][0]['d']} <wide>", "n = 1"),
        draw=lambda tables, about: go.Figure(layout={"width": 500, "height": 300, "margin": {"t": 30}}),
    )  # fmt: skip
    monkeypatch.setattr(shabalin, "FIGURES", (*shabalin.FIGURES, own))
    status, told, errors = vit_lens(*LINE, "--figure", "widths", "--out", made[0])
    assert status == 0 and "widths: d = 128 <wide>. n = 1" in told, errors
    assert json.loads((made[0] / "widths.json").read_text())["tables"] == {"d": [{"d": 128, "no": None}]}
    page = (made[0] / "index.html").read_text()
    assert "d = 128 &lt;wide&gt;" in page and "<wide>" not in page and "How wide &lt;it&gt; is." in page


def test_titles_are_whole_and_escaped():
    import plotly.graph_objects as go

    from vit_lens.studies.paper.shabalin_lines import Finding, reading, titled

    figure = go.Figure(layout={"width": 420, "height": 300, "margin": {"t": 30}})
    titled(figure, Finding("word <b> " * 20, "of & " * 30))
    text = figure.layout.title.text
    assert "<b>" not in text and text.count("&lt;b&gt;") == 20 and text.count("&amp;") == 30
    assert (
        figure.layout.height > 300 + 17 * text.count("<br>")
        and figure.layout.margin.t - 30 == figure.layout.height - 300
    )
    assert reading(0.384, 0.361, 0.4) == "0.38 [0.36, 0.40]" and reading(None, None, None) == "undefined"
