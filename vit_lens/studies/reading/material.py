"""What the study reads: activations of scenes of the embedded world, and dictionaries, learnt once and kept."""

__all__ = ["SITE", "Material", "Sizes", "make_material"]

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries import ITDA, ActivationSource, Dictionary, TopK, Trainer, fit
from vit_lens.errors import StudyError
from vit_lens.explaining import AttributeOracle, Halves
from vit_lens.files import make_directory, write_atomic
from vit_lens.mini import world
from vit_lens.models import HookedViT
from vit_lens.studies.untrained import random_weights
from vit_lens.texts import TextBank

SITE, _LAYER = "L5.resid_post", 5
_NEURONS = "blocks.5.mlp.hook_post"
_LEARN_SEED, _PLANT_SEED, _WEIGHTS_SEED = 16, 17, 18
_N_PLANTED, _PLANTED_IN, _PLANTED_AS = 32, 0.02, 0.25
_HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything; the defaults are the protocol's.

    Attributes:
        scenes: Scenes that explain and test, seen by no training.
        learn: Scenes that dictionaries are learnt from.
        features: Features of a dictionary, and atoms at most.
        k: Codes of a token.
        n_tokens: Tokens that are learnt from at most, over all passes.
        units: Units of each kind that are explained at most.
        least: On how many images of each half a unit has to fire.

    >>> Sizes().features
    512
    """

    scenes: int = 4000
    learn: int = 8000
    features: int = 512
    k: int = 16
    n_tokens: int = 500_000
    units: int = 512
    least: int = 40


@dataclass(frozen=True, eq=False)
class Material:
    """The scenes, their activations, and what was learnt.

    Attributes:
        model: The model.
        texts: Every value of the world as a caption, in the order of the oracle's values.
        oracle: The explainer and judge, which knows the scenes.
        sizes: How much of everything.
        out: The folder of the study.
        kept: Where dictionaries are.
        seed: The seed of scenes and halves.
    """

    model: HookedViT
    texts: TextBank
    oracle: AttributeOracle
    sizes: Sizes
    out: Path
    kept: Path
    seed: int

    @cached_property
    def halves(self) -> Halves:
        return Halves.of(self.sizes.scenes, seed=self.seed)

    @cached_property
    def pictures(self) -> list[Any]:
        return self.oracle.pictures

    @cached_property
    def resid(self) -> Float[Tensor, "scene pos d"]:
        """The residual stream behind the block, every token."""
        return self._read(self.model, SITE, "all")

    @cached_property
    def source(self) -> ActivationSource:
        """The patches of the scenes that explain and test."""
        return self._held(self.model, SITE)

    @cached_property
    def neurons(self) -> ActivationSource:
        """The neurons of the block's MLP behind their activation function, of the same patches."""
        return self._held(self.model, _NEURONS)

    @cached_property
    def untrained(self) -> HookedViT:
        """The same architecture with random weights."""
        return random_weights(self.model, seed=_WEIGHTS_SEED)

    @cached_property
    def untrained_source(self) -> ActivationSource:
        return self._held(self.untrained, SITE)

    @cached_property
    def learn_codes(self) -> np.ndarray:
        """The scenes that are learnt from, none of which is tested, as rows of the world."""
        return world.sample_codes(self.sizes.learn, np.random.default_rng([_LEARN_SEED, self.seed]), held_out=False)

    @cached_property
    def learnt(self) -> Float[Tensor, "scene patch d"]:
        """The patches of the scenes that are learnt from."""
        return self._patches(self.model, SITE, self._learn_pictures)

    @cached_property
    def directions(self) -> Float[Tensor, "planted d"]:
        """The directions that are planted."""
        rows = torch.randn(_N_PLANTED, self.learnt.shape[-1], generator=torch.Generator().manual_seed(_PLANT_SEED))
        return torch.nn.functional.normalize(rows, dim=1)

    @cached_property
    def planted(self) -> Float[Tensor, "scene patch d"]:
        """The same patches, each direction added in 2% of them, a quarter as long as they are on average."""
        flat = self.learnt.flatten(0, 1).clone()
        size = _PLANTED_AS * float(flat.norm(dim=1).mean())
        generator = torch.Generator().manual_seed(_PLANT_SEED + 1)
        for row in self.directions:
            flat[torch.rand(len(flat), generator=generator) < _PLANTED_IN] += size * row
        return flat.view_as(self.learnt)

    def train(self, tokens: Float[Tensor, "scene patch d"], seed: int) -> ActivationSource:
        """Return tokens as what is learnt from, in the order of a seed."""
        return ActivationSource.of_array(tokens, self.source.provenance, seed=seed)

    @cached_property
    def untrained_learnt(self) -> Float[Tensor, "scene patch d"]:
        return self._patches(self.untrained, SITE, self._learn_pictures)

    def topk(self, seed: int) -> Dictionary:
        return self._dictionary(f"topk-{seed}", lambda: self.learnt, self._topk(seed), self.source)

    def itda(self, seed: int) -> Dictionary:
        return self._dictionary(f"itda-{seed}", lambda: self.learnt, self._itda(seed), self.source)

    def topk_planted(self, seed: int) -> Dictionary:
        return self._dictionary(f"topk-planted-{seed}", lambda: self.planted, self._topk(seed), self.source)

    def itda_planted(self, seed: int) -> Dictionary:
        return self._dictionary(f"itda-planted-{seed}", lambda: self.planted, self._itda(seed), self.source)

    def topk_of_untrained(self, seed: int) -> Dictionary:
        return self._dictionary(
            f"topk-untrained-model-{seed}", lambda: self.untrained_learnt, self._topk(seed), self.untrained_source
        )

    def _topk(self, seed: int) -> Trainer:
        sizes = self.sizes
        return TopK(n_features=sizes.features, k=sizes.k, n_tokens=sizes.n_tokens, seed=seed)

    def _itda(self, seed: int) -> Trainer:
        sizes = self.sizes
        return ITDA(k=sizes.k, max_atoms=sizes.features, n_tokens=sizes.n_tokens, seed=seed)

    def _dictionary(
        self, name: str, tokens: Callable[[], Tensor], trainer: Trainer, belongs: ActivationSource
    ) -> Dictionary:
        """Return a dictionary from its file, or learn it."""
        path, work = self.kept / f"{name}.safetensors", self.out / "work" / f"{name}.safetensors"
        if path.is_file():
            found = Dictionary.load(path)
            own, wanted = found.origin, belongs.provenance
            if (own.fingerprint, own.site, own.tokens) != (wanted.fingerprint, wanted.site, wanted.tokens):
                raise StudyError(
                    f"{path} is of {own.tokens} of {own.model} (weights {own.fingerprint}) at {own.site}, the study of "
                    f"weights {wanted.fingerprint} at {SITE}; give the dictionaries of this model"
                )
            return found
        made = ActivationSource.of_array(tokens(), belongs.provenance, seed=trainer.seed)
        make_directory(work.parent)
        found = fit(made.split(_HELD_OUT), trainer, checkpoint=work)
        make_directory(path.parent)
        found.save(path)
        work.unlink(missing_ok=True)
        return found

    @property
    def _learn_pictures(self) -> list[Any]:
        return AttributeOracle.pictures_of(world.decode(self.learn_codes))

    def _held(self, model: HookedViT, site: str) -> ActivationSource:
        tokens = ActivationSource.of_model(model, self.pictures, site, tokens="patches")
        return ActivationSource.of_array(self._patches(model, site, self.pictures), tokens.provenance)

    def _patches(self, model: HookedViT, site: str, pictures: list[Any]) -> Float[Tensor, "scene patch d"]:
        return self._read(model, site, "patches", pictures)

    def _read(
        self, model: HookedViT, site: str, tokens: str, pictures: list[Any] | None = None
    ) -> Float[Tensor, "scene pos d"]:
        shown = self.pictures if pictures is None else pictures
        source = ActivationSource.of_model(model, shown, site, tokens=tokens, inputs_at_once=64)
        return source.reader.read(source.inputs)[0].view(len(shown), -1, _width(source)).float()


def _width(source: ActivationSource) -> int:
    return source.reader.read(source.inputs[:1])[0].shape[1]


def make_material(
    model: HookedViT, texts: TextBank, sizes: Sizes, out: Path, *, dictionaries: Path | None = None, seed: int = 0
) -> Material:
    """Return what the study reads; a folder of another model or other sizes is refused.

    Args:
        model: The model.
        texts: Every value as a caption.
        sizes: How much of everything.
        out: The folder of the study.
        dictionaries: Where dictionaries are, or go; None for a folder below ``out``.
        seed: The seed of scenes and halves.

    Raises:
        StudyError: The model has no such block, or the folder is of another.
    """
    if model.cfg.n_layers <= _LAYER or model.cfg.image_size != (64, 64):
        raise StudyError(
            f"{model.encoder_id} has {model.cfg.n_layers} blocks and sees {model.cfg.image_size} pixels; the study "
            f"reads {SITE} of encoders of the embedded world"
        )
    said = json.dumps({"fingerprint": model.fingerprint, **asdict(sizes), "seed": seed}, sort_keys=True)
    make_directory(out)
    if (path := out / "settings.json").exists() and path.read_text() != said:
        raise StudyError(f"{out} holds the study of another model or other sizes (settings.json); choose another --out")
    write_atomic(path, said.encode())
    oracle = AttributeOracle.of_world(sizes.scenes, seed=seed)
    return Material(model, texts, oracle, sizes, out, dictionaries or out / "dictionaries", seed)
