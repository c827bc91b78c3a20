"""Prompts as inputs of a sweep, read by the text encoders of a pipeline."""

__all__ = ["Prompts", "TextKind"]

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.controls import Others
from vit_lens.decoders import Decoder, PromptEncoder, check_encoder
from vit_lens.errors import ContractError, LensError, TextError, VitLensError
from vit_lens.lenses import (
    Sites,
    TextAnchors,
    TextDiffusionLens,
    TextMeans,
    TextRun,
    check_prompts,
    checked_read,
    parse_text_lenses,
)
from vit_lens.readers import Gallery, TextProbe
from vit_lens.reference import ReferenceMeans
from vit_lens.sweeping.banks import BankSource
from vit_lens.sweeping.beside_pictures import Beside, BesideModel
from vit_lens.sweeping.controls import Centre
from vit_lens.sweeping.input_kinds import InputKind
from vit_lens.sweeping.lens_readings import LensReading, record_reading, with_controls
from vit_lens.sweeping.request import CONTROLS_OF_PROMPTS, FORMULA, Controls, check_kind

_NUMBERS_AT_ONCE = 2**23  # of conditions: 32 MiB, four sites of a T5-XXL at 512 positions


@dataclass(frozen=True, eq=False)
class Prompts:
    """Texts that a sweep reads.

    Args:
        texts: One text, or several, all different; none is empty, which is a control
            (``Controls(kinds=["empty"])``).
        truncate: Whether a prompt that is too long loses its last words, as pipelines do, which the record says; else
            it is an error.

    Raises:
        TextError: There is none, one is empty or no text, or two are equal.

    >>> prompts = vl.Prompts(["a red star", "a blue ring"])
    >>> len(prompts), prompts.name(1)
    (2, 'a blue ring')
    >>> vl.Prompts(["a red star", "a red star"])
    Traceback (most recent call last):
    vit_lens.errors.TextError: prompt 'a red star' is given twice; a sweep reads each once, with several seeds=...
    """

    texts: Any
    truncate: bool = False

    def __post_init__(self) -> None:
        check_kind("truncate", self.truncate, bool, "True or False")
        given = [self.texts] if isinstance(self.texts, (str, os.PathLike)) else self.texts
        texts = list(given) if isinstance(given, Sequence) else [given]
        if not texts:
            raise TextError("no prompts given; for example ['a red star', 'a blue ring']")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TextError(
                    f"prompt {number} is a {type(text).__name__}; expected texts. A PromptEncoder reads prompts; "
                    "images are read by a HookedViT"
                )
            if not text.strip():
                raise TextError(
                    f"prompt {number} is empty; leave it out: with Controls(kinds=['empty']) the text \"\" stands "
                    "beside every prompt"
                )
            if text in texts[:number]:
                raise TextError(
                    f"prompt {text!r:.60} is given twice; a sweep reads each once, with several seeds= of noise"
                )
        object.__setattr__(self, "texts", tuple(texts))

    @classmethod
    def of(cls, given: Any) -> "Prompts":
        """Return prompts as they are; everything else counts as texts."""
        return given if isinstance(given, cls) else cls(given)

    def __len__(self) -> int:
        return len(self.texts)

    def name(self, index: int) -> str:
        """Return what tables call a prompt: its text, behind ' where a spreadsheet would take it for a formula."""
        text = self.texts[index].encode("utf-8", "backslashreplace").decode()
        return f"'{text}" if text.startswith(FORMULA) else text


@dataclass(frozen=True, eq=False)
class _TextReading(LensReading):
    """One lens on sites of the encoder that it moves; controls stand in at residuals too.

    Attributes:
        kind: The prompts that are swept.
        means: Of other prompts, from which likeness to the prompt is measured; None where there are none.
    """

    kind: "TextKind"
    means: TextMeans | None

    def is_controlled(self, site: Site) -> bool:
        return True

    def read(self, cache: Any, directions: torch.Generator, others: Others | None = None) -> Condition:
        control = self.reading.control
        if control in ("", "random") or not isinstance(self.lens, TextDiffusionLens):
            return super().read(cache, directions, others)
        other = self.kind.other_run(self.kind.other_text(control, cache.prompts[0], directions.initial_seed()))
        return checked_read(self.lens, self.lens.read_other(cache, self.sites, other), 1, len(self.sites))[0].kept()


@dataclass(frozen=True, eq=False)
class TextKind(InputKind):
    """Prompts, read by the text encoders of a pipeline; which of them, a lens says."""

    model: PromptEncoder
    inputs: Prompts
    _other: dict[str, TextRun] = field(default_factory=dict, init=False)
    default_sites = ("L0.resid_pre", "resid_post")

    def __post_init__(self) -> None:
        for name, tower in self.model.towers.items():
            tower.refuse_hooks(f"a record, which is made of the pipeline's own {name},")
        self.model.check_words(self.inputs.texts)
        if not self.inputs.truncate:
            check_prompts(self.model, self.inputs.texts)

    def readings(
        self, lens: Any, reference: ReferenceMeans | TextMeans | None, sites: Sites, controls: Controls,
        others: BankSource, *, anchors: Any = None, gallery: Gallery | None = None,
    ) -> list[LensReading]:  # fmt: skip
        if isinstance(reference, ReferenceMeans):
            raise LensError("reference= holds means of images; prompts take TextMeans.of(encoder, other_prompts)")
        if unknown := [kind for kind in controls.kinds if kind not in CONTROLS_OF_PROMPTS]:
            raise VitLensError(
                f"the control {unknown[0]!r} is one of images; those of prompts are {', '.join(CONTROLS_OF_PROMPTS)}"
            )
        if controls.bank is not None or controls.normalise is not None:
            raise VitLensError("bank= and normalise= are for controls of images, and these are prompts: leave them out")
        means = None if reference is None else reference.check(self.model)
        if anchors is not None and not isinstance(anchors, TextAnchors):
            anchors = TextAnchors.of(self.model, anchors)
        lenses, found = parse_text_lenses(lens, means, anchors), []
        layers = {name: tower.cfg.n_layers for name, tower in self.model.towers.items()}
        for one in lenses:
            tower = self.model.towers[one.moved(self.model.format, layers).encoder]
            wanted = Site.resolve(sites, tower.cfg)
            own = one.check_sites(tower, wanted if len(lenses) == 1 else [site for site in wanted if one.reads(site)])
            found += [_TextReading(one, own, record_reading(one), self, means)] if own else []
        if "other" in controls.kinds and controls.drawn and len(self.inputs) < 2:
            raise VitLensError("the control 'other' needs another prompt: give two or more, or leave the control out")
        made = with_controls(found, controls.kinds if controls.drawn else ())
        own = {one.reading.id: one.reading for one in found}
        return [
            replace(one, reading=replace(one.reading, words=own[one.reading.of].controlled(
                one.reading.control, of_prompts=True
            ).words)) if one.reading.control else one for one in made
        ]  # fmt: skip

    def portions(self, readings: list[LensReading], row_numbers: int) -> list[list[LensReading]]:
        room, found = 0, []
        for reading in readings:
            left = reading.sites
            while left:
                if room < 1:
                    room = max(1, _NUMBERS_AT_ONCE // row_numbers)
                    found.append([])
                found[-1].append(replace(reading, sites=left[:room]))
                left, room = left[room:], room - len(left[:room])
        return found

    def centre(self, reading: LensReading, cache: TextRun, beside: BesideModel) -> Centre | None:
        means = reading.means if isinstance(reading, _TextReading) else None
        if means is None:
            return None
        average = means.average(cache)
        found = reading.lens.read(average, reading.sites)  # pyright: ignore[reportArgumentType]
        read = checked_read(reading.lens, found, 1, len(reading.sites))[0]
        return Centre(read.kept().flat, average.condition.kept().flat[0])

    def measured_from(self, readings: list[LensReading]) -> dict[str, Any]:
        means = next((one.means for one in readings if isinstance(one, _TextReading)), None)
        return {} if means is None else {"reference": means.content, "reference_n": means.n}

    def check_decoder(self, decoder: Decoder, readings: list[LensReading]) -> None:
        own, drawn = self.model.format, getattr(decoder, "format", None)
        if drawn is None or drawn.name != own.name:  # whatever kind of encoder reads, the same is drawn
            said = f"draws format {drawn.name}" if drawn is not None else "draws no text-to-image format"
            raise ContractError(
                f"decoder {decoder.decoder_id} {said}, and these encoders are of format {own.name} "
                f"({own.pipeline}): take the TextDecoder of the same pipeline"
            )
        if decoder.encoder_id is not None:
            check_encoder(decoder.decoder_id, decoder.encoder_id, self.model.encoder_id)

    def negative(self, decoder: Decoder) -> Condition | None:
        return self.model.negative()

    def read(self, index: int) -> tuple[dict[str, Any], None]:
        text = self.inputs.texts[index]
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        said = {"kind": "text", "index": index, "name": self.inputs.name(index), "sha256": digest, "text": text}
        try:
            check_prompts(self.model, [text])
        except TextError:
            if not self.inputs.truncate:
                raise
            said["truncated"] = True
        return said, None

    def run(self, entry: dict[str, Any], seen: Any, readings: list[LensReading]) -> tuple[Condition, TextRun]:
        run = TextRun.of(self.model, entry["text"], truncate=True)
        return run.condition, run

    def norms(self, cache: TextRun, readings: list[LensReading]) -> list[float]:
        found = []
        for reading in readings:
            name = reading.lens.moved_in(cache).encoder  # pyright: ignore[reportAttributeAccessIssue]
            found += [cache.output(name, site)[0].norm().item() for site in reading.sites]
        return found

    def describe(self) -> dict[str, Any]:
        encoder = self.model
        return ({"untrained": True} if encoder.untrained else {}) | {
            "encoder_id": encoder.encoder_id, "weights": encoder.encoder_id,
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "config": {name: tower.cfg.to_dict() | {"device": None} for name, tower in encoder.towers.items()},
            "preprocess": {
                "format": encoder.format.name, "length": encoder.length, "truncate": self.inputs.truncate,
            },
        }  # fmt: skip

    @property
    def row_numbers(self) -> int:
        return self.model.encode([""]).flat.numel()

    def beside(self, given: Beside, readings: list[LensReading]) -> BesideModel:
        if any(
            value is not None and value not in ((), False) for name, value in vars(given).items() if name != "probes"
        ):
            raise VitLensError("captions, labels, galleries and live numbers stand beside images; leave them out")
        sites = {site for reading in readings for site in reading.sites if not reading.reading.control}
        for name, probe in given.probes.items():
            if isinstance(probe, TextProbe):
                probe.check(self.model)
            if not any(map(probe.reads, sites)):
                raise VitLensError(f"probe {name!r} answers at none of the {len(sites)} sites that are swept")
        return given.of(self.model, readings)

    def answers(
        self, cache: TextRun, readings: list[LensReading], beside: BesideModel
    ) -> dict[str, tuple[Tensor, Tensor]]:
        moved = [one.lens.moved_in(cache).encoder for one in readings]  # pyright: ignore[reportAttributeAccessIssue]
        found = [beside.asked(cache, one, name) for one, name in zip(readings, moved, strict=True)]
        return {
            name: (torch.cat([one[name][0] for one in found]), torch.cat([one[name][1] for one in found]))
            for name in beside.probes
        }

    def other_run(self, text: str) -> TextRun:
        """Return the run of a text that stands in for a prompt; the last one is kept."""
        if text not in self._other:
            self._other.clear()
            self._other[text] = TextRun.of(self.model, text, truncate=True)
        return self._other[text]

    def other_text(self, control: str, text: str, seed: int) -> str:
        """Return the text that stands in for a prompt.

        Args:
            control: The kind of control.
            text: The prompt.
            seed: Of the order of shuffled words.

        Raises:
            VitLensError: The prompt has no other order of words.
        """
        if control == "empty":
            return ""
        if control == "other":
            return self.inputs.texts[(self.inputs.texts.index(text) + 1) % len(self.inputs)]
        words, order = text.split(), random.Random(seed)
        if len(set(words)) < 2:
            raise VitLensError(f"the control 'shuffled': the words of {text!r:.60} have no other order; leave it out")
        mixed = list(words)
        while mixed == words:
            order.shuffle(mixed)
        return " ".join(mixed)
