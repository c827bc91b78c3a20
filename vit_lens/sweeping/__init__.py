"""Sweeps: sites x inputs, read by lenses, decoded into pictures, kept as a record."""

__all__ = [
    "DEFAULT_SITES", "Beside", "Budget", "Controls", "Drawing", "Execution", "Inputs", "Plan", "Prompts",
    "SecondDecoder", "plan", "run", "sweep",
]  # fmt: skip

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from vit_lens.decoders import Decoder, PromptEncoder
from vit_lens.lenses import Lens, Sites, TextMeans
from vit_lens.models import HookedViT
from vit_lens.records import Record
from vit_lens.reference import ReferenceMeans
from vit_lens.sweeping.beside_pictures import Beside
from vit_lens.sweeping.budget import Budget
from vit_lens.sweeping.plan import DEFAULT_SITES, Plan, plan
from vit_lens.sweeping.request import Controls, Drawing, Execution, Inputs, SecondDecoder, check_kind
from vit_lens.sweeping.stages import run
from vit_lens.sweeping.text_inputs import Prompts


def sweep(
    model: HookedViT | PromptEncoder, decoder: Decoder | None, inputs: Any, *,
    lens: Sequence[Lens | str] | Lens | str | None = None, reference: ReferenceMeans | TextMeans | None = None,
    anchors: Any = None, sites: Sites | None = None, out: str | os.PathLike[str],
    drawing: Drawing | None = None, controls: Controls | bool = False, beside: Beside | None = None,
    budget: Budget | str | int | float | None = None, execution: Execution | None = None,
    second_decoder: SecondDecoder | Decoder | None = None, progress: bool = False,
    on_pass: Callable[[Record], object] | None = None, command: str | None = None, notes: Sequence[str] = (),
) -> Record:  # fmt: skip
    """Read every site of every input through lenses, draw each embedding, and keep all of it on disk.

    Killed and started again with the same arguments, or divided into parts that :func:`vit_lens.records.merge` joins, a
    sweep ends with the same bits as an undisturbed one: on one kind of device, with equal library versions and
    threads, which stand in the record. A budget follows the clock, and is exempt.

    Args:
        model: The encoder: a model that sees images, or a :class:`vit_lens.decoders.PromptEncoder` for prompts.
        decoder: The decoder that draws the pictures; None keeps embeddings and their numbers alone.
        inputs: Images as :class:`Inputs` takes them (paths, folders, PIL images, uint8 arrays), or :class:`Inputs`; or
            prompts as :class:`Prompts` takes them.
        lens: Lenses or their spellings (``"dsl:alpha=10"``); by default :data:`vit_lens.lenses.DEFAULT_LENSES`, and for
            prompts :class:`vit_lens.TextDiffusionLens`. One
            must be defined on every site, of several each reads the sites that it is defined on.
        reference: Means for the spellings ``dsl-mean`` and ``counterfactual``; by default those that ship with the
            model. Of prompts :class:`vit_lens.TextMeans`, which the leak index needs, too.
        anchors: What the spelling ``counterfactual`` starts from: other images, or :class:`vit_lens.Anchors`; of
            prompts other prompts, or :class:`vit_lens.TextAnchors`. None of them may be among the inputs.
        sites: Sites (``"L3H4"``, ``Site``), or groups of them: ``heads``, ``attn``, ``mlp``, ``resid_pre``,
            ``resid_mid``, ``resid_post``. None takes every layer, and of images every head, attention block and MLP.
        out: The directory of the record: new, empty, or this same sweep's, which then goes on.
        drawing: The decoder's settings, noise seeds and batch size; None takes the decoder's own.
        controls: Whether a control of equal norm and random direction is drawn beside every row that is not a
            residual, or :class:`Controls` that say which. The table says without it, before decoding, what twenty of
            them are like (``cos_lens_control``, ``leak``).
        beside: Captions, neighbours and live numbers to keep beside the pictures; None keeps none.
        budget: What this call may spend: ``"60s"`` of wall time, or 200 pictures; see :class:`Budget`. Every row is
            first drawn coarsely, where the decoder has coarse settings, then refined; in both the most informative
            come first, evenly over the inputs (:func:`vit_lens.sweeping.order.refining_groups`). The record stays
            unfinished until all is refined; the same call again goes on for another budget, and without one to the end.
        execution: The executor, the part of a divided sweep, and the number of threads; None draws all of it here.
        second_decoder: Another decoder for the same encoder, or :class:`SecondDecoder`, which says who compares the
            pictures: it draws every row, too, after the first has drawn all of them, and :attr:`vit_lens.Record.second`
            and :attr:`vit_lens.Record.agreement` hold what came of it. It may be added to a sweep that is finished.
        progress: Whether bars are shown, and with a budget what it will cover.
        on_pass: A function that is called with the record as far as it is, after each pass, now and then in between,
            and at the end.
        command: The command that makes this record again, for its manifest; None leaves it out.
        notes: Sentences that are shown with the record.

    Returns:
        The record in ``out``. Its rows are numbered by input, then noise seed, then reading and site.

    Raises:
        ImageError: An image cannot be read.
        UnknownSiteError: A site is not the model's.
        LensError: A lens is none, is not defined on a site, or has no control.
        TextError: The captions are another encoder's.
        GalleryError: The gallery is another model's, or too small.
        ContractError: The decoder was made for another encoder, or a decoder or lens does not keep its contract.
        DecoderError: The decoder cannot run the settings.
        RecordError: ``out`` holds something else.
        OutputError: ``out`` cannot be written.

    >>> settings = vl.Drawing(settings=decoder.settings(steps=1), batch_size=2)
    >>> record = vl.sweep(
    ...     model, decoder, images[:1], lens="dsl:alpha=10", sites=["L7H0", "L7H1"], drawing=settings, out=tmp / "sweep"
    ... )
    >>> record.table["site"].tolist()
    ['L7H0', 'L7H1']
    >>> record.picture(0).size
    (64, 64)
    """
    started = time.monotonic()
    check_kind("out", out, (str, os.PathLike), "a path")
    made = plan(
        model, decoder, inputs, lens=lens, reference=reference, anchors=anchors, sites=sites, drawing=drawing,
        controls=controls, beside=beside, budget=budget, execution=execution, second_decoder=second_decoder,
    )  # fmt: skip
    return run(made, out, started=started, progress=progress, on_pass=on_pass, command=command, notes=notes)
