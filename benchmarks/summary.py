"""Put the results into docs/speed.md and the README as one table, and draw them as one figure.

    python benchmarks/summary.py

Reads ``benchmarks/results/*.json``; writes what stands between the markers of both pages and ``docs/images/speed.png``.
"""

__all__ = ["Bar", "bars_table", "details", "figure", "load_results", "main", "replace_between"]

import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGES = {
    "README.md": ("headlines",),
    "docs/speed.md": ("bars", "forward", "cache", "sweep", "memory", "decode", "text", "floor", "predicted"),
}
PICTURE = ROOT / "docs" / "images" / "speed.png"
EFFECTS = ("one full pass per head", "prefix shared, heads side by side")
Results = Mapping[str, Mapping[str, Any]]


def main() -> None:
    """Write the tables and the figure."""
    results = load_results()
    parts = details(results) | {"bars": bars_table(results), "headlines": bars_table(results, headlines=True)}
    for name, markers in PAGES.items():
        page = ROOT / name
        text = page.read_text()
        for marker in markers:
            text = replace_between(text, marker, parts[marker])
        page.write_text(text)
        print(f"written: {name}")
    figure(results).write_image(PICTURE, scale=2)
    print(f"written: {PICTURE.relative_to(ROOT)}")


def load_results(folder: Path = RESULTS) -> dict[str, Any]:
    """Return every result by the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def replace_between(text: str, marker: str, content: str) -> str:
    """Return a page with what stands between ``<!-- marker -->`` and ``<!-- /marker -->`` replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the page has no <!-- {marker} --> ... <!-- /{marker} -->")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


# ---- what is aimed at, and what was measured -----------------------------------------------------------------------


class Bar(NamedTuple):
    """One aim: at most, or at least, so many times something else; ratios of single repeats."""

    what: str
    aim: float
    ratios: list[float]
    at_least: bool = False
    headline: bool = False

    def row(self) -> str:
        """Return the row of the table."""
        low, measured, high = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else self.ratios * 3
        met = measured >= self.aim if self.at_least else measured <= self.aim
        sure = (low >= self.aim or high < self.aim) if self.at_least else (high <= self.aim or low > self.aim)
        aim = f"≥ {self.aim:g}" if self.at_least else f"≤ {self.aim:.2f}"
        shown = f"{measured:.2f}" if self.at_least else f"{measured:.3f}"
        verdict = ("met" if met else "**missed**") + ("" if sure else " within noise")
        return f"| {self.what} | {aim} x | {shown} x | {len(self.ratios)} | {verdict} |"


def bars_table(results: Results, *, headlines: bool = False) -> str:
    """Return the table of what was aimed at and what was measured; the README's has the headlines alone."""
    bars = [*encoder_bars(results), *decoder_bars(results), *text_bars(results)]
    rows = [bar.row() for bar in bars if bar.headline or not headlines]
    return "\n".join(["| what | aim | measured | n | |", "|---|---|---|---|---|", *rows])


def encoder_bars(results: Results) -> Iterator[Bar]:
    """Yield what is aimed at for the encoder."""
    shapes = {"b32": "ViT-B/32, batch 8", "l14": "ViT-L/14, batch 2"}
    for preset, shape in shapes.items():
        for other, whose in {"open_clip": "open_clip's", "hugging_face": "Hugging Face's"}.items():
            ratios = paired(results[f"forward_{preset}_cpu_float32"], "vit_lens", other)
            yield Bar(f"forward pass, against {whose} ({shape})", 1.02, ratios, headline=preset == "l14")
    for preset, shape in shapes.items():
        ratios = paired(results[f"cache_{preset}_cpu_float32"], "cache, readout rows", "forward")
        yield Bar(f"cache for lenses, against a forward pass ({shape})", 1.03, ratios, headline=preset == "l14")
    ratios = paired(results["cache_b32_cpu_float32"], "cache, everything", "forward")
    yield Bar(f"cache of everything, against a forward pass ({shapes['b32']})", 1.09, ratios, headline=True)
    for preset, shape in {"b32": "ViT-B/32", "l14": "ViT-L/14"}.items():
        found = results[f"sweep_{preset}_cpu_float32"]
        what = f"lens embeddings of all {found['n_sites']} sites, against a forward pass ({shape}, one image)"
        yield Bar(what, 1.10, paired(found, "closed form", "forward", part="lens"), headline=True)
    for preset, shape in {"b32": "ViT-B/32", "l14": "ViT-L/14"}.items():
        found, slow, fast = results[f"sweep_{preset}_cpu_float32"], *EFFECTS
        gflop = {row["name"]: row["gflop"] for row in found["effects"]}
        yield Bar(f"total effects of heads, operations saved ({shape})", 1.8, [gflop[slow] / gflop[fast]], True)
        ratios = paired(found, slow, fast, part="effects")
        yield Bar(f"total effects of heads, time saved ({shape})", 1.8, ratios, True, preset == "l14")
    bigg = results["memory_bigg_cpu_float32"]["memory"]
    what = f"peak memory of the whole process, against the weights (ViT-bigG/14, {bigg['sites']} sites)"
    yield Bar(what, 1.25, [bigg["process_over_weights"]], headline=True)


def decoder_bars(results: Results) -> Iterator[Bar]:
    """Yield what is aimed at for the decoder."""
    mini = results["decode_mini_cpu_float32"]
    equal, pair = mini["compare"][-1], "embedded pair, 25 steps, guidance 4"
    seconds = {row["name"]: row["seconds"] for row in equal["rows"]}
    ours, stock = seconds[equal["best_decode"]], seconds[equal["best_pipeline"]]
    best = equal["best_decode"].split()[1]
    what = f"pictures, {best} in a pass, against one pipeline call per site ({pair})"
    yield Bar(what, 2, within(seconds["pipeline 1"], ours), True, True)
    what = f"pictures, {best} in a pass, against the pipeline at its best batch ({pair})"
    yield Bar(what, 1, within(stock, ours), True, True)
    fast = {row["name"]: row["seconds"] for row in mini["fast"]["rows"]}
    what = f"fast profile at guidance 4, {mini['fast']['batch']} in a pass, against one pipeline call per site at its "
    ratios = within(fast["pipeline"], fast["fast, guidance 4"])
    yield Bar(f"{what}defaults, 100 steps (embedded pair)", 6, ratios, True, True)


def text_bars(results: Results) -> Iterator[Bar]:
    """Yield what is aimed at for lens sweeps over prompts."""
    found = results["text_mini_cpu_float32"]
    seconds = {row["name"]: row["seconds"] for row in found["rows"]}
    slow, ours = (next(name for name in seconds if name.startswith(who)) for who in ("stock", "vit_lens"))
    what = f"every layer of {found['prompts']} prompts drawn, against one stock pipeline call for each (embedded model)"
    yield Bar(what, 2, within(seconds[slow], seconds[ours]), True, True)


def paired(result: Mapping[str, Any], candidate: str, base: str, part: str = "rows") -> list[float]:
    """Return one candidate's time over another's for every repeat, at the batch that was asked for."""
    rows = [row for row in result[part] if row.get("batch", own_batch(result)) == own_batch(result)]
    seconds = {row["name"]: row["seconds"] for row in rows}
    return within(seconds[candidate], seconds[base])


def within(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the ratios within repeats."""
    return [value / reference for value, reference in zip(seconds, base, strict=True)]


def own_batch(result: Mapping[str, Any]) -> int:
    """Return the batch that a result was asked for: that of its memory measurement."""
    memory = result["memory"]
    return (memory[0] if isinstance(memory, list) else memory).get("batch", -1)


# ---- tables of each benchmark --------------------------------------------------------------------------------------


def details(results: Results) -> dict[str, str]:
    """Return the table of every benchmark."""
    return {
        "forward": forward_table(results),
        "cache": cache_table(results),
        "sweep": sweep_table(results),
        "memory": memory_table(results),
        "decode": decode_table(results),
        "text": text_table(results),
        "floor": floor_table(results),
        "predicted": predicted_table(results),
    }


def forward_table(results: Results) -> str:
    """Return forward passes of every tower and batch."""
    lines = [
        "| tower | batch | | ms | to open_clip (quartiles) | of the matrix-product rate |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in matching(results, "forward_"):
        for row in result["rows"]:
            lines.append(
                f"| {label(name)} | {row['batch']} | {row['name']} | {1e3 * row['seconds_median']:.1f} | "
                f"{spread(row)} | {row['share_of_peak']:.0%} |"
            )
    return "\n".join(lines)


def cache_table(results: Results) -> str:
    """Return every way to keep activations."""
    lines = ["| tower | batch | | ms | to a forward pass (quartiles) | kept |", "|---|---|---|---|---|---|"]
    for name, result in matching(results, "cache_"):
        for row in result["rows"]:
            lines.append(
                f"| {label(name)} | {row['batch']} | {row['name']} | {1e3 * row['seconds_median']:.1f} | "
                f"{spread(row)} | {row['kept_mib']:.1f} MiB |"
            )
    return "\n".join(lines)


def sweep_table(results: Results) -> str:
    """Return lens embeddings and total effects."""
    lines = ["| tower | | sites timed | seconds for all | to a forward pass | GFLOP |", "|---|---|---|---|---|---|"]
    for name, result in matching(results, "sweep_"):
        for row in result["lens"]:
            lines.append(
                f"| {label(name)} | {row['name']} | {row['n']} of {result['n_sites']} | {row['seconds_median']:.3g} | "
                f"{row['ratio']:.4g} | {row['gflop']:.4g} |"
            )
        for row in result["effects"]:
            lines.append(
                f"| {label(name)} | total effects: {row['name']} | {row['n']} | {row['seconds_median']:.3g} | | "
                f"{row['gflop']:.4g} |"
            )
    return "\n".join(lines)


def memory_table(results: Results) -> str:
    """Return the peak memory of lens sweeps."""
    lines = [
        "| tower | sites | weights | peak, libraries not counted | whole process |",
        "|---|---|---|---|---|",
    ]
    for name, result in [*matching(results, "sweep_"), *matching(results, "memory_")]:
        row = result["memory"]
        lines.append(
            f"| {label(name)} | {row['sites']} | {row['weights_mib']:.0f} MiB | {row['peak_over_weights']:.3f} x | "
            f"{row['process_over_weights']:.3f} x |"
        )
    return "\n".join(lines)


def decode_table(results: Results) -> str:
    """Return pictures against the stock pipeline, and the fast profile with its price."""
    lines = ["| settings | | seconds per picture | to one pipeline call per site |", "|---|---|---|---|"]
    for name, result in matching(results, "decode_mini"):
        for block in result.get("compare", []):
            chosen = block["settings"]
            words = f"{kind_of(name)}, {chosen['steps']} steps, guidance {chosen['guidance']:g}"
            for row in block["rows"]:
                who, size = row["name"].split()
                who = "sweep" if who == "decode" else "pipeline"
                lines.append(f"| {words} | {who}, batch {size} | {row['seconds_median']:.3g} | {row['ratio']:.3f} |")
    lines += ["", "| profile | UNet rows a picture | seconds per picture | gain | cosine, images | cosine, sites |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, result in matching(results, "decode_mini"):
        for row in result.get("fast", {}).get("rows", []):
            lines.append(
                f"| {kind_of(name)}, {row['name']} | {row['unet_rows_per_picture']} | {row['seconds_median']:.3g} | "
                f"{row['gain']:.1f} x | {row['cosine_images']:.3f} | {row['cosine_sites']:.3f} |"
            )
    return "\n".join(lines)


def text_table(results: Results) -> str:
    """Return lens sweeps over prompts against calls of the stock pipeline."""
    lines = ["| model | prompts, layers | | seconds | to one call for each (quartiles) |", "|---|---|---|---|---|"]
    for name, result in matching(results, "text_"):
        of = f"{result['preset']}, {kind_of(name)} | {result['prompts']}, {result['layers']}"
        for row in result["rows"]:
            lines.append(f"| {of} | {row['name']} | {row['seconds_median']:.3g} | {spread(row)} |")
    return "\n".join(lines)


def floor_table(results: Results) -> str:
    """Return UNet and MoVQ of the published shapes against the rate of the UNet's own convolutions."""
    lines = ["| device | convolutions | UNet evaluation | to its floor | MoVQ, one picture | to its floor |"]
    lines.append("|---|---|---|---|---|---|")
    for name, result in matching(results, "decode_kandinsky"):
        found = result["floor"]
        cells = [
            f"{result['machine']['device']}, {kind_of(name)}",
            f"{found['convolutions']['flops_per_second'] / 1e12:.3g} TFLOP/s",
            f"{found['unet_eager_seconds']:.3g} s for {found['unet_rows']} rows",
            f"{found['unet_eager_over_floor']:.2f} x",
            f"{found['movq_eager_seconds']:.3g} s",
            f"{found['movq_eager_over_floor']:.2f} x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def predicted_table(results: Results) -> str:
    """Return what is predicted for hardware that was not at hand."""
    lines = [
        "| settings | rows a pass | weights and activations | 816 pictures (PFLOP) | predicted time |",
        "|---|---|---|---|---|",
    ]
    for _, result in matching(results, "decode_a100"):
        for row in result["predict"]["rows"]:
            times = ", ".join(
                f"{v:.0f} s ({k.removeprefix('seconds on ')})" for k, v in row.items() if "seconds on" in k
            )
            lines.append(
                f"| {row['settings']} | {row['rows_per_pass']} | {row['peak_bytes'] / 1e9:.1f} GB | "
                f"{row['sweep_flops'] / 1e15:.2f} | {times} |"
            )
    return "\n".join(lines)


# ---- figure --------------------------------------------------------------------------------------------------------


def figure(results: Results) -> Any:
    """Draw ratios to a forward pass, pictures by batch, and growth, as one plotly figure."""
    from plotly.subplots import make_subplots

    titles = (
        "To one forward pass (median, quartiles)", "Seconds per picture, 25 steps, guidance 4 (embedded pair)",
        "Lens embeddings of all sites, ViT-L/14 (seconds)", "Seconds per picture as pictures grow (embedded pair)",
    )  # fmt: skip
    fig = make_subplots(rows=2, cols=2, subplot_titles=titles, horizontal_spacing=0.16, vertical_spacing=0.16)
    draw_ratios(fig, results)
    equal = results["decode_mini_cpu_float32"]["compare"][-1]["rows"]
    for who, words, beside in (("decode", "sweep", "bottom left"), ("pipeline", "stock pipeline", "top right")):
        rows = [row for row in equal if row["name"].startswith(who)]
        sizes = [int(row["name"].split()[1]) for row in rows]
        add_line(fig, sizes, [row["seconds_median"] for row in rows], words, 1, 2, at=1, beside=beside)
    fig.update_xaxes(title_text="pictures in a pass", type="log", row=1, col=2)
    curves = results["sweep_l14_cpu_float32"]["curves"]
    for of in ("images", "sites", "layers"):
        rows = [row for row in curves if row["of"] == of and row["name"] == "closed form"]
        add_line(fig, [r["n"] for r in rows], [r["seconds_median"] for r in rows], f"with {of}", 2, 1)
    fig.update_xaxes(title_text="images, sites (one image) or layers (one image)", type="log", row=2, col=1)
    growth = results["decode_mini_cpu_float32"]["curves"]
    for of, words in (("picture_size", "with size (pixels)"), ("steps", "with steps")):
        rows = growth[of]
        add_line(fig, [r[of] for r in rows], [r["seconds_per_picture"] for r in rows], words, 2, 2)
    fig.update_xaxes(title_text="pixels a side, or steps", type="log", row=2, col=2)
    for row, col in ((1, 2), (2, 1), (2, 2)):
        fig.update_yaxes(type="log", row=row, col=col)
    fig.update_layout(template="plotly_white", width=1200, height=860, showlegend=False, margin=dict(t=60, l=230))
    return fig


def draw_ratios(fig: Any, results: Results) -> None:
    """Draw ratios with quartiles."""
    import plotly.graph_objects as go

    names, values, low, high = [], [], [], []
    for preset, tower in {"b32": "ViT-B/32", "l14": "ViT-L/14"}.items():
        sources = [
            (f"cache_{preset}_cpu_float32", "rows", name)
            for name in ("torch hooks on open_clip", "nnsight on open_clip")
        ]
        sources += [
            (f"cache_{preset}_cpu_float32", "rows", name) for name in ("cache, readout rows", "cache, everything")
        ]
        sources.append((f"sweep_{preset}_cpu_float32", "lens", "closed form"))
        for file, part, name in sources:
            rows = [row for row in results[file][part] if row["name"] == name]
            rows = [row for row in rows if row.get("batch", own_batch(results[file])) == own_batch(results[file])]
            for row in rows[:1]:
                names.append(f"{tower}: {'lens embeddings, all sites' if part == 'lens' else name}")
                values.append(row["ratio"])
                low.append(row["ratio"] - row["ratio_low"])
                high.append(row["ratio_high"] - row["ratio"])
    error = dict(type="data", symmetric=False, array=high[::-1], arrayminus=low[::-1], color="#444")
    marker = dict(color="#4c78a8", size=9)
    dots = go.Scatter(x=values[::-1], y=names[::-1], mode="markers", error_x=error, marker=marker)
    fig.add_trace(dots, row=1, col=1)
    fig.add_vline(x=1, line_color="#444", line_width=1, row=1, col=1)
    fig.update_xaxes(range=[0.9, 1.02 * max(v + h for v, h in zip(values, high, strict=True))], row=1, col=1)


def add_line(
    fig: Any, x: list[Any], y: list[float], name: str, row: int, col: int, *, at: int = -1, beside: str = "top left"
) -> None:
    """Draw one curve, named beside one of its points."""
    import plotly.graph_objects as go

    words = [""] * len(x)
    words[at] = f" {name} "
    line = go.Scatter(x=x, y=y, mode="lines+markers+text", text=words, textposition=beside, name=name)
    fig.add_trace(line, row=row, col=col)


# ---- helpers -----------------------------------------------------------------------------------------------------


def matching(results: Results, start: str) -> Iterable[tuple[str, Any]]:
    """Return the results whose names start so."""
    return [(name, result) for name, result in results.items() if name.startswith(start)]


def label(name: str) -> str:
    """Return a file's name as words: ``sweep_l14_cpu_float32`` is ViT-L/14 on the CPU in float32."""
    _, preset, device, dtype = name.split("_")[:4]
    towers = {"b32": "ViT-B/32", "l14": "ViT-L/14", "h14": "ViT-H/14", "bigg": "ViT-bigG/14"}
    return f"{towers.get(preset, preset)}, {device}, {dtype}"


def kind_of(name: str) -> str:
    """Return the dtype, and whether it was compiled."""
    return " ".join(name.split("_")[3:])


def spread(row: Mapping[str, Any]) -> str:
    """Return a ratio with its quartiles."""
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


if __name__ == "__main__":
    main()
