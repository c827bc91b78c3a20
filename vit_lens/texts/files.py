"""Text banks on disk: the embeddings as safetensors, everything else as JSON in its metadata."""

__all__ = ["check_captions", "mini_captions", "read_bank", "write_bank"]

import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import TextError
from vit_lens.files import open_tensors, save_tensors
from vit_lens.identity import MINI_FILES

_FORMAT = "vit_lens.text_bank.1"
_ADVICE = "make one with TextBank.from_pretrained(...).save(path)"
_FIELDS = ("captions", "logit_scale", "logit_bias", "encoder_id", "templates")


def check_captions(captions: tuple[str, ...]) -> tuple[str, ...]:
    """Return captions that can name rows.

    Raises:
        TextError: There are none, one is empty or no text, or two are alike.
    """
    if not captions:
        raise TextError("no captions; give at least one text")
    seen: set[str] = set()
    for number, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip():
            raise TextError(f"caption {number} is {caption!r}; expected a text")
        if caption in seen:
            raise TextError(f"the caption {caption!r} occurs twice; leave one out: list(dict.fromkeys(captions))")
        seen.add(caption)
    return captions


def mini_captions() -> tuple[str, ...]:
    """Return every prompt of the embedded pair's world, in the world's order."""
    return tuple((MINI_FILES / "captions.txt").read_text(encoding="utf-8").splitlines())


def write_bank(path: Path, embeds: Float[Tensor, "caption d_embed"], **fields: Any) -> Path:
    """Write a bank as safetensors, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    return save_tensors({"embeds": embeds}, path, {"format": _FORMAT, "bank": json.dumps(fields)})


def read_bank(path: Path) -> tuple[Float[Tensor, "caption d_embed"], dict[str, Any]]:
    """Read what :func:`write_bank` wrote.

    Raises:
        TextError: The file is missing, truncated, or not one of these.
    """
    with open_tensors(path, [_FORMAT], what="a text bank", error=TextError, advice=_ADVICE) as (file, meta):
        fields = json.loads(meta["bank"])
        if sorted(fields) != sorted(_FIELDS):
            raise TextError(f"{path} holds the fields {sorted(fields)}; expected {sorted(_FIELDS)}")
        return file.get_tensor("embeds"), fields | {name: tuple(fields[name]) for name in ("captions", "templates")}
