"""The folder of a representation autoencoder, as diffusers saves ``AutoencoderRAE``: checked, then loaded."""

__all__ = ["WANTED", "LoadedRAE", "find_rae", "load_rae"]

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vit_lens.decoders.configs import read_config
from vit_lens.decoders.part_files import OF_PART, fetch
from vit_lens.decoders.rae_encoder import IMAGENET, OUTSIDE, build_encoder, current_name, known_type
from vit_lens.decoders.rae_parts import RAEParts
from vit_lens.decoders.weight_files import load_weights
from vit_lens.errors import DecoderError, nearest

WANTED = ["vit_lens.json", *OF_PART]
_BOOKKEEPING = ("_class_name", "_diffusers_version", "_name_or_path", "_commit_hash", "_use_default_values")
# What a file may ask for before its weights are compared, and what AutoencoderRAE takes where it says nothing.
_WHOLE: dict[str, tuple[int, int, int]] = {
    "encoder_hidden_size": (1, 8192, 768), "encoder_patch_size": (1, 256, 14),
    "encoder_num_hidden_layers": (1, 128, 12), "encoder_input_size": (1, 4096, 224), "patch_size": (1, 256, 16),
    "decoder_hidden_size": (4, 8192, 512), "decoder_num_hidden_layers": (1, 128, 8),
    "decoder_num_attention_heads": (1, 256, 16), "decoder_intermediate_size": (1, 65536, 2048),
}  # fmt: skip
_STATISTICS = ("latents_mean", "latents_std")
_OTHERS = {"image_size": None, "num_channels": 3, "encoder_norm_mean": None, "encoder_norm_std": None,
           "noise_tau": 0.0, "reshape_to_2d": True, "use_encoder_loss": False, "scaling_factor": 1.0,
           "encoder_type": "dinov2", **dict.fromkeys(_STATISTICS)}  # fmt: skip
_MOST_TOKENS, _MOST_NUMBERS = 4096, 2**24


class LoadedRAE(NamedTuple):
    """What a folder holds.

    Attributes:
        parts: What draws.
        encoder: The encoder, as transformers has it; None where it lies outside.
        config: The settings of the folder, every one of them.
    """

    parts: RAEParts
    encoder: nn.Module | None
    config: dict[str, Any]


def find_rae(name: str | Path) -> Path:
    """Return the folder of an autoencoder: "mini-rae", a local directory, or a Hub id, which is fetched.

    Raises:
        DecoderError: There is no such decoder, or it cannot be fetched.
    """
    return fetch(name, WANTED)


def load_rae(folder: Path, dtype: torch.dtype, device: str | torch.device) -> LoadedRAE:
    """Load an autoencoder; what draws goes to a device, the encoder stays on the CPU.

    Stock diffusers warns of weights that it does not find, leaves them without values and goes on; here names and
    shapes are compared first, with the names that older versions of transformers gave to the parts of the encoder.

    Raises:
        DecoderError: The configuration is missing, broken, of another class, or of an encoder that is not known.
        CheckpointError: Weights are missing, truncated, extra or misshapen.
    """
    path = folder / "config.json"
    config = read_rae_config(path)
    with torch.device("meta"):
        whole = _Whole(config)
    whole.compute()
    wide = torch.promote_types(dtype, torch.float32)  # the encoder is compared and converted, not run
    load_weights(
        whole, folder, wide, "cpu", renamed=current_name, left_out=("decoder.decoder_pos_embed",),
        said=whole.statistics(config),
    )  # fmt: skip
    parts = RAEParts(
        whole.decoder, latents=(whole._latents_mean, whole._latents_std),
        pixels=(whole.encoder_mean, whole.encoder_std), scaling=config["scaling_factor"],
        flat=not config["reshape_to_2d"],
    )  # fmt: skip
    return LoadedRAE(parts.to(device, dtype).eval().requires_grad_(False), whole.encoder, config)


def read_rae_config(path: Path) -> dict[str, Any]:
    """Read the settings of an autoencoder, with the defaults of those that are not said.

    Raises:
        DecoderError: They are missing, not known, or beyond what any decoder has.
    """
    said = read_config(path)
    if said.get("_class_name") != "AutoencoderRAE":
        raise DecoderError(f"{path}: class {said.get('_class_name')!r}, expected 'AutoencoderRAE'")
    given = {name: value for name, value in said.items() if name not in _BOOKKEEPING}
    known = {**{name: default for name, (_, _, default) in _WHOLE.items()}, **_OTHERS}
    if unknown := [name for name in given if name not in known]:
        raise DecoderError(
            f"{path}: AutoencoderRAE has no setting {unknown[0]!r}; nearest: {nearest(unknown[0], known)}; take it out "
            "if it changes nothing"
        )
    config: dict[str, Any] = {**known, **given}
    known_type(config["encoder_type"], path)
    for name, (least, most, _) in _WHOLE.items():
        _check(path, name, config[name], _is_whole(config[name], least, most), f"a whole number, {least} to {most}")
    for name in ("encoder_norm_mean", "encoder_norm_std", *_STATISTICS):
        _check(path, name, config[name], config[name] is None or _is_numbers(config[name]), "null or finite numbers")
    for name in ("noise_tau", "scaling_factor"):
        fits = _is_number(config[name]) and (name == "noise_tau" or 1e-6 < abs(config[name]) < 1e6)
        _check(path, name, config[name], fits, "a finite number, for scaling_factor not 0")
    for name in ("reshape_to_2d", "use_encoder_loss"):
        _check(path, name, config[name], isinstance(config[name], bool), "true or false")
    _check_sizes(path, config)
    return config


def _check_sizes(path: Path, config: Mapping[str, Any]) -> None:
    side, patch = config["encoder_input_size"], config["encoder_patch_size"]
    _check(path, "encoder_input_size", side, side % patch == 0, f"a multiple of encoder_patch_size, {patch}")
    tokens, drawn = (side // patch) ** 2, side // patch * config["patch_size"]
    _check(path, "encoder_input_size", side, tokens <= _MOST_TOKENS, f"at most {_MOST_TOKENS} patches")
    _check(path, "image_size", config["image_size"], config["image_size"] in (None, drawn), f"{drawn}, or null")
    _check(path, "num_channels", config["num_channels"], config["num_channels"] == 3, "3")
    width, heads = config["decoder_hidden_size"], config["decoder_num_attention_heads"]
    _check(path, "decoder_hidden_size", width, width % heads == 0 and width % 4 == 0, "a multiple of 4 and the heads")
    for name in ("encoder_norm_mean", "encoder_norm_std"):
        fits = config[name] is None or len(tree_leaves(config[name])) == 3
        _check(path, name, config[name], fits, "three numbers")


def _check(path: Path, name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise DecoderError(f"{path}: {name} is {repr(value)[:80]}; expected {expected}; download it again")


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_numbers(value: Any) -> bool:
    leaves = tree_leaves(value) if isinstance(value, list) else []
    return 0 < len(leaves) <= _MOST_NUMBERS and all(map(_is_number, leaves))


class _Whole(nn.Module):
    """All that the weights of a folder are of, under the names that they have there."""

    _latents_mean: Tensor
    _latents_std: Tensor
    encoder_mean: Tensor
    encoder_std: Tensor

    def __init__(self, config: Mapping[str, Any]):
        try:
            from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
        except ImportError as error:
            raise DecoderError("the installed diffusers has no AutoencoderRAE; install diffusers 0.42") from error
        super().__init__()
        grid = config["encoder_input_size"] // config["encoder_patch_size"]
        self.encoder = None if config["encoder_type"] == OUTSIDE else build_encoder(config)
        self.decoder = RAEDecoder(
            hidden_size=config["encoder_hidden_size"], patch_size=config["patch_size"], num_patches=grid**2,
            image_size=config["patch_size"] * grid,
            **{name: config[name] for name in _WHOLE if name.startswith("decoder_")},
        )  # fmt: skip
        for name in ("mean", "std"):
            self.register_buffer(f"encoder_{name}", torch.empty(1, 3, 1, 1))
            said = config[f"latents_{name}"]
            try:
                shape = (1,) if said is None else tuple(torch.tensor(said, device="cpu").shape)
            except (TypeError, ValueError) as error:
                raise DecoderError(f"latents_{name} is no tensor ({error}); download it again") from error
            self.register_buffer(f"_latents_{name}", torch.empty(shape))

    def statistics(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the statistics that a config says: files of earlier versions of diffusers do not hold them."""
        found = {}
        for name, default, pixels in zip(("mean", "std"), (0.0, 1.0), IMAGENET, strict=True):
            said = config[f"latents_{name}"]
            found[f"_latents_{name}"] = torch.tensor([default] if said is None else said, dtype=torch.float32)
            own = torch.tensor(config[f"encoder_norm_{name}"] or pixels, dtype=torch.float32)
            found[f"encoder_{name}"] = own.view(1, 3, 1, 1)
        return found

    def compute(self) -> None:
        """Make on the CPU what no file holds: the positions of the decoder, as there, and the numbers of SigLIP's."""
        from diffusers.models.embeddings import get_2d_sincos_pos_embed

        width, grid = self.decoder.decoder_hidden_size, math.isqrt(self.decoder.num_patches)
        made: Any = get_2d_sincos_pos_embed(width, grid, cls_token=True, extra_tokens=1, output_type="pt")
        self.decoder.register_buffer("decoder_pos_embed", made[None].float(), persistent=False)
        for module in self.modules():
            if (numbers := dict(module.named_buffers(recurse=False)).get("position_ids")) is not None:
                count = torch.arange(numbers.shape[-1], device="cpu").expand(numbers.shape).clone()
                module.register_buffer("position_ids", count, persistent=False)
