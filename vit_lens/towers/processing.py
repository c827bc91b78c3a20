"""Weight processing: other weights that compute the same function, as TransformerLens makes them for language models.

Three steps, each exact (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; TransformerLens'
``ProcessWeights``), on state dicts and configs alone. Two things that TransformerLens also does are left out:

* The projection is never centred. For a language model it may be, since a constant added to all logits leaves the
  softmax as it is. CLIP compares embeddings by cosine and decoders read them as they are: the mean over ``d_embed``
  is part of the answer.
* Reading weights are not centred over ``d_model``. Once the writing weights are, nothing that a block writes lies
  along the direction that this would remove.
"""

__all__ = ["WeightProcessing", "center_writing_weights", "changed_hooks", "fold_ln", "fold_value_biases", "process"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from einops import einsum
from torch import Tensor

from vit_lens.config import HookedTextConfig, HookedViTConfig
from vit_lens.errors import VitLensError
from vit_lens.towers.layers import wide

StateDict = dict[str, Tensor]
Config = HookedViTConfig | HookedTextConfig
Step = Literal["fold_ln", "fold_value_biases", "center_writing_weights"]

_NO_GAIN = "without the LayerNorm's weight and bias"
_NO_VALUE_BIAS = "without b_V"
_CENTRED = "without its mean over d_model"
_STREAM_AFTER_LN_PRE = "without the mean over d_model that biases and blocks write; the one of ln_pre's weight stays"


@dataclass(frozen=True, repr=False)
class WeightProcessing:
    """What was done to a model's weights, and which activations mean something else since.

    Every hook point that ``changed`` does not list holds the value that it had, up to rounding.

    Attributes:
        steps: Of ``fold_ln``, ``fold_value_biases`` and ``center_writing_weights``, those that were done.
        changed: Hook point to what changed in it.
    """

    steps: tuple[Step, ...]
    changed: Mapping[str, str]

    def __repr__(self) -> str:
        told = {name.replace("blocks.0.", "blocks.{l}."): how for name, how in self.changed.items() if _is_told(name)}
        width = max(map(len, told))
        lines = [f"  {name:{width}}  {how}" for name, how in told.items()]
        return "\n".join([f"WeightProcessing: {', '.join(self.steps)}. Hook points that changed:", *lines])


def process(
    state_dict: Mapping[str, Tensor], cfg: Config, steps: Sequence[Step], done: WeightProcessing | None
) -> tuple[StateDict, Config, WeightProcessing]:
    """Return weights and config that compute the same function, and what was done; see ``process_weights`` of a model.

    Args:
        state_dict: The weights of the model.
        cfg: The config of the model.
        steps: The steps to do; their order does not count.
        done: What was done to the model before; None for nothing.

    Raises:
        VitLensError: No step is asked for, or one that this tower has not: RMS norms keep the mean of what is written.

    >>> weights, cfg, done = process(model.state_dict(), model.cfg, ["fold_value_biases"], None)
    >>> bool(weights["blocks.0.attn.b_V"].any()), done.steps
    (False, ('fold_value_biases',))
    """
    if not steps:
        raise VitLensError(f"no step is asked for; set one of {', '.join(get_args(Step))} to True")
    refused = {
        "fold_value_biases": None if cfg.has_biases else "this tower has no biases",
        "center_writing_weights": "an RMS norm reads the mean too" if cfg.normalization_type == "RMS" else None,
    }
    if found := {step: why for step, why in refused.items() if why and step in steps}:
        told = "; ".join(f"{step}=True: {why}" for step, why in found.items())
        raise VitLensError(f"{told}. Call process_weights({', '.join(f'{step}=False' for step in found)})")
    out: StateDict = {name: tensor.detach() for name, tensor in state_dict.items()}
    if "fold_ln" in steps:
        out, cfg = fold_ln(out, cfg)
    if "fold_value_biases" in steps:
        out = fold_value_biases(out, cfg)
    if "center_writing_weights" in steps:
        out = center_writing_weights(out, cfg)
    every = tuple(step for step in get_args(Step) if step in {*(done.steps if done else ()), *steps})
    copied = {name: tensor.clone() for name, tensor in out.items()}
    return copied, cfg, WeightProcessing(every, changed_hooks(cfg, every))


def fold_ln(state_dict: Mapping[str, Tensor], cfg: Config) -> tuple[StateDict, Config]:
    """Move the weight and bias of every LayerNorm into the matrices that read it; they become one and zero.

    A LayerNorm's output ``n w + b`` is only ever read linearly: ``(n w + b) W + c = n (w W) + (b W + c)``. That
    holds for ``ln_final`` too: taking a row, or the mean of rows, commutes with weight and bias.

    ============================== =========================================================================
    LayerNorm                      goes into
    ============================== =========================================================================
    ``ln1``                        ``W_Q``, ``W_K``, ``W_V`` and their biases
    ``ln2``                        ``W_in``, ``b_in``, and ``W_gate`` where there is one
    ``ln_final``                   ``W_U`` and a new bias ``b_U``; a tower without a projection gets one, the
                                   diagonal matrix of the weight. With attention pooling: the pool's
                                   ``W_K``, ``W_V`` and their biases
    ``attn_pool.ln2``              ``attn_pool.mlp.W_in``, ``b_in``
    ``attn_pool.ln_post``          ``W_U`` and ``b_U``, as above
    ============================== =========================================================================

    ``ln_pre`` stays: what it gives is the residual stream itself.

    Returns:
        New weights, and the config with ``has_proj`` and ``has_proj_bias`` set where a projection was folded into.
    """
    out = dict(state_dict)
    for layer in range(cfg.n_layers):
        attn, mlp = f"blocks.{layer}.attn", f"blocks.{layer}.mlp"
        _fold_norm(out, f"blocks.{layer}.ln1", [(f"{attn}.W_{x}", f"{attn}.b_{x}") for x in "QKV"])
        gate = [(f"{mlp}.W_gate", "")] if cfg.gated_mlp else []
        _fold_norm(out, f"blocks.{layer}.ln2", [(f"{mlp}.W_in", f"{mlp}.b_in"), *gate])
    pool = cfg.attn_pool
    if pool is None:
        return out, _fold_into_projection(out, "ln_final", cfg)
    _fold_norm(out, "ln_final", [(f"attn_pool.attn.W_{x}", f"attn_pool.attn.b_{x}") for x in "KV"])
    if pool.d_mlp:
        _fold_norm(out, "attn_pool.ln2", [("attn_pool.mlp.W_in", "attn_pool.mlp.b_in")])
    return out, _fold_into_projection(out, "attn_pool.ln_post", cfg) if pool.has_ln_post else cfg


def fold_value_biases(state_dict: Mapping[str, Tensor], cfg: Config) -> StateDict:
    """Move every ``b_V`` through ``W_O`` into ``b_O``: each row of an attention pattern sums to one.

    A ``mask`` keeps it exact, since what it leaves of a row is normalised again. An edited ``hook_pattern`` whose
    rows do not sum to one, or a head that is switched off, gives another result than before: the head's value bias
    is now in ``b_O`` and stays.
    """
    out = dict(state_dict)
    for attn in _attentions(cfg):
        b_V, W_O, b_O = (wide(out[f"{attn}.{name}"]) for name in ("b_V", "W_O", "b_O"))
        out[f"{attn}.b_O"] = (b_O + einsum(b_V, W_O, "h k, h k d -> d")).to(out[f"{attn}.b_O"])
        out[f"{attn}.b_V"] = torch.zeros_like(out[f"{attn}.b_V"])
    return out


def center_writing_weights(state_dict: Mapping[str, Tensor], cfg: Config) -> StateDict:
    """Remove the mean over ``d_model`` from all that is written where only LayerNorms read, which remove it anyway.

    * Every block's ``W_O``, ``b_O``, ``W_out`` and ``b_out``: blocks and every kind of read-out begin with a
      LayerNorm (a mean over tokens before it changes nothing).
    * Without ``ln_pre``: patch embedding and its bias, class token, registers and positions.
    * With ``ln_pre``, what enters it is left. Its output is the residual stream: of ``n w + b`` the bias is centred.
      The mean of ``n w`` depends on the image, and no weight can remove it; it is the same in every layer.
    * The attention pool's ``W_O``, ``b_O``, ``W_out`` and ``b_out`` only where ``ln_post`` follows; else they write
      the embedding itself.
    """
    out = dict(state_dict)
    for name in _writing(cfg):
        if name in out:
            written = wide(out[name])
            out[name] = (written - written.mean(-1, keepdim=True)).to(out[name])
    return out


def changed_hooks(cfg: Config, steps: Iterable[Step]) -> dict[str, str]:
    """Return every hook point whose activation changes, with what changes in it.

    Gradients at hook points follow: they are those with respect to the new activation.
    """
    found: dict[str, list[str]] = {}
    tables = {
        "fold_ln": _changed_by_fold_ln, "fold_value_biases": _changed_by_fold_value_biases,
        "center_writing_weights": _changed_by_centring,
    }  # fmt: skip
    for step in steps:
        for name, how in tables[step](cfg).items():
            found.setdefault(name, []).append(how)
    return {name: "; ".join(hows) for name, hows in found.items()}


def _changed_by_fold_ln(cfg: Config) -> dict[str, str]:
    norms = [f"blocks.{layer}.{norm}" for layer in range(cfg.n_layers) for norm in ("ln1", "ln2")] + ["ln_final"]
    pool = cfg.attn_pool
    norms += ["attn_pool.ln2"] if pool and pool.d_mlp else []
    norms += ["attn_pool.ln_post"] if pool and pool.has_ln_post else []
    changed = {f"{norm}.hook_normalized": _NO_GAIN for norm in norms}
    return changed | ({"hook_pooled": _NO_GAIN} if pool is None or pool.has_ln_post else {})


def _changed_by_fold_value_biases(cfg: Config) -> dict[str, str]:
    hooks = ("hook_v", "hook_z", "hook_result")
    return {f"{attn}.{hook}": _NO_VALUE_BIAS for attn in _attentions(cfg) for hook in hooks}


def _changed_by_centring(cfg: Config) -> dict[str, str]:
    stream = _STREAM_AFTER_LN_PRE if cfg.has_ln_pre else _CENTRED
    raw = ("hook_embed_raw", "hook_pos_embed_raw") if isinstance(cfg, HookedViTConfig) else ()
    embeds = (*raw, "hook_embed", "hook_pos_embed")
    changed = {name: _CENTRED for name in embeds}
    if cfg.has_ln_pre:
        changed = {"hook_embed": "with ln_pre's bias without its mean over d_model"}
    read = ("resid_pre", "attn_in", "q_input", "k_input", "v_input", "resid_mid", "mlp_in", "resid_post")
    written = ("attn.hook_result", "hook_attn_out", "hook_mlp_out")
    for layer in range(cfg.n_layers):
        changed |= {f"blocks.{layer}.hook_{part}": stream for part in read}
        changed |= {f"blocks.{layer}.{part}": _CENTRED for part in written}
    pool = cfg.attn_pool
    if pool and pool.has_ln_post:
        changed |= {f"attn_pool.{part}": _CENTRED for part in (written if pool.d_mlp else written[:2])}
    return changed


def _attentions(cfg: Config) -> list[str]:
    return [f"blocks.{layer}.attn" for layer in range(cfg.n_layers)] + (["attn_pool.attn"] if cfg.attn_pool else [])


def _writing(cfg: Config) -> list[str]:
    embeds = ("embed.W_E", "embed.b_E", "embed.cls_token", "embed.registers", "pos_embed.W_pos")
    names = ["ln_pre.b"] if cfg.has_ln_pre else list(embeds)
    places = [f"blocks.{layer}" for layer in range(cfg.n_layers)]
    places += ["attn_pool"] if cfg.attn_pool and cfg.attn_pool.has_ln_post else []
    parts = ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out")
    return names + [f"{place}.{part}" for place in places for part in parts]


def _fold_into_projection(out: StateDict, norm: str, cfg: Config) -> Config:
    w = out[f"{norm}.w"]
    if not cfg.has_proj:
        out["unembed.W_U"] = torch.eye(cfg.d_pooled, dtype=w.dtype, device=w.device)
    has_bias = cfg.has_proj_bias or f"{norm}.b" in out
    if has_bias and not cfg.has_proj_bias:
        out["unembed.b_U"] = torch.zeros(cfg.d_embed, dtype=w.dtype, device=w.device)
    _fold_norm(out, norm, [("unembed.W_U", "unembed.b_U")])
    return replace(cfg, has_proj=True, has_proj_bias=has_bias)


def _fold_norm(out: StateDict, norm: str, readers: list[tuple[str, str]]) -> None:
    """Move weight and bias of a norm into matrices [*head d_in d_out] and their biases [*head d_out].

    An RMS norm has no bias, and what reads it need have none.
    """
    w, b = out[f"{norm}.w"], out.get(f"{norm}.b")
    for weight, bias in readers:
        reads = wide(out[weight])
        if b is not None:
            out[bias] = (wide(out[bias]) + wide(b) @ reads).to(out[bias])
        out[weight] = (wide(w)[:, None] * reads).to(out[weight])
    out[f"{norm}.w"] = torch.ones_like(w)
    if b is not None:
        out[f"{norm}.b"] = torch.zeros_like(b)


def _is_told(name: str) -> bool:
    return not name.startswith("blocks.") or name.startswith("blocks.0.")
