"""Configurations of a decoder's folder, which anybody may have written: what of them reaches diffusers."""

__all__ = ["from_config", "read_config"]

import inspect
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from torch.utils._pytree import tree_leaves

from vit_lens.errors import DecoderError, nearest
from vit_lens.files import read_json

_BOOKKEEPING = ("_class_name", "_diffusers_version", "_name_or_path", "_commit_hash", "_use_default_values")
# What a file may ask for before its weights are compared: far more than any decoder has, and soon built on no device.
_MOST, _MOST_BLOCKS = 65536, 16
_BOUNDS: dict[str, tuple[float, float]] = {
    "layers_per_block": (1, 32), "transformer_layers_per_block": (1, 32), "sample_size": (1, 1024),
    "norm_eps": (1e-12, 0.1), "norm_num_groups": (1, _MOST), "block_out_channels": (1, _MOST),
    "latent_channels": (1, _MOST), "num_train_timesteps": (1, _MOST),
}  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of a decoder's folder.

    Raises:
        DecoderError: It is missing, or no JSON object.
    """
    return read_json(
        path, DecoderError, "expected the published layout, a folder for each part, such as unet/ and scheduler/"
    )


def from_config(cls: Any, config: dict[str, Any], path: Path, *others: Any) -> Any:
    """Build a part from what its file says, of which only settings that its class or others have reach diffusers.

    Raises:
        DecoderError: A setting is not known, or is of another kind or beyond what any decoder has.
    """
    known = {name: each for one in (*others, cls) for name, each in inspect.signature(one.__init__).parameters.items()}
    given = {name: value for name, value in config.items() if name not in _BOOKKEEPING}
    for name, value in given.items():
        if name not in known:
            raise DecoderError(
                f"{path}: {cls.__name__} of the installed diffusers has no setting {name!r}, and would ignore it; "
                f"nearest: {nearest(name, known)}; install a newer diffusers, or take it out if it changes nothing"
            )
        low, high = _BOUNDS.get(name, (-_MOST, _MOST))
        in_bounds = all(low <= one <= high for one in tree_leaves(value) if isinstance(one, (int, float)))
        is_short = name == "trained_betas" or not isinstance(value, list) or len(value) <= _MOST_BLOCKS
        # Against annotations, parameters of diffusers are None by default, and published files say null for no.
        is_unset = value is None and (known[name].default is None or known[name].annotation is bool)
        if not ((is_unset or _is_of(value, known[name].annotation)) and in_bounds and is_short):
            raise DecoderError(f"{path}: {name} is {repr(value)[:200]}, which no decoder has; download it again")
    try:
        return cls.from_config(given)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise DecoderError(f"{path}: {cls.__name__} cannot be built from it: {error}") from error


def _is_of(value: object, kind: Any) -> bool:
    """Whether a setting is of an annotated kind; of tuples, which diffusers annotates loosely, any list is one."""
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        return any(_is_of(value, each) for each in get_args(kind))
    if origin is Literal:
        return value in get_args(kind)
    if kind is inspect.Parameter.empty or isinstance(kind, str):
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, {float: (float, int), tuple: list}.get(origin or kind, origin or kind))
