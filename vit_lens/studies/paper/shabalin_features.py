"""How alike a feature's activations are from step to step."""

__all__ = ["FEATURES"]

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.dictionaries import features_over_steps
from vit_lens.figures import DIVERGING, dress
from vit_lens.studies.paper.shabalin_bench import Bench, Recipe
from vit_lens.studies.paper.shabalin_figure import About, PaperFigure, Tables, estimate, of_inputs
from vit_lens.studies.paper.shabalin_lines import Finding, reading
from vit_lens.studies.paper.shabalin_reconstruction import block_name
from vit_lens.studies.paper.shabalin_steps import lacks

_MANY = 4096  # features whose codes are held step by step


def recipes(bench: Bench) -> list[Recipe]:
    return bench.recipes(bench.main, bench.sizes.k, bench.sizes.width)


def measure(bench: Bench) -> Tables:
    topk, itda = map(bench.dictionary, recipes(bench))
    named = {"TopK": topk, "ITDA": itda, "untrained": bench.controls(topk, bench.main)["untrained"]}
    held = bench.split(bench.main)[1]
    pairs, means = [], []
    for name, one in named.items():
        features = list(range(0, one.n_features, -(-one.n_features // _MANY)))
        found = features_over_steps(one, held, features, seed=bench.sizes.seed)
        pairs += [{"dictionary": name, **row} for row in found.to_frame().to_dict("records")]
        differences = found.neighbours - found.neighbours_shuffled
        for what, values in (
            ("neighbours", found.neighbours),
            ("shuffled", found.neighbours_shuffled),
            ("difference", differences),
        ):
            n = int(values.isfinite().sum())
            means.append({"dictionary": name, "of": what, **estimate(values, bench.sizes.seed), "n_features": n})
    return {"pairs": pairs, "neighbours": means}


def finding(tables: Tables, about: About) -> Finding:
    at = {(row["dictionary"], row["of"]): row for row in tables["neighbours"]}

    def said(name: str, what: str) -> str:
        return reading(*(at[name, what][end] for end in ("value", "low", "high")))

    n = at["TopK", "neighbours"]["n_features"]
    return Finding(
        f"A feature in neighbouring steps: r = {said('TopK', 'neighbours')}, with steps shuffled "
        f"{said('TopK', 'shuffled')} (TopK); more by {said('TopK', 'difference')}, in ITDA by "
        f"{said('ITDA', 'difference')}, untrained by {said('untrained', 'difference')}",
        f"{about['model']} at {block_name(about['block'])}, k = {about['k']}; {n} features of TopK that fire at "
        f"neighbouring steps; 95 % intervals over features; {of_inputs(about)}",
    )


def draw(tables: Tables, about: About) -> go.Figure:
    rows = tables["pairs"]
    names = list(dict.fromkeys(row["dictionary"] for row in rows))
    panels = [(name, key) for key in ("alike", "shuffled") for name in names]
    words = {"alike": "as they are", "shuffled": "steps shuffled"}
    figure = make_subplots(
        rows=2, cols=len(names), subplot_titles=[f"{name}, {words[key]}" for name, key in panels],
        horizontal_spacing=0.06, vertical_spacing=0.14,
    )  # fmt: skip
    steps = list(dict.fromkeys(row["step"] for row in rows))
    for index, (name, key) in enumerate(panels):
        at = {(row["step"], row["other"]): row[key] for row in rows if row["dictionary"] == name}
        z = [[at[step, other] for other in steps] for step in steps]
        row, column = divmod(index, len(names))
        figure.add_trace(
            go.Heatmap(
                z=z, x=steps, y=steps, zmin=-1, zmid=0, zmax=1, colorscale=DIVERGING, showscale=index == 0,
                colorbar={"title": {"text": "r"}, "len": 0.6},
                hovertemplate="steps %{y} and %{x}: %{z:.2f}<extra></extra>",
            ), row + 1, column + 1,
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    figure.update_xaxes(title="step", row=2)
    figure.update_yaxes(title="step", col=1)
    figure.update_annotations(font_size=12)
    dress(figure, "", 140 + 300 * len(names), 700)
    return figure.update_layout(margin={"t": 30, "b": 60, "l": 60, "r": 80})


FEATURES = PaperFigure(
    name="features_over_steps", words="How alike a feature's activations are from step to step.", measure=measure,
    finding=finding, draw=draw, lacks=lacks, recipes=recipes, sites=lambda bench: [bench.main],
)  # fmt: skip
