"""Our own candidates, those that should lose among them."""

__all__ = ["OWN", "CaptionSteering", "MeanDifference", "RandomLens", "RandomSteering", "RandomTextLens", "Unnormed"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vit_lens.addresses import Site, Sites
from vit_lens.bench.target import Target
from vit_lens.conditions import Condition
from vit_lens.controls import Change
from vit_lens.dictionaries import (
    ActivationSource,
    Dictionary,
    data_points_control,
    pca_control,
    untrained_control,
)
from vit_lens.lenses import HookFn, Lens, TextDiffusionLens, TextRun, TextSteeringLens, site_outputs
from vit_lens.models import HookedViT
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache

Hooks = list[tuple[str, HookFn]]
_TRAINED = "mini-topk"  # whose site, features and codes the controls of dictionaries have


class RandomLens(Lens):
    """Says something at random: what finds nothing."""

    name = "random"

    def reads(self, site: Site) -> bool:
        return True

    def read(self, cache: ViTActivationCache, sites: Sites) -> Condition:
        last = cache.model.streams[-1].last(cache)
        said = int(cache.model.embed_rows(last[:, None]).abs().sum())  # another output, other noise
        return self._random(cache, sites, torch.Generator().manual_seed(said))

    def read_control(self, cache: ViTActivationCache, sites: Sites, *, generator: torch.Generator) -> Condition:
        return self._random(cache, sites, generator)

    def _random(self, cache: ViTActivationCache, sites: Sites, generator: torch.Generator) -> Condition:
        found, n = self.check_sites(cache.model, sites), len(cache.model.streams[-1].last(cache))
        return Condition(pooled=torch.randn(n, len(found), cache.model.cfg.d_embed, generator=generator))


class Unnormed(Lens):
    """What a site writes through the last projection, without the norm before it: a logit lens that skips LayerNorm."""

    name = "no-norm"

    def reads(self, site: Site) -> bool:
        return True

    def read(self, cache: ViTActivationCache, sites: Sites) -> Condition:
        return self._projected(cache, site_outputs(cache, self.check_sites(cache.model, sites)))

    def read_changed(self, cache: ViTActivationCache, sites: Sites, change: Change) -> Condition:
        found = self.check_sites(cache.model, sites)
        outputs = site_outputs(cache, found)
        return self._projected(cache, change(outputs, None, found, lambda other: site_outputs(other, found)))

    def _projected(self, cache: ViTActivationCache, outputs: Tensor) -> Condition:
        model = cache.model
        return Condition(pooled=outputs.mean(-2) * model.ln_final.w @ model.W_U)


class RandomTextLens(TextDiffusionLens):
    """A random state in the place of each site's: what finds nothing."""

    name = "text-random"

    def read(self, cache: TextRun, sites: Sites) -> Condition:  # pyright: ignore[reportIncompatibleMethodOverride]
        said = sum(int(ids.sum()) for ids in cache.ids.values())
        return self.read_control(cache, sites, generator=torch.Generator().manual_seed(said))


@dataclass(frozen=True)
class MeanDifference:
    """Adds the difference of the two classes' means to a block's output, ``strength`` times (Rimsky et al. 2023)."""

    layer: int
    tokens: str = "cls"

    def __call__(self, model: HookedViT, target: Target, strength: float) -> Hooks:
        name = f"blocks.{self.layer % model.cfg.n_layers}.hook_resid_post"
        _, cache = model.run_with_cache(target.pixels, names_filter=[name])
        label = torch.from_numpy(target.label)
        rows = cache[name][:, :1] if self.tokens == "cls" else cache[name]
        apart = (rows[label == 1].mean(0) - rows[label == 0].mean(0)) * strength

        def add(act: Tensor, hook: object) -> Tensor:
            return torch.cat([act[:, : len(apart)] + apart, act[:, len(apart) :]], 1)

        return [(name, add)]


class CaptionSteering:
    """Pushes the last residual along what the captions are read by, as far as its own norm times ``strength``."""

    def __call__(self, model: HookedViT, target: Target, strength: float) -> Hooks:
        bank = TextBank.mini()
        away, toward = (bank.unit[bank.index(caption)].to(model.W_U) for caption in target.captions)
        direction = model.ln_final.w * (model.W_U @ (toward - away))
        direction = direction / direction.norm()

        def add(act: Tensor, hook: object) -> Tensor:
            return act + strength * act.norm(dim=-1, keepdim=True) / 4 * direction

        return [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", add)]


class RandomSteering:
    """Adds a random direction: what steers nothing."""

    def __call__(self, model: HookedViT, target: Target, strength: float) -> Hooks:
        said = sum(place * int(label) for place, label in enumerate(target.label))  # another target, other noise
        noise = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(said))
        noise = noise / noise.norm()

        def add(act: Tensor, hook: object) -> Tensor:
            return act + strength * act.norm(dim=-1, keepdim=True) / 4 * noise

        return [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", add)]


def _of_trained(make: Callable[[Dictionary, ActivationSource], Dictionary]) -> Callable[[ActivationSource], Dictionary]:
    return lambda source: make(Dictionary.from_pretrained(_TRAINED), source)


_SPELLINGS = (
    "diffusion", "dsl:alpha=10", "dsl:share=1", "dsl-mean:alpha=5", "dsl-mean:alpha=5:project=40",
    "counterfactual:share=0.5", "jacobian", "jacobian:alpha=5", "jacobian:share=0.5",
)  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "lens": {
        **{text: text for text in _SPELLINGS}, "no-norm": Unnormed(), "random": RandomLens(),
        "text-diffusion": TextDiffusionLens(), "text-no-norm": TextDiffusionLens(norm="none"),
        "text-dsl": TextSteeringLens(alpha=5.0), "text-random": RandomTextLens(),
    },
    "dictionary": {
        "mini-topk": lambda source: Dictionary.from_pretrained("mini-topk"),
        "mini-itda": lambda source: Dictionary.from_pretrained("mini-itda"),
        "data-points": _of_trained(data_points_control), "pca": _of_trained(pca_control),
        "untrained": _of_trained(untrained_control),
    },
    "steer": {
        "mean-difference": MeanDifference(-1), "mean-difference-early": MeanDifference(3, "all"),
        "captions": CaptionSteering(), "random-direction": RandomSteering(),
    },
}  # fmt: skip
"""By kind and name. What is a string is a spelling, which is made anew of every model."""
