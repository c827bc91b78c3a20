"""Map the weights of a CLIP vision tower to the layout of HookedTransformer."""

__all__ = ["ALLOWED_EXTRAS", "from_hf_clip", "from_open_clip", "hf_clip_shapes", "open_clip_shapes"]

from collections.abc import Mapping

from torch import Tensor

from vit_lens.config import HookedViTConfig
from vit_lens.errors import CheckpointError

StateDict = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

# Tensors that published files carry and that no weight is made of: the integers 0 .. n_ctx - 1.
ALLOWED_EXTRAS: dict[str, frozenset[str]] = {
    "open_clip": frozenset(),
    "hf_clip": frozenset({"embeddings.position_ids"}),
}
_NAMES_SHOWN = 8


def from_open_clip(state_dict: Mapping[str, Tensor], cfg: HookedViTConfig, *, copy: bool = True) -> StateDict:
    """Convert the state dict of open_clip's ``VisionTransformer`` (names without ``visual.``).

    LayerScale is folded into ``W_O``, ``b_O``, ``W_out`` and ``b_out``. The dtype is kept.

    Args:
        state_dict: Every tensor of the tower, and no other.
        cfg: The tower's sizes.
        copy: False lets the result share memory with the source where no arithmetic is needed.

    Raises:
        CheckpointError: Tensors are missing, extra or misshapen; the message lists them.
    """
    has_layer_scale = any(name.endswith("ls_1.gamma") for name in state_dict)
    _check(state_dict, open_clip_shapes(cfg, layer_scale=has_layer_scale), ALLOWED_EXTRAS["open_clip"])
    out: StateDict = {
        "embed.W_E": state_dict["conv1.weight"].flatten(1).T,
        "embed.cls_token": state_dict["class_embedding"],
        "pos_embed.W_pos": state_dict["positional_embedding"],
    }
    if cfg.has_ln_pre:
        out |= _norm(state_dict, "ln_pre", "ln_pre")
    for layer in range(cfg.n_layers):
        source, target = f"transformer.resblocks.{layer}", f"blocks.{layer}"
        weights = state_dict[f"{source}.attn.in_proj_weight"].chunk(3)
        biases = state_dict[f"{source}.attn.in_proj_bias"].chunk(3)
        out |= _norm(state_dict, f"{source}.ln_1", f"{target}.ln1") | _norm(
            state_dict, f"{source}.ln_2", f"{target}.ln2"
        )
        out |= _attention(weights, biases, _linear(state_dict, f"{source}.attn.out_proj"), target, cfg)
        out |= _mlp(_linear(state_dict, f"{source}.mlp.c_fc"), _linear(state_dict, f"{source}.mlp.c_proj"), target)
        if has_layer_scale:
            _fold(out, f"{target}.attn.W_O", f"{target}.attn.b_O", state_dict[f"{source}.ls_1.gamma"])
            _fold(out, f"{target}.mlp.W_out", f"{target}.mlp.b_out", state_dict[f"{source}.ls_2.gamma"])
    out |= _norm(state_dict, "ln_post", "ln_final")
    if cfg.has_proj:
        out["unembed.W_U"] = state_dict["proj"]
    return _finish(out, state_dict, copy)


def from_hf_clip(state_dict: Mapping[str, Tensor], cfg: HookedViTConfig, *, copy: bool = True) -> StateDict:
    """Convert the vision state dict of Hugging Face CLIP, with or without the prefix ``vision_model.``.

    Args:
        state_dict: Every tensor of the tower and its projection, and no other.
        cfg: The tower's sizes.
        copy: False lets the result share memory with the source.

    Raises:
        CheckpointError: Tensors are missing, extra or misshapen; the message lists them.
    """
    tower = {name.removeprefix("vision_model."): tensor for name, tensor in state_dict.items()}
    if len(tower) != len(state_dict):
        raise CheckpointError("tensors occur twice, with and without the prefix 'vision_model.'")
    _check(tower, hf_clip_shapes(cfg), ALLOWED_EXTRAS["hf_clip"])
    out: StateDict = {
        "embed.W_E": tower["embeddings.patch_embedding.weight"].flatten(1).T,
        "embed.cls_token": tower["embeddings.class_embedding"],
        "pos_embed.W_pos": tower["embeddings.position_embedding.weight"],
    }
    out |= _norm(tower, "pre_layrnorm", "ln_pre")
    for layer in range(cfg.n_layers):
        source, target = f"encoder.layers.{layer}", f"blocks.{layer}"
        weights = tuple(tower[f"{source}.self_attn.{x}_proj.weight"] for x in "qkv")
        biases = tuple(tower[f"{source}.self_attn.{x}_proj.bias"] for x in "qkv")
        out |= _norm(tower, f"{source}.layer_norm1", f"{target}.ln1")
        out |= _norm(tower, f"{source}.layer_norm2", f"{target}.ln2")
        out |= _attention(weights, biases, _linear(tower, f"{source}.self_attn.out_proj"), target, cfg)
        out |= _mlp(_linear(tower, f"{source}.mlp.fc1"), _linear(tower, f"{source}.mlp.fc2"), target)
    out |= _norm(tower, "post_layernorm", "ln_final")
    if cfg.has_proj:
        out["unembed.W_U"] = tower["visual_projection.weight"].T
    return _finish(out, tower, copy)


def open_clip_shapes(cfg: HookedViTConfig, *, layer_scale: bool) -> Shapes:
    """Return the name and shape of every tensor of an open_clip tower of these sizes."""
    d, d_mlp = cfg.d_model, cfg.d_mlp
    shapes: Shapes = {
        "class_embedding": (d,),
        "positional_embedding": (cfg.n_ctx, d),
        "conv1.weight": (d, 3, *cfg.patch_size),
    }
    norms = ["ln_post", *(["ln_pre"] if cfg.has_ln_pre else [])]
    for layer in range(cfg.n_layers):
        block = f"transformer.resblocks.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        shapes |= {f"{block}.attn.in_proj_weight": (3 * d, d), f"{block}.attn.in_proj_bias": (3 * d,)}
        shapes |= _linear_shapes(f"{block}.attn.out_proj", d, d)
        shapes |= _linear_shapes(f"{block}.mlp.c_fc", d, d_mlp) | _linear_shapes(f"{block}.mlp.c_proj", d_mlp, d)
        if layer_scale:
            shapes |= {f"{block}.ls_1.gamma": (d,), f"{block}.ls_2.gamma": (d,)}
    shapes |= {f"{norm}.{name}": (d,) for norm in norms for name in ("weight", "bias")}
    return shapes | ({"proj": (d, cfg.d_embed)} if cfg.has_proj else {})


def hf_clip_shapes(cfg: HookedViTConfig) -> Shapes:
    """Return the name and shape of every tensor of a Hugging Face CLIP tower, without ``vision_model.``."""
    d, d_mlp = cfg.d_model, cfg.d_mlp
    shapes: Shapes = {
        "embeddings.class_embedding": (d,),
        "embeddings.position_embedding.weight": (cfg.n_ctx, d),
        "embeddings.patch_embedding.weight": (d, 3, *cfg.patch_size),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(cfg.n_layers):
        block = f"encoder.layers.{layer}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear_shapes(f"{block}.self_attn.{name}", d, d)
        shapes |= _linear_shapes(f"{block}.mlp.fc1", d, d_mlp) | _linear_shapes(f"{block}.mlp.fc2", d_mlp, d)
    shapes |= {f"{norm}.{name}": (d,) for norm in norms for name in ("weight", "bias")}
    return shapes | ({"visual_projection.weight": (cfg.d_embed, d)} if cfg.has_proj else {})


def _linear_shapes(name: str, d_in: int, d_out: int) -> Shapes:
    return {f"{name}.weight": (d_out, d_in), f"{name}.bias": (d_out,)}


def _check(state_dict: Mapping[str, Tensor], shapes: Shapes, allowed: frozenset[str]) -> None:
    missing = [name for name in shapes if name not in state_dict]
    extra = [name for name in state_dict if name not in shapes and name not in allowed]
    misshapen = [
        f"{name} {list(state_dict[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in state_dict and tuple(state_dict[name].shape) != shape
    ]
    not_float = [n for n in shapes if n in state_dict and not state_dict[n].is_floating_point()]
    faults = {"missing": missing, "extra": extra, "misshapen": misshapen, "not floating point": not_float}
    found = [f"{len(names)} {fault}: {_shorten(names)}" for fault, names in faults.items() if names]
    if found:
        raise CheckpointError(f"the weights do not fit this tower ({'; '.join(found)})")


def _shorten(names: list[str]) -> str:
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _norm(state_dict: Mapping[str, Tensor], source: str, target: str) -> StateDict:
    return {f"{target}.w": state_dict[f"{source}.weight"], f"{target}.b": state_dict[f"{source}.bias"]}


def _linear(state_dict: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state_dict[f"{name}.weight"], state_dict[f"{name}.bias"]


def _attention(
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    out_proj: tuple[Tensor, Tensor],
    target: str,
    cfg: HookedViTConfig,
) -> StateDict:
    heads = cfg.n_heads, cfg.d_head
    out: StateDict = {}
    for name, weight, bias in zip("QKV", weights, biases, strict=True):
        out[f"{target}.attn.W_{name}"] = weight.unflatten(0, heads).transpose(1, 2)
        out[f"{target}.attn.b_{name}"] = bias.unflatten(0, heads)
    out[f"{target}.attn.W_O"] = out_proj[0].T.unflatten(0, heads)
    out[f"{target}.attn.b_O"] = out_proj[1]
    return out


def _mlp(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], target: str) -> StateDict:
    return {
        f"{target}.mlp.W_in": first[0].T,
        f"{target}.mlp.b_in": first[1],
        f"{target}.mlp.W_out": second[0].T,
        f"{target}.mlp.b_out": second[1],
    }


def _fold(out: StateDict, weight: str, bias: str, gamma: Tensor) -> None:
    """Scale what a block writes; the last axis of both is d_model."""
    out[weight], out[bias] = out[weight] * gamma, out[bias] * gamma


def _finish(out: StateDict, source: Mapping[str, Tensor], copy: bool) -> StateDict:
    dtypes = sorted({str(t.dtype) for t in source.values() if t.is_floating_point()})
    if len(dtypes) > 1:
        raise CheckpointError(f"tensors of several dtypes ({', '.join(dtypes)}); cast the tower to one first")
    if not copy:
        return {name: tensor.detach() for name, tensor in out.items()}
    return {name: tensor.detach().clone() for name, tensor in out.items()}
