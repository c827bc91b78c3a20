"""What each text-to-image format reads of its text encoders: layer, norm, pooled vector, mask, negative; one table."""

__all__ = ["TEXT_FORMATS", "Reading", "Readout", "TextFormat"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from vit_lens.conditions import Condition
from vit_lens.errors import ContractError


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a format reads of one of its text encoders.

    Attributes:
        encoder: The encoder's name in the pipeline.
        kind: Whether it is a CLIP text tower or the encoder of a T5.
        below: How many blocks before the last the tokens are read; None where it gives no tokens.
        norm: Whether the encoder's final norm is applied to the tokens.
        pooled: How it gives a pooled vector: the final norm of the last residual at the end of the text, as it is
            (``"end"``) or through the encoder's projection (``"projected"``); None where it gives none.

    >>> TEXT_FORMATS["sdxl"].readings[1].layer(n_layers=32)
    31
    """

    encoder: str
    kind: Literal["clip", "t5"]
    below: int | None = 0
    norm: bool = True
    pooled: Literal["end", "projected"] | None = None

    def layer(self, n_layers: int) -> int:
        """Return how many of the encoder's blocks have run where the format reads; all, where it reads no tokens."""
        return n_layers - (self.below or 0)


@dataclass(frozen=True)
class Readout:
    """How residuals leave a text encoder.

    Attributes:
        norm: The final norm, of vectors along the last axis.
        projection: The map from the normed end of the text to the pooled vector; None where there is none.

    >>> Readout(torch.nn.LayerNorm(8)).projection is None
    True
    """

    norm: Callable[[Tensor], Tensor]
    projection: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """What a family of text-to-image pipelines makes of residuals of its text encoders.

    Attributes:
        name: A short name.
        pipeline: The class of diffusers that draws it, by which it is recognised.
        readings: What is read of each encoder, in the order of the pipeline.
        length: The number of positions that T5 reads by default; None where there is no T5.
        masked: Whether the denoiser is told which positions count; where it is not, it reads the padding too.
        negative: What guidance leads away from when nothing is said: the text "" (``"empty"``), zeros where the
            pipeline says ``force_zeros_for_empty_prompt`` and else "" (``"zeros"``), or nothing (None).
        flow: Whether it is sampled along a flow, and else by a diffusion's schedulers.

    >>> print(TEXT_FORMATS["sdxl"].words())
    tokens: text_encoder after all blocks but 1, not normed, beside text_encoder_2 after all blocks but 1, not normed;
    pooled: text_encoder_2 at the end of the text, normed and projected
    """

    name: str
    pipeline: str
    readings: tuple[Reading, ...]
    length: int | None = None
    masked: bool = False
    negative: Literal["empty", "zeros"] | None = "empty"
    flow: bool = False

    @property
    def takes(self) -> tuple[str, ...]:
        """The parts of its conditions but for the mask: tokens, and perhaps a pooled vector."""
        return ("tokens", "pooled") if any(one.pooled for one in self.readings) else ("tokens",)

    def condition(
        self,
        tokens: Mapping[str, Float[Tensor, "batch _ _"]],
        ends: Mapping[str, Float[Tensor, "batch _"]],
        readouts: Mapping[str, Readout],
        mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Condition:
        """Return the condition that the format makes of residuals; norms and projections are part of the format.

        With the residuals of the layers that the format reads (:meth:`Reading.layer`), this is what the pipeline's own
        ``encode_prompt`` returns, to the last bit; a lens puts residuals of other layers in their place.

        Args:
            tokens: For each encoder that gives tokens, a residual [batch token d_model], not normed.
            ends: For each encoder that gives a pooled vector, a residual at the end of the text, [batch d_model], not
                normed; the pipeline takes the last.
            readouts: For each encoder, its final norm and its projection.
            mask: True at the positions that count, where the denoiser is told; None elsewhere.

        Raises:
            ContractError: A residual, a read-out or the mask is missing, or there is a mask that nothing would read.

        >>> h = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(0))
        >>> norm = torch.nn.LayerNorm(16)
        >>> found = TEXT_FORMATS["sd"].condition({"text_encoder": h}, {}, {"text_encoder": Readout(norm)})
        >>> found, torch.equal(found.tokens, norm(h))
        (Condition([2] rows of tokens [77, 16]), True)
        """
        self._check(tokens, ends, readouts, mask)
        read, pooled = {"clip": [], "t5": []}, []
        for one in self.readings:
            norm = readouts[one.encoder].norm
            if one.below is not None:
                read[one.kind].append(norm(tokens[one.encoder]) if one.norm else tokens[one.encoder])
            if one.pooled:
                end = norm(ends[one.encoder])
                projection = readouts[one.encoder].projection if one.pooled == "projected" else None
                pooled.append(end if projection is None else projection(end))
        # Towers of CLIP stand beside each other, padded to T5's width where its tokens follow.
        parts = [torch.cat(read["clip"], -1)] if read["clip"] else []
        parts += read["t5"]
        width = max(part.shape[-1] for part in parts)
        parts = [pad(part, (0, width - part.shape[-1])) for part in parts]
        return Condition(
            tokens=torch.cat(parts, -2) if len(parts) > 1 else parts[0],
            mask=mask,
            pooled=torch.cat(pooled, -1) if pooled else None,
        )

    def _check(self, tokens: Mapping, ends: Mapping, readouts: Mapping, mask: Tensor | None) -> None:
        needed = {
            "tokens": (tokens, [one.encoder for one in self.readings if one.below is not None]),
            "ends": (ends, [one.encoder for one in self.readings if one.pooled]),
            "readouts": (readouts, [one.encoder for one in self.readings]),
        }
        for what, (given, names) in needed.items():
            if missing := [name for name in names if name not in given]:
                raise ContractError(
                    f"format {self.name} needs {what} of {', '.join(names)}; got {', '.join(given) or 'none'}, "
                    f"{missing[0]} is missing"
                )
        for one in self.readings:
            if one.pooled == "projected" and readouts[one.encoder].projection is None:
                raise ContractError(
                    f"format {self.name} projects the end of {one.encoder}; its read-out projects nothing"
                )
        if self.masked != (mask is not None):
            told = "needs the mask of its tokens" if self.masked else "tells its denoiser no mask, and would ignore it"
            raise ContractError(f"format {self.name} {told}; pass mask={'the mask' if self.masked else None}")

    def words(self) -> str:
        """Say what is read."""

        def where(one: Reading) -> str:
            return f"{one.encoder} after all blocks{f' but {one.below}' if one.below else ''}, {_NORMED[one.norm]}"

        said = "tokens: " + ", beside ".join(where(one) for one in self.readings if one.below is not None)
        ends = [f"{one.encoder} at the end of the text, {_POOLED[one.pooled]}" for one in self.readings if one.pooled]
        return said + ("; pooled: " + ", beside ".join(ends) if ends else "")


_NORMED = {True: "normed", False: "not normed"}
_POOLED = {"end": "normed", "projected": "normed and projected"}

# Of diffusers' pipelines; tests hold every row to them bit for bit.
TEXT_FORMATS: dict[str, TextFormat] = {
    one.name: one
    for one in (
        TextFormat(
            name="sd",
            pipeline="StableDiffusionPipeline",
            readings=(Reading(encoder="text_encoder", kind="clip"),),
        ),
        TextFormat(
            name="sdxl",
            pipeline="StableDiffusionXLPipeline",
            readings=(
                Reading(encoder="text_encoder", kind="clip", below=1, norm=False),
                Reading(encoder="text_encoder_2", kind="clip", below=1, norm=False, pooled="projected"),
            ),
            negative="zeros",
        ),
        TextFormat(
            name="if",
            pipeline="IFPipeline",
            readings=(Reading(encoder="text_encoder", kind="t5"),),
            length=77,
        ),
        TextFormat(
            name="flux",
            pipeline="FluxPipeline",
            readings=(
                Reading(encoder="text_encoder", kind="clip", below=None, pooled="end"),
                Reading(encoder="text_encoder_2", kind="t5"),
            ),
            length=512,
            negative=None,
            flow=True,
        ),
        TextFormat(
            name="sd3",
            pipeline="StableDiffusion3Pipeline",
            readings=(
                Reading(encoder="text_encoder", kind="clip", below=1, norm=False, pooled="projected"),
                Reading(encoder="text_encoder_2", kind="clip", below=1, norm=False, pooled="projected"),
                Reading(encoder="text_encoder_3", kind="t5"),
            ),
            length=256,
            flow=True,
        ),
        TextFormat(
            name="pixart",
            pipeline="PixArtAlphaPipeline",
            readings=(Reading(encoder="text_encoder", kind="t5"),),
            length=120,
            masked=True,
        ),
    )
}
