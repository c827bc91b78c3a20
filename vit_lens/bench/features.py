"""Features: does one feature of a dictionary say that a direction was planted, and can the model be steered by it?"""

__all__ = ["FEATURES"]

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_lens.bench.candidates import Candidate
from vit_lens.bench.measuring import Measured, measured
from vit_lens.bench.plants import HOSTED, ImagePlant, Plants
from vit_lens.bench.steering import Steer, selectivity, steer_on
from vit_lens.bench.target import Target
from vit_lens.bench.tasks import Task
from vit_lens.dictionaries import ActivationSource, Dictionary, evaluate, fidelity, untrained_control
from vit_lens.errors import DictionaryError
from vit_lens.lenses import HookFn
from vit_lens.mini import world
from vit_lens.models import HookedViT
from vit_lens.studies import auc, random_weights
from vit_lens.tokens import resolve_tokens

_N_CHOOSING = 96  # reference images that a feature is chosen on
_SPREADS = 2.0
_N_SOURCE = 400  # scenes that controls are made of
_SITE, _TOKENS = "blocks.5.hook_resid_post", "patches"  # of the controls' source
_Tokens = Float[Tensor, "image token d"]


def _run(candidate: Candidate, plants: Plants) -> list[Measured]:
    host = plants.images[0].host
    dictionary = _dictionary(candidate, plants, host)
    site = dictionary.check(host)
    if dictionary.origin.stream != "output":
        raise DictionaryError(f"it is of a block's {dictionary.origin.stream}; this task plants in a site's output")
    placebo = _placebo_of(dictionary, _source(plants, host, site, dictionary.origin.tokens))
    planted, blind, blank, kept, steered = ([] for _ in range(5))
    for number, plant in enumerate(plants.images):
        untrained = placebo(number)
        nothing = random_weights(host, seed=plant.seed[0] * 1000 + plant.seed[1])
        told, none = (_told((dictionary, untrained), plant, model, site) for model in (host, nothing))
        planted.append([there for there, _ in told])
        blind.append([decoy for _, decoy in told])
        blank.append([there for there, _ in none])
        kept.append(fidelity(host, dictionary, plant.pixels, site=site).points[0].fidelity)
        steered.append(steer_on(_by_feature(dictionary, site), plant, host))
    return [
        measured(FEATURES.name, "planted", *zip(*planted, strict=True)),
        measured(FEATURES.name, "fidelity", kept),
        measured(FEATURES.name, "decoys", *zip(*blind, strict=True)),
        measured(FEATURES.name, "random weights", *zip(*blank, strict=True)),
        *selectivity(FEATURES.name, steered),
    ]


def _dictionary(candidate: Candidate, plants: Plants, host: HookedViT) -> Dictionary:
    found = candidate.thing
    if not isinstance(found, Dictionary) and callable(found):
        found = found(_source(plants, host, _SITE, _TOKENS))
    if not isinstance(found, Dictionary):
        raise DictionaryError(f"{candidate.name} is a {type(found).__name__}; expected a vit_lens.Dictionary")
    return found


def _source(plants: Plants, host: HookedViT, site: str, tokens: str) -> ActivationSource:
    """Return what controls are made of: scenes of mini's world, none of which is tested."""
    codes = world.sample_codes(_N_SOURCE, np.random.default_rng([plants.seeds[0], 54]), held_out=False)
    return ActivationSource.of_model(host, list(world.render_codes(codes)), site, tokens=tokens, seed=plants.seeds[0])


def _placebo_of(dictionary: Dictionary, source: ActivationSource) -> Callable[[int], Dictionary]:
    """Return what makes the placebo of a plant: random directions, as many, with as many codes, others for each."""
    tokens = torch.cat([batch.tokens for batch in source.in_order()])
    if dictionary.semantics.k is None:
        dictionary = replace(dictionary, statistics={"held_out": {"l0": evaluate(dictionary, source).l0}})
    held = ActivationSource.of_array(tokens)  # read once
    return lambda number: untrained_control(dictionary, held, seed=1000 + number)


def _told(
    dictionaries: Sequence[Dictionary], plant: ImagePlant, model: HookedViT, site: str
) -> list[tuple[float | None, float | None]]:
    """Return how well one feature of each dictionary tells images with a planted direction from those without.

    A direction is added at every token of half of the images, as far as images lie apart along it anyway (two standard
    deviations of their means). The feature is chosen on the reference images and told of the others.

    Returns:
        Of the difference of the classes' means, and of the direction that every later norm removes.
    """
    learnt, tested = (
        _read(dictionaries[0], model, site, some) for some in (plant.reference[:_N_CHOOSING], plant.pixels)
    )
    generator = plant.generator(5)
    chosen = [torch.randperm(len(some), generator=generator) < len(some) // 2 for some in (learnt, tested)]

    def found(dictionary: Dictionary, way: Float[Tensor, " d"]) -> float | None:
        way = way / way.norm()
        added = _SPREADS * float((learnt.mean(1) @ way).std()) * way
        codes = [_codes(dictionary, some + where[:, None, None] * added) for some, where in
                 zip((learnt, tested), chosen, strict=True)]  # fmt: skip
        feature, sign = _best(codes[0], chosen[0].numpy())
        return auc(sign * codes[1][:, feature], chosen[1].numpy())

    there = _direction(learnt, torch.from_numpy(plant.attribute.anchor[:_N_CHOOSING]))
    blind = torch.ones_like(there)
    return [(found(one, there), found(one, blind)) for one in dictionaries]


def _direction(tokens: _Tokens, label: Tensor) -> Float[Tensor, " d"]:
    """Return the difference of the two classes' means."""
    return tokens[label == 1].mean((0, 1)) - tokens[label == 0].mean((0, 1))


@torch.no_grad()
def _read(dictionary: Dictionary, model: HookedViT, site: str, pixels: Tensor) -> _Tokens:
    found = model.run_with_cache(pixels, names_filter=[site])[1][site]
    return found[:, _places(dictionary, model)]


def _places(dictionary: Dictionary, model: HookedViT) -> list[int]:
    tokens = dictionary.origin.tokens
    return list(range(model.cfg.n_ctx)) if tokens == "all" else resolve_tokens(tokens, model.cfg)


def _codes(dictionary: Dictionary, tokens: _Tokens) -> Float[np.ndarray, "image feature"]:
    found = dictionary.encode(tokens).mean(1).double().numpy()
    if not np.isfinite(found).all():
        raise DictionaryError("its codes are not finite")
    return found


def _best(codes: Float[np.ndarray, "image feature"], there: Bool[np.ndarray, " image"]) -> tuple[int, float]:
    """Return the feature that tells best which images are which, and its sign."""
    areas = np.array([auc(column, there) or 0.5 for column in codes.T]) - 0.5
    feature = int(np.abs(areas).argmax())
    return feature, 1.0 if areas[feature] >= 0 else -1.0


def _by_feature(dictionary: Dictionary, site: str) -> Steer:
    """Steer by the one feature that tells the target's classes best, as far as these lie apart, times the strength."""

    @lru_cache(maxsize=1)  # every strength asks for it
    def way(model: HookedViT, target: Target) -> Float[Tensor, " d"]:
        tokens = _read(dictionary, model, site, target.pixels)
        feature, sign = _best(_codes(dictionary, tokens), target.label == 1)
        row = dictionary.W_dec[feature]
        return sign * _direction(tokens, torch.from_numpy(target.label)).norm() * row / row.norm().clamp_min(1e-12)

    def steer(model: HookedViT, target: Target, strength: float) -> list[tuple[str, HookFn]]:
        added, places = strength * way(model, target), _places(dictionary, model)

        def add(act: Tensor, hook: object) -> Tensor:
            out = act.clone()
            out[:, places] += added
            return out

        return [(site, add)]

    return steer


FEATURES = Task(
    name="features", asks=lambda candidate: candidate.kind == "dictionary", run=_run,
    words=f"a direction is planted in the activations of {HOSTED} that a dictionary is of, and one feature shall tell "
    "in which images; then the model is steered by the feature that tells a class",
)  # fmt: skip
