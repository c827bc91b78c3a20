"""Commands that make and show records: demo, sweep, report, reference, merge."""

__all__ = ["SWEEP_EXAMPLES", "demo", "merge", "reference", "report", "sweep"]

import shlex
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli.options import (
    DEFAULT_LENSES,
    Device,
    parse_shard,
    split_list,
    torch_device,
    torch_dtype,
)
from vit_lens.errors import VitLensError

if TYPE_CHECKING:
    from vit_lens.lenses import Lens
    from vit_lens.model import HookedViT
    from vit_lens.readouts import Gallery, ReadoutMeans
    from vit_lens.records import Record
    from vit_lens.texts import TextBank

Model = Annotated[
    str,
    typer.Option(help="mini, an open_clip name, a Hugging Face id (owner/name[:subfolder]) or a local directory."),
]
Tag = Annotated[str | None, typer.Option(help="For an open_clip name: its pretrained tag, or a checkpoint file.")]
QuickGelu = Annotated[
    bool | None,
    typer.Option(
        "--quick-gelu/--gelu", help="Activation of a local open_clip checkpoint, where its name leaves it open."
    ),
]
# A quarter of the work of the decoder's own settings; the model card says what it costs.
_DEMO_SETTINGS = {"steps": 5, "guidance": 1.0}
SWEEP_EXAMPLES = """\b
Examples:
  vit-lens sweep photos/ --controls
  vit-lens sweep photos/ --controls --budget 60s
  vit-lens sweep cat.png --captions "a cat, a dog" --gallery photos/ --decoder none --model ViT-B-32 --tag openai
  vit-lens sweep cat.png --sites L7H3,L7.mlp --lens dsl-mean:alpha=5 --seed 0 --seed 1
  vit-lens sweep cat.png --sites resid_post --lens diffusion \\
    --model kandinsky-community/kandinsky-2-2-prior:image_encoder \\
    --decoder kandinsky-community/kandinsky-2-2-decoder --device cuda --dtype bfloat16
"""
_DEMO_SITES = ["L0.resid_pre", "resid_post", "heads", "attn", "mlp"]


def demo(
    out: Annotated[Path, typer.Option(help="Directory for the record and its page.")] = Path("vit-lens-demo"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Sweep bundled images on the embedded pair and write a page. Needs no download, about a minute on a laptop."""
    from vit_lens import DiffusionLens, DiffusionSteeringLens, HookedViT, KandinskyDecoder, ReferenceMeans, TextBank
    from vit_lens.mini.shipped import mini_labels, sample_images
    from vit_lens.readouts import Gallery
    from vit_lens.sweeping import sweep as run

    model = HookedViT.from_pretrained("mini")
    decoder = KandinskyDecoder.from_pretrained("mini")
    steering = DiffusionSteeringLens(alpha=5.0, anchor="mean", reference=ReferenceMeans.load("mini"))
    lenses = [steering, DiffusionLens()]
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.from_folder(model, _draw_scenes(Path(folder)))
        record = run(
            model, decoder, sample_images(), lens=lenses, sites=_DEMO_SITES, out=out,
            settings=decoder.settings(**_DEMO_SETTINGS), batch_size=64, controls=True, labels=mini_labels(),
            texts=TextBank.mini(), text_groups=_mini_groups(), gallery=gallery,
            means=_gallery_means(model, gallery, lenses, _DEMO_SITES), live=True,
            progress=True, command=_command(), notes=[_MINI_NOTE],
        )  # fmt: skip
    _page(record.path, open_page)


def sweep(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Model = "mini",
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    decoder: Annotated[
        str, typer.Option(help="mini, a Hub id, a local directory, or none for embeddings and numbers alone.")
    ] = "mini",
    encoder: Annotated[
        str | None, typer.Option(help="Which encoder the decoder was made for, where its files do not say it.")
    ] = None,
    lens: Annotated[
        list[str] | None,
        typer.Option(
            help="diffusion, dsl:alpha=10, dsl:share=1, dsl-mean:alpha=5 (leak-free). Repeat for several; each reads "
            f"the sites it is defined on. Default: {' and '.join(DEFAULT_LENSES)}."
        ),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="L3H4, L3.attn, L3.mlp, L3.resid_post; groups: heads, attn, mlp, resid_post. Commas or repeat."
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Reference means for dsl-mean (`vit-lens reference`); mini has its own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of the record: new, empty, or this same sweep's.")] = Path(
        "vit-lens-out"
    ),
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the decoder's own by default.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None, typer.Option(help="Part of the steps with guidance, for example 0 0.6.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm++.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the pictures.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Decoder noise seed; repeat to draw every site with each.")
    ] = None,
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
    batch_size: Annotated[
        int | None,
        typer.Option(help="Pictures decoded together; by default what free memory has room for, at most 32."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="60s, 2m, 1h, or 200 pictures: draw every site coarsely, then refine the most informative until it is "
            "spent. Run it again to refine more, without --budget to refine all."
        ),
    ] = None,
    controls: Annotated[bool, typer.Option(help="Beside every site, a random direction of equal norm.")] = False,
    captions: Annotated[
        str | None,
        typer.Option(
            help="Beside every picture the nearest of these: a file with one caption a line, a saved text bank "
            "(.safetensors), or captions with commas. mini has its own."
        ),
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="Folder of images: beside every picture the nearest of them.")
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live/--no-live", help="Keep what the live page needs (up to 8 MB): parts to turn up and down."),
    ] = True,
    shard: Annotated[str | None, typer.Option(help="I/N: only the I-th of N parts of the images.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the decoder's weights; the encoder, one run per image, stays in float32.")
    ] = "float32",
    device: Device = "cpu",
    page: Annotated[bool, typer.Option(help="Write report.html when done.")] = True,
) -> None:
    """Draw what sites of a model contribute to images of yours. Run it again to go on after an interruption."""
    from vit_lens import HookedViT, KandinskyDecoder, ReferenceMeans, Site
    from vit_lens.identity import MINI_ENCODER
    from vit_lens.images import find_images
    from vit_lens.lenses import parse_lens
    from vit_lens.mini.shipped import mini_labels
    from vit_lens.readouts import Gallery
    from vit_lens.records import budget_words
    from vit_lens.sweeping import Budget
    from vit_lens.sweeping import sweep as run

    found = find_images(images)
    part = parse_shard(shard)
    precision, place = torch_dtype(dtype), torch_device(device)
    chosen = {
        "steps": steps, "guidance": guidance, "guidance_interval": guidance_interval, "scheduler": scheduler,
        "height": size, "width": size,
    }  # fmt: skip
    chosen = {name: value for name, value in chosen.items() if value is not None}
    drawing = {"seed": seed, "fast": fast, "compile": compiled, "batch_size": batch_size, "budget": budget}
    allowance = None if budget is None else Budget.parse(budget)
    if decoder == "none" and encoder is not None:
        raise VitLensError("--encoder says which encoder a decoder was made for; with --decoder none it has no effect")
    given = [*chosen, *(name for name, on in drawing.items() if on)]
    if decoder == "none" and given:
        raise VitLensError(f"with --decoder none nothing is drawn, so {', '.join(given)} would have no effect")
    specs = split_list(lens or ()) or list(DEFAULT_LENSES)
    needs_means = any(spec.startswith("dsl-mean") for spec in specs)
    if reference is not None and not needs_means:
        raise VitLensError("--reference serves the lens dsl-mean alone, which was not asked for")
    vit = HookedViT.from_pretrained(model, tag=tag, quick_gelu=quick_gelu, device=place)
    is_mini = vit.encoder_id == MINI_ENCODER
    means = ReferenceMeans.load(reference or "mini") if reference or (needs_means and is_mini) else None
    lenses = [parse_lens(spec, means) for spec in specs]
    wanted = split_list(sites or ()) or _DEMO_SITES
    Site.resolve(wanted, vit.cfg)
    drawer = None
    if decoder != "none":
        drawer = KandinskyDecoder.from_pretrained(decoder, encoder=encoder, dtype=precision, device=place)
    settings = drawer and (drawer.fast_settings(**chosen) if fast else drawer.settings(**chosen))
    if drawer is not None and compiled:
        drawer.compile()
    own_texts = is_mini and captions is None and drawer is not None
    texts = None if captions is None and not own_texts else _read_captions(captions, model, tag, quick_gelu, device)
    near = None if gallery is None else Gallery.from_folder(vit, gallery, progress=True)
    record = run(
        vit, drawer, found, lens=lenses[0] if len(lenses) == 1 else lenses, sites=wanted, out=out,
        settings=settings, seeds=seed or None, batch_size=batch_size, budget=allowance, controls=controls,
        labels=mini_labels() if is_mini and drawer else None, texts=texts,
        text_groups=_mini_groups() if own_texts else None, gallery=near,
        means=() if near is None else _gallery_means(vit, near, lenses, wanted), live=live, shard=part, progress=True,
        on_pass=_growing_page() if page and allowance is not None else None,
        command=_command(), notes=[_MINI_NOTE] if is_mini else [],
    )  # fmt: skip
    if words := budget_words(record):
        typer.echo(words)
    if page and allowance is not None:
        return
    if page and (drawer is not None or captions is not None or gallery is not None):
        _page(record.path, False)
    else:
        typer.echo(f"record: {record.path}")


def report(
    directory: Annotated[Path, typer.Argument(help="Directory of a record.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write the page of a record, finished or not: report.html, which needs no network."""
    _page(directory, open_page)


def reference(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders: a few hundred that are not studied.")],
    out: Annotated[Path, typer.Option(help="File to write (.safetensors).")],
    model: Model = "mini",
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    positions: Annotated[
        str, typer.Option(help="readout: what lenses read; all: every token, for ablation by the mean.")
    ] = "readout",
    device: Device = "cpu",
) -> None:
    """Average a model's activations over images: what the leak-free lens (dsl-mean) and mean ablation start from."""
    from vit_lens import HookedViT, ReferenceMeans
    from vit_lens.images import find_images

    found = find_images(images)
    if out.suffix != ".safetensors" or out.is_dir():
        raise VitLensError(f"--out {out}: name a file that ends in .safetensors")
    if positions not in ("readout", "all"):
        raise VitLensError(f"--positions {positions}: expected readout or all")
    vit = HookedViT.from_pretrained(model, tag=tag, quick_gelu=quick_gelu, device=torch_device(device))
    means = ReferenceMeans.from_images(vit, found, positions=positions, progress=True)
    typer.echo(f"{means}\nmeans of {means.n} images: {means.save(out)}")


def merge(
    shards: Annotated[list[Path], typer.Argument(help="Directories that were swept with --shard.")],
    out: Annotated[Path, typer.Option(help="Directory of the whole record.")],
) -> None:
    """Join the parts of a divided sweep into one record, with its page."""
    from vit_lens.records import merge as join

    _page(join(shards, out).path, False)


_MINI_NOTE = (
    "Embedded pair: a small CLIP and decoder trained on synthetic 64-pixel scenes. "
    "Nothing here is known for larger models."
)


_SCENES, _SCENE_SEED, _MEAN_IMAGES = 96, 2024, 256


def _draw_scenes(folder: Path) -> Path:
    """Draw scenes of the embedded pair's world, always the same, named by what they show."""
    import numpy as np
    from PIL import Image

    from vit_lens.mini import world

    scenes = world.sample_scenes(_SCENES, np.random.default_rng(_SCENE_SEED), held_out=True)
    for number, (scene, pixels) in enumerate(zip(scenes, world.render(scenes), strict=True)):
        Image.fromarray(pixels).save(folder / f"{number:03d} {world.caption(scene)}.png")
    return folder


def _read_captions(
    captions: str | None, model: str, tag: str | None, quick_gelu: bool | None, device: str
) -> "TextBank":
    from vit_lens.cli.readouts import _bank  # that module takes its options from this one

    return _bank(captions, model, tag, quick_gelu, device)


def _mini_groups() -> dict[str, list[str]]:
    from vit_lens.mini import world

    return {name: world.prompts(name) for name in world.PROBES}


def _gallery_means(
    vit: "HookedViT", gallery: "Gallery", lenses: "Sequence[Lens]", sites: list[str]
) -> "list[ReadoutMeans]":
    """Average what each lens reads over (at most 256) images of a gallery, for the centred form."""
    from vit_lens import Site
    from vit_lens.readouts import ReadoutMeans

    chosen, resolved = gallery.distinct, Site.resolve(sites, vit.cfg)
    paths = [gallery.path(index) for index in chosen[:: -(-len(chosen) // _MEAN_IMAGES)]]
    own = [(lens, [site for site in resolved if lens.reads(site)]) for lens in lenses]
    return [ReadoutMeans.from_images(vit, paths, some, lens=lens) for lens, some in own if some]


def _page(directory: Path, open_page: bool) -> None:
    from vit_lens.report import write_report

    page = write_report(directory)
    typer.echo(f"page: {page}")
    if open_page:
        webbrowser.open(page.resolve().as_uri())


def _growing_page() -> "Callable[[Record], None]":
    """Return what writes the page of a record as it grows; its path is told once, with the first."""
    from vit_lens.report import write_report

    told: set[Path] = set()

    def write(record: "Record") -> None:
        page = write_report(record)
        if page not in told:
            typer.echo(f"page: {page}")
        told.add(page)

    return write


def _command() -> str:
    return shlex.join(["vit-lens", *sys.argv[1:]])
