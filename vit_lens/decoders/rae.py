"""Representation autoencoders (Zheng et al. 2025, arXiv 2510.11690): patch tokens in, picture out, in one pass."""

__all__ = ["PatchSettings", "RAEDecoder"]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.attribution import whole
from vit_lens.conditions import Condition
from vit_lens.decoders.by_name import reads_layout
from vit_lens.decoders.contract import Cost, Decoder
from vit_lens.decoders.costs import count_call
from vit_lens.decoders.kandinsky_files import read_card
from vit_lens.decoders.known_weights import KnownWeights
from vit_lens.decoders.matching import EncoderRef, agreed_encoder, check_encoder, encoder_id_of
from vit_lens.decoders.numerics import stated_numerics
from vit_lens.decoders.part_files import usable
from vit_lens.decoders.passes import draw_in_passes
from vit_lens.decoders.rae_encoder import ENCODER_TYPES, check_weights, hooked
from vit_lens.decoders.rae_files import find_rae, load_rae
from vit_lens.decoders.rae_parts import RAEParts, is_rae
from vit_lens.errors import ContractError, DecoderError
from vit_lens.identity import MINI_RAE, fingerprint, same_encoder
from vit_lens.models import HookedViT
from vit_lens.towers import check_model, patch_tokens


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """How a picture is drawn from patch tokens: there is one way, and one size.

    Attributes:
        height: The height of the picture in pixels.
        width: Its width.

    >>> vl.load_decoder("mini-rae").defaults
    PatchSettings(height=64, width=64)
    """

    height: int
    width: int


@reads_layout("AutoencoderRAE")
class RAEDecoder(Decoder):
    """diffusers' ``AutoencoderRAE`` as a decoder: one deterministic pass from every patch token to the picture.

    It takes the tokens that :func:`vit_lens.patch_tokens` returns: those of the last residual, behind the final norm
    without gain and bias, since such autoencoders take these off their encoder. Of the model's own tokens it draws what
    ``AutoencoderRAE.forward`` gives of the pixels, to the bit for one device and number of rows.

    Args:
        autoencoder: An ``AutoencoderRAE`` in memory, a pipeline that holds one as its ``vae``, or
            :class:`~vit_lens.decoders.rae_parts.RAEParts`; its weights are shared, set to evaluation mode.
        encoder: The encoder that it was made for, as a model or an id. None takes the one inside, where there is any.
        decoder_id: The decoder's name in records; None makes one from the weights.

    Raises:
        DecoderError: It is no such autoencoder.
        ContractError: The encoder is another than the one inside.

    >>> rae = vl.load_decoder("mini-rae")
    >>> rae.takes, rae.encoder_id
    ({'tokens': 128}, 'vit_lens/mini')
    >>> tokens = vl.Condition(tokens=vl.patch_tokens(cache))
    >>> rae.decode(tokens, negative=None).shape
    torch.Size([2, 64, 64, 3])
    >>> rae.decode(model(pixels), negative=None)
    Traceback (most recent call last):
    vit_lens.errors.ContractError: decoder vit_lens/mini-rae takes tokens [16, 128], got pooled [128]: ...
    """

    def __init__(self, autoencoder: Any, *, encoder: EncoderRef | None = None, decoder_id: str | None = None):
        held: Any = autoencoder if is_rae(autoencoder) else getattr(autoencoder, "vae", autoencoder)
        alone = isinstance(held, RAEParts)
        self.part: RAEParts = held if alone else RAEParts.of(held)
        self.part.eval()
        self.config: dict[str, Any] = {} if alone else dict(held.config)
        self._inside: Any = None if alone else held.encoder
        self._weights = KnownWeights()
        self.takes = {"tokens": self.part.d_token}
        self.defaults = PatchSettings(height=self.part.side, width=self.part.side)
        self.decoder_id: str = decoder_id or f"module@{self.fingerprint}"
        self._costs: dict[tuple[Any, ...], Cost] = {}
        self.source: dict[str, Any] | None = None
        self._settle(encoder)

    def _settle(self, said: EncoderRef | None) -> None:
        """Say which encoder it was made for."""
        self.encoder_id: str | None = None if self._inside is None else self._inside_id()
        if said is not None:
            if self.encoder_id is None:
                self.encoder_id = encoder_id_of(said)
            else:
                self.check_encoder(said)

    def _inside_id(self) -> str:
        kind = ENCODER_TYPES[self.config["encoder_type"]]
        sizes = self.config["encoder_hidden_size"], self.config["encoder_num_hidden_layers"]
        if sizes in kind.published:
            return kind.published[sizes]
        inside = self.encoder.fingerprint if self._is_hooked else fingerprint(self._inside.state_dict())
        return f"module@{inside}"

    @property
    def _is_hooked(self) -> bool:
        """Whether there is an encoder inside that a hooked model can be; there is no hooked MAE."""
        return self._inside is not None and ENCODER_TYPES[self.config["encoder_type"]].is_hooked

    @cached_property
    def encoder(self) -> HookedViT:
        """The encoder inside, as a hooked model whose last norm has gain 1 and bias 0.

        Raises:
            DecoderError: There is none inside.
            UnsupportedTowerError: It is of a kind that no hooked model is.
        """
        if self._inside is None:
            raise DecoderError(
                f"decoder {self.decoder_id} holds no encoder; it draws the patch tokens of {self.encoder_id}"
            )
        known = self.encoder_id if "encoder_id" in vars(self) else None
        return hooked(self._inside, self.config, known)

    @classmethod
    @stated_numerics()
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        encoder: EncoderRef | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "RAEDecoder":
        """Load a folder that ``AutoencoderRAE.save_pretrained`` wrote (safetensors only).

        What draws goes to the device; the encoder inside stays on the CPU, where it is compared with models.

        Args:
            name: "mini-rae", a local directory, or a Hub id.
            encoder: The encoder it was made for, as a model or id; needed where there is none inside, and no card
                ``vit_lens.json`` that says it.
            dtype: The dtype of what draws.
            device: The device of what draws.

        Raises:
            ContractError: No encoder is known, or the given one is not the decoder's.
            CheckpointError: Weights are missing, truncated, extra or misshapen.
            DecoderError: Anything else is wrong with the files.
        """
        usable(dtype, device)
        directory, is_local = find_rae(name), Path(name).expanduser().is_dir()
        loaded = load_rae(directory, dtype, device)
        decoder_id = (
            MINI_RAE if name == "mini-rae" else f"local/{directory.resolve().name}" if is_local else f"hf/{name}"
        )
        decoder = cls(loaded.parts, decoder_id=decoder_id)
        if decoder_id.startswith("local/"):
            decoder.decoder_id += f"@{decoder.fingerprint}"
        decoder.config, decoder._inside = loaded.config, loaded.encoder
        if loaded.encoder is None:
            card = read_card(directory)
            decoder.encoder_id = agreed_encoder(decoder.decoder_id, card.encoder_id if card else None, encoder)
        else:
            decoder._settle(encoder)
        decoder.source = {"name": str(name), "encoder": decoder.encoder_id, "dtype": dtype, "device": str(device)}
        return decoder

    # ---- what it is

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that identify the weights to the last bit; changes through ``.data`` go unseen."""
        return self._weights.fingerprint({"rae": self.part})

    def forget_fingerprint(self) -> None:
        """Hash the weights anew when they are next asked for; see :func:`vit_lens.identity.forget_fingerprints`."""
        self._weights.forget()

    @property
    def device(self) -> torch.device:
        """The device of what draws."""
        return self.part.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of what draws."""
        return self.part.weight.dtype

    def identity(self) -> dict[str, Any]:
        """Return weights, dtype, how latents are scaled, and what the encoder was and the noise in training."""
        found = super().identity() | {"scaling_factor": self.part.scaling, "flat": self.part.flat}
        kept = ("encoder_type", "noise_tau")
        return found | {name: self.config[name] for name in kept if name in self.config}

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights of what draws."""
        return {"rae": self.part.state_dict()}

    # ---- what it takes

    def read(self, model: HookedViT, pixels: Float[Tensor, "batch channel height width"]) -> Condition:
        """Return the patch tokens of whole pictures.

        Raises:
            DecoderError: It is no model.
        """
        check_model(model, DecoderError)
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        return Condition(tokens=patch_tokens(model.run_with_cache(pixels, names_filter=[last])[1]))

    def check_encoder(self, encoder: EncoderRef) -> None:
        """Refuse an encoder whose patch tokens are not those that it was trained on.

        Of a model the weights are compared with those of the encoder inside, where there is one; of a model that was
        edited, and of an id, the id counts.

        Args:
            encoder: The encoder, as a model or an id.

        Raises:
            ContractError: It is another.
        """
        if self.encoder_id is None:
            return
        known = self.encoder_id
        if not (self._is_hooked and isinstance(encoder, HookedViT)):
            return check_encoder(self.decoder_id, known, encoder)
        try:
            check_weights(self.decoder_id, self.encoder, encoder)
        except ContractError:
            if not (same_encoder(known, encoder.encoder_id) and (encoder.edited or encoder.processing)):
                raise
            check_encoder(self.decoder_id, known, encoder)

    def check(self, condition: Condition | Tensor, encoder: EncoderRef | None = None) -> None:
        """Refuse conditions that are not all patch tokens of this decoder's encoder.

        Args:
            condition: What is to be drawn.
            encoder: The encoder that it comes from, as a model or an id; None where that is not to be checked.

        Raises:
            ContractError: It is an embedding, has another number or width of tokens, or holds values that are not
                finite; or it comes from another encoder.
        """
        given, n, grid = Condition.of(condition), self.part.n_tokens, self.part.grid
        if given.tokens is None or given.pooled is not None or given.mask is not None:
            raise ContractError(
                f"decoder {self.decoder_id} takes tokens [{n}, {self.part.d_token}], got {given.words()}: it draws "
                "every patch token, not an embedding: Condition(tokens=vl.patch_tokens(cache))"
            )
        super().check(condition, encoder)
        found = given.tokens.shape[-2]
        if found != n:
            side = math.isqrt(found)
            square = "" if side**2 == found else ", which is no square"
            raise ContractError(
                f"{found} tokens{square}; decoder {self.decoder_id} takes {n}, a grid of {grid} x {grid}: leave class "
                "token and registers out, and take the images at the encoder's own size (vl.patch_tokens(cache))"
            )

    def check_settings(self, settings: Any) -> None:
        """Refuse settings of another size: a decoder draws one.

        Raises:
            DecoderError: They are of another type or size.
        """
        super().check_settings(settings)
        if settings != self.defaults:
            side = self.part.side
            raise DecoderError(
                f"height {settings.height} and width {settings.width}: decoder {self.decoder_id} draws pictures of "
                f"{side} x {side} alone"
            )

    def settings_words(self, settings: PatchSettings) -> str:
        """Say that it is one pass."""
        self.check_settings(settings)
        return "one pass"

    # ---- drawing

    @torch.no_grad()
    @stated_numerics()
    def sample(self, tokens: Float[Tensor, "row token d"]) -> Float[Tensor, "row 3 height width"]:
        """Return what ``AutoencoderRAE.decode`` makes of tokens, on the decoder's device and not cut to [0, 1].

        Args:
            tokens: The patch tokens of every row.

        Raises:
            ContractError: They are not this decoder's.

        >>> rae = vl.load_decoder("mini-rae")
        >>> rae.sample(vl.patch_tokens(cache)).shape
        torch.Size([2, 3, 64, 64])
        """
        self.check(Condition(tokens=tokens))
        return self.part(tokens.to(self.device))

    @stated_numerics()
    def decode(
        self,
        condition: Condition | Tensor,
        *,
        negative: Condition | Tensor | None = None,
        encoder: EncoderRef | None = None,
        settings: PatchSettings | None = None,
        batch_size: int | None = None,
        on_smaller: Callable[[int], object] | None = None,
    ) -> UInt8[Tensor, "row height width 3"]:
        """Decode one picture per row.

        Args:
            condition: What to draw: tokens [row token d].
            negative: None; nothing leads away from anything here.
            encoder: The encoder that the tokens come from, as a model or an id; None where it is not to be checked.
            settings: How to draw; None for :attr:`defaults`, the only way there is.
            batch_size: The rows per pass. Said explicitly, a shorter pass is padded to it, so that a row's bits do not
                depend on how many others there are; by default :meth:`batch_size_for`, unpadded.
            on_smaller: A function called with the rows per pass from here on, each time that memory ran out.

        Raises:
            ContractError: The condition is not for this decoder, or there is a negative.
            DecoderError: The settings are of another size, one row does not fit into memory, or a picture is not
                finite.
        """
        settings = self.defaults if settings is None else settings
        self.check_settings(settings)
        self.check(condition, encoder)
        if negative is not None:
            raise ContractError(
                f"decoder {self.decoder_id} has no guidance, and would ignore the negative; leave it out"
            )
        if batch_size is not None and (as_index(batch_size) or 0) < 1:
            raise DecoderError(f"batch_size must be at least 1, a whole number, got {batch_size!r}")

        def smaller(rows: int, said: str) -> int:
            if rows == 1:
                raise DecoderError(
                    f"one picture does not fit into the memory of {self.device}: {said}; take another device or "
                    "dtype=torch.bfloat16, or free memory"
                )
            if on_smaller is not None:
                on_smaller(rows // 2)
            return rows // 2

        rows = Condition.of(condition).to(self.device)
        size = batch_size or min(len(rows), self.batch_size_for(settings))
        return draw_in_passes(
            rows, self._draw, size, smaller=smaller, padded=batch_size is not None, output="uint8", progress=False
        )

    def _draw(self, rows: Condition) -> Float[Tensor, "row 3 height width"]:
        """Draw one pass; return pictures that are not cut to [0, 1]."""
        return self.part(rows.tokens).float()

    @stated_numerics()
    def cost(self, settings: PatchSettings, rows: int) -> Cost:
        """Count what one pass costs, without running it.

        Raises:
            DecoderError: The settings are of another size, or rows are no whole number, at least 1.
        """
        self.check_settings(settings)
        rows = whole("rows", rows, DecoderError)
        key = (self.dtype, rows)
        if key not in self._costs:
            tokens = torch.empty(rows, self.part.n_tokens, self.part.d_token, device="meta", dtype=self.dtype)
            flops, peak = count_call(self.part, lambda part: part(tokens).float())
            weights = sum(p.numel() * p.element_size() for p in self.part.parameters())
            self._costs[key] = Cost(flops=flops, peak_bytes=peak, weight_bytes=weights)
        return self._costs[key]
