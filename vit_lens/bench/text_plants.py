"""Text encoders in which one MLP alone, a table of keys and values, tells prompts apart; and how a lens reads them."""

__all__ = ["TextPlant", "asks_of_text", "grow", "run_on_text"]

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.bench.candidates import Candidate, as_lens
from vit_lens.bench.measuring import CHANCE, Measured, auc_at, measured, rank_correlation
from vit_lens.bench.tasks import MANY_DRAWS
from vit_lens.decoders import PromptEncoder
from vit_lens.errors import LensError, StudyError
from vit_lens.lenses import Lens, TextDiffusionLens, TextRun, checked_read, parse_text_lenses
from vit_lens.models import HookedTextEncoder
from vit_lens.studies import NameRuns, plant_table
from vit_lens.towers import working_copy

_HOST, _ENCODER = "mini-sd", "text_encoder"
_LOUD = 4.0  # what the decoy writes, by the table
_Shares = tuple[Float[np.ndarray, " site"], Float[np.ndarray, "draw site"]]


@dataclass(frozen=True, eq=False, kw_only=True)
class TextPlant:
    """Prompts in pairs of equal length, through an encoder and through the one that is planted.

    Attributes:
        host: The prompts through the encoder as it is.
        before: The same through the one in which a single MLP tells them apart.
        run: The same through that one with a decoy.
        other: For each prompt, its partner.
        group: For each prompt, where it ends: prompts of one length.
        planted: The MLP that tells them apart.
        decoy: An MLP that writes something of its input, loudly, along the direction that every later norm removes.
        seed: Of all draws.
    """

    host: TextRun
    before: TextRun
    run: TextRun
    other: Int[Tensor, " prompt"]
    group: Int[Tensor, " prompt"]
    planted: Site
    decoy: Site
    seed: tuple[int, ...]

    @property
    def sites(self) -> list[Site]:
        """All attention blocks and MLPs."""
        tower = self.host.tower(_ENCODER)
        return [*Site.attns(tower), *Site.mlps(tower)]

    def at(self, site: Site) -> Bool[np.ndarray, " site"]:
        """Return True at a site."""
        return np.array([one == site for one in self.sites])

    def shares(
        self, clean: Float[Tensor, "prompt pos d"], read: Float[Tensor, "prompt #site pos d"]
    ) -> Float[np.ndarray, " site"]:
        """Return by what share of the difference between a prompt and its partner a reading tells them apart.

        That is <reading - partner's reading, clean - partner's> / |clean - partner's|^2, the mean over prompts.
        """
        apart = (clean - clean[self.other]).double().flatten(1)
        moved = (read - read[self.other]).double().flatten(2)
        length = apart.square().sum(-1).clamp_min(1e-30)
        return ((moved * apart[:, None]).sum(-1) / length[:, None]).mean(0).numpy()

    @cached_property
    @torch.no_grad()
    def effects(self) -> Float[np.ndarray, " site"]:
        """What of the difference is lost where a site of the encoder as it is writes its mean over prompts."""
        clean, lost = _tokens(self.host), []
        for site in self.sites:
            mean = self.host.output(_ENCODER, site).clone()
            for length in self.group.unique():
                mean[self.group == length] = mean[self.group == length].mean(0)
            averaged = self.host.edited(_ENCODER, [(site.hook_name, _put(mean))])
            lost.append(1 - self.shares(clean, _tokens(averaged)[:, None])[0])
        return np.array(lost)


def asks_of_text(candidate: Candidate) -> bool:
    """Whether a candidate is a lens on runs of prompts."""
    thing = candidate.thing
    return isinstance(thing, TextDiffusionLens) or (isinstance(thing, type) and issubclass(thing, TextDiffusionLens))


@torch.no_grad()
def grow(
    prompts: list[str], partner: Sequence[int] | None, meanings: Sequence[Any], seed: tuple[int, ...]
) -> TextPlant:
    """Plant a table of prompts in an MLP at random.

    Args:
        prompts: The prompts.
        partner: For each prompt, the one that it shall be told from; None takes one of its length at random.
        meanings: What each means.
        seed: Of all draws.

    Raises:
        StudyError: They cannot be told apart in one block.
    """
    generator = np.random.default_rng(list(seed))
    reader = PromptEncoder.from_pretrained(_HOST)
    host = TextRun.of(reader, prompts)
    tower = host.tower(_ENCODER)
    if not isinstance(tower, HookedTextEncoder):
        raise StudyError(f"{_HOST}'s encoder is a {type(tower).__name__}; expected a HookedTextEncoder")
    runs = NameRuns.of(tower, host.ids[_ENCODER], meanings=meanings, generator=generator, mask=host.masks[_ENCODER])
    kept = list(runs.kept)
    if partner is not None:
        runs = replace(runs, other=torch.tensor([kept.index(partner[i]) for i in kept]))
    host = TextRun.of(reader, [prompts[i] for i in kept])
    planted, decoy = (int(i) for i in generator.permutation(tower.cfg.n_layers)[:2])
    table = plant_table(runs, planted).tower
    told = torch.cat([one.flatten(0, 1) for one in _written(table, runs, planted)])
    disguised = _disguise(table, decoy, float(told.norm(dim=-1).max()), runs, generator)
    return TextPlant(
        host=host.edited(_ENCODER, []), before=_through(host, reader, table), run=_through(host, reader, disguised),
        other=runs.other, group=runs.group, planted=Site(planted, "mlp"), decoy=Site(decoy, "mlp"), seed=seed,
    )  # fmt: skip


def _through(host: TextRun, reader: PromptEncoder, tower: HookedTextEncoder) -> TextRun:
    """Return the run of the same prompts through another tower."""
    other = copy.copy(reader)
    other.__dict__["_towers"] = {**reader.towers, _ENCODER: tower}
    return replace(host, encoder=other).edited(_ENCODER, [])


def run_on_text(task: str, candidate: Candidate, grown: Sequence[TextPlant]) -> list[Measured]:
    """Measure a lens on planted text encoders."""
    planted, decoys, silent, fidelity = ([] for _ in range(4))
    for plant in grown:
        there, decoy = plant.at(plant.planted), plant.at(plant.decoy)
        read, host = _read(candidate, plant, plant.run, 1), _read(candidate, plant, plant.host, 2)
        planted.append([auc_at(scores, there, np.ones_like(there)) for scores in read])
        for run, found in ((plant.run, decoys), (plant.before, silent)):
            scores = _read(candidate, plant, run, 1)[0]
            found.append(auc_at(np.abs(scores - np.median(scores)), decoy, ~there))
        fidelity.append([rank_correlation(scores, plant.effects) for scores in host])
    return [
        measured(task, "planted", *zip(*planted, strict=True), chance=CHANCE),
        measured(task, "fidelity", *zip(*fidelity, strict=True), chance=0.0),
        measured(task, "decoys", decoys, silent),
    ]


@torch.no_grad()
def _read(candidate: Candidate, plant: TextPlant, run: TextRun, stream: int) -> _Shares:
    lens = as_lens(candidate, lambda text: parse_text_lenses([text])[0], run.encoder, None)
    clean = _tokens(run)
    number = int(np.random.default_rng([*plant.seed, stream]).integers(2**62))
    generator = torch.Generator().manual_seed(number)
    real = plant.shares(clean, _tokens_of(lens, lens.read(run, plant.sites), clean, plant))  # pyright: ignore[reportArgumentType]
    draws = [
        plant.shares(clean, _tokens_of(lens, lens.read_control(run, plant.sites, generator=generator), clean, plant))  # pyright: ignore[reportArgumentType]
        for _ in range(MANY_DRAWS)
    ]
    return real, np.stack(draws)


def _tokens_of(lens: Lens, found: object, clean: Tensor, plant: TextPlant) -> Tensor:
    tokens = checked_read(lens, found, len(clean), len(plant.sites)).tokens
    expected = (len(clean), len(plant.sites), *clean.shape[1:])
    if tokens is None or tuple(tokens.shape) != expected or not bool(torch.isfinite(tokens).all()):
        came = "no tokens" if tokens is None else f"{tuple(tokens.shape)}"
        if tokens is not None and tuple(tokens.shape) == expected:
            came = "numbers that are not finite"
        raise LensError(f"it read {came}; expected finite tokens [prompt site position width] {expected}")
    return tokens


def _tokens(run: TextRun) -> Float[Tensor, "prompt pos d"]:
    if run.condition.tokens is None:
        raise StudyError(f"{_HOST} gives no tokens")
    return run.condition.tokens


def _put(value: Tensor) -> Callable[[Tensor, object], Tensor]:
    return lambda act, hook: value


def _written(tower: HookedTextEncoder, runs: NameRuns, layer: int) -> list[Float[Tensor, "prompt pos d_model"]]:
    name = f"blocks.{layer}.hook_mlp_out"
    return [tower.run_with_cache(runs.ids, attention_mask=runs.mask, names_filter=[name])[1][name]]


def _disguise(
    tower: HookedTextEncoder, layer: int, size: float, runs: NameRuns, generator: np.random.Generator
) -> HookedTextEncoder:
    """Return a copy in which another MLP writes something of what it reads, along what every later norm removes."""
    made = working_copy(tower, device=tower.device)
    made.requires_grad_(False)
    mlp: Any = made.blocks[layer].mlp
    d_mlp, d_model = mlp.W_out.shape
    reading = torch.from_numpy(generator.normal(size=d_mlp)).to(mlp.W_out)
    mlp.W_out.data = torch.outer(reading, torch.full((d_model,), d_model**-0.5).to(reading))
    told = _written(made, runs, layer)[0].norm(dim=-1).max()
    mlp.W_out.data = mlp.W_out.data * (_LOUD * size / float(told))
    return made
