"""Is a Kandinsky decoder sampled as its own pipeline samples it, with noise that its UNet knows?"""

__all__ = ["denoising_checks", "pipeline_check", "scheduler_check", "stock_scheduler"]

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.decoders import (
    SCHEDULER_CLASSES,
    DecodeSettings,
    KandinskyDecoder,
    denoising_error,
    find_decoder,
)
from vit_lens.doctor.published import DENOISING_FACTOR, FLAT_PICTURE, KANDINSKY_22, PIPELINE_BAR, published_decoder
from vit_lens.doctor.reporting import Check, dtype_name

_BATCH = 4


def stock_scheduler(name: str | Path) -> Any:
    """Load the scheduler of a decoder's files with diffusers alone."""
    import diffusers

    folder = find_decoder(name) / "scheduler"
    kind = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder)


def scheduler_check(decoder: KandinskyDecoder, stock: Any) -> list[Check]:
    """Compare the scheduler in use with the one in the files, and that with the published one."""
    used, filed = (_settings_of(scheduler) for scheduler in (decoder.scheduler, stock))
    wrong = {name: value for name, value in used.items() if filed.get(name) != value}
    told = [f"{name} is {value!r}, the files say {filed.get(name)!r}" for name, value in wrong.items()]
    published = published_decoder(decoder)
    for name, value in (published.scheduler if published else {}).items():
        if used.get(name) != value:
            told.append(f"{name} is {used.get(name)!r}, published {value!r}")
    names = ("beta_schedule", "beta_start", "beta_end", "clip_sample", "prediction_type", "timestep_spacing")
    given = ", ".join(f"{name} {used[name]}" for name in names if name in used)
    expected = "as in its files" + (" and as published" if published else "")
    return [Check("scheduler", not told, given, expected, "; ".join(told))]


def pipeline_check(
    decoder: KandinskyDecoder,
    stock: Any,
    embeds: Float[Tensor, "1 d_embed"],
    negative: Float[Tensor, "1 d_embed"],
    settings: DecodeSettings,
) -> list[Check]:
    """Decode one embedding with our loop and with diffusers' own pipeline, on the scheduler of the files."""
    ours = decoder.decode(embeds, negative=negative, settings=settings, output="float")
    theirs = _pipeline_picture(decoder, stock, embeds, negative, settings)
    difference, contrast = float((ours - theirs).abs().max()), float(theirs.std())
    judged = decoder.dtype == torch.float32
    passed = difference < PIPELINE_BAR and contrast > FLAT_PICTURE
    detail = f"KandinskyV22Pipeline, {settings.scheduler}, {settings.steps} steps, guidance {settings.guidance}, "
    detail += f"{settings.width} x {settings.height}, seed {settings.seed}; standard deviation {contrast:.3f}."
    if not judged:
        detail += f" In {dtype_name(decoder.dtype)} the two round noise and latents differently: not judged."
    expected = f"< {PIPELINE_BAR:.0e} on [-1, 1]" if judged else "reported"
    values = {"max_difference": difference, "mean_difference": float((ours - theirs).abs().mean()), "std": contrast}
    verdict, given = passed if judged else None, f"max|diff| {difference:.1e}"
    return [Check("stock pipeline", verdict, given, expected, detail, values)]


def denoising_checks(
    decoder: KandinskyDecoder,
    pictures: Float[Tensor, "image 3 height width"],
    embeds: Float[Tensor, "image d_embed"],
    *,
    photographs: bool,
) -> list[Check]:
    """Measure how well the UNet predicts the noise in pictures, given their embeddings.

    Args:
        decoder: With the weights in question.
        pictures: In [-1, 1], at the decoder's size.
        embeds: Of the same pictures.
        photographs: Whether the published errors, which are of photographs, apply.
    """
    errors = dict.fromkeys(KANDINSKY_22.denoising, 0.0)
    for i, (part, rows) in enumerate(zip(pictures.split(_BATCH), embeds.split(_BATCH), strict=True)):
        found = denoising_error(decoder, part, rows, timesteps=tuple(errors), seed=i)
        errors = {t: error + found[t] * len(part) / len(pictures) for t, error in errors.items()}
    passed, expected, reason = None, "reported", "nothing is published for this decoder"
    if published := published_decoder(decoder):
        known = published.denoising
        expected = f"{', '.join(map(str, known.values()))}, within a factor {DENOISING_FACTOR}"
        reason = "published for photographs: give some as images"
        if photographs:
            passed = all(1 / DENOISING_FACTOR <= error / known[t] <= DENOISING_FACTOR for t, error in errors.items())
            reason = "the factor allows for other photographs and noise; wrong weights or schedules are further off"
    given, at = ", ".join(f"{error:.2g}" for error in errors.values()), f"at t = {', '.join(map(str, errors))}"
    falls = all(later < earlier for earlier, later in pairwise(errors.values()))
    values = {f"t{t}": error for t, error in errors.items()}
    return [
        Check("denoising error", passed, given, expected, f"{at}; {reason}", values),
        Check("denoising error falls", falls, given, "smaller at every later t", at, values),
    ]


def _pipeline_picture(
    decoder: KandinskyDecoder, stock: Any, embeds: Tensor, negative: Tensor, settings: DecodeSettings
) -> Float[Tensor, "1 3 height width"]:
    import diffusers
    from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import KandinskyV22Pipeline

    clamp = settings.scheduler == "dpm++" and stock.config.get("clip_sample") and not stock.config.get("thresholding")
    extra = {"thresholding": True, "sample_max_value": 1.0} if clamp else {}
    scheduler = getattr(diffusers, SCHEDULER_CLASSES[settings.scheduler]).from_config(stock.config, **extra)
    pipe = KandinskyV22Pipeline(unet=decoder.unet, scheduler=scheduler, movq=decoder.movq)
    pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():  # diffusers hands torch tensors to numpy 2 in a way that it is leaving
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        given, without = (part.to(decoder.device, decoder.dtype) for part in (embeds, negative))
        made: Any = pipe(
            image_embeds=given, negative_image_embeds=without, height=settings.height, width=settings.width,
            num_inference_steps=settings.steps, guidance_scale=settings.guidance, output_type="pt",
            generator=torch.Generator().manual_seed(settings.seed),
        )  # fmt: skip
    return made.images.float().clamp(-1, 1)


def _settings_of(scheduler: Any) -> dict[str, Any]:
    """Return the settings without the bookkeeping of diffusers (names that begin with an underscore)."""
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
