"""Where on the image features fire: on how many patches at most, and how gathered there."""

__all__ = ["SPATIAL"]

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_lens.dictionaries import spatial_features
from vit_lens.figures import dress
from vit_lens.studies.paper.shabalin_bench import BESIDE, Bench, Recipe
from vit_lens.studies.paper.shabalin_figure import About, PaperFigure, Tables, estimate, of_inputs
from vit_lens.studies.paper.shabalin_lines import Finding, Line, colour_of, lines_figure, reading
from vit_lens.studies.paper.shabalin_reconstruction import block_name

_FEW, _OF = 6, 256  # patches, of the paper's grid
_SHARES = {"area": "share of patches", "concentration": "in the top quarter", "spread": "distance, in patches"}
_TITLES = {"area": "active area", "concentration": "concentration", "spread": "spread"}


def recipes(bench: Bench) -> list[Recipe]:
    return bench.recipes(bench.main, bench.sizes.k, bench.sizes.width)


def measure(bench: Bench) -> Tables:
    topk, itda = (bench.dictionary(recipe) for recipe in recipes(bench))
    named = {"TopK": topk, "ITDA": itda, **bench.controls(topk, bench.main)}
    held = bench.split(bench.main)[1]
    sparse, quantiles = [], []
    for name, dictionary in named.items():
        found = spatial_features(dictionary, held, grid=bench.grid)
        live = found.most[found.most > 0]
        said = {"dictionary": name, "n_live": len(live), "n_maps": found.n_read, "n_patches": found.n_patches}
        for n in range(1, found.n_patches + 1):
            sparse.append({**said, "n": n, **estimate((live <= n).double(), bench.sizes.seed)})
        for measure in _SHARES:
            values = getattr(found, measure).numpy()
            values = values[np.isfinite(values)]
            if len(values):
                ends = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
                names = ("q05", "q25", "q50", "q75", "q95")
                quantiles.append({**said, "measure": measure, **dict(zip(names, ends, strict=True))})
    return {"sparse": sparse, "maps": quantiles}


_ENDS = ("value", "low", "high")


def finding(tables: Tables, about: About) -> Finding:
    rows = tables["sparse"]
    n_patches, n_maps = rows[0]["n_patches"], rows[0]["n_maps"]
    n = min(_FEW, n_patches - 1)
    at = {row["dictionary"]: row for row in rows if row["n"] == n}
    said = ", ".join(f"{name} {reading(*(at[name][end] for end in _ENDS))}" for name in ("TopK", "ITDA", "untrained"))
    of = f"{about['model']} at {block_name(about['block'])}, k = {about['k']}; {of_inputs(about)}, {n_maps:,} maps"
    live = f"{at['TopK']['n_live']} of TopK and {at['ITDA']['n_live']} of ITDA"
    return Finding(
        f"Features never on more than {n} of {n_patches} patches of an image: {said}",
        f"{of}; 95 % intervals over the features that fire, {live}; the paper's grid has {_OF} patches",
    )


def draw(tables: Tables, about: About) -> go.Figure:
    rows, maps = tables["sparse"], tables["maps"]
    names = list(dict.fromkeys(row["dictionary"] for row in rows))
    shown = [key for key in _SHARES if any(row["measure"] == key for row in maps)]
    figure = make_subplots(
        rows=1, cols=1 + len(shown), column_widths=[2] + [1] * len(shown), horizontal_spacing=0.07,
        subplot_titles=["never on more than n patches", *(_TITLES[key] for key in shown)],
    )  # fmt: skip
    for name in names:
        own = [row for row in rows if row["dictionary"] == name]
        ends = {end: [row[end] for row in own] for end in ("low", "high")}
        x, y = [row["n"] for row in own], [row["value"] for row in own]
        line = Line(panel="", name=name, x=x, y=y, beside=name in BESIDE, **ends)
        for trace in lines_figure([line], across="", up="").data:
            figure.add_trace(trace, 1, 1)
        for column, key in enumerate(shown, start=2):
            one = next((row for row in maps if (row["dictionary"], row["measure"]) == (name, key)), None)
            if one is not None:
                figure.add_trace(
                    go.Box(
                        x=[name], q1=[one["q25"]], median=[one["q50"]], q3=[one["q75"]], lowerfence=[one["q05"]],
                        upperfence=[one["q95"]], name=name, legendgroup=name, showlegend=False,
                        line={"color": colour_of(name, names)},
                    ), 1, column,
                )  # fmt: skip
    figure.update_xaxes(title="n patches", row=1, col=1, showgrid=False)
    figure.update_yaxes(title="share of features that fire", row=1, col=1, range=[-0.02, 1.03])
    for column, key in enumerate(shown, start=2):
        figure.update_yaxes(title=_SHARES[key], row=1, col=column, rangemode="tozero", title_standoff=4)
        figure.update_xaxes(tickangle=45, row=1, col=column)
    figure.update_annotations(font_size=12)
    dress(figure, "", 1080, 450)
    return figure.update_layout(
        legend={"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0},
        margin={"l": 60, "t": 30, "b": 130},
    )


def lacks(bench: Bench) -> str | None:
    return None if bench.grid is not None else "its tokens are no patches of an image"


SPATIAL = PaperFigure(
    name="spatial", words="On how many patches of an image features fire, and how gathered they are there.",
    measure=measure, finding=finding, draw=draw, recipes=recipes, sites=lambda bench: [bench.main], lacks=lacks,
)  # fmt: skip
