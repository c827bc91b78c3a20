"""Kandinsky 2.2 without its prior: image embedding in, picture out."""

__all__ = ["KandinskyDecoder"]

import json
from collections.abc import Callable, Mapping
from functools import partial
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
from vit_lens.decoders.costs import decoding_cost
from vit_lens.decoders.decode_call import Passes, Run
from vit_lens.decoders.edited_parts import edits
from vit_lens.decoders.kandinsky_files import default_settings, find_decoder, load_sampler, load_trained, read_card
from vit_lens.decoders.kandinsky_parts import PixelLayout, check_parts
from vit_lens.decoders.known_weights import KnownWeights
from vit_lens.decoders.matching import PUBLISHED, EncoderRef, agreed_encoder, check_scale, encoder_id_of
from vit_lens.decoders.memory import MovqChunk
from vit_lens.decoders.numerics import stated_numerics
from vit_lens.decoders.part_files import usable
from vit_lens.decoders.settings import FAST, DecodeSettings, override
from vit_lens.errors import ContractError, DecoderError
from vit_lens.identity import MINI_ENCODER
from vit_lens.models import HookedViT
from vit_lens.towers import check_model

_COARSE_SHARE, _LEAST_STEPS = 5, 3


@reads_layout("KandinskyV22Pipeline")
class KandinskyDecoder(Decoder):
    """The decoder of Kandinsky 2.2 on diffusers' own UNet, MoVQ and schedulers, with a sampling loop of ours.

    For one embedding and one seed it equals ``KandinskyV22Pipeline``. In a batch, every row gets the noise
    that a batch of one gets, so a picture depends on its embedding and not on its place. Latents stay in
    float32 where the UNet is in half precision. The variance that the UNet predicts (its last 4 of 8
    channels) is discarded, as there.

    Args:
        unet: ``UNet2DConditionModel`` conditioned on image embeddings; set to evaluation mode.
        movq: ``VQModel``; set to evaluation mode.
        scheduler: The diffusers scheduler that the UNet was trained with, for its betas, clamp and prediction
            type.
        encoder: The encoder that it was made for, as a model or id; None where it is not known, and not checked.
        decoder_id: The decoder's name in records; None makes one from the weights.
        defaults: The settings of a plain :meth:`decode`; None takes those of Kandinsky 2.2 at the UNet's own
            size.

    Raises:
        DecoderError: The parts are not those of such a decoder.

    >>> decoder.defaults.steps, decoder.takes
    (10, {'pooled': 128})
    >>> decoder.decode(model(pixels), negative=None, settings=decoder.settings(steps=2, guidance=1.0)).shape
    torch.Size([2, 64, 64, 3])
    >>> decoder.decode(torch.zeros(2, 768), negative=None)
    Traceback (most recent call last):
    vit_lens.errors.ContractError: embeds are 768 wide, but the decoder takes 128: another encoder?
    """

    def __init__(
        self,
        unet: Any,
        movq: Any,
        scheduler: Any,
        *,
        encoder: EncoderRef | None,
        decoder_id: str | None = None,
        defaults: DecodeSettings | None = None,
    ):
        check_parts(unet, movq, scheduler)
        self.unet, self.movq, self.scheduler = unet.eval(), movq.eval(), scheduler
        self._weights = KnownWeights()
        self.encoder_id: str | None = None if encoder is None else encoder_id_of(encoder)
        self.decoder_id: str = decoder_id or f"module@{self.fingerprint}"
        self.d_embed: int = unet.config.encoder_hid_dim
        self.takes = {"pooled": self.d_embed}
        self.layout = PixelLayout.of(unet, movq)
        self.defaults: DecodeSettings = defaults or default_settings(self.layout, None)
        self._compiled: tuple[Any, Any] | None = None
        self._movq_chunk = MovqChunk()
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
    ) -> "KandinskyDecoder":
        """Load a decoder in the published layout (unet/, movq/, scheduler/; safetensors only).

        Args:
            name: "mini", a local directory, or a Hub id.
            encoder: The encoder it was made for, as a model or id; needed where neither the table of
                published decoders nor a card ``vit_lens.json`` beside the weights says it.
            dtype: The dtype of UNet and MoVQ.
            device: The device of UNet and MoVQ.

        Raises:
            ContractError: No encoder is known, or the given one is not the decoder's.
            CheckpointError: Weights are missing, truncated, extra or misshapen.
            DecoderError: Anything else is wrong with the files.
        """
        usable(dtype, device)
        directory, is_local = find_decoder(name), Path(name).expanduser().is_dir()
        scheduler = load_sampler(directory)
        decoder_id = (
            MINI_ENCODER if name == "mini" else f"local/{directory.resolve().name}" if is_local else f"hf/{name}"
        )
        known = None if is_local else PUBLISHED.get(str(name))
        card = None if known else read_card(directory)
        encoder_id = agreed_encoder(decoder_id, card.encoder_id if card else known, encoder)
        unet, movq = load_trained(directory, dtype, device)
        check_parts(unet, movq, scheduler)
        if card and card.embed_dim not in (None, unet.config.encoder_hid_dim):
            raise ContractError(
                f"{directory}: the card says embed_dim {card.embed_dim}, the UNet takes {unet.config.encoder_hid_dim}"
            )
        defaults = default_settings(PixelLayout.of(unet, movq), card)
        decoder = cls(unet, movq, scheduler, encoder=encoder_id, decoder_id=decoder_id, defaults=defaults)
        if decoder_id.startswith("local/"):
            decoder.decoder_id += f"@{decoder.fingerprint}"
        decoder.source = {"name": str(name), "encoder": encoder_id, "dtype": dtype, "device": str(device)}
        return decoder

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that identify the weights to the last bit; changes through ``.data`` go unseen."""
        return self._weights.fingerprint({"unet": self.unet, "movq": self.movq})

    def forget_fingerprint(self) -> None:
        """Hash the weights anew when they are next asked for; see :func:`vit_lens.identity.forget_fingerprints`."""
        self._weights.forget()

    @property
    def device(self) -> torch.device:
        """The device of the UNet."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet; latents are never below float32."""
        return self.unet.dtype

    @property
    def compiled(self) -> bool:
        """Whether :meth:`compile` was called: pictures equal those of the uncompiled decoder to rounding alone."""
        return self._compiled is not None

    def fast_settings(self, **overrides: Any) -> DecodeSettings:
        """Return settings that need a twelfth of the UNet evaluations of the pipeline's own defaults.

        Twelve steps of DPM-Solver++, guided where the noise is neither high nor low; guidance, size and clamp stay the
        decoder's. The price is small on the embedded pair, whose pictures are re-encoded and compared with the
        embedding asked for, at guidance 4: cosine .9931 for 26 images and .484 for 24 sites, where 100 DDPM steps have
        .9933 and .461 (differences -.0002 and +.023, standard errors .0009 and .016). Other decoders were not measured;
        ``benchmarks/bench_decode.py`` states gain and price together.

        Args:
            **overrides: Settings to take instead, by name.

        Raises:
            DecoderError: A name is not a setting, or a value is out of its range.
        """
        return override(self.defaults, FAST | overrides)

    @stated_numerics()
    def check_settings(self, settings: DecodeSettings) -> None:
        """Refuse settings that this decoder cannot run, before anything is drawn.

        Raises:
            DecoderError: The size is not a multiple of the decoder's own, or the scheduler cannot be run so.
        """
        super().check_settings(settings)
        self._run(settings)

    def settings_words(self, settings: DecodeSettings) -> str:
        """Say steps and guidance."""
        super().check_settings(settings)
        guidance = f"guidance {settings.guidance:g}" if settings.guidance > 1 else "no guidance"
        return f"{settings.steps} steps, {guidance}"

    def coarse(self, settings: DecodeSettings) -> DecodeSettings | None:
        """Return a fifth of the steps, at least 3 of them, without guidance; None if that saves nothing."""
        super().check_settings(settings)
        steps = min(settings.steps, max(_LEAST_STEPS, round(settings.steps / _COARSE_SHARE)))
        coarse = override(settings, {"steps": steps, "guidance": 1.0, "guidance_interval": None})
        return coarse if self.work(coarse) < self.work(settings) else None

    def work(self, settings: DecodeSettings) -> float | int:
        """Return how many rows the UNet computes for one picture: two in a step with guidance."""
        super().check_settings(settings)
        return settings.steps + sum(settings.guided_steps)

    def negative(self, model: HookedViT) -> Condition:
        """Return the encoder's embedding of an all-zero pixel tensor, as the published pipeline has it.

        Raises:
            DecoderError: It is no model.
        """
        check_model(model, DecoderError)
        return Condition(pooled=model.zero_embedding())

    def identity(self) -> dict[str, Any]:
        """Return weights, dtypes, the configurations of all parts, and what is unusual in how they are computed.

        That is what differs from the configurations, such as the ``eps`` of a norm, and which of the scheduler's values
        are defaults of its class, in whose place another sampler takes its own.
        """
        found: dict[str, Any] = super().identity() | {"scheduler": {"class": type(self.scheduler).__name__}}
        for name in ("unet", "movq", "scheduler"):
            config = {key: value for key, value in sorted(getattr(self, name).config.items()) if key[0] != "_"}
            found[name] = found.get(name, {}) | {"config": json.loads(json.dumps(config, default=str))}
        for name in ("unet", "movq"):
            if changed := edits(getattr(self, name)):
                found[name]["edited"] = changed
        if defaults := sorted(self.scheduler.config.get("_use_default_values", ())):
            found["scheduler"]["defaults"] = defaults
        if self.movq.dtype != self.dtype:
            found["movq"]["dtype"] = str(self.movq.dtype).removeprefix("torch.")
        if torch.get_float32_matmul_precision() != "highest":
            found["float32_matmul"] = torch.get_float32_matmul_precision()
        return found | ({"compiled": True} if self.compiled else {})

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights of UNet and MoVQ."""
        return {name: getattr(self, name).state_dict() for name in ("unet", "movq")}

    @stated_numerics()
    def decode(
        self,
        condition: Condition | Tensor,
        *,
        negative: Condition | Tensor | None,
        encoder: EncoderRef | None = None,
        settings: DecodeSettings | None = None,
        batch_size: int | None = None,
        on_smaller: Callable[[int], object] | None = None,
        progress: bool = False,
        output: Literal["uint8", "float"] = "uint8",
    ) -> UInt8[Tensor, "batch height width 3"] | Float[Tensor, "batch 3 height width"]:
        """Decode one picture per embedding.

        Args:
            condition: What to draw: a pooled condition, or a tensor [batch d_embed] of raw image embeddings, not
                normalised.
            negative: The encoder's embedding of an all-zero pixel tensor (``encoder.zero_embedding()``);
                needed where guidance is above 1.
            encoder: The encoder that the embeddings come from, as a model or an id; None where it is not to be checked.
            settings: How to draw; None for the decoder's own :attr:`defaults`.
            batch_size: The rows per pass. Said explicitly, a shorter batch is padded to it, so that a row's bits
                do not depend on how many others there are; by default :meth:`batch_size_for`, unpadded.
                Where memory runs out, the pass and those after it run with half as many rows.
            on_smaller: A function called with the rows per pass from here on, each time that memory ran out; the same
                number again where it sufficed to let MoVQ turn fewer latents at a time into pictures.
            progress: Whether to show a bar on the standard error stream.
            output: The form of the pictures: "uint8" on the CPU, or "float" in [-1, 1] on the decoder's device.

        Raises:
            ContractError: The embeddings are not for this decoder, or the negative is missing.
            DecoderError: The settings cannot be run, or one row does not fit into memory.
        """
        settings = self.defaults if settings is None else settings
        super().check_settings(settings)
        self.check(condition, encoder)
        embeds, empty = Condition.of(condition).flat, None
        if negative is not None:
            try:
                self.check(negative)
            except ContractError as error:
                raise ContractError(str(error).replace("embeds ", "negative ", 1)) from None
            empty = Condition.of(negative).flat
            if len(empty) != 1:
                raise ContractError(f"the negative is one row, got {len(empty)}: take encoder.zero_embedding()")
            check_scale(embeds, empty.to(embeds.device))
        if any(settings.guided_steps) and empty is None:
            raise ContractError(
                f"guidance {settings.guidance} needs a negative, which the decoder cannot make: pass "
                "negative=encoder.zero_embedding(), or take guidance=1"
            )
        if batch_size is not None and (as_index(batch_size) or 0) < 1:
            raise DecoderError(f"batch_size must be at least 1, a whole number, got {batch_size!r}")
        if str(output) not in ("uint8", "float"):
            raise DecoderError(f"output must be 'uint8' or 'float', got {output!r}")
        size = batch_size or min(len(embeds), self.batch_size_for(settings))
        padded = batch_size is not None or self._compiled is not None
        passes = Passes(self._run(settings), self._movq_chunk, padded, on_smaller)
        return passes.decode(embeds, empty, output, size=size, progress=progress)

    @stated_numerics()
    def cost(self, settings: DecodeSettings, rows: int) -> Cost:
        """Count what one pass costs; see :func:`vit_lens.decoders.costs.decoding_cost`.

        Raises:
            DecoderError: The settings' size does not fit, or rows are no whole number, at least 1.
        """
        super().check_settings(settings)
        rows = whole("rows", rows, DecoderError)
        # The seed changes nothing of it.
        key = (self.dtype, settings.height, settings.width, settings.guided_steps, rows)
        if key not in self._costs:
            self._costs[key] = decoding_cost(self, settings, rows)
        return self._costs[key]

    def compile(self, *, backend: str = "inductor") -> "KandinskyDecoder":
        """Let ``torch.compile`` make the UNet's and MoVQ's calls faster, in place; return the decoder itself.

        The first pass of each shape compiles, which takes minutes at full size. From then on every pass of a call is
        padded to one number of rows; say ``batch_size``, and it is one number over all calls. Pictures equal those of
        the uncompiled decoder to rounding.

        Args:
            backend: The backend of ``torch.compile``.
        """
        compiled = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
        self._compiled = compiled(self.unet), compiled(self.movq.decoder)
        return self

    def _run(self, settings: DecodeSettings) -> Run:
        unet, movq_decoder = self._compiled or (self.unet, None)
        return Run(unet, self.movq, self.scheduler, settings, movq_decoder=movq_decoder)
