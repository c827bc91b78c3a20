"""What the encoder's side of a lens sweep costs: lens embeddings of all sites, and total effects of all heads.

One tower of published shapes and random weights. Lens embeddings of every head, attention block, MLP and residual are
computed in closed form from one cached pass; the baselines are one hooked forward pass per site from the pixels, and
the competent one: hooked passes batched over sites, each from the site's own layer. Total effects need true forward
passes: vit_lens computes what heads share once per layer and runs heads side by side; the baseline is one full forward
pass per head. Results of fast and slow ways are compared before anything is timed.

    python benchmarks/bench_sweep.py b32
    python benchmarks/bench_sweep.py l14 --batch 1 --every 6 --curve
    python benchmarks/bench_sweep.py bigg --memory
    python benchmarks/bench_sweep.py bigg --device cuda --dtype bfloat16 --batch 8 --every 12
"""

import argparse
import json
from typing import Any

import torch
from measuring import (
    DTYPES,
    add_options,
    count_flops,
    fresh_process,
    interleave,
    peak_bytes,
    positive,
    resident_bytes,
    start,
    summarise,
    table,
    write_result,
)
from random_towers import add_preset, open_clip_tower

from vit_lens import DiffusionLens, DiffusionSteeringLens, HookedViT, Site
from vit_lens.interventions import run_many, zero

KINDS = ("heads", "attn", "mlp", "resid_pre", "resid_mid", "resid_post")
LENSES = (DiffusionSteeringLens(alpha=10.0), DiffusionLens())
COLUMNS = ("name", "n", "seconds_median", "ratio", "ratio_low", "ratio_high", "gflop")
MIB = 2**20


def main() -> None:
    """Measure what was asked for, print tables and write the JSON."""
    options = parse()
    device, dtype = start(options), DTYPES[options.dtype]
    if options.child:
        print(json.dumps(peak_of(*given(options, device, dtype), device)))
        return
    content: dict[str, Any] = {
        "benchmark": "sweep", "preset": options.preset, "dtype": options.dtype, "weights": "random",
        "batch": options.batch, "every": options.every,
    }  # fmt: skip
    with torch.no_grad():
        if not options.memory:
            model, pixels = given(options, device, dtype)
            content["n_sites"] = len(read_sites(model))
            content["lens"] = lens_rows(model, pixels, options, device)
            print(table(content["lens"], COLUMNS), flush=True)
            content["effects"] = effect_rows(model, pixels, options, device)
            print(table(content["effects"], COLUMNS), flush=True)
            del model, pixels
        if options.curve:
            content["curves"] = curves(options, device, dtype)
            print(table(content["curves"], ("of", "n", *COLUMNS[:1], *COLUMNS[2:4])), flush=True)
    arguments = [options.preset, "--child", "--batch", str(options.batch), "--device", options.device]
    content["memory"] = fresh_process(__file__, [*arguments, "--dtype", options.dtype])
    print(table([content["memory"]], ("sites", "weights_mib", "peak_mib", "peak_over_weights", "process_over_weights")))
    kind = "memory" if options.memory else "sweep"
    write_result(options, f"{kind}_{options.preset}_{device.type}_{options.dtype}", content)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=positive, default=1, help="images at once")
    parser.add_argument("--every", type=positive, default=1, help="baselines take the sites of every n-th layer alone")
    parser.add_argument("--curve", action="store_true", help="also the growth with images, sites and layers")
    parser.add_argument("--memory", action="store_true", help="peak memory alone")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    add_options(parser)
    add_preset(parser)
    return parser.parse_args()


def given(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[HookedViT, torch.Tensor]:
    """Return the tower, which shares the memory of open_clip's, and pixels for it."""
    source = open_clip_tower(options.preset, device, dtype)
    model = HookedViT.from_module(source, copy=False).requires_grad_(False)
    return model, torch.randn(options.batch, 3, *model.cfg.image_size, device=device, dtype=dtype)


# ---- lens embeddings -------------------------------------------------------------------------------------------------


def read_sites(model: HookedViT) -> list[Site]:
    """Return every site that the two lenses read."""
    return Site.resolve(list(KINDS), model.cfg)


def lens_of(site: Site) -> DiffusionSteeringLens | DiffusionLens:
    """Return the lens that reads a site here: the residual stream is the Diffusion Lens's."""
    return LENSES[1] if site.is_residual else LENSES[0]


def closed_form(model: HookedViT, pixels: torch.Tensor, sites: list[Site]) -> torch.Tensor:
    """Return the lens embeddings [batch site d_embed] from one cached pass."""
    cache = model.run_with_cache(pixels, rows="readout")[1]
    parts = [[s for s in sites if s.is_residual is residual] for residual in (False, True)]
    return torch.cat([lens.embed(cache, own) for lens, own in zip(LENSES, parts, strict=True) if own], dim=1)


def hook_sets(model: HookedViT, pixels: torch.Tensor, sites: list[Site]) -> list[list[Any]]:
    """Return the hooks of every site, in the order of :func:`closed_form`."""
    cache = model.run_with_cache(pixels, rows="readout")[1]
    ordered = sorted(sites, key=lambda site: site.is_residual)
    return [lens_of(site).hooks(cache, site) for site in ordered]


def lens_rows(
    model: HookedViT, pixels: torch.Tensor, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Time closed form and baselines; those on the sites of some layers, scaled to all."""
    sites = read_sites(model)
    layers = range(options.every // 2, model.cfg.n_layers, options.every)
    some = [site for site in sites if site.layer in layers]
    hooks = hook_sets(model, pixels, some)

    def one_by_one() -> torch.Tensor:
        return torch.stack([model.run_with_hooks(pixels, fwd_hooks=own) for own in hooks], dim=1)

    def batched() -> torch.Tensor:
        return run_many(model, pixels, hooks).transpose(0, 1)

    refuse_difference(closed_form(model, pixels, some), batched(), "closed form and batched hooks")
    candidates = {"forward": lambda: model(pixels), "closed form": lambda: closed_form(model, pixels, sites)}
    rows = summarise(interleave(candidates, repeats=options.repeats, device=device), "forward")
    slow = {"forward": candidates["forward"], "hooks, batched from the site's layer": batched}
    slow["hooks, one pass per site"] = one_by_one
    seconds = interleave(slow, repeats=max(1, options.repeats // 3), warmup=1, device=device)
    scale = len(sites) / len(some)
    for name in list(slow)[1:]:
        seconds[name] = [value * scale for value in seconds[name]]
    rows += summarise(seconds, "forward")[1:]
    flops = {name: count_flops(f) for name, f in {**candidates, **slow}.items()}
    scaled = {name: flops[name] * (scale if name in list(slow)[1:] else 1) for name in flops}
    timed = {name: len(some) if name in list(slow)[1:] else len(sites) for name in flops}
    return [{**row, "n": timed[row["name"]], "gflop": round(scaled[row["name"]] / 1e9, 2)} for row in rows]


# ---- total effects ---------------------------------------------------------------------------------------------------


def effect_rows(
    model: HookedViT, pixels: torch.Tensor, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Time zero ablation of heads: prefix shared and side by side, against a full pass for each."""
    layers = range(options.every // 2, model.cfg.n_layers, options.every)
    hooks = [zero(model, site) for site in Site.heads(model) if site.layer in layers]

    def one_by_one() -> torch.Tensor:
        return torch.stack([model.run_with_hooks(pixels, fwd_hooks=own) for own in hooks])

    def together() -> torch.Tensor:
        return run_many(model, pixels, hooks)

    refuse_difference(together(), one_by_one(), "shared prefix and full passes")
    candidates = {"one full pass per head": one_by_one, "prefix shared, heads side by side": together}
    seconds = interleave(candidates, repeats=max(1, options.repeats // 3), warmup=0, device=device)
    rows = summarise(seconds, "one full pass per head")
    return [
        {**row, "n": len(hooks), "gflop": round(count_flops(candidates[row["name"]]) / 1e9, 2)} for row in rows
    ]  # fmt: skip


def refuse_difference(fast: torch.Tensor, slow: torch.Tensor, what: str) -> None:
    """Stop if a fast way computes something else than the slow one."""
    difference, scale = (fast - slow).abs().max(), slow.abs().max()
    if not difference <= 300 * torch.finfo(slow.dtype).eps * scale:
        raise SystemExit(f"{what} differ by {difference:.3g} at a scale of {scale:.3g}")


# ---- growth and memory -----------------------------------------------------------------------------------------------


def curves(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Time the closed form against a plain pass for more images, sites and layers."""
    model = HookedViT.from_module(open_clip_tower(options.preset, device, dtype), copy=False).requires_grad_(False)
    sites, n_layers = read_sites(model), model.cfg.n_layers
    cases: list[tuple[str, int, HookedViT, int, list[Site]]] = []
    cases += [("images", n, model, n, sites) for n in (1, 2, 4, 8)]
    cases += [("sites", n, model, options.batch, sites[:n]) for n in sorted({1, len(sites) // 8, len(sites)})]
    for depth in sorted({max(1, n_layers // 4), n_layers // 2, n_layers}):
        shallow = HookedViT.from_module(open_clip_tower(options.preset, device, dtype, layers=depth), copy=False)
        cases.append(("layers", depth, shallow, options.batch, read_sites(shallow)))
    rows = []
    for of, n, tower, batch, own in cases:
        pixels = torch.randn(batch, 3, *tower.cfg.image_size, device=device, dtype=dtype)
        candidates = {
            "forward": lambda tower=tower, pixels=pixels: tower(pixels),
            "closed form": lambda tower=tower, pixels=pixels, own=own: closed_form(tower, pixels, own),
        }
        found = summarise(interleave(candidates, repeats=options.repeats, device=device), "forward")
        rows += [{"of": of, "n": n, "batch": batch, **row} for row in found]
    return rows


def peak_of(model: HookedViT, pixels: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Measure the peak of this process during a sweep of all sites: beside the libraries, and of all that it holds."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    before = resident_bytes() if device.type == "cpu" else torch.cuda.memory_allocated(device)
    with torch.no_grad():
        found = closed_form(model, pixels, read_sites(model))
    peak = peak_bytes(device)
    return {
        "sites": found.shape[1], "batch": len(pixels), "weights_mib": round(weights / MIB, 1),
        "peak_mib": round(peak / MIB, 1), "peak_over_weights": round(1 + (peak - before) / weights, 4),
        "process_over_weights": round(peak / weights, 4),
    }  # fmt: skip


if __name__ == "__main__":
    main()
