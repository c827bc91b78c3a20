"""Train a text-to-image model of the small world from a seed, and lay it out as a stock FLUX.1 pipeline."""

__all__ = ["PAINTING", "assemble_flux", "load_flux", "measure_flux", "paint_flux", "train_flux"]

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from vit_lens.mini import still_life
from vit_lens.mini.inspection import inspect
from vit_lens.mini.second_judge import SecondJudge
from vit_lens.mini.still_life import Lexicon, Sentence
from vit_lens.mini.training.flux_autoencoder import (
    SCALE,
    FluxAutoencoderSettings,
    enlarged,
    reduced,
    train_flux_autoencoder,
)
from vit_lens.mini.training.flux_painter import FluxPainterSettings, build_flux_schedule, train_flux_painter
from vit_lens.mini.training.flux_text import MAX_TOKENS, FluxTextSettings, train_t5
from vit_lens.mini.training.folders import rename_for_every_version, write_json
from vit_lens.mini.training.movq import to_signed
from vit_lens.mini.training.second_judge import JudgeSettings, train_second_judge
from vit_lens.mini.training.text_encoder import TextSettings, train_text
from vit_lens.mini.training.text_evaluate import Pictures, lower_bound, measure_bars

PAINTING = {
    "num_inference_steps": 12, "height": SCALE * still_life.SIDE, "width": SCALE * still_life.SIDE,
    "max_sequence_length": MAX_TOKENS, "guidance_scale": 0.0,
}  # fmt: skip
"""How the model draws."""
_SHARED, _BATCH = 0, 50
_TEXT, _CLIP = FluxTextSettings(), TextSettings(width=64, n_layers=2, n_heads=4, n_steps=600)
_AUTOENCODER, _PAINTER, _JUDGE = FluxAutoencoderSettings(), FluxPainterSettings(), JudgeSettings()
_GUIDED = FluxPainterSettings(lr=1e-3, lr_muon=0.01, drop=0.2, average=0.998, guidance=1.5)


def train_flux(
    out: Path,
    seed: int,
    *,
    text: FluxTextSettings = _TEXT,
    clip: TextSettings = _CLIP,
    autoencoder: FluxAutoencoderSettings = _AUTOENCODER,
    painter: FluxPainterSettings = _PAINTER,
    guided: FluxPainterSettings = _GUIDED,
    judge: JudgeSettings = _JUDGE,
    n: int = 500,
) -> dict[str, object]:
    """Train every part in ``out/work``, write ``out/flux``, and return its measured bars.

    Killed and started again, it goes on from the last checkpoint. Autoencoder and judge are the same for every seed.

    Args:
        out: A folder for all of it.
        seed: Of the names, the text encoders and the transformer.
        text: Sizes of the text encoder in T5's format.
        clip: Sizes of that in CLIP's, whose pooled vector the transformer learns to ignore.
        autoencoder: Sizes of the autoencoder.
        painter: Sizes of the transformer, and of its first training run.
        guided: The same of its second, in which it learns to do without guidance.
        judge: Sizes of the second judge's training.
        n: How many pictures of each kind the bars are measured on.
    """
    work = out / "work"
    t5, _ = train_t5(work, seed=seed, settings=text)
    pooled: Any = train_text(work, seed=seed, settings=clip)[0]
    vae = train_flux_autoencoder(work, seed=_SHARED, settings=autoencoder)
    train_second_judge(work, seed=_SHARED, settings=judge)
    first = train_flux_painter(work, t5, pooled, vae, encoder_seed=seed, seed=seed, settings=painter)
    train_flux_painter(
        work, t5, pooled, vae, encoder_seed=seed, seed=seed, settings=guided, start=first, name="guided_transformer"
    )
    return measure_flux(assemble_flux(work, out / "flux"), work / "second_judge.safetensors", seed=seed, n=n)


def assemble_flux(work: Path, folder: Path) -> Path:
    """Write the parts trained in ``work`` as a pipeline in half precision, with the probe beside it."""
    parts: dict[str, Any] = dict(
        scheduler=build_flux_schedule(),
        vae=AutoencoderKL.from_pretrained(work / "vae").half(),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder").half(),
        tokenizer=AutoTokenizer.from_pretrained(work / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(work / "text_encoder_2").half(),
        tokenizer_2=AutoTokenizer.from_pretrained(work / "tokenizer_2"),
        transformer=FluxTransformer2DModel.from_pretrained(work / "guided_transformer").half(),
    )
    FluxPipeline(**parts).save_pretrained(folder)
    rename_for_every_version(folder)
    card = {"steps": PAINTING["num_inference_steps"], "guidance": 0.0, "length": MAX_TOKENS}
    write_json(folder / "vit_lens.json", {**card, "height": PAINTING["height"], "width": PAINTING["width"]})
    shutil.copyfile(work / "t5_probe.safetensors", folder / "t5_probe.safetensors")
    return folder


def load_flux(folder: Path) -> FluxPipeline:
    """Load a pipeline in single precision."""
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint_flux(
    pipeline: FluxPipeline, texts: Sequence[str], *, seed: int, pooled: Sequence[str] | None = None, **settings: Any
) -> Pictures:
    """Draw a picture of each text with noise of its own, of the world's own side; by default as ``PAINTING`` says.

    Args:
        pipeline: The pipeline.
        texts: What T5 reads.
        seed: Of the noise.
        pooled: What CLIP reads; None for the same texts.
        **settings: Settings of the pipeline that replace those of ``PAINTING``.
    """
    generator, drawn = torch.Generator().manual_seed(seed), []
    for start in range(0, len(texts), _BATCH):
        t5 = list(texts[start : start + _BATCH])
        clip = t5 if pooled is None else list(pooled[start : start + _BATCH])
        given: dict[str, Any] = {**PAINTING, **settings, "generator": generator, "output_type": "np"}
        output: Any = pipeline(prompt=clip, prompt_2=t5, **given)
        drawn.append(reduced(np.rint(output.images * 255).astype(np.uint8)))
    return np.concatenate(drawn)


def measure_flux(folder: Path, judge: Path, *, seed: int, n: int = 500) -> dict[str, object]:
    """Measure the bars of the pipeline in ``folder``, and what its texts do alone; write ``metrics.json`` there.

    Args:
        folder: The pipeline.
        judge: The file of the second judge, which is the same for every seed and that of mini-sd.
        seed: The seed of its names.
        n: How many pictures of each kind.
    """
    pipeline = load_flux(folder)
    found = measure_bars(
        lambda texts, drawn: paint_flux(pipeline, texts, seed=drawn), lambda pictures: _carried(pipeline, pictures),
        SecondJudge.load(judge), encoder_seed=seed, n=n, seed=1000,
    )  # fmt: skip
    metrics = {"seed": seed, **PAINTING, **found, **_alone(pipeline, found["residual_limit"], seed=seed, n=n)}
    write_json(folder / "metrics.json", metrics)
    return metrics


def _alone(pipeline: FluxPipeline, limit: float, *, seed: int, n: int) -> dict[str, object]:
    """Measure what pictures show if one of the two texts is empty, or both, or the sentence says a part alone."""
    generator, lexicon = np.random.default_rng([2000, seed]), Lexicon(seed)
    whole = still_life.sample(n, generator, lexicon, pairs=0.7, named=0.0, held_out=True, whole=True)
    partial = still_life.sample(n, generator, lexicon, pairs=0.7, named=0.0)
    texts, none = [s.text for s in whole], [""] * n
    said = {
        "both": (whole, paint_flux(pipeline, texts, seed=2000)),
        "t5 alone": (whole, paint_flux(pipeline, texts, seed=2000, pooled=none)),
        "pooled alone": (whole, paint_flux(pipeline, none, seed=2000, pooled=texts)),
        "partial": (partial, paint_flux(pipeline, [s.text for s in partial], seed=2001)),
    }
    shares: dict[str, object] = {name: _attributes(*drawn, limit) for name, drawn in said.items()}
    other = [*whole[1:], whole[0]]
    shares["chance"] = _attributes(other, said["both"][1], limit)
    empty = inspect(paint_flux(pipeline, none, seed=2002)).residuals < limit
    return {"attributes": shares, "unconditional_scenes": round(float(empty.mean()), 4), "n_alone": n}


def _attributes(sentences: Sequence[Sentence], pictures: Pictures, limit: float) -> dict[str, dict[str, float | int]]:
    """Return how often the exact judge finds each attribute that a sentence says, and how often any scene at all."""
    found = inspect(pictures)
    seen, asked = still_life.codes(found.scenes), still_life.codes([s.scene for s in sentences])
    for row, sentence in zip(asked, sentences, strict=True):
        says = [True, *(word for mention in sentence.mentions for word in mention.says)]
        row[: len(says)][~np.array(says)] = -1
    columns = {"layout": [0], "colour": [1, 4], "texture": [2, 5], "shape": [3, 6]}
    verdicts = {name: ((seen == asked)[:, at])[(asked >= 0)[:, at]] for name, at in columns.items()}
    verdicts["scene at all"] = found.residuals < limit
    return {
        name: {
            "n": len(right), "share": round(float(right.mean()), 4),
            "lower": round(lower_bound(int(right.sum()), len(right)), 4),
        }
        for name, right in verdicts.items()
    }  # fmt: skip


def _carried(pipeline: FluxPipeline, pictures: Pictures) -> Pictures:
    with torch.no_grad():
        parts = [pipeline.vae(to_signed(enlarged(pictures[i : i + 64]))).sample for i in range(0, len(pictures), 64)]
    again = ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return reduced(again)
