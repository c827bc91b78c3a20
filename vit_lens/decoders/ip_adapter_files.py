"""The files of an SDXL pipeline with an image adapter: two names or one folder, and the card beside it."""

__all__ = ["AdapterCard", "load_adapted"]

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vit_lens.decoders.adapter_names import CARD, named_adapter, split_name
from vit_lens.decoders.configs import read_config
from vit_lens.decoders.ip_adapter_parts import adapter_shapes, put_adapter
from vit_lens.decoders.text_to_image.drawing import stock
from vit_lens.decoders.text_to_image.files import load_drawn, load_readers
from vit_lens.errors import CheckpointError, DecoderError
from vit_lens.files import check_fields, open_safetensors
from vit_lens.sources import fetch_snapshot

_ADVICE = "download the adapter again"


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What ``vit_lens.json`` says in the folder of a pipeline with an adapter.

    Attributes:
        adapter: The name of the adapter's file in the folder.
        encoder_id: The encoder whose embeddings the adapter reads.
        embed_dim: How wide they are.
        text: What the pipeline is told in words: "empty", the prompt "", or "zeros" in place of every text embedding.
        steps: How many steps it draws with.
        guidance: How strongly it is guided.
        height: The height of its pictures in pixels.
        width: Their width.
    """

    adapter: str | None = None
    encoder_id: str | None = None
    embed_dim: int | None = None
    text: Literal["empty", "zeros"] = "empty"
    steps: int | None = None
    guidance: float | int | None = None
    height: int | None = None
    width: int | None = None


def load_adapted(name: str | Path, dtype: torch.dtype, device: str | torch.device) -> tuple[Any, str, AdapterCard]:
    """Load an SDXL pipeline with its adapter (safetensors only, no code of others).

    Args:
        name: As for :func:`vit_lens.load_decoder`, with an adapter.
        dtype: The dtype of the weights.
        device: The device of the weights.

    Returns:
        The stock pipeline, with text encoders where the card does not say "zeros"; the adapter's name; the card.

    Raises:
        DecoderError: There is no such pipeline or adapter, or something is wrong with its files.
        CheckpointError: Weights are missing, truncated, extra or misshapen.
        ContractError: The text encoders beside it are of another width than its denoiser takes.
    """
    pipeline_name, adapter = split_name(name)[0], named_adapter(name)
    if not adapter or not isinstance(adapter, str):
        raise DecoderError(
            f"decoder {str(name)!r} names no adapter: write the pipeline and the adapter's file with a + between them, "
            f"or give a folder whose {CARD} says 'adapter'"
        )
    pipeline, directory = load_drawn(pipeline_name, dtype, device)
    card = _card(directory)
    if card.text == "empty":
        text, *_ = load_readers(pipeline_name, dtype, device)
        parts = {key: one for pipe in (text, pipeline) for key, one in pipe.components.items() if one is not None}
        said = pipeline.config.get("force_zeros_for_empty_prompt")
        pipeline = stock(type(pipeline).__name__, parts, force_zeros_for_empty_prompt=said)
    is_beside = split_name(name)[1] is None
    file = _beside(directory, adapter) if is_beside else _find(adapter)
    weights = _read(file, pipeline.unet)
    put_adapter(pipeline.unet, {key: value.to(device, dtype) for key, value in weights.items()})
    return pipeline, adapter, card


def _card(directory: Path) -> AdapterCard:
    path = directory / CARD
    if not path.is_file():
        return AdapterCard()
    return AdapterCard(**check_fields(AdapterCard, read_config(path), str(path), DecoderError))


def _beside(directory: Path, adapter: str) -> Path:
    if Path(adapter).name != adapter:
        raise DecoderError(f"{directory / CARD}: adapter is {adapter!r}; expected the name of a file in the folder")
    return directory / adapter


def _find(adapter: str) -> Path:
    """Return where an adapter lies: a file, or a Hub id and the file in it, which is fetched."""
    if adapter.endswith(".safetensors"):
        if (path := Path(adapter).expanduser()).is_file():
            return path
        repository, colon, file = adapter.partition(":")
        if colon and repository.count("/") == 1:
            return fetch_snapshot(repository, [file], "image adapter", DecoderError) / file
    raise DecoderError(
        f"no image adapter {adapter!r}: expected a file of safetensors, or a Hub id and the file in it, such as "
        "'h94/IP-Adapter:sdxl_models/ip-adapter_sdxl.safetensors' (pickled .bin is never read)"
    )


def _read(file: Path, unet: Any) -> Mapping[str, Tensor]:
    """Read an adapter's file after comparing names and shapes in it with what the UNet takes."""
    with open_safetensors(file, CheckpointError, _ADVICE) as opened:
        found = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}
        projection = found.get("image_proj.proj.weight", [])
        if len(projection) != 2:
            raise DecoderError(
                f"{file} has no image_proj.proj.weight, a matrix: it is no adapter that reads one embedding. Adapters "
                "named plus or faceid read patch tokens or faces; take one such as ip-adapter_sdxl.safetensors"
            )
        expected = adapter_shapes(unet, projection[1])
        wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        if wrong:
            name = wrong[0]
            raise CheckpointError(
                f"{file} does not fit the UNet: {len(wrong)} tensors differ, such as {name}, which is "
                f"{found.get(name, 'missing')} instead of {expected.get(name, 'absent')}; take the adapter that was "
                "trained with this pipeline"
            )
        kinds = {name: opened.get_slice(name).get_dtype() for name in found}
        if odd := [name for name, kind in kinds.items() if kind not in ("F64", "F32", "BF16", "F16")]:
            raise CheckpointError(f"{file}: {odd[0]} is of type {kinds[odd[0]]}, which is no weight's; {_ADVICE}")
        weights = {name: opened.get_tensor(name).clone() for name in found}
    if broken := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(f"{file}: {broken[0]} holds values that are not finite; {_ADVICE}")
    return weights
