"""Commands that make and show records: demo, sweep, report, reference, merge."""

__all__ = ["SWEEP_EXAMPLES", "demo", "merge", "reference", "report", "sweep"]

import time
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli import flags, intake, prompting
from vit_lens.cli.jacobians import join_jacobians
from vit_lens.errors import OutputError, VitLensError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_lens.records import Record
    from vit_lens.sweeping import Plan

# A quarter of the work of the decoder's own settings; the model card says what it costs.
_DEMO_SETTINGS = {"steps": 5, "guidance": 1.0}
SWEEP_EXAMPLES = """\b
Examples:
  vit-lens sweep photos/ --controls
  vit-lens sweep photos/ --controls --budget 60s
  vit-lens sweep photos/ --controls --control-kind random --control-kind other --control-images others/
  vit-lens sweep photos/ --second-decoder mini-ip
  vit-lens sweep cat.png --captions "a cat, a dog" --gallery photos/ --decoder none --model ViT-B-32 --tag openai
  vit-lens sweep --prompts "a red star" --prompts prompts.txt --model ./stable-diffusion --controls
  vit-lens sweep cat.png --sites L7H3,L7.mlp --lens dsl-mean:alpha=5 --decoder-seed 0 --decoder-seed 1
  vit-lens sweep cat.png --sites resid_post --lens diffusion \\
    --model kandinsky-community/kandinsky-2-2-prior:image_encoder \\
    --decoder kandinsky-community/kandinsky-2-2-decoder --device cuda --decoder-dtype bfloat16
"""


def demo(out: flags.Out = Path("vit-lens-demo"), open_page: flags.Open = False) -> None:
    """Sweep bundled images and sentences on the embedded models and write a page.

    Needs no download, about a minute on a laptop.
    """
    from vit_lens import Drawing, HookedViT, load_decoder
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.lenses import parse_lenses
    from vit_lens.mini import SENTENCES, mini_beside, mini_gallery, mini_notes, sample_images
    from vit_lens.readers import SiteMeans
    from vit_lens.sweeping import Controls
    from vit_lens.sweeping import sweep as run

    model, decoder = HookedViT.from_pretrained("mini"), load_decoder("mini")
    lenses = parse_lenses(None, model)
    with mini_gallery(model) as gallery:
        means = SiteMeans.of_gallery(model, gallery, lenses, flags.DEFAULT_SITES)
        record = run(
            model, decoder, sample_images(), lens=lenses, out=out,
            drawing=Drawing(settings=decoder.settings(**_DEMO_SETTINGS)), controls=True,
            beside=replace(mini_beside(model), gallery=gallery, means=means), progress=True,
            command=intake.command_line(), notes=mini_notes(model),
        )  # fmt: skip
    painter = TextDecoder.from_pretrained("mini-sd")
    prompts = run(
        PromptEncoder.from_pretrained("mini-sd"), painter, SENTENCES, controls=Controls(kinds=["random", "empty"]),
        out=out / "prompts", progress=True, command=intake.command_line(), notes=mini_notes(painter),
    )  # fmt: skip
    _page(record.path, open_page, prompts=prompts.path)


def sweep(
    pair: flags.Pair,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    prompts: flags.Prompts = None,
    truncate: flags.Truncate = False,
    lens: flags.Lenses = flags.DEFAULT_LENSES,
    sites: flags.Sites = flags.DEFAULT_SITES,
    reference: flags.Reference = None,
    jacobian: flags.Jacobian = None,
    anchors: flags.Anchors = None,
    out: flags.Out = Path("vit-lens-out"),
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="The part of the steps with guidance, as two words: 0 0.6.", metavar="START END"),
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm++.")] = None,
    size: flags.Size = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="The decoder's fast settings (12 steps), in place of its own: docs/speed.md has the price."
        ),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the decoder: slow first batches (minutes at full size), then faster."),
    ] = False,
    batch_size: flags.BatchSize = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="60s, 2m, 1h, or 200 pictures: draw every site coarsely, then refine the most informative until it is "
            "spent. Run it again to refine more, without --budget to refine all."
        ),
    ] = None,
    controls: flags.Controls = False,
    control_kind: flags.ControlKinds = None,
    control_images: flags.ControlImages = None,
    normalise: flags.Normalise = None,
    control_seed: flags.ControlSeed = 0,
    noise: Annotated[
        str,
        typer.Option(
            help="Of prompts: shared by all rows, or legacy, as in the released code of Diffusion Lens: other noise "
            "for every layer, four pictures of each; --decoder-seed is then of the generator (there 42)."
        ),
    ] = "shared",
    captions: flags.Captions = None,
    gallery: flags.GalleryFolder = None,
    probe: Annotated[
        list[Path] | None,
        typer.Option(
            help="Of prompts: a file that TextProbe.save wrote; what it reads at every layer stands beside the "
            "picture, under the file's name. Repeat for more."
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live/--no-live", help="Keep what the live page needs (up to 8 MB): parts to turn up and down."),
    ] = True,
    second_decoder: flags.SecondDecoder = None,
    second_settings: flags.SecondSettings = None,
    judge: flags.Judge = None,
    shard: flags.Shard = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of the processor; the same for all parts of a sweep. Default: PyTorch's own."),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="Who draws: local; others register by name, NAME:key=value,key=value.")
    ] = "local",
    decoder_dtype: flags.DecoderDtype = "float32",
    only_plan: flags.OnlyPlan = False,
    page: Annotated[bool, typer.Option(help="Write report.html when done.")] = True,
) -> None:
    """Draw what sites of a model contribute to images or prompts. Run it again to go on after an interruption."""
    from vit_lens.mini import mini_beside, mini_notes
    from vit_lens.readers import Gallery, SiteMeans
    from vit_lens.sweeping import Beside, Budget, Drawing, Execution, plan
    from vit_lens.sweeping import Controls as Against

    started, part = time.monotonic(), flags.parse_shard(shard)
    flags.torch_dtype(decoder_dtype)  # refuses a misspelt one before the model is loaded
    allowance = None if budget is None else Budget.parse(budget)
    execution = Execution(executor=executor, shard=part, threads=threads)
    kinds = flags.split_list(control_kind or ()) or ("random",)
    against = Against(drawn=controls, seed=control_seed, kinds=kinds, normalise=normalise)
    if control_kind and not controls:
        raise VitLensError("--control-kind says which controls are drawn, and none are without --controls: give both")
    if prompts is not None:
        prompting.refuse_images_words(
            images=paths or images, captions=captions, gallery=gallery, fast=fast, compile=compiled, jacobian=jacobian,
            control_images=control_images, guidance_interval=guidance_interval,
            decoder_encoder=pair.decoder_encoder, tag=pair.tag, second_decoder=second_decoder, judge=judge,
            second_settings=second_settings,
        )  # fmt: skip
        made = prompting.plan_prompts(
            pair, prompts, truncate=truncate, lens=lens, reference=reference, sites=sites, dtype=decoder_dtype,
            batch_size=batch_size, noise=noise, probes=probe or (), anchors=anchors,
            asked={"steps": pair.steps, "guidance": pair.guidance, "scheduler": scheduler, "size": size},
            controls=against, budget=allowance, execution=execution,
        )  # fmt: skip
        shown, notes = made.decoder is not None, mini_notes(made.decoder) if made.decoder else ()
        return _run(made, out, only_plan, page, allowance, started, shown=shown, notes=notes)
    if truncate or probe or noise != "shared":
        raise VitLensError("--truncate, --probe and --noise are for --prompts, which were not given")
    found = intake.find_given(paths, images)
    asked = {
        "steps": pair.steps, "guidance": pair.guidance, "guidance_interval": guidance_interval, "scheduler": scheduler,
    }  # fmt: skip
    intake.check_drawn(
        pair.decoder, **asked, decoder_encoder=pair.decoder_encoder, size=size, decoder_seed=pair.decoder_seed,
        fast=fast, compile=compiled, batch_size=batch_size, budget=budget, second_decoder=second_decoder,
    )  # fmt: skip
    if guidance_interval is not None and pair.guidance is not None and pair.guidance <= 1:
        raise VitLensError(f"--guidance {pair.guidance:g} is none, so --guidance-interval would have no effect")
    specs = flags.split_list(lens or ()) or flags.DEFAULT_LENSES
    intake.check_lenses(specs, pair, reference=reference, jacobian=jacobian, anchors=anchors, gallery=gallery)
    starts = intake.find_anchors(anchors, found)
    vit = pair.load()
    wanted = flags.split_list(sites)
    near = None if gallery is None else Gallery.from_folder(vit, gallery, progress=True)
    lenses = intake.read_lenses(specs, reference, vit, jacobian, anchors=starts, gallery=near)
    drawer = None if pair.decoder == "none" else pair.load_decoder(decoder_dtype, vit)
    settings = None
    if drawer is not None:
        make = intake.method_of(drawer, "fast_settings", "has no fast settings", "--fast") if fast else drawer.settings
        settings = make(**flags.known(**asked, height=size, width=size))
        if compiled:
            intake.method_of(drawer, "compile", "cannot be compiled", "--compile")()
    if control_images:
        against = replace(against, bank=intake.read_bank(vit, control_images, lenses, control_seed))
    means = () if near is None else SiteMeans.of_gallery(vit, near, lenses, wanted)
    own = {} if captions is None else {"texts": intake.read_captions(captions, pair), "groups": None}
    is_pooled = all("pooled" in lens.parts for lens in lenses)  # words and neighbours are of embeddings
    usual = mini_beside(vit, drawn=drawer is not None) if is_pooled else Beside()
    beside = replace(usual, gallery=near, means=means, live=live, **own)
    made = plan(
        vit, drawer, found, lens=lenses, sites=wanted,
        drawing=Drawing(settings=settings, seeds=pair.decoder_seed or None, batch_size=batch_size),
        controls=against, beside=beside, budget=allowance, execution=execution,
        second_decoder=intake.second_of(second_decoder, second_settings, judge, vit, decoder_dtype, pair.device),
    )  # fmt: skip
    shown = drawer is not None or captions is not None or gallery is not None
    _run(made, out, only_plan, page, allowance, started, shown=shown, notes=mini_notes(vit))


def _run(
    made: "Plan", out: Path, only_plan: bool, page: bool, allowance: object, started: float, *, shown: bool,
    notes: "Sequence[str]",
) -> None:  # fmt: skip
    """Run a plan, or print it; the page grows with a record that has a budget."""
    from vit_lens.records import budget_words
    from vit_lens.report import write_report
    from vit_lens.sweeping import run

    if only_plan:
        typer.echo(str(made))
        return
    told: list[Path] = []

    def show(record: "Record") -> None:  # the page grows with the record; where it is, is told once
        told.append(write_report(record))
        if len(told) == 1:
            typer.echo(f"page: {told[0]}")

    record = run(
        made, out, started=started, progress=True,
        on_pass=show if page and allowance is not None else None, command=intake.command_line(), notes=notes,
    )  # fmt: skip
    if words := budget_words(record):
        typer.echo(words)
    _tell_agreement(record)
    if page and allowance is not None:
        return
    if page and shown:
        _page(record.path, False)
    else:
        typer.echo(f"record: {record.path}")


def report(
    directory: Annotated[Path, typer.Argument(help="Directory of a record.")], open_page: flags.Open = False
) -> None:
    """Write the page of a record, finished or not: report.html, which needs no network."""
    _page(directory, open_page)


def reference(
    out: flags.OutFile,
    tower: flags.Tower,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    prompts: flags.Prompts = None,
    truncate: flags.Truncate = False,
    positions: Annotated[
        str,
        typer.Option(
            help="Of images. readout: what lenses read; all: every token, for ablation by the mean and patch-dsl-mean."
        ),
    ] = "readout",
    encoder_dtype: flags.EncoderDtype = "float32",
) -> None:
    """Average a model's activations over images or prompts: what the leak-free lens (dsl-mean) starts from.

    Mean ablation of images does, too. Give a few hundred that are not studied.
    """
    from vit_lens import ReferenceMeans, TextMeans

    if out.suffix != ".safetensors":
        raise VitLensError(f"--out {out}: name a file that ends in .safetensors")
    if out.exists():
        raise OutputError(f"--out {out} is there already; remove it, or choose another name")
    if positions not in ("readout", "all"):
        raise VitLensError(f"--positions {positions}: expected readout or all")
    if prompts is not None:
        prompting.refuse_images_words(images=paths or images, tag=tower.tag, positions=positions != "readout")
        texts = prompting.read_prompts(prompts)
        encoder = prompting.load_encoder(tower, encoder_dtype)
        made = TextMeans.of(encoder, texts, truncate=truncate, progress=True)
        typer.echo(f"{made}\nmeans of {made.n} prompts: {made.save(out)}")
        return
    if truncate:
        raise VitLensError("--truncate is for --prompts, which were not given")
    found = intake.find_given(paths, images)
    means = ReferenceMeans.from_images(tower.load(encoder_dtype), found, positions=positions, progress=True)
    typer.echo(f"{means}\nmeans of {means.n} images: {means.save(out)}")


def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(help="Directories that were swept with --shard, or files that jacobian made with it."),
    ],
    out: flags.Out,
) -> None:
    """Join the parts of a divided sweep into one record, with its page; or those of divided Jacobians into one file."""
    from vit_lens.records import merge as join

    if any(path.suffix == ".safetensors" for path in shards):
        typer.echo(join_jacobians(shards, out))
        return

    record = join(shards, out)
    _tell_agreement(record)
    _page(record.path, False)


def _tell_agreement(record: "Record") -> None:
    """Print at how many sites two decoders agree, where there are two."""
    from vit_lens.records import SECOND, agreement_words

    if (table := record.agreement) is not None:
        held = [bool(record.readings[reading].control) for reading in record.table["reading"]]
        typer.echo(f"{agreement_words(table, held)} ({record.path / SECOND / 'agreement.csv'})")


def _page(directory: Path, open_page: bool, *, prompts: Path | None = None) -> None:
    from vit_lens.report import write_report

    page = write_report(directory, prompts=prompts)
    typer.echo(f"page: {page}")
    if open_page:
        webbrowser.open(page.resolve().as_uri())
