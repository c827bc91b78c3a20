"""Measure a text-to-image model of the small world on scenes that training never showed."""

__all__ = [
    "BARS", "PAINTING", "Pictures", "ask", "evaluate_painter", "lower_bound", "measure_bars", "paint", "true_residuals",
]  # fmt: skip

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Bool, Float, UInt8

from vit_lens.mini import still_life
from vit_lens.mini.inspection import inspect
from vit_lens.mini.second_judge import SecondJudge
from vit_lens.mini.still_life import Lexicon, Scene, Sentence
from vit_lens.mini.training.movq import to_signed

PAINTING = {"num_inference_steps": 8, "guidance_scale": 1.5}
"""How the model draws by default."""
Pictures = UInt8[np.ndarray, "picture height width 3"]
_BATCH = 50


def ask(n: int, generator: np.random.Generator, lexicon: Lexicon) -> dict[str, list[Sentence]]:
    """Draw ``n`` sentences of each kind, of held-out scenes; where names are asked for, each pair has one."""

    def draw(pairs: float, named: float) -> list[Sentence]:
        return still_life.sample(n, generator, lexicon, pairs=pairs, named=named, equal=True, held_out=True, whole=True)

    kinds: dict[str, list[Sentence]] = {kind: [] for kind in ("single", "in order", "fronted", "common", "rare")}
    kinds["single"] = draw(0.0, 0.0)
    while min(map(len, kinds.values())) < n:
        for sentence in draw(1.0, 0.0):
            kinds["fronted" if sentence.fronted else "in order"].append(sentence)
        for sentence in draw(1.0, 0.5):
            names = [mention.name for mention in sentence.mentions if mention.name is not None]
            if len(names) == 1:
                kinds["rare" if lexicon.is_rare[names[0]] else "common"].append(sentence)
    return {kind: sentences[:n] for kind, sentences in kinds.items()}


def paint(
    pipeline: StableDiffusionPipeline, texts: Sequence[str], *, seed: int, **settings: float | int
) -> UInt8[np.ndarray, "text height width 3"]:
    """Draw a picture of each text with noise of its own; by default as ``PAINTING`` says."""
    generator, drawn = torch.Generator().manual_seed(seed), []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        output: Any = pipeline(batch, generator=generator, output_type="np", **{**PAINTING, **settings})
        drawn.append(np.rint(output.images * 255).astype(np.uint8))
    return np.concatenate(drawn)


def true_residuals(
    carry: Callable[[Pictures], Pictures], n: int, generator: np.random.Generator, lexicon: Lexicon
) -> tuple[Float[np.ndarray, " scene"], Bool[np.ndarray, " scene"]]:
    """Return the exact judge's residuals on true scenes behind an autoencoder, and whether it is right.

    Args:
        carry: What comes back of pictures that the autoencoder encodes and decodes.
        n: How many scenes.
        generator: Draws them.
        lexicon: The names.
    """
    scenes = [s.scene for s in still_life.sample(n, generator, lexicon, pairs=0.8)]
    found = inspect(carry(still_life.draw(scenes, generator)))
    return found.residuals, found.shows(scenes)


def lower_bound(right: int, n: int, *, z: float = 1.96) -> float:
    """Return the lower end of Wilson's interval for a share, of 95 % by default."""
    share = right / n
    centre, spread = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float((centre - spread) / (1 + z * z / n))


def evaluate_painter(
    pipeline: StableDiffusionPipeline,
    judge: SecondJudge,
    *,
    encoder_seed: int,
    n: int = 1000,
    seed: int = 1000,
    **settings: float | int,
) -> dict[str, object]:
    """Measure every bar of a Stable Diffusion pipeline by :func:`measure_bars`; settings are those of ``paint``."""

    def draw(texts: Sequence[str], seed: int) -> Pictures:
        return paint(pipeline, texts, seed=seed, **settings)

    found = measure_bars(
        draw, lambda pictures: _carried(pipeline, pictures), judge, encoder_seed=encoder_seed, n=n, seed=seed,
    )  # fmt: skip
    return {"encoder_seed": encoder_seed, "seed": seed, **PAINTING, **settings, **found}


def _carried(pipeline: StableDiffusionPipeline, pictures: Pictures) -> Pictures:
    with torch.no_grad():
        again = pipeline.vae(to_signed(pictures)).sample
    return ((again.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()


def measure_bars(
    paint: Callable[[Sequence[str], int], Pictures],
    carry: Callable[[Pictures], Pictures],
    judge: SecondJudge,
    *,
    encoder_seed: int,
    n: int,
    seed: int,
) -> dict[str, Any]:
    """Measure every bar, ``n`` pictures of each kind of sentence.

    A picture is right if both judges say so and its residual is below the 99th percentile of those of ``5 * n`` true
    scenes behind the autoencoder.

    Args:
        paint: Draws a picture of each text with noise of a seed, of the world's own side.
        carry: What comes back of pictures that the autoencoder encodes and decodes.
        judge: The judge that has learnt to see.
        encoder_seed: The seed of the lexicon.
        n: How many pictures of each kind.
        seed: Of sentences and noise.
    """
    lexicon, generator = Lexicon(encoder_seed), np.random.default_rng([seed, encoder_seed])
    residuals, known = true_residuals(carry, 5 * n, generator, lexicon)
    limit = float(np.quantile(residuals, 0.99))
    seen: dict[str, list[tuple[Sentence, Scene, Scene, bool]]] = {}
    medians = {}
    for index, (kind, sentences) in enumerate(ask(n, generator, lexicon).items()):
        pictures = paint([s.text for s in sentences], seed + index)
        found = inspect(pictures)
        medians[kind] = float(np.median(found.residuals))
        seen[kind] = list(zip(sentences, found.scenes, judge.scenes(pictures), found.residuals < limit, strict=True))
    bars = {}
    for bar, (kinds, is_right) in BARS.items():
        verdicts = np.array(
            [(is_right(x, s), is_right(y, s), is_scene) for kind in kinds for s, x, y, is_scene in seen[kind]]
        )
        right, exact, second, scene = int(verdicts.all(axis=1).sum()), *verdicts.mean(axis=0).round(4).tolist()
        bars[bar] = {
            "n": len(verdicts), "right": right, "share": round(right / len(verdicts), 4),
            "lower": round(lower_bound(right, len(verdicts)), 4), "exact_judge": exact, "second_judge": second,
            "residual": scene,
        }  # fmt: skip
    return {
        "bars": bars, "residual_limit": limit, "residual_medians": medians,
        "residual_median_true": float(np.median(residuals)), "exact_judge_on_true": float(known.mean()),
        "n_true": 5 * n,
    }  # fmt: skip


def _shows_scene(seen: Scene, said: Sentence) -> bool:
    return seen == said.scene


def _shows_objects(seen: Scene, said: Sentence) -> bool:
    return sorted(seen.objects) == sorted(said.scene.objects)


def _shows_named(seen: Scene, said: Sentence) -> bool:
    places = [place for place, mention in enumerate(said.mentions) if mention.name is not None]
    return seen.layout == said.scene.layout and all(seen.objects[p] == said.scene.objects[p] for p in places)


BARS: dict[str, tuple[tuple[str, ...], Callable[[Scene, Sentence], bool]]] = {
    "single object": (("single",), _shows_scene),
    "pair": (("in order", "fronted"), _shows_objects),
    "relation, in order": (("in order",), _shows_scene),
    "relation, fronted": (("fronted",), _shows_scene),
    "common name": (("common",), _shows_named),
    "rare name": (("rare",), _shows_named),
}
"""What is asked of pictures, and the kinds of sentences that it is asked of."""
