"""A sweep before it runs: which rows there are, how they are drawn, what it will take. Nothing is computed for it."""

__all__ = ["DEFAULT_SITES", "Plan", "plan"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import pandas as pd

from vit_lens import __version__
from vit_lens.addresses import as_index
from vit_lens.controls import CONTROLS
from vit_lens.decoders import (
    Cost,
    Decoder,
    PromptEncoder,
    TextDecoder,
    check_decoder,
    free_memory,
    seeded,
    settings_dict,
    stated_numerics,
)  # fmt: skip
from vit_lens.engine import duration_words, flops_per_second, machine_kind, make_executor, size_words
from vit_lens.errors import ContractError, RecordError, VitLensError, expect
from vit_lens.identity import forget_fingerprints, same_encoder
from vit_lens.lenses import Lens, Sites, TextMeans
from vit_lens.models import HookedViT
from vit_lens.records import COLUMNS, FORMAT, ranges, to_table
from vit_lens.reference import ReferenceMeans
from vit_lens.sweeping.banks import BankSource
from vit_lens.sweeping.beside_pictures import Beside, BesideModel
from vit_lens.sweeping.budget import Budget
from vit_lens.sweeping.input_kinds import ImageKind, InputKind
from vit_lens.sweeping.lens_readings import LensReading
from vit_lens.sweeping.order import Batch, batches_in_order, legacy_batches, share_of
from vit_lens.sweeping.request import Controls, Drawing, Execution, Inputs, SecondDecoder, check_kind
from vit_lens.sweeping.text_inputs import Prompts, TextKind

DEFAULT_SITES = tuple(ImageKind.default_sites)
"""Of images: every layer, head, attention block and MLP; of prompts it is every layer."""
_WITHOUT_DECODER = 32
_FEW_LENSES = 4  # that a plan spells out
_LEGACY_PICTURES = 4  # of a layer, as in the released code of Diffusion Lens
_PACKAGES = ("torch", "diffusers", "transformers", "transformer-lens", "numpy", "pillow")
_PNG_SHARE = 0.6  # of a picture's bytes that are left in its file


@stated_numerics()
def plan(
    model: HookedViT | PromptEncoder, decoder: Decoder | None, inputs: Any, *,
    lens: Sequence[Lens | str] | Lens | str | None = None, reference: ReferenceMeans | TextMeans | None = None,
    anchors: Any = None, sites: Sites | None = None, drawing: Drawing | None = None,
    controls: Controls | bool = False, beside: Beside | None = None, budget: Budget | str | int | float | None = None,
    execution: Execution | None = None, second_decoder: SecondDecoder | Decoder | None = None,
) -> "Plan":  # fmt: skip
    """Return what a sweep would do; see :func:`vit_lens.sweep`. Printed, it says what that takes.

    Args:
        model: The encoder: a model that sees images, or a :class:`vit_lens.decoders.PromptEncoder`.
        decoder: The decoder that draws the pictures; None keeps embeddings and their numbers alone.
        inputs: Images as :class:`Inputs` takes them (paths, folders, PIL images, uint8 arrays), or :class:`Inputs`; or
            prompts as :class:`Prompts` takes them.
        lens: Lenses or their spellings (``"dsl:alpha=10"``); by default :data:`vit_lens.lenses.DEFAULT_LENSES`. One
            must be defined on every site, of several each reads the sites that it is defined on.
        reference: Means for the spellings ``dsl-mean`` and ``counterfactual``; by default those that ship with the
            model. Of prompts :class:`vit_lens.TextMeans`, which the leak index needs, too.
        anchors: What the spelling ``counterfactual`` starts from: other images, or :class:`vit_lens.Anchors`; of
            prompts other prompts, or :class:`vit_lens.TextAnchors`. None of them may be among the inputs.
        sites: Sites (``"L3H4"``, ``Site``), or groups of them: ``heads``, ``attn``, ``mlp``, ``resid_pre``,
            ``resid_mid``, ``resid_post``. None takes every layer, and of images every head, attention block and MLP.
        drawing: The decoder's settings, noise seeds and batch size; None takes the decoder's own.
        controls: Whether random directions are drawn beside every site, or :class:`Controls` that say which.
        beside: Captions, neighbours and live numbers to keep beside the pictures; None keeps none.
        budget: What one call may spend, as :meth:`Budget.parse` reads it; None for no bound.
        execution: The executor, the part of a divided sweep, and the number of threads; None draws all of it here.
        second_decoder: Another decoder for the same encoder that draws every row, too, or :class:`SecondDecoder`.

    Raises:
        UnknownSiteError: A site is not the model's.
        LensError: A lens is none, is not defined on a site, or has no control.
        ImageError: There are no images.
        TextError: The captions are another encoder's.
        GalleryError: The gallery is another model's, or too small.
        ContractError: The decoder was made for another encoder, or keeps no decoder's contract.
        DecoderError: The decoder cannot run the settings.
        VitLensError: An argument would have no effect.

    >>> print(vl.plan(model, None, images, lens="dsl:alpha=10", sites="heads", controls=True))
    inputs: 2
    readings: DSL, clean-anchored, alpha 10; 64 sites and 64 controls an input
    rows: 256
    controls: random, other in numbers, of the 2 inputs themselves; left out, for want of other images: covariance
    pictures: none; disk: about 195 kB
    """
    check_kind("drawing", drawing, Drawing, "vit_lens.Drawing(settings=..., seeds=..., batch_size=...)")
    check_kind("beside", beside, Beside, "vit_lens.Beside(texts=..., gallery=...)")
    check_kind("execution", execution, Execution, "vit_lens.Execution(executor=..., shard=(i, n), threads=...)")
    kinds = (ReferenceMeans, TextMeans)
    check_kind("reference", reference, kinds, "such as ReferenceMeans.load('means.safetensors')")
    forget_fingerprints(model, decoder, getattr(second_decoder, "decoder", second_decoder))
    kind, drawing, execution = _kind_of(model, inputs), drawing or Drawing(), execution or Execution()
    make_executor(execution.executor)  # refuses one that there is not, before anything is planned
    controls = Controls.of(controls)
    near = None if beside is None else beside.gallery
    others, wanted = kind.others(controls, near), kind.default_sites if sites is None else sites
    readings = kind.readings(lens, reference, wanted, controls, others, anchors=anchors, gallery=near)
    kept = kind.beside(beside or Beside(), readings)
    if decoder is None:
        is_plain = drawing.settings is None and drawing.seeds is None and drawing.noise == "shared"
        if not (is_plain and kept.labels is None and budget is None):
            raise VitLensError(
                "without a decoder nothing is drawn, so seeds=, settings=, noise=, labels= and budget= would have no "
                "effect"
            )
        settings, seeds, size = None, [0], drawing.batch_size or _WITHOUT_DECODER
    else:
        decoder = check_decoder(decoder)
        kind.check_decoder(decoder, readings)
        settings = decoder.defaults if drawing.settings is None else drawing.settings
        decoder.check_settings(settings)
        own_seed = getattr(settings, "seed", None)
        seeds = list(drawing.seeds) if drawing.seeds is not None else [own_seed or 0]
        if drawing.noise == "legacy":
            seeds = _legacy(decoder, drawing, budget)
        if own_seed is None and drawing.seeds is not None and len(seeds) > 1:
            raise VitLensError(
                f"seeds={seeds}: decoder {decoder.decoder_id} draws no noise (its settings have no seed), so that all "
                "would be the same picture; leave them out"
            )
        for seed in seeds if drawing.noise == "shared" else ():
            decoder.check_settings(seeded(settings, seed))
        size = drawing.batch_size or (len(seeds) if drawing.noise == "legacy" else decoder.batch_size(settings))
        if not as_index(size) or size < 1:
            raise ContractError(f"decoder {decoder.decoder_id}: batch_size(settings) is {size!r}; expected at least 1")
    spent = None if budget is None else Budget.parse(budget)
    within = None
    if spent is not None and decoder is not None:
        coarse = decoder.coarse(settings)
        if coarse is not None:
            decoder.check_settings(coarse)
        said = coarse and {**settings_dict(coarse), "words": decoder.settings_words(coarse)}
        within = {"same_above": spent.same_above, "coarse": said, "order": "information"}
    made = Plan(
        kind=kind, decoder=decoder, readings=readings, seeds=seeds, settings=settings, size=size,
        drawing=drawing, controls=controls, others=others, beside=kept, budget=spent, within=within,
        execution=execution,
    )  # fmt: skip
    second = SecondDecoder.of(second_decoder)
    return made if second is None else replace(made, second=_second(made, second))


def _second(first: "Plan", given: SecondDecoder) -> "Plan":
    """Return what the second decoder of a sweep would do: the same rows, in batches of as many.

    Raises:
        VitLensError: The sweep cannot have one, or it is the first again.
    """
    if not isinstance(first.kind, ImageKind) or first.decoder is None or first.budget is not None:
        why = (
            "a sweep of prompts"
            if not isinstance(first.kind, ImageKind)
            else ("a sweep without a first" if first.decoder is None else "a sweep within a budget")
        )
        raise VitLensError(f"{why} cannot have a second decoder: leave second_decoder= (--second-decoder) out")
    decoder, judge = check_decoder(given.decoder), given.judge
    first.kind.check_decoder(decoder, first.readings)
    if decoder.fingerprint == first.decoder.fingerprint or decoder.decoder_id == first.decoder.decoder_id:
        raise VitLensError(
            f"the second decoder has the weights of the first, {first.decoder.decoder_id}: that it agrees with itself "
            "says nothing; give another one"
        )
    if judge is not None and same_encoder(judge.encoder_id, first.model.encoder_id):
        raise VitLensError(f"the judge {judge.encoder_id} is the encoder itself: leave judge out, and a record says so")
    settings = decoder.defaults if given.settings is None else given.settings
    for seed in first.seeds:
        decoder.check_settings(seeded(settings, seed))
    labels = Beside(labels=first.beside.labels)
    return replace(
        first, decoder=decoder, settings=settings, drawing=Drawing(settings=settings, seeds=first.seeds),
        beside=first.kind.beside(labels, first.readings), judge=judge, is_second=True,
    )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """What a sweep would do. Rows are numbered by input, then noise seed, then reading and site.

    :func:`vit_lens.plan` makes it, :func:`vit_lens.sweeping.run` runs it; printed, it says what that takes.

    Attributes:
        kind: The inputs, with the encoder that reads them.
        decoder: The decoder that draws the pictures; None where nothing is drawn.
        readings: The lenses on their sites, controls among them.
        seeds: The noise seeds; every row is drawn with each.
        settings: The decoder's settings; None without a decoder.
        size: How many rows are drawn together.
        controls: What sites are held against.
        others: Where the other images come from, of which controls are made.
        beside: What is kept beside the pictures.
        drawing: How pictures are drawn, as it was asked for.
        budget: What this call may spend; None for all there is.
        within: What a record keeps of its budgets: they decide twins and order for good; None for a sweep without.
        execution: Who draws which part.
        second: What a second decoder would do; None where there is none.
        judge: Of a second decoder: the encoder that compares the pictures; None for the encoder itself.
        is_second: Whether this is what a second decoder would do.

    >>> plan = vl.plan(model, decoder, images, lens="diffusion", sites="resid_post")
    >>> plan
    <Plan of 16 rows of 2 inputs; print it for time, memory and disk>
    >>> plan.per_input, plan.place(9)
    (8, (1, 0, 1))
    >>> plan.table([9])[["input_name", "site"]].values.tolist()
    [['2_heart.png', 'L1.resid_post']]
    """

    kind: InputKind
    decoder: Decoder | None
    readings: list[LensReading]
    seeds: list[int]
    settings: Any
    size: int
    controls: Controls
    others: BankSource
    beside: BesideModel
    drawing: Drawing
    budget: Budget | None
    within: dict[str, Any] | None
    execution: Execution
    second: "Plan | None" = None
    judge: HookedViT | None = None
    is_second: bool = False

    @property
    def model(self) -> Any:
        """The encoder."""
        return self.kind.model

    @property
    def inputs(self) -> Any:
        """The inputs that are read."""
        return self.kind.inputs

    @property
    def measured(self) -> list[str]:
        """The controls that sites are measured against before decoding, by name."""
        lenses = [one.lens for one in self.readings if not one.reading.control]
        has_random, has_all = any(lens.has_control for lens in lenses), any(lens.has_controls for lens in lenses)
        return [name for name in self.others.numbered if has_all or (name == "random" and has_random)]

    @property
    def left_out(self) -> dict[str, str]:
        """The controls of images that sites are not measured against, and why."""
        missing = (name for name in CONTROLS if name not in self.measured)
        return {
            name: self.others.left_out.get(name, f"no lens here has the control {name!r}: it needs read_changed()")
            for name in missing
        }

    @property
    def per_input(self) -> int:
        """How many rows one input has with one noise seed."""
        return sum(len(reading.sites) for reading in self.readings)

    @property
    def n_rows(self) -> int:
        """How many rows the whole sweep has, whatever part of it this is."""
        return len(self.inputs) * len(self.seeds) * self.per_input

    @cached_property
    def coarse(self) -> Any | None:
        """Settings of a budget's first pass; None where the decoder has none, or no budget is set."""
        return None if self.decoder is None or self.budget is None else self.decoder.coarse(self.settings)

    @cached_property
    def batches(self) -> list[Batch]:
        """What this part draws without a budget, in rows of the whole sweep."""
        if self.drawing.noise == "legacy":
            n_sites = [len(reading.sites) for reading in self.readings]
            whole = legacy_batches(len(self.inputs), len(self.seeds), n_sites, self.settings.seed)
        else:
            whole = batches_in_order(len(self.inputs), self.seeds, self.per_input, self.size)
        return share_of(whole, self.execution.shard)

    @cached_property
    def rows(self) -> list[int]:
        """The rows of the whole sweep that this part holds, where no budget divides them by what they say."""
        if self.execution.shard is None:
            return list(range(self.n_rows))
        return sorted(row for _, rows in self.batches for row in rows)

    def place(self, row: int) -> tuple[int, int, int]:
        """Return input, turn of the noise seed, and place among the sites of all readings, of a row of the whole."""
        first, within = divmod(row, self.per_input)
        index, turn = divmod(first, len(self.seeds))
        return index, turn, within

    def table(self, rows: Sequence[int]) -> pd.DataFrame:
        """Return the columns that say what some rows of the whole are, with the rows numbered anew from 0."""
        said = [
            {
                "reading": reading.reading.id, "site": str(site), "site_type": site.kind, "layer": site.layer,
                "head": site.head,
            }
            for reading in self.readings
            for site in reading.sites
        ]  # fmt: skip
        found = []
        for number, row in enumerate(rows):
            index, turn, within = self.place(row)
            own = {"row": number, "input": index, "input_name": self.inputs.name(index), "seed": self.seeds[turn]}
            found.append(own | said[within])
        return to_table(found)

    def continuing(self, stored: Mapping[str, Any] | None) -> "Plan":
        """Return the plan with what the record in its directory was begun with, where nothing else was asked for.

        Raises:
            RecordError: There is a budget, and the record was begun without one.
        """
        batches = (stored or {}).get("batch_plan") or {}
        if not batches:
            return self
        if self.budget is not None and "budget" not in batches:
            raise RecordError(
                "the record was begun without a budget, with every picture at full settings; go on with the same call "
                "without a budget, or choose another directory"
            )
        size = batches["batch_size"] if self.drawing.batch_size is None else self.size
        return replace(self, size=size, within=self.within or batches.get("budget"))

    def manifest(
        self, rows: Sequence[int], described: Mapping[int, dict[str, Any]], threads: int, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what identifies the sweep, and what a reader of its record must know.

        Args:
            rows: The rows of the whole sweep that this record holds.
            described: What identifies the inputs that these rows are of, by index.
            threads: How many threads compute.
            more: The command and the notes.
        """
        model, decoder = self.model, self.decoder
        batches: dict[str, Any] = {"n_rows": len(rows), "batch_size": self.size, "order": "row", "padded": True}
        if self.drawing.noise == "legacy":
            batches |= {"noise": "legacy", "order": "site"}
        if self.within is not None:
            batches["budget"] = self.within
        shard = self.execution.shard
        return {
            "format": FORMAT,
            "model": self.kind.describe(),
            "decoder": decoder and {
                **decoder.identity(), "settings": settings_dict(self.settings),
                "words": decoder.settings_words(self.settings), "takes": dict(decoder.takes),
            },
            "readings": [reading.reading.to_dict() for reading in self.readings],
            "inputs": [described[index] for index in sorted(described)],
            "columns": dict(COLUMNS),
            "seeds": {"decoder": self.seeds, "control": self.controls.seed},
            "machine": machine_kind(model.device if decoder is None else decoder.device),
            "versions": {"vit-lens": __version__, **{package: version(package) for package in _PACKAGES}},
            "threads": threads,
            "batch_plan": batches,
            "shard": shard and {
                "index": shard[0], "of": shard[1], "n_rows": self.n_rows, "rows": ranges(rows),
            },
            "beside": self._described_beside(),
            "controls": {
                "embedding_draws": self.controls.draws, **self.kind.measured_from(self.readings),
                **self._held_against(),
            },
            "conditions": None, "files": None, "complete": False, **more,
        }  # fmt: skip

    def _described_beside(self) -> dict[str, Any] | None:
        """Return what identifies what stands beside the pictures, the judge of a second decoder included."""
        found = self.beside.describe()
        if self.judge is None:
            return found
        kept = {"encoder_id": self.judge.encoder_id, "fingerprint": self.judge.fingerprint}
        return {**(found or {}), "judge": kept | {"dtype": str(self.judge.dtype).removeprefix("torch.")}}

    def _held_against(self) -> dict[str, Any]:
        """Return what identifies the controls of images; nothing for prompts, whose readings say it."""
        if not isinstance(self.kind, ImageKind):
            return {}
        bank = self.others.make(self.model, self.readings)
        held = bank and {"from": self.others.words, "n": len(bank), "content": bank.content}
        found = {"measured": self.measured, "left_out": self.left_out, "others": held}
        return found | ({} if self.controls.normalise is None else {"normalise": self.controls.normalise})

    # ---- what it takes

    def seconds(self, settings: Any, n: int) -> float | None:
        """Return about how long so many pictures take here; None where the decoder does not say its cost."""
        cost = None if self.decoder is None or settings is None else self.decoder.cost(settings, self.size)
        if cost is None or self.decoder is None:
            return None
        passes = -(-n // self.size)
        return passes * cost.flops / flops_per_second(self.decoder.device, self.decoder.dtype)

    def estimate(self) -> str:
        """Say how long the pictures take, and what a budget covers of them; empty where nothing is drawn or known."""
        n = len(self.rows)
        full = self.seconds(self.settings, n)
        if full is None or self.decoder is None:
            return ""
        said = f"{n:,} pictures at {self.decoder.settings_words(self.settings)}: about {duration_words(full)}"
        if self.budget is None:
            return said
        coarse = self.seconds(self.coarse, n)
        if coarse is not None:
            words = self.decoder.settings_words(self.coarse)
            said = f"{n:,} coarse pictures ({words}): about {duration_words(coarse)}; {said}"
        seconds, pictures = self.budget.seconds, self.budget.pictures
        if seconds is not None:
            share = min(1.0, seconds / (full if coarse is None else coarse))
            said += f"; {seconds:g}s covers {share:.0%} of {'them' if coarse is None else 'the coarse ones'}"
        if pictures is not None:  # the coarse pass is not counted
            share = min(1.0, pictures / max(n, 1))
            said += f"; {pictures} pictures {'are' if coarse is None else 'at full settings are'} {share:.0%} of them"
        return said

    def __repr__(self) -> str:  # a notebook shows it, and the fields hold the whole model
        return f"<Plan of {self.n_rows:,} rows of {len(self.inputs)} inputs; print it for time, memory and disk>"

    def __str__(self) -> str:
        n = len(self.rows)
        lenses = [reading.reading.label for reading in self.readings if not reading.reading.control]
        if len(lenses) > _FEW_LENSES:
            lenses = [*lenses[:_FEW_LENSES], f"and {len(lenses) - _FEW_LENSES} more"]
        sites = sum(len(reading.sites) for reading in self.readings if not reading.reading.control)
        controls = self.per_input - sites
        lines = [
            f"inputs: {len(self.inputs)}",
            f"readings: {', '.join(lenses)}; {sites} sites{f' and {controls} controls' if controls else ''} an input",
            f"rows: {self.n_rows:,}" + (f" with {len(self.seeds)} noise seeds" if len(self.seeds) > 1 else ""),
        ]
        if isinstance(self.kind, ImageKind):
            lines += self._control_lines(controls * len(self.inputs) * len(self.seeds))
        if self.execution.shard is not None:
            i, of = self.execution.shard
            lines.append(f"part {i} of {of}: {n:,} rows" + (" before a budget orders them" if self.budget else ""))
        if self.decoder is None:
            return "\n".join([*lines, f"pictures: none; disk: about {size_words(self._stored(n))}"])
        lines.append(
            f"pictures: {n:,}, {self.size} at a time ({len(self.batches):,} batches), by {self.decoder.decoder_id}"
        )
        lines.append(f"time: {self.estimate() or 'not known: the decoder does not say what it costs'}")
        cost = self.decoder.cost(self.settings, self.size)
        if cost is not None:
            free, second = free_memory(self.decoder.device), self._second_cost()
            needed = cost.peak_bytes + cost.weight_bytes
            if second is not None:  # both are loaded, and one draws
                needed = cost.weight_bytes + second.weight_bytes + max(cost.peak_bytes, second.peak_bytes)
            whose = "the decoder" if second is None else "the decoders"
            lines.append(f"memory: {size_words(needed)} for {whose}, {size_words(free)} are free")
        stored = self._stored(n)
        if self.second is not None and self.second.decoder is not None:
            judge = "the encoder itself" if self.second.judge is None else self.second.judge.encoder_id
            took = self.second.seconds(self.second.settings, n)
            words = f"second decoder: {n:,} pictures by {self.second.decoder.decoder_id}, compared by {judge}; "
            lines.append(words + ("how long is not known" if took is None else f"about {duration_words(took)}"))
            stored += self.second._stored(n)
        return "\n".join([*lines, f"disk: about {size_words(stored)}"])

    def _second_cost(self) -> Cost | None:
        second = self.second
        if second is None or second.decoder is None:
            return None
        return second.decoder.cost(second.settings, second.size)

    def _control_lines(self, n: int) -> list[str]:
        """Say which controls are measured and drawn, and what drawing them takes of it all."""
        drawn = list(dict.fromkeys(one.reading.control for one in self.readings if one.reading.control))
        made = self.others.words
        said = f"controls: {', '.join(self.measured) or 'none'} in numbers"
        said += f", of {made}" if made and self.measured != ["random"] else ""
        if left_out := ", ".join(self.left_out):
            why = (
                "for want of other images" if set(self.left_out) <= set(self.others.left_out) else "not of these lenses"
            )
            said += f"; left out, {why}: {left_out}"
        if not drawn or self.decoder is None:
            return [said]
        took = self.seconds(self.settings, n)
        cost = "" if took is None else f", about {duration_words(took)} of the time"
        return [said, f"drawn controls: {', '.join(drawn)}: {n:,} of the pictures{cost}"]

    def _stored(self, n: int) -> float:
        """Return about how many bytes a record takes: conditions twice, pictures, a line of the table."""
        width = self.kind.numbers_of(self.readings)
        said = {} if self.settings is None else settings_dict(self.settings)
        picture = _PNG_SHARE * 3 * (said.get("height") or 0) * (said.get("width") or 0)
        return n * (4 * width * (1 if self.decoder is None else 2) + picture + 250)


def _legacy(decoder: Decoder, drawing: Drawing, budget: Any) -> list[int]:
    """Return the numbers of the pictures that legacy noise draws of a site.

    Raises:
        VitLensError: The decoder draws no such noise, or there is a budget.
    """
    if not isinstance(decoder, TextDecoder):
        raise VitLensError(f"noise='legacy' is that of a TextDecoder; {decoder.decoder_id} draws none such")
    if budget is not None:
        raise VitLensError(
            "noise='legacy' follows from the sites that were drawn before, and a budget draws them in another order: "
            "leave one of them out"
        )
    return list(range(_LEGACY_PICTURES) if drawing.seeds is None else drawing.seeds)


def _kind_of(model: Any, inputs: Any) -> InputKind:
    """Return the inputs with the encoder that reads them."""
    if isinstance(model, PromptEncoder):
        return TextKind(model, Prompts.of(inputs))
    expect(model, HookedViT, "model", VitLensError, "such as HookedViT.from_pretrained('mini')")
    model.refuse_hooks("a record")
    return ImageKind(model, Inputs.of(inputs))
