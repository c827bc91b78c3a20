"""What draws each text-to-image format: its parts, what their configurations must say, and sizes."""

__all__ = [
    "DRAWN", "SCHEDULERS", "UPSCALER", "Drawn", "check_configs", "check_dtype", "check_encoders", "check_parts",
    "configs_of", "format_of", "stock", "text_parts", "widths",
]  # fmt: skip

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vit_lens.errors import ContractError, DecoderError, nearest
from vit_lens.text_formats import TEXT_FORMATS, Reading, TextFormat
from vit_lens.texts import ENCODER_KINDS

_Config = Mapping[str, Any]
# Samplers whose noise, if they add any, comes from the generators that they are handed.
_DIFFUSION = (
    "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
SCHEDULERS = {False: _DIFFUSION, True: ("FlowMatchEulerDiscreteScheduler",)}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What draws a format.

    Attributes:
        denoiser: The name of the part that denoises, and its class in diffusers.
        older: The class that older configurations of the denoiser name; None for no other.
        takes: From the denoiser's configuration to the width of each part of a condition.
        says: What the denoiser's configuration must say; ``in_channels`` counts the latent channels of the VAE.
        steps: The number of steps by default, as the pipeline has it.
        guidance: The strength of guidance by default, as the pipeline has it.
        latent_channels: From the VAE's channels to the denoiser's; None where there is no VAE, and pixels are denoised.
        vae: The class of the VAE in diffusers, and what its configuration calls its channels.
        factor: From the VAE's configuration to the pixels for each latent, along each side.
        schedulers: The samplers that the pipeline takes beside those of its kind (:data:`SCHEDULERS`).
        multiple: From the denoiser's configuration and the pixels for each latent to what sides must be multiples of.
        sample_size: The latents of a side by default; None where the denoiser's configuration says it.
        call: What else the pipeline is called with.
        guided_by: What the pipeline calls the strength of guidance.
        mask: What the pipeline calls the mask of a prompt's tokens.
        sequences: From the denoiser's configuration to the positions and widths of several sequences of tokens, which
            stand one behind the other in a condition; None where there is one.
    """

    denoiser: tuple[str, str]
    older: str | None = None
    takes: Callable[[_Config], dict[str, Any]]
    says: Mapping[str, Any] = field(default_factory=dict)
    steps: int
    guidance: float
    latent_channels: int | None = 1
    vae: tuple[str, str] = ("AutoencoderKL", "latent_channels")
    factor: Callable[[_Config], int] = lambda config: 2 ** (len(config["block_out_channels"]) - 1)
    schedulers: tuple[str, ...] = ()
    multiple: Callable[[_Config, int], int] = lambda config, factor: math.lcm(8, factor)
    sample_size: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    guided_by: str = "guidance_scale"
    mask: str = "prompt_attention_mask"
    sequences: Callable[[_Config], list[tuple[int, int]]] | None = None

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The trained parts by name, with the classes of diffusers that they may be of, the usual one first."""
        name, cls = self.denoiser
        return {name: (cls,)} | (
            {"vae": (self.vae[0], *_DISTILLED.get(self.vae[0], ()))} if self.latent_channels else {}
        )


_UNET = ("unet", "UNet2DConditionModel")
_DISTILLED = {"AutoencoderKL": ("AutoencoderTiny",)}  # such as TAESD, which takes and gives what it was distilled from
# Distillations that are told the guidance read no negative.
_PLAIN = {"encoder_hid_dim_type": None, "class_embed_type": None, "time_cond_proj_dim": None}
_IF_SAYS = {"encoder_hid_dim_type": "text_proj", "addition_embed_type": "text", "out_channels": 6}
DRAWN: dict[str, Drawn] = {
    "sd": Drawn(
        denoiser=_UNET, steps=50, guidance=7.5,
        takes=lambda config: {"tokens": config["cross_attention_dim"]},
        says={**_PLAIN, "addition_embed_type": None},
    ),
    "sdxl": Drawn(
        denoiser=_UNET, steps=50, guidance=5.0,
        takes=lambda config: {
            "tokens": config["cross_attention_dim"],
            # Six numbers of sizes and crops are embedded beside the pooled vector.
            "pooled": config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"],
        },
        says={**_PLAIN, "addition_embed_type": "text_time"},
    ),
    "if": Drawn(
        denoiser=_UNET, steps=100, guidance=7.0, latent_channels=None,
        takes=lambda config: {"tokens": config["encoder_hid_dim"]},
        says={**_IF_SAYS, "in_channels": 3, "class_embed_type": None},
        multiple=lambda config, factor: 2 ** (len(config["block_out_channels"]) - 1),
    ),
    "flux": Drawn(
        denoiser=("transformer", "FluxTransformer2DModel"), steps=28, guidance=3.5, latent_channels=4,
        takes=lambda config: {"tokens": config["joint_attention_dim"], "pooled": config["pooled_projection_dim"]},
        multiple=lambda config, factor: 2 * factor,
        sample_size=128,
    ),
    "sd3": Drawn(
        denoiser=("transformer", "SD3Transformer2DModel"), steps=28, guidance=7.0,
        takes=lambda config: {"tokens": config["joint_attention_dim"], "pooled": config["pooled_projection_dim"]},
        multiple=lambda config, factor: factor * config["patch_size"],
    ),
    "pixart": Drawn(
        denoiser=("transformer", "PixArtTransformer2DModel"), steps=20, guidance=4.5, older="Transformer2DModel",
        takes=lambda config: {"tokens": config["caption_channels"]},
        multiple=lambda config, factor: math.lcm(8, factor * config["patch_size"]),
        # A picture is drawn at the size that was asked for; the bins would draw another, and resize it.
        call={"negative_prompt": None, "use_resolution_binning": False},
    ),
    "hunyuandit": Drawn(
        denoiser=("transformer", "HunyuanDiT2DModel"), steps=50, guidance=5.0,
        takes=lambda config: {"tokens": max(config["cross_attention_dim"], config["cross_attention_dim_t5"])},
        multiple=lambda config, factor: math.lcm(16, factor * config["patch_size"]),
        call={"use_resolution_binning": False},
        sequences=lambda config: [
            (config["text_len"], config["cross_attention_dim"]),
            (config["text_len_t5"], config["cross_attention_dim_t5"]),
        ],
    ),
    "sana": Drawn(
        denoiser=("transformer", "SanaTransformer2DModel"), steps=20, guidance=4.5,
        takes=lambda config: {"tokens": config["caption_channels"]}, says={"guidance_embeds": False},
        vae=("AutoencoderDC", "latent_channels"),
        factor=lambda config: 2 ** (len(config["encoder_block_out_channels"]) - 1),
        schedulers=("DPMSolverMultistepScheduler",),
        multiple=lambda config, factor: math.lcm(32, factor * config["patch_size"]),
        call={"negative_prompt": None, "use_resolution_binning": False},
    ),
    "lumina2": Drawn(
        denoiser=("transformer", "Lumina2Transformer2DModel"), steps=30, guidance=4.0,
        takes=lambda config: {"tokens": config["cap_feat_dim"]},
        multiple=lambda config, factor: math.lcm(16, factor * config["patch_size"]),
    ),
    "qwenimage": Drawn(
        denoiser=("transformer", "QwenImageTransformer2DModel"), steps=50, guidance=4.0, latent_channels=4,
        takes=lambda config: {"tokens": config["joint_attention_dim"]}, says={"guidance_embeds": False},
        vae=("AutoencoderKLQwenImage", "z_dim"), factor=lambda config: 2 ** len(config["temperal_downsample"]),
        multiple=lambda config, factor: 2 * factor, sample_size=128,
        guided_by="true_cfg_scale", mask="prompt_embeds_mask",
    ),
    "flux2": Drawn(
        denoiser=("transformer", "Flux2Transformer2DModel"), steps=50, guidance=4.0, latent_channels=4,
        takes=lambda config: {"tokens": config["joint_attention_dim"]}, vae=("AutoencoderKLFlux2", "latent_channels"),
        multiple=lambda config, factor: 2 * factor, sample_size=128,
    ),
    "flux2klein": Drawn(
        denoiser=("transformer", "Flux2Transformer2DModel"), steps=50, guidance=4.0, latent_channels=4,
        takes=lambda config: {"tokens": config["joint_attention_dim"]}, says={"guidance_embeds": False},
        vae=("AutoencoderKLFlux2", "latent_channels"), multiple=lambda config, factor: 2 * factor, sample_size=128,
    ),
}  # fmt: skip
UPSCALER = Drawn(
    denoiser=_UNET, steps=50, guidance=4.0, latent_channels=None, takes=DRAWN["if"].takes,
    says={**_IF_SAYS, "in_channels": 6, "class_embed_type": "timestep"}, multiple=DRAWN["if"].multiple,
)  # fmt: skip
"""The second stage of "if", ``IFSuperResolutionPipeline``."""


def format_of(pipeline: Any) -> TextFormat:
    """Return the format of a pipeline in memory, known by its class; see :meth:`TextFormat.read_by` for its encoders.

    Raises:
        DecoderError: It is of none.
    """
    by_class = {one.pipeline: one for one in TEXT_FORMATS.values()}
    found = next((by_class[cls.__name__] for cls in type(pipeline).__mro__ if cls.__name__ in by_class), None)
    if found is None:
        kind = type(pipeline).__name__
        raise DecoderError(
            f"a {kind} is no text-to-image pipeline that is known here; nearest: {nearest(kind, by_class)} of diffusers"
        )
    return found


def stock(name: str, parts: Mapping[str, Any], **options: Any) -> Any:
    """Make a pipeline of diffusers from some of its parts; the others are None, and nothing checks its pictures."""
    import diffusers

    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    absent = {key: None for key, one in known.items() if key != "self" and one.default is inspect.Parameter.empty}
    quiet = {key: False for key in ("requires_safety_checker", "add_watermarker") if key in known}
    pipe = cls(**absent | quiet | options | dict(parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_parts(format: TextFormat) -> dict[str, str]:
    """Return the names of the tokenizers of a format, by those of its encoders."""
    return {one.encoder: one.encoder.replace("text_encoder", "tokenizer") for one in format.readings}


def check_parts(parts: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuse a pipeline that lacks something that is needed.

    Raises:
        DecoderError: With what is missing.
    """
    if missing := [name for name in names if parts.get(name) is None]:
        raise DecoderError(
            f"{where} has no {' and no '.join(missing)}, which is needed here; load the pipeline with {missing[0]}"
        )


def configs_of(parts: Mapping[str, Any]) -> dict[str, _Config]:
    """Return the configurations of parts in memory, of diffusers or of transformers."""
    return {name: getattr(one.config, "to_dict", lambda one=one: one.config)() for name, one in parts.items()}


def widths(drawn: Drawn, denoiser: _Config) -> dict[str, int]:
    """Return the width of each part of a condition that a denoiser takes.

    Raises:
        DecoderError: Its configuration does not say it.
    """
    try:
        found = drawn.takes(denoiser)
    except (KeyError, TypeError) as error:
        raise DecoderError(f"the {drawn.denoiser[0]} does not say how wide its conditions are ({error})") from error
    for name, width in found.items():
        if not isinstance(width, int) or width < 1:
            raise DecoderError(f"the {drawn.denoiser[0]} takes {name} of width {width!r}; expected one number")
    return found


def check_configs(drawn: Drawn, configs: Mapping[str, _Config], kind: str) -> dict[str, int]:
    """Refuse parts that are not those of a format; return the width of each part of a condition.

    Raises:
        DecoderError: With what is different.
    """
    name, denoiser = drawn.denoiser[0], configs[drawn.denoiser[0]]
    wanted = dict(drawn.says)
    if drawn.latent_channels:
        wanted["in_channels"] = drawn.latent_channels * configs["vae"][drawn.vae[1]]
    for key, value in wanted.items():
        if denoiser.get(key) != value:
            raise DecoderError(
                f"the {name} has {key}={denoiser.get(key)!r}, but that of a {kind} that draws text has {value!r}; "
                "inpainting, image-to-image and other pipelines are not supported"
            )
    return widths(drawn, denoiser)


_WIDE = {"t5": "T5", "gemma2": "Gemma 2"}


def check_dtype(one: Reading, dtype: torch.dtype) -> None:
    """Refuse a T5 or a Gemma in float16.

    Raises:
        DecoderError: It is one.
    """
    if one.kind in _WIDE and dtype == torch.float16:
        raise DecoderError(
            f"{one.encoder} is a {_WIDE[one.kind]} in float16, whose residuals go beyond what float16 holds and are "
            "cut there; take torch.bfloat16 or torch.float32 for the text encoders"
        )


def check_encoders(format: TextFormat, configs: Mapping[str, _Config], takes: Mapping[str, int]) -> None:
    """Refuse text encoders that a denoiser was not trained with, as far as kinds and widths say it.

    Args:
        format: What is read of them.
        configs: Of the encoders.
        takes: The widths that the denoiser takes.

    Raises:
        ContractError: An encoder is of another kind or width.
    """
    clips, others, pooled = 0, [0], 0
    for one in format.readings:
        config, kind = configs[one.encoder], ENCODER_KINDS[one.kind]
        if (said := config.get("model_type")) not in kind.model_types:
            raise ContractError(
                f"{one.encoder} of format {format.name} is a {said!r}, expected {kind.model_types[0]!r}: it belongs to "
                "another format"
            )
        width = kind.width(config)
        if one.kind == "clip":
            clips += 0 if one.below is None else width
        else:
            others.append(width * max(1, len(one.at)))
        pooled += config["projection_dim"] if one.pooled == "projected" else width if one.pooled else 0
    found = {"tokens": max(clips, *others)} | ({"pooled": pooled} if "pooled" in format.takes else {})
    for name, width in takes.items():
        if found[name] != width:
            encoders = " and ".join(one.encoder for one in format.readings)
            raise ContractError(
                f"{encoders} make {name} that are {found[name]} wide, but the denoiser of this {format.pipeline} takes "
                f"{width}: they were not trained together; take all parts from one repository"
            )
