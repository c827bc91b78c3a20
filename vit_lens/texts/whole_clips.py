"""Where whole CLIPs come from, with the tokenizer and the id of the image tower."""

__all__ = ["from_open_clip", "from_pretrained"]

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from vit_lens.errors import TextError, expect
from vit_lens.files import as_path, damaged
from vit_lens.identity import MINI_ENCODER, aliases
from vit_lens.sources import (
    OpenClipName,
    no_progress_bars,
    open_clip_weights,
    resolve_name,
    stored_config,
)

_HINT = "TextBank.from_open_clip(name, tag, captions) takes open_clip's names"


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

    _check_device(device)
    expect(name, str, "name", TextError, "a name of open_clip's, such as 'ViT-B-32'")
    as_path(tag, TextError, "tag")  # a tag may be a file's
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
    _check_device(device)
    expect(name, (str, Path), "name", TextError, "'mini', a Hub id 'owner/name' or a directory")
    plain = str(name).removeprefix("hf/")
    with damaged(TextError, f"{plain[:80]!r} cannot be looked up", "shorten it"):
        is_here = Path(name).expanduser().is_dir() and bool(plain)
    if not is_here and name not in ("mini", MINI_ENCODER):
        if ":" in plain:
            same = [one.split("/")[1:] for one in aliases(f"hf/{plain}") if one.startswith("open_clip/")]
            raise TextError(
                f"{name!r} names a subfolder, which holds an image tower without texts; "
                + (f"the same encoder with its text tower: TextBank.from_open_clip{tuple(same[0])}" if same else _HINT)
            )
        if isinstance(name, Path) or plain.count("/") != 1 or plain.startswith((".", "/", "~")):
            raise TextError(f"no directory {name}; expected 'mini', a Hub id 'owner/name' or a directory. {_HINT}")
    found = resolve_name(name, revision=revision, cache_dir=cache_dir)
    if isinstance(found, OpenClipName):
        raise TextError(f"{name!r} is a name of open_clip's. {_HINT}")
    return *_load(found, device=device), found.encoder_id


def _load(folder: Any, *, device: str | torch.device) -> tuple[nn.Module, Any]:
    from transformers import AutoTokenizer, CLIPModel, SiglipModel

    kinds = {"clip": CLIPModel, "siglip": SiglipModel}
    (where, options), config = folder.library_place, stored_config(folder)
    if config.model_type not in kinds:
        raise TextError(
            f"{where} is of model_type {config.model_type!r}; expected one with a text tower: {', '.join(kinds)}"
        )
    try:
        with no_progress_bars():
            model, loading = kinds[config.model_type].from_pretrained(
                where, config=config, dtype=torch.float32, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(where, config=config, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TextError(f"{where} cannot be read as a CLIP with a tokenizer: {reason}") from error
    if missing := sorted(loading["missing_keys"]):
        raise TextError(f"{where} lacks {len(missing)} tensors of its text or image tower, such as {missing[0]}")
    return model.eval().to(device), tokenizer


def _check_device(device: Any) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise TextError(f"device={device!r} ({reason}); expected one that is here, such as 'cpu'") from error
