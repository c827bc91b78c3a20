"""From a name to a decoder: ``model_index.json`` of a pipeline, or ``config.json`` of one part, says who reads it."""

__all__ = ["load_decoder", "reads_layout"]

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from vit_lens.decoders.adapter_names import named_adapter, split_name
from vit_lens.decoders.configs import read_config
from vit_lens.decoders.contract import Decoder
from vit_lens.decoders.matching import EncoderRef
from vit_lens.decoders.part_files import find_index
from vit_lens.errors import DecoderError, nearest

_BY_PIPELINE: dict[str, type[Decoder]] = {}
_ADAPTED: dict[str, type[Decoder]] = {}
_D = TypeVar("_D", bound=type[Decoder])


def reads_layout(*pipelines: str, adapter: bool = False) -> Callable[[_D], _D]:
    """Register a class with ``from_pretrained`` as the one that reads what pipelines of diffusers have saved.

    Args:
        *pipelines: The names of pipelines, as ``model_index.json`` says them under ``_class_name``; or of models that
            are a decoder by themselves, as their ``config.json`` does.
        adapter: Whether it reads those to which an image adapter belongs, in place of those without.
    """

    def register(decoder: _D) -> _D:
        (_ADAPTED if adapter else _BY_PIPELINE).update(dict.fromkeys(pipelines, decoder))
        return decoder

    return register


def load_decoder(
    name: str | Path,
    *,
    encoder: EncoderRef | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Decoder:
    """Load a decoder of any kind by name.

    Args:
        name: "mini", "mini-ip", "mini-rae", a local directory in a published layout, or a Hub id. An image adapter
            stands behind a ``+``, as a file or as a Hub id and the file in it:
            "stabilityai/stable-diffusion-xl-base-1.0+h94/IP-Adapter:sdxl_models/ip-adapter_sdxl.safetensors".
        encoder: The encoder that the decoder was made for, as a model or an id, where its files do not say it; None
            where they do.
        dtype: The dtype of its weights.
        device: The device of its weights.

    Raises:
        DecoderError: There is no such decoder, its pipeline is not known here, or something is wrong with its files.
        ContractError: No encoder is known, or the given one is not the decoder's.
        CheckpointError: Weights are missing, truncated, extra or misshapen.

    >>> vl.load_decoder("mini").encoder_id
    'vit_lens/mini'
    >>> vl.load_decoder("minni")
    Traceback (most recent call last):
    vit_lens.errors.DecoderError: no decoder 'minni': it is not an existing directory; expected 'mini', ...
    """
    index, adapter = find_index(split_name(name)[0]), named_adapter(name)
    kind = next(iter(_BY_PIPELINE))
    if said := next((path for path in (index, index.with_name("config.json")) if path.is_file()), None):
        kind, index = str(read_config(said).get("_class_name")), said
    known, with_adapter = (_BY_PIPELINE, "") if adapter is None else (_ADAPTED, " with an image adapter")
    if kind not in known:
        raise DecoderError(
            f"{index}: no decoder here reads a {kind}{with_adapter}; nearest: {nearest(kind, known)} "
            "(docs/own_decoder.md says how to bring one)"
        )
    return known[kind].from_pretrained(name, encoder=encoder, dtype=dtype, device=device)  # pyright: ignore[reportAttributeAccessIssue]
