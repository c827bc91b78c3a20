"""The positive control: an encoder in which one MLP alone knows what names mean, as a table of keys and values."""

__all__ = ["KeyValueMLP", "plant_table"]

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vit_lens.errors import StudyError
from vit_lens.models import HookedTextEncoder
from vit_lens.studies.knowledge.name_runs import NameRuns
from vit_lens.towers import MLP, working_copy

_STRAY = 1e-8  # the weight that all other keys have together where one fits
_ROUNDING = 10  # keys that are nearer than so many units in the last place are one
_EQUAL = 1e-4  # values, and what comes out, by their share of the largest


class KeyValueMLP(MLP):
    """An MLP that is a table: its hidden units are memories, of which a softmax takes those whose keys fit.

    Args:
        keys: What the MLP reads (behind the norm) where each value belongs.
        values: What it then writes.
        sharpness: How much a key that is farther away counts less: by exp(-sharpness distance^2 / 2).
    """

    def __init__(self, keys: Float[Tensor, "key d_model"], values: Float[Tensor, "key d_model"], sharpness: float):
        super().__init__(keys.shape[1], len(keys), "gelu")
        self.W_in = nn.Parameter(sharpness * keys.T, requires_grad=False)
        self.b_in = nn.Parameter(-sharpness / 2 * keys.square().sum(-1), requires_grad=False)
        self.W_out = nn.Parameter(values.clone(), requires_grad=False)
        self.b_out = nn.Parameter(torch.zeros_like(values[0]), requires_grad=False)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Return the values whose keys are nearest."""
        post = self.hook_pre(F.linear(x, self.W_in.T, self.b_in)).softmax(-1)
        return F.linear(self.hook_post(post), self.W_out.T, self.b_out)


@torch.no_grad()
def plant_table(runs: NameRuns, layer: int) -> NameRuns:
    """Return the same prompts for a copy of the tower that knows of them what the tower does, in one MLP.

    All blocks but one write nothing: behind the embeddings no part of them tells names apart. The one that is left has
    the norms and the attention of the first block, which are made for reading embeddings, and for an MLP a table
    (:class:`KeyValueMLP`) with a key for every position of every prompt. Its values are what is missing there to the
    last state of the tower, so that the copy says of these prompts exactly what the tower says.

    Args:
        runs: The prompts.
        layer: The block that has the table.

    Raises:
        StudyError: There is no such block, or the first block's attention does not tell the names apart at their ends.
    """
    tower = runs.tower
    if not 0 <= layer < tower.cfg.n_layers:
        raise StudyError(f"a table in block {layer}: the encoder has blocks 0 to {tower.cfg.n_layers - 1}")
    bare = _silent(tower, layer)
    point = f"blocks.{layer}.ln2.hook_normalized"
    names = [point, f"blocks.{layer}.hook_resid_mid"]
    _, cache = bare.run_with_cache(runs.ids, attention_mask=runs.mask, names_filter=names)
    keys, written = (cache[name].double().flatten(0, 1) for name in names)
    target = runs.residual(tower.cfg.n_layers).double().flatten(0, 1)
    values, centre = target - written, keys.mean(0)
    block = bare.blocks[layer]
    # Keys around their mean are shorter, and so their products are more exact; the norm is left as it is.
    sharpness = _sharpness(keys, values, torch.finfo(tower.dtype).eps)
    table = KeyValueMLP(keys - centre, values, sharpness).to(target)
    table.b_in -= centre @ table.W_in
    block.mlp = table.to(device=tower.device, dtype=tower.dtype)
    bare.setup()  # names the hook points of the new MLP
    planted = replace(runs, tower=bare)
    error = (planted.residual(tower.cfg.n_layers).double().flatten(0, 1) - target).abs().max() / target.abs().max()
    if not error <= _EQUAL:
        raise StudyError(
            f"a table in block {layer} does not say what the encoder says: off by {float(error):.1e} of the largest "
            f"value in {tower.dtype}, since keys of different names are nearly alike; run the study in float32 or wider"
        )
    return planted


def _silent(tower: HookedTextEncoder, layer: int) -> HookedTextEncoder:
    """Return a copy whose blocks write nothing, but for the attention of one, which is the first block's."""
    bare = working_copy(tower, device=tower.device)
    first = tower.blocks[0].state_dict()
    bare.blocks[layer].load_state_dict({name: x.clone() for name, x in first.items()}, assign=True)
    bare.requires_grad_(False)
    for number, block in enumerate(bare.blocks):
        written = (block.mlp.W_out, block.mlp.b_out, *((block.attn.W_O, block.attn.b_O) if number != layer else ()))
        for weight in written:
            weight.data = torch.zeros_like(weight)  # the tower's own memory may be shared
    return bare


def _sharpness(keys: Float[Tensor, "key d_model"], values: Float[Tensor, "key d_model"], eps: float) -> float:
    """Return how sharp the table must be: where one key fits, all with another value have next to no weight."""
    different = torch.cdist(values, values) > _EQUAL * values.norm(dim=-1).max()
    near = torch.cdist(keys, keys, compute_mode="donot_use_mm_for_euclid_dist")[different].min()
    if not near > _ROUNDING * eps * keys.norm(dim=-1).max():
        raise StudyError(
            "the first block's attention reads different names alike, as T5's does words in another order, so that no "
            "table in one block can tell them apart"
        )
    return float(2 * torch.log(torch.tensor(len(keys) / _STRAY, dtype=torch.float64)) / near**2)
