"""A decoder's weight files, looked into before they are loaded."""

__all__ = ["WEIGHTS", "load_weights"]

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_lens.errors import CheckpointError
from vit_lens.files import open_safetensors, read_shards

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_weights(
    model: nn.Module, folder: Path, dtype: torch.dtype, device: str | torch.device, *,
    renamed: Callable[[str, Mapping[str, Any]], str] | None = None, left_out: Collection[str] = (),
    said: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Give a model on the meta device its weights, after comparing the names and shapes in a part's files with its own.

    diffusers itself fills missing tensors with random values and goes on.

    Args:
        model: The model.
        folder: The folder of the files.
        dtype: The dtype of the weights.
        device: The device of the weights.
        renamed: Returns what a stored tensor is called today, of its name and those of the model; None knows the older
            names of diffusers' own parts.
        left_out: The names of stored tensors that the model computes anew.
        said: What tensors are where no file holds them, since a configuration says it.

    Raises:
        CheckpointError: A file is missing, truncated or of another format; tensors are missing, extra or misshapen.
    """
    with ExitStack() as stack:
        opened = {name: file for name, file in _open_weights(folder, stack).items() if name not in left_out}
        own = model.state_dict()
        expected = {name: list(tensor.shape) for name, tensor in own.items()}
        counts = {name for name, tensor in own.items() if tensor.dtype == torch.int64}  # such as of batches seen
        stored = {(renamed or _today)(name, expected): name for name in opened}
        opened = {name: opened[stored[name]] for name in stored}
        of_config = {name: value for name, value in (said or {}).items() if name not in opened}
        expected = {name: shape for name, shape in expected.items() if name not in of_config}
        found = {name: list(file.get_slice(stored[name]).get_shape()) for name, file in opened.items()}
        kinds = {name: file.get_slice(stored[name]).get_dtype() for name, file in opened.items()}
        problems = {
            "missing": expected.keys() - found.keys(),
            "not in the model": found.keys() - expected.keys(),
            "of another shape": {
                f"{name} {found[name]} instead of {shape}"
                for name, shape in expected.items()
                if found.get(name, shape) != shape
            },
            "of a type that is scaled, or no weight's": {
                f"{name} ({kind})"
                for name, kind in kinds.items()
                if kind not in (("I64",) if name in counts else ("F64", "F32", "BF16", "F16"))
            },
        }
        told = [f"{len(names)} {what}: {', '.join(sorted(names)[:3])}" for what, names in problems.items() if names]
        if told:
            raise CheckpointError(f"{folder / WEIGHTS} does not fit its config.json; tensors {'; '.join(told)}")
        # Copies: what is read is mapped, and would change with the file.
        read = {name: file.get_tensor(stored[name]) for name, file in opened.items()}
        read |= of_config
        kept = {name: torch.int64 if name in counts else dtype for name in read}
        tensors = {name: tensor.to(device, kept[name], copy=True) for name, tensor in read.items()}
    model.load_state_dict(tensors, assign=True)
    _make_positions(model, dtype, device)


def _today(name: str, expected: Mapping[str, Any]) -> str:
    """Return what a tensor is called now: attention of early autoencoders had other names."""
    for old, new in {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}.items():
        if name not in expected and old in name and (renamed := name.replace(old, new)) in expected:
            return renamed
    return name


def _make_positions(model: nn.Module, dtype: torch.dtype, device: str | torch.device) -> None:
    """Compute the positions that a model on the meta device was made without, and that no file holds."""
    from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed

    for name, part in list(model.named_modules()):
        if any(map(_is_meta, vars(part).values())):  # tables of rotations, which are no buffers
            said = inspect.signature(type(part).__init__).parameters
            model.set_submodule(name, type(part)(**{key: getattr(part, key) for key in said if key != "self"}))
        if isinstance(part, PatchEmbed) and part.pos_embed is not None and part.pos_embed.is_meta:
            made = get_2d_sincos_pos_embed(
                part.pos_embed.shape[-1], int(part.pos_embed.shape[-2] ** 0.5), base_size=part.base_size,
                interpolation_scale=part.interpolation_scale, output_type="pt",
            )  # fmt: skip
            part.register_buffer("pos_embed", made.float()[None].to(device, dtype), persistent=False)
    if unmade := [name for name, held in model.named_buffers() if held.is_meta]:
        raise CheckpointError(f"{type(model).__name__} computes {unmade[0]}, which cannot be made from its files")


def _is_meta(held: Any) -> bool:
    return any(isinstance(one, Tensor) and one.is_meta for one in (held if isinstance(held, list) else [held]))


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open a part's weight files; return the open file of each tensor."""
    advice = "download the decoder again"
    found = sorted(path.name for path in folder.glob("diffusion_pytorch_model*") if "-of-" not in path.name)
    usual = [name for name in (f"{WEIGHTS}.index.json", WEIGHTS) if name in found]
    # What save_pretrained(variant="fp16") writes: it is taken where it is all that there is.
    variants = [name for name in found if re.fullmatch(r".*model\.\w+\.safetensors|.*\.index\.\w+\.json", name)]
    if not usual and len(variants) != 1:
        told = f"holds the variants {', '.join(variants)}; keep one" if variants else f"holds no {WEIGHTS}"
        raise CheckpointError(f"{folder} {told}: a decoder's weights are safetensors (pickled .bin is never read)")
    name = [*usual, *variants][0]
    names = read_shards(folder / name, CheckpointError, advice) if name.endswith(".json") else [name]
    opened: dict[str, Any] = {}
    for file in [stack.enter_context(open_safetensors(folder / name, CheckpointError, advice)) for name in names]:
        opened |= dict.fromkeys(file.keys(), file)
    return opened
