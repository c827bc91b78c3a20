"""Learn the dictionaries that ship: of each embedded model an autoencoder, and one of data points."""

__all__ = ["RECIPES", "Recipe", "train_dictionaries"]

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit_lens.dictionaries import ITDA, ActivationSource, TopK, Trainer, card, fit, with_controls
from vit_lens.diffusion import HookedFlux
from vit_lens.files import make_directory, write_atomic
from vit_lens.mini import still_life, world
from vit_lens.models import HookedTextEncoder, HookedViT

logger = logging.getLogger(__name__)

_SEED, _HELD_OUT = 15, 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the dictionaries of an embedded model are learnt from.

    Attributes:
        load: Gives the model.
        inputs: Gives what it runs on.
        site: The hook point's address.
        where: Which of its activations: what ``ActivationSource.of_model`` takes.
        trainers: What learns, by the name that the dictionary gets behind that of the model.
    """

    load: Callable[[], Any]
    inputs: Callable[[], list[Any]]
    site: str
    where: Mapping[str, Any] = field(default_factory=dict)
    trainers: Mapping[str, Trainer]


def _scenes(n: int) -> list[Any]:
    return list(world.render(world.sample_scenes(n, np.random.default_rng(_SEED))))


def _sentences(n: int) -> list[Any]:
    generator = np.random.default_rng(_SEED)
    return [s.text for s in still_life.sample(n, generator, still_life.Lexicon(0), pairs=0.7, named=0.3)]


def _trainers(k: int, *, n_features: int = 512, n_tokens: int = 2_000_000) -> dict[str, Trainer]:
    return {
        "topk": TopK(n_features=n_features, k=k, n_tokens=n_tokens, seed=_SEED),
        "itda": ITDA(k=k, max_atoms=n_features, n_tokens=100_000, seed=_SEED),
    }


RECIPES: dict[str, Recipe] = {
    "mini": Recipe(
        load=lambda: HookedViT.from_pretrained("mini"), inputs=lambda: _scenes(8000), site="L5.resid_post",
        where={"tokens": "patches"}, trainers=_trainers(16),
    ),
    "mini-sd": Recipe(
        load=lambda: HookedTextEncoder.from_pretrained("mini-sd"), inputs=lambda: _sentences(8000),
        site="L5.resid_post", trainers=_trainers(16),
    ),
    "mini-flux": Recipe(
        load=lambda: HookedFlux.from_pretrained("mini-flux"), inputs=lambda: _sentences(3000),
        site="double.1.hook_resid_post", where={"at_steps": [0, 3, 6, 9]},
        trainers=_trainers(32, n_features=1024, n_tokens=3_000_000),
    ),
}  # fmt: skip
"""What ships, by the model's name."""


def train_dictionaries(out: Path, name: str, recipe: Recipe | None = None) -> list[Path]:
    """Learn the dictionaries of an embedded model, measure them beside their controls, and return their files.

    Weights are rounded to half precision before anything is measured: the numbers are those of the file. Stopped and
    started again, it goes on.

    Args:
        out: A folder for them; activations and checkpoints are kept in ``out/work``.
        name: The model's name.
        recipe: What they are learnt from; None takes :data:`RECIPES`.

    Raises:
        OutputError: A file cannot be written, or the folder holds the state of other settings.
    """
    own = RECIPES[name] if recipe is None else recipe
    run = ActivationSource.of_model(own.load().requires_grad_(False), own.inputs(), own.site, seed=_SEED, **own.where)
    make_directory(work := out / "work" / name)
    kept = ActivationSource.open(run.write(work / "activations", dtype=torch.float32), seed=_SEED)
    train, _ = kept.split(_HELD_OUT)
    held_out = run.split(_HELD_OUT)[1]
    files = []
    for kind, trainer in own.trainers.items():
        file = out / f"{name}-{kind}.safetensors"
        if not file.exists():
            found = fit((train, held_out), trainer, checkpoint=work / f"{kind}.safetensors")
            measured = with_controls(found.to(dtype=torch.float16), train, held_out, seed=_SEED)
            write_atomic(file.with_suffix(".md"), card(measured).encode())
            measured.save(file)
            logger.info("%s", card(measured))
        files.append(file)
    return files
