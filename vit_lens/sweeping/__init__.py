"""Sweeps: sites x images, read by lenses, decoded into pictures, kept as a record."""

__all__ = ["Budget", "sweep"]

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vit_lens.decoders import DecodeSettings, KandinskyDecoder
from vit_lens.errors import VitLensError
from vit_lens.files import exclusive
from vit_lens.lenses import Lens
from vit_lens.model import HookedViT
from vit_lens.names import Site
from vit_lens.readouts import Gallery, ReadoutMeans
from vit_lens.records import Record, RecordWriter
from vit_lens.sweeping.budget import Budget, Pace, coarse_settings
from vit_lens.sweeping.controls import CONTROL_DRAWS
from vit_lens.sweeping.drawing import Drawing, memory_notes
from vit_lens.sweeping.passes import make_passes
from vit_lens.sweeping.plan import (
    Image,
    as_list,
    check_arguments,
    describe_images,
    make_manifest,
    make_readings,
    plan_batches,
    plan_rows,
    stored_plan,
)
from vit_lens.sweeping.readouts import Beside
from vit_lens.sweeping.stages import embed_stage
from vit_lens.texts import TextBank, ZeroShotLabels


def sweep(
    model: HookedViT,
    decoder: KandinskyDecoder | None,
    images: Image | Sequence[Image],
    *,
    lens: Lens | Sequence[Lens],
    sites: Sequence[Site | str] | Site | str = ("heads", "attn", "mlp"),
    out: str | os.PathLike[str],
    settings: DecodeSettings | None = None,
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    budget: Budget | str | int | float | None = None,
    controls: bool = False,
    control_seed: int = 0,
    labels: ZeroShotLabels | None = None,
    texts: TextBank | None = None,
    text_groups: Mapping[str, Sequence[str]] | None = None,
    gallery: Gallery | None = None,
    means: Sequence[ReadoutMeans] = (),
    live: bool = False,
    shard: tuple[int, int] | None = None,
    progress: bool = False,
    on_pass: Callable[[Record], object] | None = None,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> Record:
    """Read every site of every image through lenses, draw each embedding, and keep all of it on disk.

    Killed and started again with the same arguments, a sweep goes on where it stopped and ends with the same
    bits as an undisturbed one on that machine: which rows share a batch is fixed at the start.

    Args:
        model: The encoder.
        decoder: Draws the pictures; None keeps embeddings and their numbers alone.
        images: Paths (of a folder: the images in it), PIL images or uint8 arrays.
        lens: One lens, which must be defined on every site, or several, each of which reads the sites that it
            is defined on.
        sites: Sites (``"L3H4"``, ``Site``), or groups of them: ``heads``, ``attn``, ``mlp``, ``resid_pre``,
            ``resid_mid``, ``resid_post``.
        out: Directory of the record: new, empty, or this same sweep's.
        settings: How to decode; the decoder's own by default.
        seeds: Decoder noise seeds; every row is drawn once with each. By default that of the settings.
        batch_size: Pictures that are decoded together; by default what free memory has room for, or what the record
            in ``out`` was begun with. Where memory runs short it is halved, which the record says.
        budget: What this call may spend: ``"60s"`` of wall time, or 200 pictures; see :class:`Budget`. Every row is
            first drawn coarsely, then the most informative sites are refined, each with its control
            (:func:`vit_lens.sweeping.passes.refining_groups` says in which order), until the budget ends. The record
            stays unfinished until all is refined; the same call again goes on for another budget, and without one to
            the end.
        controls: Draw, beside every row that is not a residual, a control of equal norm and random direction. The
            table says without it, before decoding, what twenty of them are like (``cos_lens_control``, ``leak``).
        control_seed: Of the random directions.
        labels: Puts zero-shot words beside every picture.
        texts: Captions of this encoder: the nearest stand beside every picture, and the live page gives their
            probabilities.
        text_groups: Captions that exclude each other, by name: the live page takes a softmax over each group. By
            default all captions are one group.
        gallery: Images of this encoder, among which the nearest to every lens embedding are sought; small copies of
            those that are found go into the record.
        means: Of the lenses: what the centred form of captions and neighbours takes away. Without them neighbours
            are centred on the gallery's mean, and captions are not.
        live: Keep the numbers of the live page, for as many of the first images as a page can carry (8 MB).
        shard: (i, n) takes the i-th of n parts of the images; ``vit_lens.records.merge`` joins the parts.
        progress: Show a bar.
        on_pass: Called with the record as far as it is, after each pass, now and then in between, and at the end.
        command: How to make this record again, for its manifest.
        notes: Shown with the record.

    Raises:
        ImageError: An image cannot be read.
        UnknownSiteError: A site is not the model's.
        LensError: The lens is not defined on a site.
        TextError: The captions are another encoder's.
        GalleryError: The gallery is another model's, or too small.
        ContractError: The decoder was made for another encoder.
        RecordError: ``out`` holds something else.
        OutputError: ``out`` cannot be written.
    """
    started = time.monotonic()
    model.refuse_hooks("a record")
    images = as_list(images)
    check_arguments(images, batch_size, shard)
    index = list(range(len(images)))[shard[0] :: shard[1]] if shard else list(range(len(images)))
    readings = make_readings(model, lens, sites, controls)
    beside = Beside(model, readings, texts, text_groups, gallery, means, live)
    settings = decoder and (settings or decoder.defaults)
    if decoder is None and not (seeds is None and settings is None and labels is None and budget is None):
        raise VitLensError(
            "without a decoder nothing is drawn, so seeds=, settings=, labels= and budget= would have no effect"
        )
    budget = None if budget is None else Budget.parse(budget)
    seeds = list(seeds) if seeds is not None else [settings.seed if settings else 0]
    if not seeds or len(set(seeds)) < len(seeds):
        raise VitLensError(f"seeds={seeds}: give different seeds, at least one")
    negative = model.zero_embedding()
    if decoder is not None and settings is not None:
        decoder.check(negative, encoder=model)
        for seed in seeds:
            decoder.check_settings(replace(settings, seed=seed))
    model.preprocess(images[index[0]])  # asks for a preprocessing where the model has none
    described = describe_images(images, index)
    plan = [row for image in described for seed in seeds for row in plan_rows(image, seed, readings)]
    for number, row in enumerate(plan):
        row["row"] = number
    batches = plan_batches(len(plan), len(seeds), batch_size, budget, decoder, settings, stored_plan(out))
    manifest = make_manifest(model, decoder, settings, readings, described, seeds, control_seed, batches)
    manifest |= {"command": command, "shard": list(shard) if shard else None, "notes": list(notes)}
    manifest |= {"readouts": beside.describe(), "controls": {"embedding_draws": CONTROL_DRAWS}}
    writer = RecordWriter(out, manifest, plan)
    chosen = [images[i] for i in index]
    if not (writer.resumed and writer.manifest["complete"]):
        with exclusive(writer.path):
            if budget is not None:
                writer.add_budget(str(budget))
            same_above = batches["budget"]["same_above"] if "budget" in batches else None
            embed_stage(
                model, chosen, described, readings, seeds, control_seed, negative, beside, writer, same_above, progress
            )
            ended = True
            if decoder is not None and settings is not None:
                coarse = None if budget is None else coarse_settings(settings)
                passes = make_passes(
                    writer.table, seeds, batches["batch_size"], settings, coarse, by_information="budget" in batches
                )
                pace = Pace(budget, started)
                ended = Drawing(model, decoder, labels, writer, passes, batches["batch_size"], pace, on_pass).run(
                    progress
                )
            if ended:
                writer.finish(memory_notes(writer.manifest))
    record = Record.load(out)
    if on_pass is not None:
        on_pass(record)
    return record
