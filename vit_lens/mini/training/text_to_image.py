"""Train a text-to-image model of the small world from a seed, and lay it out as a stock Stable Diffusion pipeline."""

__all__ = ["assemble_pipeline", "load_pipeline", "measure_pipeline", "train_reader", "train_text_to_image"]

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from vit_lens.errors import OutputError
from vit_lens.files import read_json
from vit_lens.mini.second_judge import SecondJudge
from vit_lens.mini.text_kinds import FACTORS, TextKind
from vit_lens.mini.training.autoencoder import AutoencoderSettings, train_autoencoder
from vit_lens.mini.training.folders import rename_for_every_version, write_json
from vit_lens.mini.training.second_judge import JudgeSettings, train_second_judge
from vit_lens.mini.training.text_encoder import TextSettings, train_text
from vit_lens.mini.training.text_evaluate import PAINTING, evaluate_painter
from vit_lens.mini.training.text_painter import PainterSettings, Reads, build_schedule, train_painter

_SHARED = 0  # the seed of autoencoder and judge, which all models have in common
_TEXT, _AUTOENCODER = TextSettings(), AutoencoderSettings()
_PAINTER, _JUDGE = PainterSettings(), JudgeSettings()


def train_text_to_image(
    out: Path,
    seed: int,
    *,
    painter_seed: int | None = None,
    kind: TextKind = "clip",
    text: TextSettings = _TEXT,
    autoencoder: AutoencoderSettings = _AUTOENCODER,
    painter: PainterSettings = _PAINTER,
    judge: JudgeSettings = _JUDGE,
    n: int = 1000,
) -> dict[str, object]:
    """Train text encoder, autoencoder, judge and UNet in ``out/work``, write ``out/sd``, and return its measured bars.

    Killed and started again, it goes on from the last checkpoint. Autoencoder and judge are the same for every seed.

    Args:
        out: A folder for all of it.
        seed: Of the names, of which of them are rare, and of the text encoder.
        painter_seed: Of the UNet; None is ``seed``.
        kind: The kind of text encoder, of :data:`vit_lens.mini.text_kinds.FACTORS`.
        text: Sizes of the text encoder.
        autoencoder: Sizes of the autoencoder.
        painter: Sizes of the UNet.
        judge: Sizes of the second judge's training.
        n: How many pictures of each kind the bars are measured on.
    """
    work = out / "work"
    encoder, _ = train_text(work, seed=seed, settings=text, kind=kind)
    vae = train_autoencoder(work, seed=_SHARED, settings=autoencoder)
    train_second_judge(work, seed=_SHARED, settings=judge)
    painter_seed = seed if painter_seed is None else painter_seed
    train_painter(work, encoder, vae, encoder_seed=seed, seed=painter_seed, settings=painter)
    folder = assemble_pipeline(work, out / "sd")
    return measure_pipeline(folder, encoder_seed=seed, painter_seed=painter_seed, text=text, kind=kind, n=n)


def train_reader(
    pipeline: Path, out: Path, reads: Reads, *, painter: PainterSettings = _PAINTER, painter_seed: int | None = None
) -> Path:
    """Train another UNet for the text encoder of a pipeline, one that is shown something else of it; write ``out/sd``.

    What such a UNet draws, the encoder has worked out by there: it learnt to make the most of it. Killed and started
    again, training goes on from the last checkpoint.

    Args:
        pipeline: A folder that :func:`train_text_to_image` wrote.
        out: A folder for all of it.
        reads: What the UNet is shown: the state after so many blocks, or the end of the text alone.
        painter: Sizes of the UNet.
        painter_seed: Of the UNet; None is the encoder's.

    Returns:
        A copy of the pipeline with the new UNet; ``metrics.json`` says what it is shown, which the stock pipeline, a
        reader of the last layer, does not heed.

    Raises:
        OutputError: The folder's ``metrics.json`` does not say the encoder's seed.
        TextError: The encoder has no such layer.
    """
    advice = "make the pipeline with vit-lens mini train-text"
    told = read_json(pipeline / "metrics.json", OutputError, advice)
    seed = int(told["encoder_seed"])
    kept = {name: told[name] for name in ("kind", "factors", "text_steps") if name in told}
    painter_seed = seed if painter_seed is None else painter_seed
    loaded: Any = load_pipeline(pipeline)
    unet = train_painter(
        out / "work", loaded.text_encoder, loaded.vae, encoder_seed=seed,
        seed=painter_seed, settings=replace(painter, reads=reads),
    )  # fmt: skip
    folder = out / "sd"
    shutil.copytree(pipeline, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    (folder / "MODEL_CARD.md").unlink(missing_ok=True)  # of the other UNet
    unet.half().save_pretrained(folder / "unet")
    write_json(folder / "metrics.json", {"encoder_seed": seed, "painter_seed": painter_seed, **kept, "reads": reads})
    return folder


def assemble_pipeline(work: Path, folder: Path) -> Path:
    """Write the parts trained in ``work`` as a pipeline in half precision, with judge and probe beside it."""
    said = read_json(work / "text_encoder" / "config.json", OutputError, "train the text encoder again")
    reads = T5EncoderModel if said["model_type"] == "t5" else CLIPTextModel
    parts: dict[str, Any] = dict(
        vae=AutoencoderTiny.from_pretrained(work / "vae").half(),
        text_encoder=reads.from_pretrained(work / "text_encoder").half(),
        tokenizer=AutoTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet").half(),
        scheduler=build_schedule(),
        safety_checker=None,
        feature_extractor=None,
    )
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    rename_for_every_version(folder)
    write_json(
        folder / "vit_lens.json", {"steps": PAINTING["num_inference_steps"], "guidance": PAINTING["guidance_scale"]}
    )
    for name in ("probe.safetensors", "second_judge.safetensors"):
        shutil.copyfile(work / name, folder / name)
    return folder


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load a pipeline in single precision."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure_pipeline(
    folder: Path,
    *,
    encoder_seed: int,
    painter_seed: int,
    text: TextSettings = _TEXT,
    kind: TextKind = "clip",
    n: int = 1000,
) -> dict[str, object]:
    """Measure the bars of the pipeline in ``folder``, and write them to its ``metrics.json``."""
    judge = SecondJudge.load(folder / "second_judge.safetensors")
    found = evaluate_painter(load_pipeline(folder), judge, encoder_seed=encoder_seed, n=n)
    made = {"kind": kind, "factors": asdict(FACTORS[kind]), "text_steps": text.n_steps}
    metrics = {"encoder_seed": encoder_seed, "painter_seed": painter_seed, **made, **found}
    write_json(folder / "metrics.json", metrics)
    return metrics
