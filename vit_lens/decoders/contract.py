"""What a decoder is: from conditions to pictures, for one encoder, with settings of its own."""

__all__ = ["Cost", "Decoder", "check_decoder", "check_pictures", "seeded"]

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.conditions import Condition
from vit_lens.decoders.matching import EncoderRef, check_encoder
from vit_lens.decoders.memory import MAX_ROWS, rows_that_fit
from vit_lens.decoders.settings import override, settings_dict
from vit_lens.errors import ContractError, DecoderError
from vit_lens.models import HookedViT
from vit_lens.towers import check_model

# What the activations of a batch may take by default, whatever memory is free: the batch decides bits.
_BATCH_BYTES = 8 * 2**30


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it takes to decode some rows in one pass.

    Attributes:
        flops: The floating-point operations; a multiplication and an addition count as two.
        peak_bytes: The most memory, in bytes, that activations hold at once; weights come on top.
        weight_bytes: The memory of the weights, in bytes.

    >>> cost = decoder.cost(decoder.settings(steps=2), rows=1)
    >>> isinstance(cost, vl.decoders.Cost), cost.flops > 10**9, cost.peak_bytes < cost.weight_bytes
    (True, True, True)
    """

    flops: int
    peak_bytes: int
    weight_bytes: int


class Decoder(ABC):
    """A model that turns conditions into pictures; subclass it (docs/own_decoder.md).

    But for rounding, a row's picture depends on its condition and the settings alone, not on its place among the rows
    and not on what the others hold. Rounding does depend on these, so sweeps draw whole batches as they were planned.

    Attributes:
        decoder_id: The decoder's name in records.
        encoder_id: The id of the encoder that it was made for; None where it is not known, and not checked.
        takes: The parts of a condition that it draws, with the width of each: ``{"pooled": 1280}``.
        defaults: The settings of a plain decode, a frozen dataclass of the decoder's own type. A decoder whose settings
            have a field ``seed`` draws noise, and draws with several seeds where that is asked for.

    >>> import dataclasses
    >>> Settings = dataclasses.make_dataclass("Settings", [("size", int, 8)], frozen=True)
    >>> class Grey(vl.Decoder):
    ...     "Draws how long an embedding is."
    ...     decoder_id, fingerprint, takes, defaults = "grey", "0" * 16, {"pooled": 128}, Settings()
    ...     def decode(self, condition, *, negative, settings, batch_size, on_smaller=None):
    ...         grey = condition.pooled.norm(dim=-1).clamp(0, 255).to(torch.uint8)
    ...         return grey[:, None, None, None].repeat(1, settings.size, settings.size, 3)
    >>> grey, embeds = Grey(), vl.Condition(pooled=model(pixels))
    >>> grey.decode(embeds, negative=None, settings=grey.settings(size=4), batch_size=2).shape
    torch.Size([2, 4, 4, 3])
    """

    decoder_id: str
    encoder_id: str | None = None
    takes: Mapping[str, int]
    defaults: Any

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Digits that identify the weights by content (:func:`vit_lens.identity.fingerprint`)."""

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return torch.float32

    @abstractmethod
    def decode(
        self,
        condition: Condition,
        *,
        negative: Condition | None,
        settings: Any,
        batch_size: int,
        on_smaller: Callable[[int], object] | None = None,
    ) -> UInt8[Tensor, "row height width 3"]:
        """Return one picture for each row, on the CPU.

        Args:
            condition: What to draw, at most ``batch_size`` rows; sweeps fill a short batch up, so that rows are always
                as many.
            negative: What :meth:`negative` returned, one row that guidance leads away from, or None.
            settings: Settings of the decoder's own type.
            batch_size: The number of rows that run together.
            on_smaller: A function called with the rows per pass from here on where memory ran out and fewer will run
                together; None for none.
        """

    # ---- what may stay as it is

    def read(self, model: HookedViT, pixels: Float[Tensor, "batch channel height width"]) -> Condition:
        """Return the condition of whole pictures, what they would be drawn from; by default their embedding.

        Raises:
            DecoderError: It is no model.
        """
        check_model(model, DecoderError)
        return Condition(pooled=model(pixels))

    def negative(self, model: HookedViT) -> Condition | None:
        """Return one row that guidance leads away from; None where there is no such thing."""
        return None

    def check_settings(self, settings: Any) -> None:
        """Refuse settings that this decoder cannot run, before anything is drawn.

        Raises:
            DecoderError: The settings are of another type; subclasses look further.
        """
        if not isinstance(settings, type(self.defaults)):
            raise DecoderError(
                f"decoder {self.decoder_id} takes {type(self.defaults).__name__}, got {type(settings).__name__}: "
                "decoder.settings(...) makes them"
            )

    def settings(self, **overrides: Any) -> Any:
        """Return the default settings with some of them replaced.

        Raises:
            DecoderError: A name is not a setting, or a value is out of its range.
        """
        return override(self.defaults, overrides)

    def settings_words(self, settings: Any) -> str:
        """Say how pictures are drawn, in a few words; the seed is said elsewhere."""
        return ", ".join(f"{name} {value}" for name, value in settings_dict(settings).items() if name != "seed")

    def coarse(self, settings: Any) -> Any | None:
        """Return settings that cost much less, for the first pass of a budget; None: a budget only orders rows."""
        return None

    def cost(self, settings: Any, rows: int) -> Cost | None:
        """Return what decoding some rows in one pass costs, without running it; None: not known."""
        return None

    def work(self, settings: Any) -> float | int:
        """Return the relative work of one picture, to compare settings with."""
        cost = self.cost(settings, 1)
        return float(cost.flops) if cost else 1.0

    def batch_size(self, settings: Any) -> int:
        """Return the rows of a pass by default: a constant of decoder and settings, never of free memory."""
        cost = self.cost(settings, 1)
        return max(1, min(MAX_ROWS, _BATCH_BYTES // max(cost.peak_bytes, 1))) if cost else MAX_ROWS

    def batch_size_for(self, settings: Any) -> int:
        """Return how many rows per pass fit into the memory that is free now, between 1 and the default."""
        cost = self.cost(settings, 1)
        most = self.batch_size(settings)
        return min(most, rows_that_fit(self.device, max(cost.peak_bytes, 1))) if cost else most

    def identity(self) -> dict[str, Any]:
        """Return everything of the decoder, as plain values, that changes a picture."""
        return {
            "decoder_id": self.decoder_id, "fingerprint": self.fingerprint, "encoder_id": self.encoder_id,
            "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights of each part by name, for an inventory."""
        return {}

    def check_encoder(self, encoder: EncoderRef) -> None:
        """Refuse an encoder that this decoder was not made for; where it is not known, any is taken.

        Args:
            encoder: The encoder, as a model or an id.

        Raises:
            ContractError: It is another.
        """
        if self.encoder_id is not None:
            check_encoder(self.decoder_id, self.encoder_id, encoder)

    def check(self, condition: Condition | Tensor, encoder: EncoderRef | None = None) -> None:
        """Refuse conditions that this decoder was not made for; a tensor counts as pooled.

        Args:
            condition: What is to be drawn.
            encoder: The encoder that it comes from, as a model or an id; None where that is not to be checked.

        Raises:
            ContractError: The condition comes from another encoder, has other parts or another width, or holds values
                that are not finite.
        """
        if encoder is not None:
            self.check_encoder(encoder)
        given = Condition.of(condition)
        for name, width in self.takes.items():
            part = given.parts().get(name)
            if part is None:
                raise ContractError(f"decoder {self.decoder_id} takes {self._takes_words()}, got {given.words()}")
            if len(given.rows) != 1 or part.dtype not in _FLOATS or part.is_meta:
                raise ContractError(
                    f"{_WORDS[name]} must be a float tensor [batch{' token' * (name == 'tokens')} {width}], got "
                    f"{part.dtype} {list(part.shape)} on {part.device}"
                )
            if part.shape[-1] != width:
                raise ContractError(
                    f"{_WORDS[name]} are {part.shape[-1]} wide, but the decoder takes {width}: another encoder?"
                )
            if not part.numel():
                raise ContractError(f"{_WORDS[name]} have no rows; give at least one")
            bad = (~torch.isfinite(part)).flatten(len(given.rows)).any(-1)
            if bool(bad.any()):
                rows = bad.flatten().nonzero().flatten().tolist()
                raise ContractError(
                    f"{_WORDS[name]} hold NaN or infinite values in rows {rows[:5]} ({len(rows)} of {bad.numel()})"
                )
        if extra := [name for name in given.parts() if name not in self.takes and name != "mask"]:
            raise ContractError(
                f"decoder {self.decoder_id} takes {self._takes_words()}, and would ignore {' and '.join(extra)}"
            )

    def _takes_words(self) -> str:
        return " and ".join(f"{name} [{width}]" for name, width in self.takes.items())


_WORDS = {"pooled": "embeds", "tokens": "tokens"}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_decoder(decoder: object) -> Decoder:
    """Return the decoder, if it keeps the contract as far as can be seen without running it.

    Raises:
        ContractError: The object is no subclass of ``Decoder``, or lacks something that one must say.

    >>> vl.decoders.check_decoder(decoder) is decoder
    True
    >>> vl.decoders.check_decoder(model)
    Traceback (most recent call last):
    vit_lens.errors.ContractError: HookedViT is not a decoder: subclass vit_lens.Decoder, which asks for decoder_id, ...
    """
    if not isinstance(decoder, Decoder):
        raise ContractError(
            f"{type(decoder).__name__} is not a decoder: subclass vit_lens.Decoder, which asks for decoder_id, takes, "
            "defaults, fingerprint and decode (docs/own_decoder.md)"
        )
    kinds = {"decoder_id": str, "takes": Mapping, "device": torch.device, "dtype": torch.dtype, "fingerprint": str}
    for name, kind in kinds.items():
        value = getattr(decoder, name, None)
        if not isinstance(value, kind):
            raise ContractError(f"{type(decoder).__name__}.{name} is {value!r}; expected a {kind.__name__}")
    for name in ("decode", "read", "settings_words", "coarse", "cost", "work", "batch_size"):
        if not callable(getattr(decoder, name)):
            raise ContractError(f"{type(decoder).__name__}.{name} is {getattr(decoder, name)!r}; expected a method")
    widths_wrong = [width for width in decoder.takes.values() if not as_index(width) or width < 1]
    if not decoder.takes or set(decoder.takes) - set(_WORDS) or widths_wrong:
        raise ContractError(
            f"{type(decoder).__name__}.takes is {dict(decoder.takes)!r}; expected widths of 'pooled', 'tokens' or both"
        )
    defaults = getattr(decoder, "defaults", None)
    if not dataclasses.is_dataclass(defaults) or isinstance(defaults, type):
        raise ContractError(f"{type(decoder).__name__}.defaults is {defaults!r}; expected a frozen dataclass")
    return decoder


def check_pictures(decoder: Decoder, pictures: object, n: int) -> UInt8[Tensor, "row height width 3"]:
    """Return what a decoder drew, if it is ``n`` pictures.

    Args:
        decoder: The decoder that drew them.
        pictures: What its ``decode`` returned.
        n: The number of rows that were to be drawn.

    Raises:
        ContractError: The decoder drew something else.

    >>> vl.decoders.check_pictures(decoder, torch.zeros(2, 4, 4, 3, dtype=torch.uint8), 2).shape
    torch.Size([2, 4, 4, 3])
    >>> vl.decoders.check_pictures(decoder, torch.zeros(2, 4, 4, 3), 2)
    Traceback (most recent call last):
    vit_lens.errors.ContractError: decoder vit_lens/mini drew torch.float32 [2, 4, 4, 3] for 2 rows; expected ...
    """
    if isinstance(pictures, Tensor) and pictures.dtype == torch.uint8 and pictures.ndim == 4:
        if pictures.shape[0] == n and pictures.shape[3] == 3 and pictures.numel() and pictures.device.type == "cpu":
            return pictures
    said = f"{pictures.dtype} {list(pictures.shape)}" if isinstance(pictures, Tensor) else type(pictures).__name__
    raise ContractError(
        f"decoder {decoder.decoder_id} drew {said} for {n} rows; expected torch.uint8 [{n}, height, width, 3] on the "
        "CPU"
    )


def seeded(settings: Any, seed: int) -> Any:
    """Return settings with another noise seed; as they are, where the decoder draws no noise.

    >>> vl.decoders.seeded(decoder.defaults, 7).seed
    7
    """
    draws_noise = any(field.name == "seed" for field in dataclasses.fields(settings))
    return dataclasses.replace(settings, seed=seed) if draws_noise else settings
