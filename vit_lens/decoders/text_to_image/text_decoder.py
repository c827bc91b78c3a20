"""Pictures of text conditions: the stock pipelines of diffusers, with noise that is the same for every row."""

__all__ = ["TextDecoder"]

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.conditions import Condition
from vit_lens.decoders.by_name import reads_layout
from vit_lens.decoders.contract import Decoder
from vit_lens.decoders.known_weights import KnownWeights
from vit_lens.decoders.matching import EncoderRef, encoder_id_of
from vit_lens.decoders.memory import MAX_ROWS
from vit_lens.decoders.never_trained import never_trained
from vit_lens.decoders.numerics import stated_numerics
from vit_lens.decoders.passes import draw_in_passes
from vit_lens.decoders.settings import override
from vit_lens.decoders.text_to_image.drawing import DRAWN, UPSCALER, format_of, text_parts
from vit_lens.decoders.text_to_image.prompts import PromptEncoder
from vit_lens.decoders.text_to_image.stage import Stage
from vit_lens.decoders.text_to_image.text_settings import TextSettings, UpscaledSettings
from vit_lens.errors import ContractError, DecoderError
from vit_lens.models import HookedViT
from vit_lens.text_formats import TEXT_FORMATS, TextFormat

# The released code of Diffusion Lens draws four pictures of a layer at a time.
_LEGACY_ROWS = 4
_FULL_PIXELS = 512 * 512


@reads_layout(*(one.pipeline for one in TEXT_FORMATS.values()))
class TextDecoder(Decoder):
    """A text-to-image pipeline of diffusers that draws conditions: the stock pipeline, called with embeddings.

    The condition that a pipeline's own text encoders make of a prompt is drawn as the pipeline draws the prompt, to the
    last bit, for one number of rows. All noise, that of the steps and of a second stage included, comes from generators
    that are seeded alike for every row, on the CPU: what two rows differ in is their condition.

    Args:
        pipeline: A text-to-image pipeline in memory: Stable Diffusion 1 and 2, SDXL, DeepFloyd IF, FLUX.1, Stable
            Diffusion 3, PixArt-alpha, HunyuanDiT, Sana, Lumina 2, Qwen-Image, FLUX.2 [dev] or [klein]. Its text
            encoders may be None; what draws is set to evaluation mode. Safety checkers and watermarks are left out.
        upscaler: An ``IFSuperResolutionPipeline`` in memory that draws what "if" drew, larger; None for none.
        encoder: The encoder that it was made for, as a :class:`PromptEncoder`, a model or an id; None where it is not
            known, and not checked.
        decoder_id: The decoder's name in records; None makes one from the weights.

    Attributes:
        format: What the format reads of its text encoders.

    Raises:
        DecoderError: It is no such pipeline, or lacks a part, or one is of another kind.
        ContractError: Its text encoders are of another width than its denoiser takes.

    >>> vl.decoders.TextDecoder(decoder)
    Traceback (most recent call last):
    vit_lens.errors.DecoderError: a KandinskyDecoder is no text-to-image pipeline that is known here; nearest: ...
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        upscaler: Any = None,
        encoder: EncoderRef | None = None,
        decoder_id: str | None = None,
    ):
        self.format: TextFormat = format_of(pipeline)
        parts = dict(pipeline.components)
        self._first = Stage(self.format.pipeline, DRAWN[self.format.name], parts, self.format.flow)
        self.takes = self._first.takes
        self._second: Stage | None = None
        if upscaler is not None:
            self._second = self._upscaler(upscaler)
        self._is_distilled = bool(pipeline.config.get("is_distilled"))  # FLUX.2 [klein] says so of itself
        self._zeros = self.format.negative == "zeros" and pipeline.config.get("force_zeros_for_empty_prompt", True)
        self._empty: Condition | None = None
        if all(parts.get(name) is not None for pair in text_parts(self.format).items() for name in pair):
            text = PromptEncoder(pipeline)
            self._empty = None if self._zeros or self._is_distilled else text.negative()
        self._weights = KnownWeights()
        self.encoder_id: str | None = None if encoder is None else encoder_id_of(encoder)
        self.decoder_id: str = decoder_id or f"module@{self.fingerprint}"
        self.defaults: TextSettings = self._defaults()
        self.source: dict[str, Any] | None = None

    @classmethod
    @stated_numerics()
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        upscaler: str | Path | None = None,
        encoder: EncoderRef | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "TextDecoder":
        """Load what draws of a pipeline alone, without its text encoders (safetensors only).

        Args:
            name: A local directory that a pipeline was saved in, or a Hub id.
            upscaler: The same of a second stage for "if"; None for none.
            encoder: The encoder that it was made for, as a :class:`PromptEncoder`, a model or an id; None where it is
                not known, and not checked.
            dtype: The dtype of the weights.
            device: The device of the weights.

        Raises:
            DecoderError: There is no such pipeline, or something is wrong with its files.
            CheckpointError: Weights are missing, truncated, extra or misshapen.
            ContractError: The text encoders beside it are of another width than its denoiser takes.
        """
        from vit_lens.decoders.text_to_image.files import load_drawing, name_of

        pipeline, said = load_drawing(name, dtype, device)
        second = None if upscaler is None else load_drawing(upscaler, dtype, device)[0]
        decoder_id, is_local = name_of(name)
        if upscaler is not None:
            decoder_id += f"+{name_of(upscaler)[0]}"
        made = cls(pipeline, upscaler=second, encoder=encoder, decoder_id=decoder_id)
        if is_local:
            made.decoder_id += f"@{made.fingerprint}"
        made.defaults = override(made.defaults, {name: value for name, value in said.items() if name != "length"})
        made.source = {"name": str(name), "encoder": made.encoder_id, "dtype": dtype, "device": str(device)}
        return made

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that identify the weights to the last bit; changes through ``.data`` go unseen."""
        return self._weights.fingerprint(self._trained())

    def forget_fingerprint(self) -> None:
        """Hash the weights anew when they are next asked for; see :func:`vit_lens.identity.forget_fingerprints`."""
        self._weights.forget()

    @property
    def device(self) -> torch.device:
        """The device of the denoiser."""
        return self._first.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoiser, in which noise is drawn and latents are kept."""
        return self._first.denoiser.dtype

    @property
    def denoiser(self) -> Any:
        """The stock denoiser, of the first stage where there are two."""
        return self._first.denoiser

    def is_guided(self, settings: Any) -> bool:
        """Return whether each pass of the denoiser also has the rows of what guidance leads away from.

        Args:
            settings: The settings.
        """
        return self._guided(settings.guidance)

    def read(self, model: HookedViT, pixels: Float[Tensor, "batch channel height width"]) -> Condition:
        """Refuse: a condition is read of a text.

        Raises:
            ContractError: Always.
        """
        raise ContractError(
            f"decoder {self.decoder_id} draws what text encoders wrote, and no picture has such a condition; take "
            "PromptEncoder(...).encode(prompts)"
        )

    def negative(self, model: Any = None) -> Condition | None:
        """Return the condition of "" where it is known: the pipeline came with its text encoders.

        None where guidance needs nothing said: it leads away from zeros ("sdxl"), or the format has none ("flux").
        """
        return self._empty

    def check_settings(self, settings: Any) -> None:
        """Refuse settings that this decoder cannot run, before anything is drawn.

        Raises:
            DecoderError: A side is not a multiple of what the parts need, the scheduler cannot be run, or guidance
                would be ignored.
        """
        super().check_settings(settings)
        self._first.check_size(height=settings.height, width=settings.width)
        self._first.check_scheduler(settings.scheduler, settings.steps)
        if not self._guidable and settings.guidance:
            raise DecoderError(
                f"guidance {settings.guidance:g}: this denoiser was distilled without guidance, and would ignore it; "
                "take guidance=0"
            )
        if self._second is not None:
            sides = {name: getattr(settings, name) for name in ("upscaled_height", "upscaled_width")}
            self._second.check_size(**sides)
            self._second.check_scheduler(settings.scheduler, settings.upscale_steps)
            self._second.check_noise(settings.noise_level)

    def settings_words(self, settings: Any) -> str:
        """Say steps, guidance and sampler."""
        words = f"{settings.steps} steps, " + (
            f"guidance {settings.guidance:g}" if settings.guidance else "no guidance"
        )
        words += "" if settings.scheduler == "own" else f", {settings.scheduler}"
        if self._second is not None:
            words += f", then {settings.upscale_steps} steps, guidance {settings.upscale_guidance:g}, to "
            words += f"{settings.upscaled_height} x {settings.upscaled_width}"
        return words

    def work(self, settings: Any) -> float | int:
        """Return how many rows the denoisers compute for one picture: two in a step with guidance."""
        rows = settings.steps * (1 + self._guided(settings.guidance))
        if self._second is not None:
            rows += settings.upscale_steps * (1 + self._guided(settings.upscale_guidance))
        return rows

    def batch_size(self, settings: Any) -> int:
        """Return 16 rows a pass up to 512 x 512 pixels, and fewer of larger pictures."""
        pixels = settings.height * settings.width
        if self._second is not None:
            pixels = max(pixels, settings.upscaled_height * settings.upscaled_width)
        return max(1, min(MAX_ROWS, MAX_ROWS * _FULL_PIXELS // pixels))

    def identity(self) -> dict[str, Any]:
        """Return weights, dtype, the configurations of all parts, and what is unusual in how they are computed."""
        found = super().identity() | {"format": self.format.name} | self._first.identity()
        if self._second is not None:
            found["upscaler"] = self._second.identity()
        if never_trained(self._trained().values()):
            found["untrained"] = True
        if torch.get_float32_matmul_precision() != "highest":
            found["float32_matmul"] = torch.get_float32_matmul_precision()
        return found

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights of all parts that draw."""
        return {name: part.state_dict() for name, part in self._trained().items()}

    def check(self, condition: Condition | Tensor, encoder: EncoderRef | None = None) -> None:
        """Refuse conditions that this decoder was not made for.

        Args:
            condition: What is to be drawn.
            encoder: The encoder that it comes from, as a :class:`PromptEncoder`, a model or an id; None where that is
                not to be checked.

        Raises:
            ContractError: The condition comes from another encoder or is another format's, has other parts or another
                width, or holds values that are not finite.
        """
        given = getattr(encoder, "format", None)
        if isinstance(given, TextFormat) and given.name != self.format.name:  # of whichever kind the encoder is
            raise ContractError(
                f"decoder {self.decoder_id} draws format {self.format.name} ({self.format.words()}), but the "
                f"conditions are of format {given.name} ({given.words()}); take the PromptEncoder of the same pipeline"
            )
        super().check(condition, encoder)
        has_mask = isinstance(condition, Condition) and condition.mask is not None
        if has_mask != self.format.masked:
            told = "takes the mask of its tokens, and got none" if self.format.masked else "would ignore a mask"
            raise ContractError(
                f"decoder {self.decoder_id} {told}: in format {self.format.name} the denoiser "
                f"{'is told which positions count' if self.format.masked else 'reads all positions'}"
            )

    @stated_numerics()
    def decode(
        self,
        condition: Condition,
        *,
        negative: Condition | None = None,
        encoder: EncoderRef | None = None,
        settings: Any = None,
        batch_size: int | None = None,
        on_smaller: Callable[[int], object] | None = None,
        noise: Literal["shared", "legacy"] = "shared",
        progress: bool = False,
        output: Literal["uint8", "float"] = "uint8",
    ) -> UInt8[Tensor, "batch height width 3"] | Float[Tensor, "batch 3 height width"]:
        """Draw one picture for each row.

        Args:
            condition: What to draw.
            negative: One row that guidance leads away from, such as ``PromptEncoder.negative()``; None for that of "",
                where the pipeline came with its text encoders, and for zeros in "sdxl".
            encoder: The encoder that the conditions come from; None where it is not to be checked.
            settings: How to draw; None for the decoder's own :attr:`defaults`.
            batch_size: The rows per pass. Said explicitly, a shorter batch is padded to it, so that a row's bits do not
                depend on how many others there are; by default :meth:`batch_size`, unpadded. Where memory runs
                out, the pass and those after it run with half as many rows.
            on_smaller: A function called with the rows per pass from here on, each time that memory ran out.
            noise: "shared": every row gets the noise of the seed. "legacy": as in the released code of Diffusion Lens,
                one generator on the decoder's device is consumed pass after pass, each of ``batch_size`` rows (4 by
                default, its pictures of one layer): rows are the layers in the order in which they were visited.
            progress: Whether to show a bar of passes on the standard error stream.
            output: The form of the pictures: "uint8" on the CPU, or "float" in [-1, 1] on the decoder's device.

        Raises:
            ContractError: The conditions are not for this decoder, or the negative is missing or another format's.
            DecoderError: The settings cannot be run, or one row does not fit into memory.
        """
        settings = self.defaults if settings is None else settings
        self.check_settings(settings)
        self.check(condition, encoder)
        if batch_size is not None and (as_index(batch_size) or 0) < 1:
            raise DecoderError(f"batch_size must be at least 1, a whole number, got {batch_size!r}")
        if output not in ("uint8", "float") or noise not in ("shared", "legacy"):
            raise DecoderError(
                f"output is {output!r} and noise {noise!r}; expected 'uint8' or 'float', 'shared' or 'legacy'"
            )
        empty = self._away(condition, negative, settings)
        if noise == "legacy":
            size, single = batch_size or _LEGACY_ROWS, torch.Generator(self.device).manual_seed(settings.seed)
            if len(condition) % size:
                raise DecoderError(
                    f"{len(condition)} rows with noise='legacy', which draws {size} a pass: give as many rows of every "
                    "layer, and that number as batch_size"
                )
        else:
            size, single = batch_size or min(len(condition), self.batch_size(settings)), None

        def smaller(rows: int, said: str) -> int:
            fewer = self._smaller(rows, settings, said, single is not None)
            if on_smaller is not None:
                on_smaller(fewer)
            return fewer

        return draw_in_passes(
            condition.to(self.device), lambda rows: self._draw(rows, empty, settings, single), size, smaller=smaller,
            padded=batch_size is not None, output=output, progress=progress,
        )  # fmt: skip

    # ---- parts of a call

    def _draw(self, rows: Condition, empty: Condition | None, settings: Any, single: Any) -> Tensor:
        """Draw one pass; return pictures in [0, 1]."""
        generators = single or [torch.Generator("cpu").manual_seed(settings.seed) for _ in range(len(rows))]
        made = self._first.run(
            settings.scheduler,
            self._embeds(rows, empty, settings.guidance)
            | {
                "num_inference_steps": settings.steps, self._first.drawn.guided_by: settings.guidance,
                "generator": generators,
                "height": settings.height, "width": settings.width,
            },
        )  # fmt: skip
        if self._second is not None:
            made = self._second.run(
                settings.scheduler,
                self._embeds(rows, empty, settings.upscale_guidance)
                | {
                    "image": made, "noise_level": settings.noise_level, "generator": generators,
                    "num_inference_steps": settings.upscale_steps, "guidance_scale": settings.upscale_guidance,
                    "height": settings.upscaled_height, "width": settings.upscaled_width,
                },
            )  # fmt: skip
        # Pipelines that denoise pixels hand them over as they are, others in [0, 1].
        return (made / 2 + 0.5).clamp(0, 1).float() if self._first.drawn.latent_channels is None else made.float()

    def _embeds(self, rows: Condition, empty: Condition | None, guidance: float | int) -> dict[str, Any]:
        """Return the arguments of a pipeline that a condition is handed over in."""
        drawn, found = self._first.drawn, {}
        words = {"tokens": "prompt_embeds", "pooled": "pooled_prompt_embeds", "mask": drawn.mask}
        for name, part in rows.parts().items():
            kind = torch.int64 if name == "mask" else self.dtype
            found |= self._sequences(words[name], part.to(kind))
            if empty is not None and self._guided(guidance):
                away = empty.parts()[name].to(self.device, kind)
                found |= self._sequences(f"negative_{words[name]}", away.expand(len(rows), *away.shape[1:]))
        return found

    def _sequences(self, word: str, part: Tensor) -> dict[str, Tensor]:
        """Return the arguments that a part is handed over in: where there are several sequences, one for each."""
        drawn = self._first.drawn
        if drawn.sequences is None:
            return {word: part}
        sizes = drawn.sequences(self._first.denoiser.config)
        pieces = part.split([length for length, _ in sizes], dim=1)
        return {
            f"{word}_{number}" if number > 1 else word: piece if piece.ndim == 2 else piece[..., :width]
            for number, (piece, (_, width)) in enumerate(zip(pieces, sizes, strict=True), start=1)
        }

    def _away(self, condition: Condition, negative: Condition | None, settings: Any) -> Condition | None:
        """Return what guidance leads away from, checked; None where there is no guidance."""
        guidances = [settings.guidance] + ([settings.upscale_guidance] if self._second is not None else [])
        if self.format.negative is None and negative is not None:
            raise ContractError(f"format {self.format.name} has no negative, and would ignore it; pass negative=None")
        if not any(self._guided(one) for one in guidances):
            return None
        found = negative if negative is not None else self._empty
        if found is None and self._zeros:
            return condition[:1].map(torch.zeros_like)
        if found is None:
            raise ContractError(
                f"guidance {max(guidances):g} leads away from a negative, which a decoder without text encoders cannot "
                "make: pass negative=PromptEncoder(...).negative(), or take guidance=1"
            )
        try:
            self.check(found)
        except ContractError as error:
            raise ContractError(f"the negative: {error}") from None
        is_free = self.format.name == "qwenimage"  # which reads as many positions as a prompt has
        if len(found) != 1 or (found.shapes() != condition.shapes() and not is_free):
            raise ContractError(
                f"the negative is {found!r}; expected one row of {condition.words()}, as the condition has: take "
                "PromptEncoder(...).negative() of the same length"
            )
        return found

    def _smaller(self, rows: int, settings: Any, said: str, is_legacy: bool) -> int:
        if rows == 1 or is_legacy:
            advice = "legacy noise is drawn for all of them at once" if is_legacy else "take dtype=torch.bfloat16"
            raise DecoderError(
                f"{rows} row{'s' * (rows > 1)} of {settings.height} x {settings.width} do not fit into the memory of "
                f"{self.device} ({self.dtype}): {said}; {advice}, a smaller height and width, or free memory"
            )
        return rows // 2

    def _guided(self, guidance: float | int) -> bool:
        return self.format.negative is not None and not self._is_distilled and guidance > 1

    @property
    def _guidable(self) -> bool:
        if self.format.negative is None:
            return self._first.denoiser.config["guidance_embeds"]
        return not self._is_distilled

    def _trained(self) -> dict[str, Any]:
        second = {} if self._second is None else self._second.trained
        return self._first.trained | {f"upscaler.{name}": part for name, part in second.items()}

    def _upscaler(self, pipeline: Any) -> Stage:
        kind = type(pipeline).__name__
        if self.format.name != "if" or kind != "IFSuperResolutionPipeline":
            raise DecoderError(
                f"a {kind} draws nothing of what {self.format.pipeline} drew; expected an IFSuperResolutionPipeline "
                "after an IFPipeline"
            )
        stage = Stage(kind, UPSCALER, dict(pipeline.components), flow=False)
        if stage.takes != self.takes:
            raise ContractError(f"the second stage takes {stage.takes}, the first {self.takes}: of different encoders")
        return stage

    def _defaults(self) -> TextSettings:
        drawn, (height, width) = self._first.drawn, self._first.default_size
        own = TextSettings(steps=drawn.steps, guidance=drawn.guidance, height=height, width=width)
        if not self._guidable:  # FLUX.1 [schnell] and FLUX.2 [klein], distilled to few steps
            return override(own, {"steps": 4, "guidance": 0.0})
        if self._second is None:
            return own
        height, width = self._second.default_size
        return UpscaledSettings(**own.to_dict(), upscaled_height=height, upscaled_width=width)

    def __repr__(self) -> str:
        return f"TextDecoder({self.format.pipeline}, {self.decoder_id}, {self.dtype} on {self.device})"
