"""Where whole CLIPs come from, with the tokenizer and the id of the image tower."""

__all__ = ["from_open_clip", "from_pretrained"]

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from vit_lens.errors import TextError
from vit_lens.identity import MINI_ENCODER, aliases
from vit_lens.sources import OpenClipName, embedded_encoder, no_progress_bars, open_clip_weights

_OPEN_CLIP_HINT = "TextBank.from_open_clip(name, tag, captions) takes open_clip's names"


def from_open_clip(
    name: str, tag: str | Path, *, quick_gelu: bool | None, device: str | torch.device, cache_dir: str | Path | None
) -> tuple[nn.Module, Any, str | None]:
    """Build an open_clip model with a tag's or a file's weights; the id is None where the weights must say it.

    The activation is chosen as for the image tower.

    Raises:
        CheckpointError: open_clip has no such model, or no such tag or file; or ``quick_gelu`` contradicts the tag, or
            is missing where the name of a local checkpoint's model leaves the activation open.
    """
    import open_clip

    weights = open_clip_weights(OpenClipName(name, tag), quick_gelu)
    wanted = weights.quick_gelu
    built = name.removesuffix("-quickgelu") if weights.config.get("quick_gelu", False) and not wanted else name
    clip = open_clip.create_model(
        built, pretrained=weights.tag or str(weights.path), force_quick_gelu=wanted, quick_gelu=wanted, device=device,
        cache_dir=None if cache_dir is None else str(cache_dir),
    )  # fmt: skip
    return clip.eval(), open_clip.get_tokenizer(name), weights.encoder_id


def from_pretrained(
    name: str | Path, *, device: str | torch.device, revision: str | None, cache_dir: str | Path | None
) -> tuple[nn.Module, Any, str | None]:
    """Load a CLIP or SigLIP in Hugging Face's format; the id is None where the weights must say it.

    Raises:
        TextError: There is no model of these kinds under this name, or it cannot be read.
    """
    if (shipped := embedded_encoder(name)) is not None:
        return *_load(shipped, device=device), MINI_ENCODER
    plain = str(name).removeprefix("hf/")
    local = Path(plain).expanduser()
    if ":" in plain:
        other = [
            f"from_open_clip{tuple(i.split('/')[1:])}" for i in aliases(f"hf/{plain}") if i.startswith("open_clip/")
        ]
        raise TextError(
            f"{name!r} names a subfolder, which holds an image tower without texts; "
            + (f"the same encoder with its text tower: TextBank.{other[0]}" if other else _OPEN_CLIP_HINT)
        )
    if local.is_dir():
        return *_load(local, device=device), None
    if isinstance(name, Path) or plain.count("/") != 1 or plain.startswith((".", "/", "~")):
        raise TextError(
            f"no directory {name}; expected 'mini', a Hub id 'owner/name' or a directory. {_OPEN_CLIP_HINT}"
        )
    options = {"revision": revision, "cache_dir": cache_dir}
    return *_load(plain, device=device, **options), f"hf/{plain}"


def _load(where: str | Path, *, device: str | torch.device, **options: Any) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoTokenizer, CLIPModel, SiglipModel

    kinds = {"clip": CLIPModel, "siglip": SiglipModel}
    try:
        with no_progress_bars():
            model_type = AutoConfig.from_pretrained(where, **options).model_type
            if model_type not in kinds:
                raise TextError(
                    f"{where} is of model_type {model_type!r}; expected one with a text tower: {', '.join(kinds)}"
                )
            model, loading = kinds[model_type].from_pretrained(
                where, dtype=torch.float32, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, TextError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TextError(f"{where} cannot be read as a CLIP with a tokenizer: {reason}") from error
    if missing := sorted(loading["missing_keys"]):
        raise TextError(f"{where} lacks {len(missing)} tensors of its text or image tower, such as {missing[0]}")
    return model.eval().to(device), tokenizer
