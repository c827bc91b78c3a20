"""SDXL with an image adapter (IP-Adapter): image embedding in, picture out, by the stock pipeline of diffusers."""

__all__ = ["IPAdapterDecoder"]

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.attribution import whole
from vit_lens.conditions import Condition
from vit_lens.decoders.by_name import reads_layout
from vit_lens.decoders.contract import Cost, Decoder
from vit_lens.decoders.edited_parts import edits
from vit_lens.decoders.ip_adapter_files import load_adapted
from vit_lens.decoders.ip_adapter_parts import adapted_width, adapter_cost, adapter_weights, put_adapter
from vit_lens.decoders.known_weights import KnownWeights
from vit_lens.decoders.matching import PUBLISHED, EncoderRef, agreed_encoder, encoder_id_of
from vit_lens.decoders.never_trained import never_trained
from vit_lens.decoders.numerics import stated_numerics
from vit_lens.decoders.passes import draw_in_passes
from vit_lens.decoders.settings import override
from vit_lens.decoders.text_to_image.drawing import DRAWN
from vit_lens.decoders.text_to_image.prompts import PromptEncoder
from vit_lens.decoders.text_to_image.stage import Stage
from vit_lens.decoders.text_to_image.text_settings import TextSettings
from vit_lens.errors import ContractError, DecoderError
from vit_lens.identity import MINI_IP, fingerprint
from vit_lens.models import HookedViT

_PIPELINE = "StableDiffusionXLPipeline"
_COARSE_SHARE, _LEAST_STEPS = 5, 3


@reads_layout(_PIPELINE, adapter=True)
class IPAdapterDecoder(Decoder):
    """Stable Diffusion XL with an image adapter: the stock pipeline, called with image embeddings and an empty prompt.

    A picture is that of ``load_ip_adapter`` and ``ip_adapter_image_embeds`` of diffusers, to the last bit. Several rows
    are drawn at a time, each from its own embedding, where the pipeline gives every prompt the embeddings of all: they
    equal pictures drawn alone to rounding. All noise comes from generators that are seeded alike for every row, on the
    CPU: what two rows differ in is their embedding. The adapter's projection ends in a LayerNorm, so that an
    embedding's length changes a picture little.

    Guidance leads away from an embedding of zeros, as the adapter was trained with and as the pipeline has it. Whether
    a black image's embedding is the better choice is a question that its authors left open: pass it as ``negative``.

    Args:
        pipeline: A ``StableDiffusionXLPipeline`` in memory, on which ``load_ip_adapter`` was called with one adapter
            that reads one embedding. What draws is set to evaluation mode.
        encoder: The encoder whose embeddings the adapter reads, as a model or id; None where it is not known, and not
            checked.
        text: What the pipeline is told in words: "empty", the prompt "", for which it needs its text encoders, or
            "zeros" in place of every text embedding, where it was trained so.
        decoder_id: The decoder's name in records; None makes one from the weights.

    Raises:
        DecoderError: It is no such pipeline, or lacks a part or the adapter, or one is of another kind.
        ContractError: Its text encoders are of another width than its denoiser takes.

    >>> second = vl.load_decoder("mini-ip")
    >>> second.takes, second.encoder_id
    ({'pooled': 128}, 'vit_lens/mini')
    >>> second.decode(model(pixels), settings=second.settings(steps=2, guidance=1.0)).shape
    torch.Size([2, 64, 64, 3])
    >>> vl.decoders.IPAdapterDecoder(decoder, encoder=None)
    Traceback (most recent call last):
    vit_lens.errors.DecoderError: a KandinskyDecoder is no StableDiffusionXLPipeline of diffusers
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        encoder: EncoderRef | None,
        text: Literal["empty", "zeros"] = "empty",
        decoder_id: str | None = None,
    ):
        if _PIPELINE not in (cls.__name__ for cls in type(pipeline).__mro__):
            raise DecoderError(f"a {type(pipeline).__name__} is no {_PIPELINE} of diffusers")
        if text not in ("empty", "zeros"):
            raise DecoderError(f"text is {text!r}; expected 'empty' or 'zeros'")
        self._stage = Stage(_PIPELINE, DRAWN["sdxl"], dict(pipeline.components), flow=False)
        self.d_embed: int = adapted_width(self._unet)
        self.takes = {"pooled": self.d_embed}
        self.text = text
        self._said, self._unsaid = self._words(pipeline)
        self._weights = KnownWeights()
        self.encoder_id: str | None = None if encoder is None else encoder_id_of(encoder)
        self.decoder_id: str = decoder_id or f"module@{self.fingerprint}"
        height, width = self._stage.default_size
        drawn = self._stage.drawn
        self.defaults: TextSettings = TextSettings(
            steps=drawn.steps, guidance=drawn.guidance, height=height, width=width
        )
        self._costs: dict[tuple[Any, ...], Cost] = {}
        self.source: dict[str, Any] | None = None

    @classmethod
    @stated_numerics()
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        encoder: EncoderRef | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "IPAdapterDecoder":
        """Load a pipeline and its adapter (safetensors only); text encoders are loaded, asked for "", and let go.

        Args:
            name: "mini-ip"; a pipeline's local directory or Hub id, a ``+``, and the adapter's file, local or as a Hub
                id with the file in it; or a local directory whose card ``vit_lens.json`` names the adapter's file.
            encoder: The encoder whose embeddings the adapter reads, as a model or id, where neither the card nor the
                table of published adapters says it.
            dtype: The dtype of the weights.
            device: The device of the weights.

        Raises:
            ContractError: No encoder is known, or the given one is not the adapter's; or text encoders are of another
                width than the denoiser takes.
            CheckpointError: Weights are missing, truncated, extra or misshapen.
            DecoderError: Anything else is wrong with the files.
        """
        pipeline, adapter, card = load_adapted(name, dtype, device)
        is_local = name != "mini-ip" and any(Path(one).expanduser().exists() for one in str(name).split("+"))
        decoder_id = MINI_IP if name == "mini-ip" else _id_of(str(name))
        encoder_id = agreed_encoder(decoder_id, card.encoder_id or PUBLISHED.get(adapter), encoder)
        made = cls(pipeline, encoder=encoder_id, text=card.text, decoder_id=decoder_id)
        if card.embed_dim not in (None, made.d_embed):
            raise ContractError(f"{name}: the card says embed_dim {card.embed_dim}, the adapter reads {made.d_embed}")
        if is_local:
            made.decoder_id += f"@{made.fingerprint}"
        said = {key: getattr(card, key) for key in ("steps", "guidance", "height", "width")}
        made.defaults = override(made.defaults, {key: value for key, value in said.items() if value is not None})
        made.source = {"name": str(name), "encoder": encoder_id, "dtype": dtype, "device": str(device)}
        return made

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that identify the weights to the last bit; changes through ``.data`` go unseen."""
        return self._weights.fingerprint(self._stage.trained)

    def forget_fingerprint(self) -> None:
        """Hash the weights anew when they are next asked for; see :func:`vit_lens.identity.forget_fingerprints`."""
        self._weights.forget()

    @property
    def device(self) -> torch.device:
        """The device of the UNet."""
        return self._unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet, in which noise is drawn and latents are kept."""
        return self._unet.dtype

    def negative(self, model: HookedViT | None = None) -> Condition:
        """Return the embedding of zeros that guidance leads away from."""
        return Condition(pooled=torch.zeros(1, self.d_embed))

    def check_settings(self, settings: TextSettings) -> None:
        """Refuse settings that this decoder cannot run, before anything is drawn.

        Raises:
            DecoderError: A side is not a multiple of what the parts need, or the scheduler cannot be run.
        """
        super().check_settings(settings)
        self._stage.check_size(height=settings.height, width=settings.width)
        self._stage.check_scheduler(settings.scheduler, settings.steps)

    def settings_words(self, settings: TextSettings) -> str:
        """Say steps, guidance and sampler."""
        super().check_settings(settings)
        guidance = f"guidance {settings.guidance:g}" if settings.guidance > 1 else "no guidance"
        sampler = "" if settings.scheduler == "own" else f", {settings.scheduler}"
        return f"{settings.steps} steps, {guidance}{sampler}"

    def coarse(self, settings: TextSettings) -> TextSettings | None:
        """Return a fifth of the steps, at least 3 of them, without guidance; None if that saves nothing."""
        super().check_settings(settings)
        steps = min(settings.steps, max(_LEAST_STEPS, round(settings.steps / _COARSE_SHARE)))
        coarse = override(settings, {"steps": steps, "guidance": 1.0})
        return coarse if self.work(coarse) < self.work(settings) else None

    def work(self, settings: TextSettings) -> float | int:
        """Return how many rows the UNet computes for one picture: two in a step with guidance."""
        return settings.steps * (1 + (settings.guidance > 1))

    @stated_numerics()
    def cost(self, settings: TextSettings, rows: int) -> Cost:
        """Count what one pass costs, on the meta device; the few operations of the sampler are left out.

        Raises:
            DecoderError: The settings' size does not fit, or rows are no whole number, at least 1.
        """
        self.check_settings(settings)
        rows = whole("rows", rows, DecoderError)
        key = (self.dtype, settings.height, settings.width, settings.steps, settings.guidance > 1, rows)
        if key not in self._costs:
            factor = self._stage.factor
            latent = (self._unet.config["in_channels"], settings.height // factor, settings.width // factor)
            self._costs[key] = adapter_cost(
                self._unet, self._stage.trained["vae"], latent, n_tokens=self._said.shapes()["tokens"][0],
                d_embed=self.d_embed, steps=settings.steps, guided=settings.guidance > 1, n=rows,
            )  # fmt: skip
        return self._costs[key]

    def identity(self) -> dict[str, Any]:
        """Return weights, dtype, what the pipeline is told in words, and the configurations of all parts."""
        found: dict[str, Any] = super().identity() | {"text": self.text, "text_embeds": fingerprint(self._said.parts())}
        found |= self._stage.identity()
        found["unet"].pop("edited", None)  # compared below with a UNet that has an adapter
        weights = {name: value.to("meta") for name, value in adapter_weights(self._unet).items()}
        if changed := edits(self._unet, lambda built: put_adapter(built, weights)):
            found["unet"]["edited"] = changed
        if never_trained(self._stage.trained.values()):
            found["untrained"] = True
        if torch.get_float32_matmul_precision() != "highest":
            found["float32_matmul"] = torch.get_float32_matmul_precision()
        return found

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights of UNet, with its adapter, and VAE."""
        return {name: part.state_dict() for name, part in self._stage.trained.items()}

    @stated_numerics()
    def decode(
        self,
        condition: Condition | Tensor,
        *,
        negative: Condition | Tensor | None = None,
        encoder: EncoderRef | None = None,
        settings: TextSettings | None = None,
        batch_size: int | None = None,
        on_smaller: Callable[[int], object] | None = None,
        progress: bool = False,
        output: Literal["uint8", "float"] = "uint8",
    ) -> UInt8[Tensor, "batch height width 3"] | Float[Tensor, "batch 3 height width"]:
        """Draw one picture per embedding.

        Args:
            condition: What to draw: a pooled condition, or a tensor [batch d_embed] of raw image embeddings, not
                normalised.
            negative: One row that guidance leads away from; None for zeros.
            encoder: The encoder that the embeddings come from, as a model or an id; None where it is not to be checked.
            settings: How to draw; None for the decoder's own :attr:`defaults`.
            batch_size: The rows per pass. Said explicitly, a shorter batch is padded to it, so that a row's bits do not
                depend on how many others there are; by default :meth:`batch_size_for`, unpadded. Where memory
                runs out, the pass and those after it run with half as many rows.
            on_smaller: A function called with the rows per pass from here on, each time that memory ran out.
            progress: Whether to show a bar of rows on the standard error stream.
            output: The form of the pictures: "uint8" on the CPU, or "float" in [-1, 1] on the decoder's device.

        Raises:
            ContractError: The embeddings are not for this decoder, or the negative is none.
            DecoderError: The settings cannot be run, or one row does not fit into memory.
        """
        settings = self.defaults if settings is None else settings
        self.check_settings(settings)
        self.check(condition, encoder)
        empty = self._away(negative)
        if batch_size is not None and (as_index(batch_size) or 0) < 1:
            raise DecoderError(f"batch_size must be at least 1, a whole number, got {batch_size!r}")
        if output not in ("uint8", "float"):
            raise DecoderError(f"output must be 'uint8' or 'float', got {output!r}")

        def smaller(rows: int, said: str) -> int:
            if rows == 1:
                raise DecoderError(
                    f"one picture of {settings.height} x {settings.width} does not fit into the memory of "
                    f"{self.device} ({self.dtype}): {said}; take a smaller height and width, guidance=1, "
                    "dtype=torch.bfloat16 or another device, or free memory"
                )
            if on_smaller is not None:
                on_smaller(rows // 2)
            return rows // 2

        rows = Condition.of(condition).to(self.device)
        size = batch_size or min(len(rows), self.batch_size_for(settings))
        return draw_in_passes(
            rows, lambda given: self._draw(given.flat, empty, settings), size, smaller=smaller,
            padded=batch_size is not None, output=output, progress=progress,
        )  # fmt: skip

    # ---- parts of a call

    @property
    def _unet(self) -> Any:
        return self._stage.denoiser

    @stated_numerics()
    def _words(self, pipeline: Any) -> tuple[Condition, Condition]:
        """Return what the pipeline is told in words, and what guidance leads away from of it; one row each."""
        if self.text == "zeros":
            widths = self._stage.takes
            said = Condition(tokens=torch.zeros(1, 1, widths["tokens"]), pooled=torch.zeros(1, widths["pooled"]))
            return said, said
        encoder = PromptEncoder(pipeline)
        unsaid = encoder.negative()
        if unsaid is None:
            raise DecoderError(f"a {_PIPELINE} that has no negative cannot be guided")
        return encoder.encode([""]), unsaid

    def _away(self, negative: Condition | Tensor | None) -> Tensor:
        """Return what guidance leads away from, checked."""
        given = self.negative() if negative is None else negative
        try:
            self.check(given)
        except ContractError as error:
            raise ContractError(str(error).replace("embeds ", "negative ", 1)) from None
        found = Condition.of(given).flat
        if len(found) != 1:
            raise ContractError(f"the negative is one row, got {len(found)}")
        return found

    def _draw(self, embeds: Tensor, empty: Tensor, settings: TextSettings) -> Tensor:
        """Draw one pass; return pictures in [0, 1]."""
        n, guided = len(embeds), settings.guidance > 1
        embeds = embeds.to(self.dtype)
        words = {"prompt_embeds": self._said.tokens, "pooled_prompt_embeds": self._said.pooled}
        if guided:
            embeds = torch.cat([empty.to(embeds).expand(n, -1), embeds])
            words |= {
                "negative_prompt_embeds": self._unsaid.tokens,
                "negative_pooled_prompt_embeds": self._unsaid.pooled,
            }
        told = {key: _rows(part, n).to(self.device, self.dtype) for key, part in words.items() if part is not None}
        generators = [torch.Generator("cpu").manual_seed(settings.seed) for _ in range(n)]
        made = self._stage.run(
            settings.scheduler,
            told
            | {
                "ip_adapter_image_embeds": [embeds[:, None]], "num_inference_steps": settings.steps,
                "guidance_scale": settings.guidance, "generator": generators,
                "height": settings.height, "width": settings.width,
            },
            prepare_ip_adapter_image_embeds=_row_by_row,
        )  # fmt: skip
        return made.float()

    def __repr__(self) -> str:
        return f"IPAdapterDecoder({self.decoder_id}, {self.dtype} on {self.device})"


def _row_by_row(image: None, embeds: list[Tensor], *_: Any) -> list[Tensor]:
    """Hand embeddings over as they are: the pipeline's own method gives every row those of all rows."""
    return embeds


def _rows(part: Tensor, n: int) -> Tensor:
    return part.expand(n, *part.shape[1:])


def _id_of(name: str) -> str:
    """Return what records call a pipeline with an adapter."""
    parts = [name] if Path(name).expanduser().is_dir() else name.rsplit("+", 1)
    known = [Path(one).expanduser() for one in parts]
    return "+".join(
        f"local/{path.resolve().name}" if path.exists() else f"hf/{one}" for one, path in zip(parts, known, strict=True)
    )
