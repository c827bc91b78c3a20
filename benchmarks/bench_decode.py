"""How fast pictures are made, against the stock pipeline and against what the device's convolutions allow.

    python benchmarks/bench_decode.py mini --threads 2
    python benchmarks/bench_decode.py kandinsky --device cuda --dtype bfloat16
    python benchmarks/bench_decode.py a100                 # a prediction from operation counts, on any machine

Parts (``--parts``; each preset has its own default):

compare   the sweep's decode against ``KandinskyV22Pipeline`` at equal settings, both at each batch size, interleaved;
          the pipeline at batch 1 is one call for each site
fast      the fast profile against the pipeline's own defaults (100 steps, guidance 4), with its price: cosine of the
          embedding asked for and that of the picture
curves    how seconds per picture grow with picture size and steps; FLOPs and share of the measured matrix-product rate
memory    peak in a fresh process for each batch size, beside what ``decoding_cost`` counts
floor     the rate of this UNet's own convolutions, each distinct one timed; a UNet evaluation, MoVQ and a whole sweep
          against that rate
predict   peak and time of a sweep from ``decoding_cost`` and assumed rates: a prediction, nothing is measured

``kandinsky`` and ``a100`` are the true shapes of Kandinsky 2.2 with random weights, so their pictures mean nothing. On
a CPU they take 5 GB in float32, and about a minute for each UNet evaluation: take ``--steps 1 --rows 1``.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from measuring import (
    DTYPES,
    add_options,
    fresh_process,
    interleave,
    matmul_rate,
    peak_bytes,
    resident_bytes,
    start,
    summarise,
    table,
    write_result,
)
from torch import Tensor

# The published configurations; what is left out is the default of diffusers.
UNET: dict[str, Any] = dict(
    in_channels=4, out_channels=8, sample_size=64, block_out_channels=(384, 768, 1152, 1536), layers_per_block=3,
    attention_head_dim=64, cross_attention_dim=768, encoder_hid_dim=1280, encoder_hid_dim_type="image_proj",
    addition_embed_type="image", resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
    up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
)  # fmt: skip
MOVQ: dict[str, Any] = dict(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(128, 256, 256, 512), layers_per_block=2,
    num_vq_embeddings=16384, vq_embed_dim=4, norm_type="spatial",
    down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
)  # fmt: skip
SCHEDULER: dict[str, Any] = dict(
    beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=True, steps_offset=1,
    prediction_type="epsilon",
)  # fmt: skip
PARTS = {
    ("mini", "cpu"): ("compare", "fast", "curves", "memory"),
    ("mini", "cuda"): ("compare", "fast", "curves", "memory"),
    ("kandinsky", "cpu"): ("floor", "predict"),
    ("kandinsky", "cuda"): ("compare", "memory", "floor", "predict"),
    ("a100", "cpu"): ("predict",),
    ("a100", "cuda"): ("memory", "floor", "predict"),
}
EQUAL: dict[str, Any] = dict(steps=25, guidance=4.0)  # settings at which sweeps are compared, beside the decoder's own
STOCK: dict[str, Any] = dict(steps=100, guidance=4.0)  # the pipeline's defaults
SWEEP_ROWS = 816  # 768 heads and 48 MLPs of ViT-bigG/14
CAP = 30 * 10**9
# Assumed sustained rates in FLOP/s, as fractions of the data sheets' bf16 rates.
ASSUMED = {"A100, 0.6 of 312 TFLOP/s": 0.6 * 312e12, "H200, 0.8 of 989 TFLOP/s": 0.8 * 989e12}


def main() -> None:
    """Run the parts of a preset, print their tables and write the JSON."""
    options = parse()
    device = start(options)
    decoder = load(options, device)
    if options.peak:
        print(json.dumps(peak_of_one_pass(decoder, options, device)))
        return
    content: dict[str, Any] = {
        "preset": options.preset, "dtype": options.dtype, "weights": weights_of(options),
        "compiled": options.compile, "settings": settings(decoder, options).to_dict(),
    }  # fmt: skip
    for name in options.parts or PARTS[options.preset, device.type]:
        print(f"\n{name}", flush=True)
        content[name] = TASKS[name](decoder, options, device)
    kind = f"{device.type}_{options.dtype}{'_compiled' if options.compile else ''}"
    write_result(options, f"decode_{options.preset}_{kind}", content)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=("mini", "kandinsky", "a100"), help="whose shapes")
    add_options(parser)
    parser.set_defaults(repeats=5)
    parser.add_argument("--parts", nargs="+", choices=TASKS, help="what is measured")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="rows per pass")
    parser.add_argument("--steps", type=int, help="instead of the settings' own")
    parser.add_argument("--rows", type=int, help="pictures of the timed sweep; a whole one has 816")
    parser.add_argument("--compile", action="store_true", help="compile UNet and MoVQ of the sweep's decode")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.preset == "a100" and "--dtype" not in sys.argv:
        options.dtype = "bfloat16"
    return options


# ---- what is measured --------------------------------------------------------------------------------------------


def load(options: argparse.Namespace, device: torch.device) -> Any:
    """Return the preset's decoder; for predictions alone without weights."""
    from vit_lens.decoders import KandinskyDecoder

    dtype = DTYPES[options.dtype]
    if options.preset == "a100" and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / torch.cuda.mem_get_info(device)[1]), device)
    if options.preset == "mini":
        decoder = KandinskyDecoder.from_pretrained("mini", dtype=dtype, device=device)
    else:
        parts = options.parts or PARTS[options.preset, device.type]
        decoder = published_shapes("meta" if list(parts) == ["predict"] else device, dtype)
    return decoder.compile() if options.compile else decoder


def published_shapes(device: torch.device | str, dtype: torch.dtype) -> Any:
    """Return a decoder of Kandinsky 2.2's shapes with random weights, made in place, so that memory holds them once."""
    import diffusers

    from vit_lens.decoders import KandinskyDecoder

    with torch.device("meta"):
        parts: list[Any] = [diffusers.UNet2DConditionModel(**UNET), diffusers.VQModel(**MOVQ)]
    if str(device) != "meta":
        parts = [part.to(dtype).to_empty(device=device) for part in parts]
        for name, parameter in (item for part in parts for item in part.named_parameters()):
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter.data, std=parameter[0].numel() ** -0.5)
            else:
                torch.nn.init.constant_(parameter.data, float(name.endswith("weight")))
    else:
        parts = [part.to(dtype) for part in parts]
    scheduler = diffusers.DDPMScheduler(**SCHEDULER)
    return KandinskyDecoder(parts[0], parts[1], scheduler, encoder=None, decoder_id="random weights")


def weights_of(options: argparse.Namespace) -> str:
    """Say where the weights come from."""
    return "the embedded pair's" if options.preset == "mini" else "random, of the published shapes of Kandinsky 2.2"


def settings(decoder: Any, options: argparse.Namespace, **overrides: Any) -> Any:
    """Return the decoder's settings, with the command line's steps."""
    said = {} if options.steps is None else {"steps": options.steps}
    return decoder.settings(**(overrides | said))


def asked(decoder: Any, options: argparse.Namespace, n: int) -> tuple[Tensor, Tensor, Any]:
    """Return embeddings, the negative, and the encoder that they come from (None: they are random)."""
    if options.preset != "mini":
        generator = torch.Generator().manual_seed(0)
        # Norms like those of real embeddings, which the decoder is sensitive to.
        return torch.randn(n, decoder.d_embed, generator=generator), torch.randn(1, decoder.d_embed), None
    import numpy as np

    from vit_lens import HookedViT
    from vit_lens.mini import world

    model = HookedViT.from_pretrained("mini")
    scenes = world.sample_scenes(n, np.random.default_rng(77), held_out=True)
    with torch.no_grad():
        return model(model.preprocess(list(world.render(scenes)))).float(), model.zero_embedding().float(), model


# ---- against the pipeline ----------------------------------------------------------------------------------------


def compare(decoder: Any, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Time the sweep's decode and the pipeline at equal settings, pass by pass."""
    embeds, negative, _ = asked(decoder, options, max(options.batches))
    found = []
    for name, chosen in {"defaults": settings(decoder, options), "equal": settings(decoder, options, **EQUAL)}.items():
        if name == "equal" and chosen == found[0]["_settings"]:
            continue
        candidates, sizes, skipped = {}, {}, []
        for size in options.batches:
            for who, draw in (("decode", ours), ("pipeline", stock)):
                call = draw(decoder, embeds[:size], negative, chosen)
                if fits(call):
                    candidates[f"{who} {size}"], sizes[f"{who} {size}"] = call, size
                else:
                    skipped.append(f"{who} {size}")
        times = interleave(candidates, repeats=options.repeats, warmup=0, device=device)  # `fits` ran each once
        each = {key: [value / sizes[key] for value in values] for key, values in times.items()}
        rows = summarise(each, base="pipeline 1")
        best = min((row for row in rows if row["name"].startswith("pipeline")), key=lambda row: row["seconds_median"])
        ours_best = min((r for r in rows if r["name"].startswith("decode")), key=lambda row: row["seconds_median"])
        against_best = summarise(each, base=best["name"])
        ratio = next(row["ratio"] for row in against_best if row["name"] == ours_best["name"])
        some = embeds[:4]
        drawn = ours(decoder, some, negative, chosen, "float")()
        difference = drawn - pipeline_rows(decoder, some, negative, chosen)
        found.append(
            {
                "settings": chosen.to_dict(), "_settings": chosen, "unit": "seconds per picture", "rows": rows,
                "best_decode": ours_best["name"], "best_pipeline": best["name"],
                "gain_over_one_call_per_site": round(1 / ours_best["ratio"], 3),
                "gain_over_best_pipeline": round(1 / ratio, 3),
                "largest_difference_of_pictures": float(difference.abs().max()), "out_of_memory": skipped,
            }
        )  # fmt: skip
        print(f"{name}: {chosen.steps} steps, guidance {chosen.guidance}, {chosen.scheduler}, {chosen.height} px")
        print(table(rows, ["name", "seconds_median", "ratio", "ratio_low", "ratio_high"]))
        told = found[-1]
        print(f"gain over one call per site {told['gain_over_one_call_per_site']}, over the best pipeline "
              f"{told['gain_over_best_pipeline']}; pictures differ by at most "
              f"{told['largest_difference_of_pictures']:.1e} of 2", flush=True)  # fmt: skip
    return [{key: value for key, value in row.items() if key != "_settings"} for row in found]


def fits(call: Callable[[], object]) -> bool:
    """Run a candidate once; return whether memory sufficed."""
    try:
        call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def ours(decoder: Any, embeds: Tensor, negative: Tensor, chosen: Any, output: str = "uint8") -> Callable[[], Tensor]:
    """Return the sweep's decode of some rows in one pass."""

    def call() -> Tensor:
        return decoder.decode(embeds, negative=negative, settings=chosen, batch_size=len(embeds), output=output)

    return call


def stock(decoder: Any, embeds: Tensor, negative: Tensor, chosen: Any) -> Callable[[], Tensor]:
    """Return one call of the pipeline for some rows, each with the noise that a row of one gets."""
    import diffusers
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline

    from vit_lens.decoders.settings import SCHEDULER_CLASSES

    scheduler = getattr(diffusers, SCHEDULER_CLASSES[chosen.scheduler]).from_config(decoder.scheduler.config)
    pipe: Any = KandinskyV22Pipeline(unet=decoder.unet, scheduler=scheduler, movq=decoder.movq)
    pipe.set_progress_bar_config(disable=True)
    embeds, negative = (x.to(decoder.device, decoder.dtype) for x in (embeds, negative))

    def call() -> Tensor:
        return pipe(
            image_embeds=embeds, negative_image_embeds=negative.expand(len(embeds), -1), height=chosen.height,
            width=chosen.width, num_inference_steps=chosen.steps, guidance_scale=chosen.guidance, output_type="pt",
            generator=[torch.Generator().manual_seed(chosen.seed) for _ in embeds],
        ).images.clamp(-1, 1).float()  # fmt: skip

    return call


def pipeline_rows(decoder: Any, embeds: Tensor, negative: Tensor, chosen: Any) -> Tensor:
    """Draw every row by a call of its own."""
    return torch.cat([stock(decoder, row[None], negative, chosen)() for row in embeds])


def fast(decoder: Any, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time the fast profile against the pipeline's own defaults, and state its price."""
    embeds, negative, model = asked(decoder, options, 16)
    kinds = {"images": slice(0, 16)}
    if model is not None:
        embeds, kinds["sites"] = torch.cat([embeds, sites_of_samples(model, 16)]), slice(16, 32)
    size = len(embeds)
    profiles = {
        "fast": decoder.fast_settings(), "fast, guidance 4": decoder.fast_settings(guidance=4.0),
        "defaults": decoder.settings(), "pipeline": decoder.settings(**STOCK),
    }  # fmt: skip
    drawn = [name for name in profiles if name != "pipeline"]
    calls = {name: ours(decoder, embeds, negative, profiles[name]) for name in drawn}
    calls["pipeline"] = stock(decoder, embeds[:1], negative, profiles["pipeline"])
    pictures = {name: ours(decoder, embeds, negative, profiles[name], "float")() for name in drawn}
    pictures["pipeline"] = pipeline_rows(decoder, embeds, negative, profiles["pipeline"])
    times = interleave(calls, repeats=options.repeats, warmup=0, device=device)  # the pictures were the warm-up
    each = {name: [v / (1 if name == "pipeline" else size) for v in values] for name, values in times.items()}
    rows = summarise(each, base="pipeline")
    for row in rows:
        row |= {"settings": profiles[row["name"]].to_dict(), "gain": round(1 / row["ratio"], 2)}
        row["unet_rows_per_picture"] = sum(2 if guided else 1 for guided in profiles[row["name"]].guided_steps)
        if model is not None:
            found = cosines(model, pictures[row["name"]], embeds)
            for kind, part in kinds.items():
                row[f"cosine_{kind}"], row[f"cosines_{kind}"] = statistics.mean(found[part]), found[part]
    print(table(rows, ["name", "seconds_median", "gain", "unet_rows_per_picture", "cosine_images", "cosine_sites"]))
    return {"unit": "seconds per picture", "batch": size, "rows": rows}


def sites_of_samples(model: Any, n: int) -> Tensor:
    """Return embeddings of heads and MLPs of the bundled samples, through the diffusion lens."""
    from PIL import Image

    from vit_lens.lenses import DiffusionLens
    from vit_lens.mini.shipped import sample_images

    arrays = [Image.open(path).convert("RGB") for path in sample_images()]
    every = [f"L{layer}{part}" for layer in range(model.cfg.n_layers) for part in ("H0", "H1", ".mlp")]
    with torch.no_grad():
        _, cache = model.run_with_cache(model.preprocess(arrays), rows="readout")
        found = DiffusionLens().embed(cache, every).flatten(0, 1).float()
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:n]]


def cosines(model: Any, pictures: Tensor, embeds: Tensor) -> list[float]:
    """Return the cosine of each embedding and that of its picture."""
    arrays = ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    with torch.no_grad():
        again = model(model.preprocess(list(arrays))).float()
    return [round(float(c), 5) for c in torch.cosine_similarity(again, embeds)]


# ---- how cost grows ----------------------------------------------------------------------------------------------


def curves(decoder: Any, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time the decode of one batch at several picture sizes and numbers of steps."""
    from vit_lens.decoders.costs import decoding_cost

    size = min(8, max(options.batches))
    embeds, negative, _ = asked(decoder, options, size)
    own, rate = decoder.defaults.height, matmul_rate(device, DTYPES[options.dtype])
    axes = {
        "picture_size": [decoder.settings(height=s, width=s) for s in (own // 2, own, own * 3 // 2, own * 2)],
        "steps": [decoder.settings(steps=s) for s in (2, 5, 10, 20, 40)],
    }
    found: dict[str, Any] = {"matmul_flops_per_second": rate, "batch": size}
    for name, points in axes.items():
        calls = {str(i): ours(decoder, embeds, negative, chosen) for i, chosen in enumerate(points)}
        times = interleave(calls, repeats=options.repeats, warmup=1, device=device)
        found[name] = []
        for row, chosen in zip(summarise(times, base="0"), points, strict=True):
            flops = decoding_cost(decoder, chosen, size).flops / size
            seconds = row["seconds_median"] / size
            at = chosen.height if name == "picture_size" else chosen.steps
            found[name].append(
                {name: at, "seconds_per_picture": seconds, "flops": flops, "share_of_matmul": flops / seconds / rate}
            )
        print(table(found[name], [name, "seconds_per_picture", "flops", "share_of_matmul"]), flush=True)
    return found


def memory(decoder: Any, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Take the peak of each batch size in a process of its own."""
    rows = []
    for size in options.batches:
        arguments = [options.preset, "--device", options.device, "--dtype", options.dtype, "--peak", str(size)]
        arguments += ["--steps", str(options.steps or 2), *(["--compile"] if options.compile else [])]
        rows.append(fresh_process(__file__, arguments))
    print(table(rows, ["batch", "peak_bytes", "before_bytes", "counted_activations", "weight_bytes"]))
    return rows


def peak_of_one_pass(decoder: Any, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Decode one pass in this process and return its peak."""
    from vit_lens.decoders.costs import decoding_cost

    chosen = settings(decoder, options)
    embeds, negative, _ = asked(decoder, options, options.peak)
    cost = decoding_cost(decoder, chosen, options.peak)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
    ours(decoder, embeds, negative, chosen)()
    return {
        "batch": options.peak, "peak_bytes": peak_bytes(device), "before_bytes": before,
        "counted_activations": cost.peak_bytes, "weight_bytes": cost.weight_bytes,
    }  # fmt: skip


# ---- what the convolutions allow ---------------------------------------------------------------------------------


def floor(decoder: Any, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time this UNet's convolutions, one UNet evaluation, MoVQ and a sweep."""
    from vit_lens.decoders.costs import decoding_cost
    from vit_lens.decoders.kandinsky_parts import movq_output, unet_output

    chosen = settings(decoder, options, **({} if options.steps else EQUAL))
    size = min(decoder.batch_size_for(chosen), options.rows or SWEEP_ROWS)
    rows = options.rows or (SWEEP_ROWS if device.type != "cpu" else size)
    dtype, latent = DTYPES[options.dtype], decoder.layout.latent_shape(chosen.height, chosen.width)
    evaluated = 2 * size if any(chosen.guided_steps) else size
    rate = convolution_rate(decoder, latent, evaluated, options, device)
    one = decoding_cost(decoder, decoder.settings(steps=1, guidance=1), 1)
    latents = torch.randn(evaluated, *latent, device=device)
    embeds, negative, _ = asked(decoder, options, evaluated)
    embeds, at = embeds.to(device, dtype), torch.tensor(500, device=device)
    with torch.inference_mode():
        if device.type != "cpu":  # layouts and compilation; on a CPU a minute for nothing
            ours(decoder, embeds[:size].float().cpu(), negative, decoder.settings(steps=1))()
        calls = {
            "unet": lambda: unet_output(decoder.unet, latents, at, embeds),
            "movq": lambda: movq_output(decoder.movq, latents[:1].to(dtype)),
        }
        times = interleave(calls, repeats=options.repeats if device.type != "cpu" else 1, warmup=0, device=device)
    unet, movq = (min(times[name]) for name in ("unet", "movq"))
    begin = time.perf_counter()
    many = embeds[torch.arange(rows) % len(embeds)].float().cpu()
    decoder.decode(many, negative=negative, settings=chosen, batch_size=size)  # copied to the host: it waits
    seconds = time.perf_counter() - begin
    cost = decoding_cost(decoder, chosen, rows if rows % size == 0 else -(-rows // size) * size)
    least = cost.flops / rate["flops_per_second"]
    found = {
        "rows_per_pass": size, "convolutions": rate, "unet_rows": evaluated, "unet_eager_seconds": unet,
        "unet_eager_over_floor": unet / (one.unet_flops * evaluated / rate["flops_per_second"]),
        "movq_eager_seconds": movq, "sweep_rows": rows,
        "movq_eager_over_floor": movq / (one.movq_flops / rate["flops_per_second"]),
        "sweep_seconds": seconds, "sweep_floor_seconds": least, "sweep_over_floor": seconds / least,
        "whole_sweep_rows": SWEEP_ROWS, "whole_sweep_seconds": seconds * SWEEP_ROWS / rows,
        "whole_sweep_is": "measured" if rows == SWEEP_ROWS else f"extrapolated from {rows} pictures",
        "settings": chosen.to_dict(),
    }  # fmt: skip
    print(table([{**found, "settings": ""}], [key for key in found if "seconds" in key or "over" in key]))
    return found


def convolution_rate(
    decoder: Any, latent: tuple[int, int, int], rows: int, options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Time each distinct convolution of the UNet on its own; return operations per second of all together."""
    shapes = convolution_shapes(decoder, latent, rows)
    last = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    dtype, total, flops = DTYPES[options.dtype], 0.0, 0
    for (x_shape, w_shape, stride, padding), count in shapes.items():
        x, weight = (torch.randn(shape, device=device).to(dtype, memory_format=last) for shape in (x_shape, w_shape))

        def call(x: Tensor = x, weight: Tensor = weight, stride: Any = stride, padding: Any = padding) -> Tensor:
            return torch.nn.functional.conv2d(x, weight, stride=stride, padding=padding)

        repeats = options.repeats if device.type != "cpu" else 1
        with torch.inference_mode():
            seconds = min(interleave({"conv": call}, repeats=repeats, warmup=1, device=device)["conv"])
        flops += count * 2 * call(x.to("meta"), weight.to("meta")).numel() * weight[0].numel()
        total += count * seconds
    return {
        "distinct": len(shapes), "calls": sum(shapes.values()), "rows": rows, "seconds": total, "flops": flops,
        "flops_per_second": flops / total,
    }  # fmt: skip


def convolution_shapes(decoder: Any, latent: tuple[int, int, int], rows: int) -> Counter:
    """Count the distinct convolutions of a UNet call, by input, weight, stride and padding."""
    from vit_lens.decoders.costs import unet_cost

    seen: Counter = Counter()

    def look(module: torch.nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        seen[tuple(args[0].shape), tuple(module.weight.shape), module.stride, module.padding] += 1

    hooks = [m.register_forward_pre_hook(look) for m in decoder.unet.modules() if isinstance(m, torch.nn.Conv2d)]
    unet_cost(decoder.unet, latent, rows)
    for hook in hooks:
        hook.remove()
    return seen


# ---- predictions -------------------------------------------------------------------------------------------------


def predict(decoder: Any, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Predict a sweep's peak and time from counted operations and assumed rates."""
    from vit_lens.decoders.costs import decoding_cost

    rows = []
    for name, chosen in {"sweep": decoder.settings(**EQUAL), "fast": decoder.fast_settings()}.items():
        sizes = [decoding_cost(decoder, chosen, size) for size in options.batches]
        under = [cost for cost in sizes if cost.weight_bytes + cost.peak_bytes <= CAP]
        for cost in under[-1:]:
            flops = decoding_cost(decoder, chosen, cost.rows).flops / cost.rows * SWEEP_ROWS
            rows.append(
                {
                    "settings": name, "rows_per_pass": cost.rows, "weight_bytes": cost.weight_bytes,
                    "activation_bytes": cost.peak_bytes, "peak_bytes": cost.weight_bytes + cost.peak_bytes,
                    "sweep_flops": flops, **{f"seconds on {k}": flops / rate for k, rate in ASSUMED.items()},
                }
            )  # fmt: skip
    print(table(rows, [key for key in rows[0] if key != "sweep_flops"]))
    print("a prediction: operations counted, rates assumed, nothing measured")
    assumed = {"cap_bytes": CAP, "assumed_flops_per_second": ASSUMED}
    return {"prediction": True, "pictures": SWEEP_ROWS, **assumed, "rows": rows}


TASKS: dict[str, Callable[..., Any]] = {
    "compare": compare, "fast": fast, "curves": curves, "memory": memory, "floor": floor, "predict": predict,
}  # fmt: skip

if __name__ == "__main__":
    main()
