"""What of a config file reaches a library: known keys alone, with values that a tower can have."""

__all__ = ["check_ranges", "plain_config", "understood"]

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vit_lens.errors import CheckpointError, VitLensError, expect
from vit_lens.sources.refusals import refuse

# The least and most that a file may say; a library asks for memory, or loops, by these numbers.
_SIZES: dict[str, tuple[float, float]] = (
    dict.fromkeys(("hidden_size", "width", "embed_dim", "projection_dim", "projection_size", "d_model"), (1, 2**16))
    | dict.fromkeys(
        ("num_hidden_layers", "layers", "num_attention_heads", "attn_pooler_heads", "heads", "num_layers", "num_heads"),
        (1, 1000),
    )
    | dict.fromkeys(("image_size", "intermediate_size", "max_position_embeddings", "d_ff", "n_positions"), (1, 2**18))
    | dict.fromkeys(("context_length", "relative_attention_max_distance"), (1, 2**18))
    | dict.fromkeys(("patch_size", "head_width", "num_channels", "attn_pooler_queries", "d_kv"), (1, 2**12))
    | dict.fromkeys(("layer_norm_eps", "eps", "layer_norm_epsilon"), (1e-20, 0.1))
    | {"relative_attention_num_buckets": (4, 2**16)}
    | {"num_register_tokens": (0, 2**12), "mlp_ratio": (0.01, 100), "vocab_size": (1, 2**24)}
)
_PARTS = ("vision_config", "text_config", "vision_config_dict", "text_config_dict")
_KEYS = {
    *_SIZES, "model_type", "hidden_act", "layerscale_value", "qkv_bias", "use_swiglu_ffn", "use_mask_token",
    "vision_use_head", "feed_forward_proj", "pad_token_id", "bos_token_id", "eos_token_id",
}  # fmt: skip
_REFUSED = {
    "quantization_config": "quantised weights (quantization_config)",
    "compression_config": "compressed weights (compression_config)",
    "auto_map": "code of its own (auto_map), which is never run",
}


def plain_config(config: Mapping[str, Any], where: object, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return what a ``config.json`` of transformers says of a model's sizes and switches, checked.

    Args:
        config: The content of the file.
        where: Where it was found, for messages.
        classes: The classes that the model may have been saved as.

    Raises:
        CheckpointError: A size is out of range.
        UnsupportedTowerError: The model is saved as another class, quantised, or has code of its own.
    """
    saved_as = config.get("architectures") or []
    if not isinstance(saved_as, list) or not set(map(str, saved_as)) <= set(classes):
        refuse(f"a model saved as {saved_as} in {where}; expected {' or '.join(classes)}")
    check_ranges(config, where)
    return _known(config, where)


def _known(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    for key, told in _REFUSED.items():
        if config.get(key):
            refuse(f"a model with {told}, in {where}")
    known = {key: config[key] for key in _KEYS if key in config}
    for key in _PARTS:
        if (part := config.get(key)) is not None:
            expect(part, dict, f"{key} in {where}", CheckpointError, "sizes of a tower")
            known[key] = _known(part, where)
    return known


def check_ranges(config: Mapping[str, Any], where: object) -> None:
    """Check sizes in a config and its parts; a size may be a pair, and what is None is left to the library.

    Raises:
        CheckpointError: One is no number, or out of range.
    """
    for key, value in config.items():
        if isinstance(value, dict) and key in (*_PARTS, "norm_kwargs"):
            check_ranges(value, where)
        low, high = _SIZES.get(key, (None, None))
        if low is None or high is None or value is None:
            continue
        for one in value if isinstance(value, list) and value else [value]:
            if isinstance(one, bool) or not isinstance(one, (int, float)) or not low <= one <= high:
                raise CheckpointError(f"{where}: {key} is {value!r}; expected numbers from {low:g} to {high:g}")


@contextmanager
def understood(where: object) -> Iterator[None]:
    """Say of whatever a library raises in a block that makes a tower of a config that the config is at fault.

    Raises:
        CheckpointError: With the place of the config and the library's reason.
    """
    try:
        yield
    except VitLensError:
        raise
    except Exception as error:  # libraries raise classes of their own here
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{where} describes no tower that its library can make: {reason}") from error
