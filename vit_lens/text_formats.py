"""What each text-to-image format reads of its text encoders: layer, norm, pooled vector, mask, negative; one table."""

__all__ = ["TEXT_FORMATS", "Reading", "Readout", "TextFormat"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from vit_lens.conditions import Condition
from vit_lens.errors import ContractError
from vit_lens.texts import ENCODER_KINDS, KindName


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a format reads of one of its text encoders.

    Attributes:
        encoder: The encoder's name in the pipeline.
        kind: The kind of encoder, one of :data:`vit_lens.texts.ENCODER_KINDS`.
        others: Further kinds that the stock pipeline runs in its place, as it only calls the encoder.
        below: How many blocks before the last the tokens are read; None where it gives no tokens.
        at: Where several layers are read side by side, after how many blocks each, and ``below`` says nothing.
        norm: Whether the encoder's final norm is applied to the tokens.
        pooled: How it gives a pooled vector: the final norm of the last residual at the end of the text, as it is
            (``"end"``) or through the encoder's projection (``"projected"``); None where it gives none.
        template: What becomes of the text that the pipeline puts around a prompt: its positions are handed over with
            the prompt's (``"kept"``), all but the first before the last so many positions are cut (``"cut"``), or the
            first ``dropped`` are left out, and so is the filling (``"dropped"``). None where there is no such text.
        dropped: How many tokens of the template come before the prompt, where they are dropped.

    >>> TEXT_FORMATS["sdxl"].readings[1].layer(n_layers=32), TEXT_FORMATS["flux2"].readings[0].layers(n_layers=40)
    (31, (10, 20, 30))
    """

    encoder: str
    kind: KindName
    others: tuple[KindName, ...] = ()
    below: int | None = 0
    at: tuple[int, ...] = ()
    norm: bool = True
    pooled: Literal["end", "projected"] | None = None
    template: Literal["kept", "cut", "dropped"] | None = None
    dropped: int = 0

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """Return after how many of the encoder's blocks the format reads its tokens.

        Raises:
            ContractError: The encoder has fewer blocks.
        """
        found = self.at or (n_layers - (self.below or 0),)
        if not 0 <= min(found) <= max(found) <= n_layers - bool(self.at):  # in transformers the last one is normed
            raise ContractError(
                f"{self.encoder} has {n_layers} blocks, and the format reads it {self._where()}: it is another encoder"
            )
        return found

    def layer(self, n_layers: int) -> int:
        """Return how many blocks have run at the last layer that is read; all, where the format reads no tokens."""
        return self.layers(n_layers)[-1]

    def stopped(self, layer: int, n_layers: int) -> tuple[int, ...]:
        """Return the layers that stand where the format reads its tokens when a lens puts one layer there.

        Where one layer is read, that is ``layer``, whichever it is. Where several are, ``layer`` stands in the place of
        each that lies behind it, as if the encoder had stopped there.

        Args:
            layer: After how many blocks.
            n_layers: How many the encoder has.

        Raises:
            ContractError: The encoder has no such layer, or it lies behind all of several that are read.

        >>> TEXT_FORMATS["flux2"].readings[0].stopped(15, n_layers=40)
        (10, 15, 15)
        """
        read = self.layers(n_layers)
        last = read[-1] if self.at else n_layers
        if not 0 <= layer <= last:
            why = f"behind layer {last} nothing is read" if self.at else f"it has 0 (the embedding) to {n_layers}"
            raise ContractError(f"layer {layer} of {self.encoder}: {why}")
        return tuple(min(one, layer) for one in read) if self.at else (layer,)

    def handed(
        self, tokens: Float[Tensor, "batch pos d"], seen: Bool[Tensor, "batch pos"] | None, n: int
    ) -> Float[Tensor, "batch token d"]:
        """Return what is handed over of an encoder's positions.

        Args:
            tokens: Something at all of the encoder's positions.
            seen: Where the encoder was told to look; needed where the template is dropped.
            n: The number of positions that are handed over.
        """
        if self.template == "cut":
            return torch.cat([tokens[:, :1], tokens[:, tokens.shape[1] - n + 1 :]], 1)
        if self.template != "dropped" or seen is None:
            return tokens
        rows = [row[looked.bool()][self.dropped :][:n] for row, looked in zip(tokens, seen, strict=True)]
        return torch.stack([pad(row, (0, 0, 0, n - len(row))) for row in rows])

    def _where(self) -> str:
        if self.at:
            return f"after blocks {', '.join(map(str, self.at))}"
        return f"after all blocks{f' but {self.below}' if self.below else ''}"


@dataclass(frozen=True)
class Readout:
    """How residuals leave a text encoder.

    Attributes:
        norm: The final norm, of vectors along the last axis; where there is none, what returns them.
        projection: The map from the normed end of the text to the pooled vector; None where there is none.

    >>> Readout(torch.nn.LayerNorm(8)).projection is None
    True
    """

    norm: Callable[[Tensor], Tensor]
    projection: Callable[[Tensor], Tensor] | None = None
    centre: Callable[[Tensor], Tensor] = _as_it_is


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """What a family of text-to-image pipelines makes of residuals of its text encoders.

    Attributes:
        name: A short name.
        pipeline: The class of diffusers that draws it, by which it is recognised.
        readings: What is read of each encoder, in the order of the pipeline.
        length: The number of positions that are read by default where that is a choice: of T5, and of the prompt where
            a decoder-only encoder stands; None elsewhere.
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

    def read_by(self, model_types: Mapping[str, str | None]) -> "TextFormat":
        """Return the format with the kinds of encoders that are there, where it allows several; what draws sees none.

        Args:
            model_types: For each encoder that is known, what its configuration calls itself.

        >>> TEXT_FORMATS["sd"].readings[0].kind, TEXT_FORMATS["sd"].read_by({"text_encoder": "t5"}).readings[0].kind
        ('clip', 't5')
        """

        def read(one: Reading) -> Reading:
            said = model_types.get(one.encoder)
            kinds = (kind for kind in one.others if said in ENCODER_KINDS[kind].model_types)
            return replace(one, kind=next(kinds, one.kind))

        return replace(self, readings=tuple(map(read, self.readings)))

    def condition(
        self,
        tokens: Mapping[str, Float[Tensor, "batch _ _"]],
        ends: Mapping[str, Float[Tensor, "batch _"]],
        readouts: Mapping[str, Readout],
        mask: Bool[Tensor, "batch token"] | None = None,
        seen: Mapping[str, Bool[Tensor, "batch _"]] | None = None,
    ) -> Condition:
        """Return the condition that the format makes of residuals; norms and projections are part of the format.

        With the residuals of the layers that the format reads (:meth:`Reading.layer`), this is what the pipeline's own
        ``encode_prompt`` returns, to the last bit; a lens puts residuals of other layers in their place.

        Args:
            tokens: For each encoder that gives tokens, a residual [batch token d_model] at all of its positions, not
                normed; where several layers are read, those residuals side by side along the last axis.
            ends: For each encoder that gives a pooled vector, a residual at the end of the text, [batch d_model], not
                normed; the pipeline takes the last.
            readouts: For each encoder, its final norm and its projection.
            mask: True at the positions that count, where the denoiser is told; None elsewhere.
            seen: For each encoder whose template is dropped, True where it was told to look; None where there is none.

        Raises:
            ContractError: A residual, a read-out or the mask is missing, or there is a mask that nothing would read.

        >>> h = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(0))
        >>> norm = torch.nn.LayerNorm(16)
        >>> found = TEXT_FORMATS["sd"].condition({"text_encoder": h}, {}, {"text_encoder": Readout(norm)})
        >>> found, torch.equal(found.tokens, norm(h))
        (Condition([2] rows of tokens [77, 16]), True)
        """
        seen = seen or {}
        self._check(tokens, ends, readouts, mask, seen)
        clips, parts, pooled = [], [], []
        for one in self.readings:
            norm = readouts[one.encoder].norm
            if one.below is not None:
                read = norm(tokens[one.encoder]) if one.norm else tokens[one.encoder]
                n = read.shape[1] if mask is None or one.template is None else mask.shape[1]
                (clips if one.kind == "clip" else parts).append(one.handed(read, seen.get(one.encoder), n))
            if one.pooled:
                end = norm(ends[one.encoder])
                projection = readouts[one.encoder].projection if one.pooled == "projected" else None
                pooled.append(end if projection is None else projection(end))
        # Towers of CLIP stand beside each other, the others behind; all are padded to the widest.
        parts = [*([torch.cat(clips, -1)] if clips else []), *parts]
        width = max(part.shape[-1] for part in parts)
        parts = [pad(part, (0, width - part.shape[-1])) for part in parts]
        return Condition(
            tokens=torch.cat(parts, -2) if len(parts) > 1 else parts[0],
            mask=mask,
            pooled=torch.cat(pooled, -1) if pooled else None,
        )

    def _check(self, tokens: Mapping, ends: Mapping, readouts: Mapping, mask: Tensor | None, seen: Mapping) -> None:
        needed = {
            "tokens": (tokens, [one.encoder for one in self.readings if one.below is not None]),
            "ends": (ends, [one.encoder for one in self.readings if one.pooled]),
            "readouts": (readouts, [one.encoder for one in self.readings]),
            "seen": (seen, [one.encoder for one in self.readings if one.template == "dropped"]),
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
            return f"{one.encoder} {one._where()}, {_NORMED[one.norm]}{_TEMPLATE[one.template].format(one.dropped)}"

        said = "tokens: " + ", beside ".join(where(one) for one in self.readings if one.below is not None)
        ends = [f"{one.encoder} at the end of the text, {_POOLED[one.pooled]}" for one in self.readings if one.pooled]
        return said + ("; pooled: " + ", beside ".join(ends) if ends else "")


_TEMPLATE = {
    None: "", "kept": ", with its template", "cut": ", without its template but for the first token",
    "dropped": ", without the first {} tokens, its template",
}  # fmt: skip
_NORMED = {True: "normed", False: "not normed"}
_POOLED = {"end": "normed", "projected": "normed and projected"}

# Of diffusers' pipelines; tests hold every row to them bit for bit.
TEXT_FORMATS: dict[str, TextFormat] = {
    one.name: one
    for one in (
        TextFormat(
            name="sd",
            pipeline="StableDiffusionPipeline",
            readings=(Reading(encoder="text_encoder", kind="clip", others=("t5",)),),
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
        TextFormat(
            name="hunyuandit",
            pipeline="HunyuanDiTPipeline",
            readings=(
                Reading(encoder="text_encoder", kind="bert", norm=False),
                Reading(encoder="text_encoder_2", kind="t5"),
            ),
            masked=True,
        ),
        TextFormat(
            name="sana",
            pipeline="SanaPipeline",
            readings=(Reading(encoder="text_encoder", kind="gemma2", template="cut"),),
            length=300,
            masked=True,
            flow=True,
        ),
        TextFormat(
            name="lumina2",
            pipeline="Lumina2Pipeline",
            readings=(Reading(encoder="text_encoder", kind="gemma2", below=1, norm=False, template="kept"),),
            length=256,
            masked=True,
            flow=True,
        ),
        TextFormat(
            name="qwenimage",
            pipeline="QwenImagePipeline",
            readings=(Reading(encoder="text_encoder", kind="qwen2_5_vl", template="dropped", dropped=34),),
            masked=True,
            flow=True,
        ),
        TextFormat(
            name="flux2",
            pipeline="Flux2Pipeline",
            readings=(Reading(encoder="text_encoder", kind="mistral3", at=(10, 20, 30), norm=False, template="kept"),),
            length=512,
            negative=None,
            flow=True,
        ),
        TextFormat(
            name="flux2klein",
            pipeline="Flux2KleinPipeline",
            readings=(Reading(encoder="text_encoder", kind="qwen3", at=(9, 18, 27), norm=False, template="kept"),),
            length=512,
            flow=True,
        ),
    )
}
