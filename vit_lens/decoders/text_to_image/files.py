"""The folders of text-to-image pipelines: what draws and what reads, each half loaded alone."""

__all__ = ["TextCard", "load_drawing", "load_drawn", "load_pipeline", "load_readers", "load_text", "name_of"]

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vit_lens.decoders.configs import read_config
from vit_lens.decoders.part_files import OF_PART, fetch, find_index, index_of, load_part, load_scheduler, usable
from vit_lens.decoders.text_to_image.drawing import (
    DRAWN,
    SCHEDULERS,
    UPSCALER,
    Drawn,
    check_dtype,
    check_encoders,
    stock,
    text_parts,
    widths,
)  # fmt: skip
from vit_lens.errors import CheckpointError, DecoderError, nearest
from vit_lens.files import check_fields, damaged
from vit_lens.identity import EMBEDDED_PIPELINES
from vit_lens.sources import no_progress_bars
from vit_lens.text_formats import TEXT_FORMATS, Reading, TextFormat
from vit_lens.texts import ENCODER_KINDS

_CARD = "vit_lens.json"
_UPSCALER = "IFSuperResolutionPipeline"
_OF_ENCODER = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_OF_TOKENIZER = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "preprocessor_config.json",
    "processor_config.json", "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
_TOKENIZERS_OF_THEIR_OWN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # two names of one class
_ADVICE = "download the pipeline again"


@dataclass(frozen=True, kw_only=True)
class TextCard:
    """What ``vit_lens.json`` beside a pipeline says of how it draws, where that is not as usual for its format."""

    steps: int | None = None
    guidance: float | int | None = None
    height: int | None = None
    width: int | None = None
    length: int | None = None


def _said(directory: Path) -> dict[str, Any]:
    """Return the settings that a pipeline's ``vit_lens.json`` gives; none where there is no such file."""
    path = directory / _CARD
    if not path.is_file():
        return {}
    card = TextCard(**check_fields(TextCard, read_config(path), str(path), DecoderError))
    return {setting: value for setting, value in asdict(card).items() if value is not None}


def name_of(name: str | Path) -> tuple[str, bool]:
    """Return what records call a decoder, and whether it comes from a local directory."""
    if name in EMBEDDED_PIPELINES:
        return f"vit_lens/{name}", False
    directory = Path(name).expanduser()
    return (f"local/{directory.resolve().name}", True) if directory.is_dir() else (f"hf/{name}", False)


def load_drawing(name: str | Path, dtype: torch.dtype, device: str | torch.device) -> tuple[Any, dict[str, Any]]:
    """Do what :func:`load_drawn` does; return what the pipeline's card says in place of where it lies."""
    pipeline, directory = load_drawn(name, dtype, device)
    return pipeline, _said(directory)


def load_text(
    name: str | Path, dtype: torch.dtype, device: str | torch.device
) -> tuple[Any, Mapping[str, Any] | None, dict[str, Any]]:
    """Do what :func:`load_readers` does; return what the pipeline's card says in place of where it lies."""
    pipeline, denoiser, directory = load_readers(name, dtype, device)
    return pipeline, denoiser, _said(directory)


def load_drawn(name: str | Path, dtype: torch.dtype, device: str | torch.device) -> tuple[Any, Path]:
    """Load what draws of a pipeline; return the stock pipeline without its text encoders, and the folder it lies in.

    Raises:
        DecoderError: There is no such pipeline, or something is wrong with its files.
        CheckpointError: Weights are missing, truncated, extra or misshapen.
        ContractError: The text encoders beside it are of another width than its denoiser takes.
    """
    usable(dtype, device)
    kind, index = _index(name, {one.pipeline for one in TEXT_FORMATS.values()} | {_UPSCALER})
    format = next((one for one in TEXT_FORMATS.values() if one.pipeline == kind), TEXT_FORMATS["if"])
    drawn = UPSCALER if kind == _UPSCALER else DRAWN[format.name]
    schedulers = ["scheduler", *(["image_noising_scheduler"] if drawn is UPSCALER else [])]
    wanted = [f"{part}/{file}" for part in drawn.parts for file in OF_PART]
    wanted += [_CARD, *(f"{part}/scheduler_config.json" for part in schedulers)]
    directory = fetch(name, [*wanted, *(f"{encoder}/config.json" for encoder in text_parts(format))])
    for part, classes in drawn.parts.items():
        _check_entry(directory, index, part, "diffusers", [*classes, *([drawn.older] if drawn.older else [])])
    _check_widths(directory, _read_in(directory, format), drawn)
    known = (*SCHEDULERS[format.flow], *drawn.schedulers)
    parts = {part: load_scheduler(directory / part, known, known) for part in schedulers}
    for part, classes in drawn.parts.items():
        older = drawn.older if part == drawn.denoiser[0] else None
        parts[part] = load_part(directory / part, *classes, dtype=dtype, device=device, older=older)
    return stock(kind, parts, **_options(index)), directory


def load_readers(
    name: str | Path, dtype: torch.dtype, device: str | torch.device
) -> tuple[Any, Mapping[str, Any] | None, Path]:
    """Load what reads of a pipeline; return the stock pipeline without what draws, the denoiser's config, the folder.

    Raises:
        DecoderError: There is no such pipeline, or something is wrong with its files.
        CheckpointError: Weights are missing or misshapen.
        ContractError: Its encoders are of another kind or width than its denoiser was trained with.
    """
    import transformers

    usable(dtype, device)
    kind, index = _index(name, {one.pipeline for one in TEXT_FORMATS.values()})
    format = next(one for one in TEXT_FORMATS.values() if one.pipeline == kind)
    drawn, tokenizers = DRAWN[format.name], text_parts(format)
    wanted = [f"{encoder}/{file}" for encoder in tokenizers for file in _OF_ENCODER]
    wanted += [f"{tokenizer}/{file}" for tokenizer in tokenizers.values() for file in _OF_TOKENIZER]
    directory = fetch(name, [*wanted, _CARD, f"{drawn.denoiser[0]}/config.json"])
    format = _read_in(directory, format)
    for one in format.readings:
        check_dtype(one, dtype)
        _check_entry(directory, index, one.encoder, "transformers", [_encoder_class(one)])
    denoiser = _check_widths(directory, format, drawn)
    parts: dict[str, Any] = {}
    for one in format.readings:
        cls = getattr(transformers, _encoder_class(one))
        parts[one.encoder] = _load_encoder(cls, directory / one.encoder, dtype).to(device)
        tokenizer = directory / tokenizers[one.encoder]
        if not tokenizer.is_dir():
            raise DecoderError(f"{directory} has no {tokenizer.name}, which is needed to read prompts; {_ADVICE}")
        reads = getattr(transformers, _tokenizer_class(directory, index, tokenizer.name, one))
        with damaged(DecoderError, f"{tokenizer} is no tokenizer of {reads.__name__}", _ADVICE):
            parts[tokenizer.name] = reads.from_pretrained(tokenizer, local_files_only=True)
    return stock(kind, parts, **_options(index)), denoiser, directory


def load_pipeline(name: str | Path, dtype: torch.dtype, device: str | torch.device) -> tuple[Any, str, dict[str, Any]]:
    """Load a whole text-to-image pipeline (safetensors only, no code of others).

    Args:
        name: "mini-sd", "mini-flux", a local directory that a pipeline was saved in, or a Hub id.
        dtype: The dtype of the weights.
        device: The device of the weights.

    Returns:
        The stock pipeline, its id (which ends in ``@`` where it wants the weights' fingerprint), and what its card
        says, where it has one: ``steps``, ``guidance``, ``height``, ``width``, and ``length``, the positions of a text.

    Raises:
        DecoderError: There is no such pipeline, or something is wrong with its files.
        CheckpointError: Weights are missing, truncated, extra or misshapen.
        ContractError: Its encoders are of another kind or width than its denoiser was trained with.

    >>> pipeline, model_id, said = vl.decoders.load_pipeline("mini-sd", torch.float32, "cpu")
    >>> type(pipeline).__name__, model_id, said
    ('StableDiffusionPipeline', 'vit_lens/mini-sd', {'steps': 8, 'guidance': 1.5})
    """
    drawing, said = load_drawing(name, dtype, device)
    text, *_ = load_text(name, dtype, device)
    parts = {key: one for pipe in (text, drawing) for key, one in pipe.components.items() if one is not None}
    model_id, is_local = name_of(name)
    return stock(type(text).__name__, parts, **_options(text.config)), f"{model_id}@" if is_local else model_id, said


def _encoder_class(one: Reading) -> str:
    return ENCODER_KINDS[one.kind].classes[-1 if one.pooled == "projected" else 0]


def _tokenizer_class(directory: Path, index: Mapping[str, Any], part: str, one: Reading) -> str:
    """Return what the index names, as the stock pipeline goes by it; where it names nothing, what the format has."""
    own = ENCODER_KINDS[one.kind].tokenizer
    classes = {own: own, f"{own}Fast": own} | dict.fromkeys(_TOKENIZERS_OF_THEIR_OWN, "PreTrainedTokenizerFast")
    said = index.get(part) or ["transformers", own]
    is_listed = isinstance(said, list) and said[0] == "transformers"
    if is_listed and own.startswith("Auto"):  # of many names; the tokenizer's own file says which, of those known there
        return own
    if not is_listed or said[-1] not in classes:
        raise DecoderError(
            f"{directory}: {part} is a {said!r}; expected {['transformers', own]}, or {_TOKENIZERS_OF_THEIR_OWN[0]!r} "
            "where words are cut by rules of their own"
        )
    return classes[said[-1]]


def _load_encoder(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    with damaged(CheckpointError, f"{folder} holds no weights of a {cls.__name__} in safetensors", _ADVICE):
        with no_progress_bars():
            model, told = cls.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    # transformers fills what is missing with random values and goes on.
    if wrong := [*told["missing_keys"], *told["mismatched_keys"]]:
        raise CheckpointError(f"{folder} lacks {len(wrong)} tensors of a {cls.__name__}, such as {wrong[0]}; {_ADVICE}")
    return model.eval()


def _index(name: str | Path, known: set[str]) -> tuple[str, dict[str, Any]]:
    """Return which pipeline a folder was saved by, and what its index says."""
    import diffusers

    path = find_index(name)
    kind = str(read_config(path).get("_class_name"))
    if kind not in known:
        raise DecoderError(f"{path}: a {kind} draws no text here; nearest: {nearest(kind, sorted(known))}")
    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return kind, index_of(path.parent, [each for each in parameters if each != "self"])


def _check_entry(directory: Path, index: Mapping[str, Any], part: str, library: str, classes: list[str]) -> None:
    said = index.get(part)
    if said is None or said == [None, None] or not (directory / part).is_dir():
        raise DecoderError(f"{directory} has no {part}, which is needed here; {_ADVICE}, or take another repository")
    if not isinstance(said, list) or said[0] != library or said[-1] not in classes:
        raise DecoderError(
            f"{directory}: {part} is a {said!r}; expected {[library, classes[0]]}, of which the format is made"
        )


def _read_in(directory: Path, format: TextFormat) -> TextFormat:
    """Return the format with the kinds of encoders of which a folder has configurations."""
    paths = {name: directory / name / "config.json" for name in text_parts(format)}
    return format.read_by({name: read_config(path).get("model_type") for name, path in paths.items() if path.is_file()})


def _check_widths(directory: Path, format: TextFormat, drawn: Drawn) -> Mapping[str, Any] | None:
    """Compare the configurations of encoders and denoiser, where all are there; return the denoiser's."""
    paths = {name: directory / name / "config.json" for name in (drawn.denoiser[0], *text_parts(format))}
    found = {name: read_config(path) for name, path in paths.items() if path.is_file()}
    denoiser = found.get(drawn.denoiser[0])
    if len(found) == len(paths) and denoiser is not None:
        check_encoders(format, found, widths(drawn, denoiser))
    return denoiser


def _options(index: Mapping[str, Any]) -> dict[str, Any]:
    names = ("force_zeros_for_empty_prompt", "is_distilled")
    return {name: bool(index[name]) for name in names if index.get(name) is not None}
