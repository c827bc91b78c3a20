"""What each layer has to do with telling names apart: restored into the run of another name, knocked out, averaged."""

__all__ = ["EFFECTS", "STATES", "Traced", "trace"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from vit_lens.studies.knowledge.name_runs import OUTCOMES, NameRuns, States

STATES = ("state at the name", "state at the end")
"""What is restored whole, before and behind every block."""
_PARTS = {"attention": "hook_attn_out", "MLP": "hook_mlp_out"}
KNOCKED_OUT, MLPS, HEADS = "attention from end to name, knocked out", "MLP, averaged", "heads, averaged"
EFFECTS = (*STATES, *(f"{part} at the {place}" for part in _PARTS for place in ("name", "end")),
           KNOCKED_OUT, MLPS, HEADS)  # fmt: skip
"""Kinds of effects: the first six are restored, the last three removed."""
By = Mapping[str, Float[np.ndarray, " name"]]  # of every outcome


@dataclass(frozen=True, eq=False, kw_only=True)
class Traced:
    """Effects of layers on the states of names, as shares of the difference to another name.

    Attributes:
        effects: By kind and outcome. Of states: what they carry behind a block less before it (at the end), or before
            it less behind it (at the name). Of heads: the sum over those of a layer.
        states: By place and outcome, what restoring a state brings back, from the embeddings to the last.
        heads: By outcome, what is lost without a head; empty if that was not asked for.

    Of what the denoiser reads, effects are those of the blocks before it.
    """

    effects: Mapping[tuple[str, str], Float[np.ndarray, "name layer"]]
    states: Mapping[tuple[str, str], Float[np.ndarray, "name state"]]
    heads: Mapping[str, Float[np.ndarray, "name layer head"]]


def trace(runs: NameRuns, *, heads: bool = True, progress: bool = False) -> Traced:
    """Restore, knock out and average every layer's parts.

    Restored: the partner's run, with one activation of the clean run put in at some positions; what it brings back is
    0 for the partner's state and 1 for the clean one. Removed: both runs without a part; what is lost is 1 less the
    share of their difference that is left. Averaged is over all prompts of the length, position by position, so that a
    part goes on doing what it does for every name.

    Args:
        runs: The prompts.
        heads: Whether heads are averaged, one at a time.
        progress: Whether a bar is shown.
    """
    places = {"name": runs.name, "end": runs.end}
    layers, n_heads = range(runs.tower.cfg.n_layers), runs.tower.cfg.n_heads
    states = {
        f"state at the {place}": [
            _restored(runs, max(at - 1, 0), runs.stream(at), where) for at in (*layers, len(layers))
        ]
        for place, where in places.items()
    }
    found: dict[str, list[By]] = {effect: [] for effect in EFFECTS if effect not in STATES}
    single: list[list[By]] = []
    for layer in tqdm(layers, desc="blocks", disable=not progress):
        for part, point in _PARTS.items():
            for place, where in places.items():
                found[f"{part} at the {place}"].append(_restored(runs, layer, f"blocks.{layer}.{point}", where))
        scores = f"blocks.{layer}.attn.hook_attn_scores"
        found[KNOCKED_OUT].append(_lost(runs, runs.run(layer, [(scores, _blind(runs.end, runs.name))])))
        found[MLPS].append(_averaged(runs, layer, f"blocks.{layer}.hook_mlp_out"))
        if heads:
            each = [_averaged(runs, layer, f"blocks.{layer}.attn.hook_z", head) for head in range(n_heads)]
            single.append(each)
            found[HEADS].append({o: np.sum([one[o] for one in each], axis=0) for o in OUTCOMES})
    acting = {"end": len(layers), "whole": runs.read}  # blocks behind what is read do nothing to it
    curves = {
        (kind, o): np.stack([one[o] for one in each[: n + 1]], 1) for kind, each in states.items()
        for o, n in acting.items()
    }  # fmt: skip
    effects = {(kind, o): np.diff(curve) * (-1.0 if kind == STATES[0] else 1.0) for (kind, o), curve in curves.items()}
    effects |= {
        (kind, o): np.stack([one[o] for one in each[:n]], 1) for kind, each in found.items() if each
        for o, n in acting.items()
    }  # fmt: skip
    by_head = {o: np.stack([np.stack([one[o] for one in each], 1) for each in single[:n]], 1)
               for o, n in acting.items()} if heads else {}  # fmt: skip
    return Traced(effects=effects, states=curves, heads=by_head)


def _restored(runs: NameRuns, layer: int, point: str, where: Bool[Tensor, "name pos"]) -> By:
    """Put the clean activation of a hook point of a block into the partner's run."""
    clean = runs.cache[point]

    def put(act: Tensor, hook: object) -> Tensor:
        return torch.where(where[..., None], clean, act)

    moved = runs.run(layer, [(point, put)], others=True)
    return runs.along(States(*(new - own[runs.other] for new, own in zip(moved, runs.clean, strict=True))))


def _lost(runs: NameRuns, without: States) -> By:
    """Return what is lost of the difference of every two prompts where all run without something."""
    left = runs.along(States(*(state - state[runs.other] for state in without)))
    return {outcome: 1 - share for outcome, share in left.items()}


def _averaged(runs: NameRuns, layer: int, point: str, head: int | None = None) -> By:
    mean = runs.neutral(runs.cache[point])

    def put(act: Tensor, hook: object) -> Tensor:
        if head is None:
            return mean
        act = act.clone()
        act[:, :, head] = mean[:, :, head]
        return act

    return _lost(runs, runs.run(layer, [(point, put)]))


def _blind(query: Bool[Tensor, "name pos"], key: Bool[Tensor, "name pos"]) -> Callable:
    """Return a hook that takes the sight of keys from queries."""

    def put(scores: Tensor, hook: object) -> Tensor:
        return scores.masked_fill(query[:, None, :, None] & key[:, None, None, :], float("-inf"))

    return put
