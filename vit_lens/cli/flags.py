"""Every option that more than one command has, once, so that a word means one thing; and groups of them."""

__all__ = [
    "DEFAULT_LENSES", "DEFAULT_SITES", "IMAGES", "JUDGE", "TOWER_NAME", "Anchors", "BatchSize", "Captions",
    "ControlImages", "ControlKinds", "ControlSeed", "Controls", "Decoder", "DecoderDtype", "DecoderEncoder",
    "DecoderSeeds", "Device", "EncoderDtype", "EncoderDtypes", "GalleryFolder", "Guidance", "ImagePaths", "Images",
    "Jacobian", "Judge", "Lenses", "MaybeOut", "MaybeOutFile", "Model", "Normalise", "OnlyPlan", "Open", "Out",
    "OutFile", "Pair", "Prompts", "QuickGelu", "Reference", "ReferenceImages", "SecondDecoder", "SecondSettings",
    "Shard", "Sites", "Size", "Steps", "Tag", "Tower", "Truncate", "grouped", "known", "one", "parse_shard",
    "split_list", "torch_device", "torch_dtype",
]  # fmt: skip

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vit_lens.addresses import split_addresses
from vit_lens.errors import VitLensError, nearest

if TYPE_CHECKING:
    import torch

    from vit_lens.decoders import Decoder as AnyDecoder
    from vit_lens.models import HookedViT

# Those of the library, without loading it; a test holds them equal.
DEFAULT_LENSES = ["dsl-mean:alpha=5", "diffusion"]
DEFAULT_SITES = ["L0.resid_pre", "resid_post", "heads", "attn", "mlp"]
_DTYPES = ("float32", "bfloat16", "float16", "float64")
T = TypeVar("T")

# ---- images ----------------------------------------------------------------------------------------------------

IMAGES = "Image files, or folders of them"
ImagePaths = Annotated[list[Path] | None, typer.Argument(metavar="IMAGES", help=f"{IMAGES}; or --images.")]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        help=f"{IMAGES}; repeat for more (study content: a table of pairs, .csv). Studies, figures and doctor have "
        "scenes of the embedded pair's world, too."
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        help="Prompts in place of images: a file with one a line, or a prompt itself; repeat for more. --model names a "
        "text-to-image pipeline then, which draws them, too."
    ),
]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut prompts that are too long, as pipelines do, and record it.")
]
Reference = Annotated[
    Path | None,
    typer.Option(
        help="File of means for dsl-mean and counterfactual (`vit-lens reference`; for patch-dsl-mean with --positions "
        "all), and of prompts for the leak index; mini has its own."
    ),
]
Anchors = Annotated[
    list[str] | None,
    typer.Option(
        help="What counterfactual and jacobian:share start from: other images, or folders of them (with --prompts, "
        "other prompts or a file of them); repeat for more. Three or four, none of them among those that are shown."
    ),
]
Jacobian = Annotated[
    Path | None,
    typer.Option(help="File of averaged Jacobians for the lens jacobian (`vit-lens jacobian`); mini has its own."),
]
ReferenceImages = Annotated[
    list[Path] | None,
    typer.Option(help=f"{IMAGES}, whose means are taken; repeat for more. A few hundred that are not shown."),
]
GalleryFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of images among which the nearest are sought, and which a lens with :project projects on; for "
        "that alone mini has its own."
    ),
]
CAPTIONS = typer.Option(
    help="Texts among which the nearest are sought: a file with one a line, a saved text bank (.safetensors), or "
    "captions with commas; mini has its own. study order: captions of your own (.txt, COCO's captions_*.json, "
    ".conllu), of which those with two nouns are taken, one of which governs the other."
)
Captions = Annotated[str | None, CAPTIONS]
# ---- models ----------------------------------------------------------------------------------------------------

TOWER_NAME = (
    "mini, an open_clip name, a Hugging Face id (owner/name[:subfolder]) or a local directory. Of prompts, a "
    "text-to-image pipeline: mini-sd, a Hub id or a folder that one was saved in."
)
Model = Annotated[str, typer.Option(help=TOWER_NAME)]
Tag = Annotated[str | None, typer.Option(help="For an open_clip name: its pretrained tag, or a checkpoint file.")]
QuickGelu = Annotated[
    bool | None,
    typer.Option(
        "--quick-gelu/--gelu", help="Activation of a local open_clip checkpoint, where its name leaves it open."
    ),
]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1.")]
_ENCODER_DTYPE = typer.Option(
    "--encoder-dtype", help=f"Of the encoder's weights: {', '.join(_DTYPES)}. verify: repeat to compare in several."
)
EncoderDtype = Annotated[str, _ENCODER_DTYPE]
EncoderDtypes = Annotated[list[str] | None, _ENCODER_DTYPE]
DecoderDtype = Annotated[str, typer.Option(help=f"Of the decoder's weights: {', '.join(_DTYPES)}.")]
Decoder = Annotated[
    str,
    typer.Option(
        help="mini, mini-ip, mini-rae (patch tokens), a Hub id, a local directory; or none, where numbers do without "
        "pictures. An image adapter for SDXL stands behind a +: PIPELINE+FILE.safetensors, "
        "PIPELINE+owner/repository:FILE.safetensors."
    ),
]
SecondDecoder = Annotated[
    str | None,
    typer.Option(
        help="Another decoder for the same encoder, which draws every site, too: where the pictures disagree, one of "
        "them was made up. mini has mini-ip."
    ),
]
Denoiser = Annotated[
    str | None, typer.Option(help="Another text-to-image pipeline, whose denoiser draws. Default: that of --model.")
]
JUDGE = typer.Option(
    help="Who looks at pictures. Of images: an encoder that never conditioned a decoder, mini (its judge), a name as "
    "for --model, or none; default: that of mini for mini. Of prompts: exact or second (of the embedded world; "
    "annotate: exact:SEED for another encoder's names), clip:NAME (a CLIP as for --model, which chooses between a "
    "caption and the alternatives), or vqa:DIR (a folder with an image-text-to-text model of transformers)."
)
Judge = Annotated[str | None, JUDGE]
SecondSettings = Annotated[
    str | None,
    typer.Option(
        help="Of the second decoder, where not its own: steps=20,guidance=4,size=512. --steps and the like are the "
        "first's."
    ),
]
DecoderEncoder = Annotated[
    str | None, typer.Option(help="Id of the encoder that the decoder was made for, where its files do not say it.")
]
# ---- what is read, and what is drawn ---------------------------------------------------------------------------

Lenses = Annotated[
    list[str] | None,
    typer.Option(
        "--lens",
        help="diffusion, dsl:alpha=10, dsl:share=1, dsl-mean:alpha=5 (leak-free), counterfactual:share=0.5 (from "
        "--anchors), jacobian:alpha=5 (all rows, by --jacobian), jacobian:share=0.5 (both). Behind each :project=40 "
        "moves what is read among the images of --gallery. Studies and figures make anchors, Jacobians and gallery of "
        "their reference images. Of patch tokens: patch-diffusion, patch-dsl:alpha=10, patch-dsl-mean:alpha=5, behind "
        "the last two :at=patch3 or :at=each. Commas or repeat; each reads the sites it is defined on. bench: also one "
        "of your own, mypkg:MyLens, which runs the code of that module; and text-diffusion, random, no-norm.",
    ),
]
Sites = Annotated[
    list[str],
    typer.Option(help="L3H4, L3.attn, L3.mlp, L3.resid_post; groups: heads, attn, mlp, resid_post. Commas or repeat."),
]
Controls = Annotated[
    bool, typer.Option(help="Beside every site, what may stand in for it at equal norm: a random direction, and more.")
]
ControlKinds = Annotated[
    list[str] | None,
    typer.Option(
        help="Which controls are drawn or named, each as many pictures again: random (the default, in studies always), "
        "other (what the site writes for another image), covariance (a random direction with the site's covariance). "
        "Of prompts: random, other, shuffled (the words in another order), empty (no words). Repeat for more."
    ),
]
ControlImages = Annotated[
    list[Path] | None,
    typer.Option(
        help=f"{IMAGES}, which the controls other and covariance are made of; repeat for more. Default: those of the "
        "gallery, or the images themselves; none stands in for itself."
    ),
]
Normalise = Annotated[
    str | None,
    typer.Option(
        help="std or whiten: controls are as long, and alike, where every dimension counts as much, for encoders with "
        "massive activations. Default: as they are."
    ),
]
Dictionaries = Annotated[
    list[str] | None,
    typer.Option(
        "--dictionary",
        help="Dictionary: one that ships, a file or a folder in any layout that is read, a Hub id; repeat for more. "
        "bench: of mini, or data-points, pca, untrained; study steering: of one hook point. Default: that of --model, "
        "mini-flux-topk.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Denoising steps. Default: the decoder's own; mini, of images: 3 in studies, 5 in the paper's figures.",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Guidance scale; 1 is none. Default: the decoder's own; mini, of images: 1 in studies and paper."
    ),
]
Size = Annotated[int | None, typer.Option(min=1, help="Height and width of the pictures.")]
Shard = Annotated[
    str | None,
    typer.Option(help="I/N: only the I-th of N parts of the batches; several can share one image. See merge."),
]
OnlyPlan = Annotated[
    bool, typer.Option("--plan", help="Print what it would do and take, and stop before anything runs.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Pictures drawn together. Default: the decoder's own, at most 16; less where memory is short."
    ),
]
# ---- chance ----------------------------------------------------------------------------------------------------

DecoderSeeds = Annotated[
    list[int] | None,
    typer.Option(
        min=0,
        help="Noise of the decoder; repeat to draw with each. Default: 0; studies: 0 and 1, of images also 0 to 3.",
    ),
]
ControlSeed = Annotated[int, typer.Option(min=0, help="Random directions of controls.")]
# ---- where results go ---------------------------------------------------------------------------------------


def _check_out(path: Path, is_file: bool) -> Path:
    try:
        found = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    except OSError as error:
        raise VitLensError(f"--out {str(path)[:100]}: {error.strerror}; choose another") from None
    if found.is_dir() == (is_file and found == path.absolute()):
        raise VitLensError(f"--out {path}: {found} is a {'folder' if found.is_dir() else 'file'}; choose another")
    if not os.access(found, os.W_OK):
        raise VitLensError(f"--out {path}: {found} cannot be written to; choose another")
    return path


def _folder(path: Path | None) -> Path | None:
    """Refuse a folder for results that cannot be made or written to, before anything runs."""
    return path and _check_out(path, False)


def _file(path: Path | None) -> Path | None:
    """Refuse a file for results that cannot be written, before anything runs."""
    return path and _check_out(path, True)


_OUT_HELP = (
    "Where results go: a folder, in which the same command goes on after an interruption; for reference and "
    "jacobian a file (.safetensors), for verify and doctor, too (.json)."
)
_OUT = typer.Option(help=_OUT_HELP, callback=_folder)
_OUT_FILE = typer.Option(help=_OUT_HELP, callback=_file)
Out = Annotated[Path, _OUT]
OutFile = Annotated[Path, _OUT_FILE]
MaybeOut = Annotated[Path | None, _OUT]
MaybeOutFile = Annotated[Path | None, _OUT_FILE]
Open = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]


@dataclass(kw_only=True)
class Tower:
    """Options that name an encoder."""

    model: Model = "mini"
    tag: Tag = None
    quick_gelu: QuickGelu = None
    device: Device = "cpu"

    def load(self, dtype: str = "float32") -> "HookedViT":
        """Return the model that the options name, in this dtype."""
        from vit_lens import HookedViT

        where = {"dtype": torch_dtype(dtype), "device": torch_device(self.device)}
        if self.tag is None and self.model != "mini" and get_close_matches(self.model.lower(), ["mini"]):
            if not Path(self.model).exists():
                raise VitLensError(f"no model {self.model!r}; nearest: 'mini'")
        return HookedViT.from_pretrained(self.model, tag=self.tag, quick_gelu=self.quick_gelu, **where)


@dataclass(kw_only=True)
class Pair(Tower):
    """Options that name an encoder and what draws."""

    decoder: Decoder = "mini"
    decoder_encoder: DecoderEncoder = None
    decoder_seed: DecoderSeeds = None
    steps: Steps = None
    guidance: Guidance = None

    def load_decoder(self, dtype: str, model: "HookedViT") -> "AnyDecoder":
        """Return the decoder that the options name, in this dtype; a model that they name twice is the same."""
        from vit_lens import load_decoder

        where = {"dtype": torch_dtype(dtype), "device": torch_device(self.device)}
        is_model = self.decoder_encoder == self.model and self.tag is None
        return load_decoder(self.decoder, encoder=model if is_model else self.decoder_encoder, **where)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give typer the fields of each parameter that is a group, such as ``tower: Tower``, as options of their own."""
    seen, groups = [], {}
    for each in inspect.signature(command).parameters.values():
        if isinstance(each.annotation, type) and dataclasses.is_dataclass(each.annotation):
            fields = inspect.signature(each.annotation).parameters
            groups[each.name] = each.annotation, list(fields)
            seen += fields.values()
        else:
            seen.append(each)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: kind(**{field: given.pop(field) for field in fields}) for name, (kind, fields) in groups.items()}
        command(**made, **given)

    vars(run)["__signature__"] = inspect.Signature([each.replace(kind=each.KEYWORD_ONLY) for each in seen])
    return run


def known(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def one(values: Sequence[T] | None, option: str) -> T | None:
    """Return the value of an option that may be repeated in other commands, or None.

    Raises:
        VitLensError: The option has several values.
    """
    if values and len(values) > 1:
        raise VitLensError(f"{option} is given {len(values)} values; this command takes one")
    return values[0] if values else None


def torch_dtype(name: str) -> "torch.dtype":
    """Return a torch dtype by name.

    Raises:
        VitLensError: The name is none of those offered.
    """
    import torch

    if name not in _DTYPES:
        raise VitLensError(f"no dtype {name!r}; nearest: {nearest(name, _DTYPES)}")
    return getattr(torch, name)


def torch_device(name: str) -> "torch.device":
    """Return a torch device by name.

    Raises:
        VitLensError: There is no such device here.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:100]
        raise VitLensError(f"device {name!r} cannot be used here ({reason}); take --device cpu") from None
    return torch.device(name)


def split_list(items: Sequence[str]) -> list[str]:
    """Split repeated and comma-separated values.

    Raises:
        VitLensError: There is nothing in them.
    """
    parts = [part.strip() for item in items for part in split_addresses(item) if part.strip()]
    if items and not parts:
        raise VitLensError(f"{', '.join(map(repr, items))} names nothing; leave the option out for what is usual")
    return parts


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Read ``0/4``.

    Raises:
        VitLensError: The text is not of that form.
    """
    if text is None:
        return None
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal()):
        raise VitLensError(f"--shard {text!r}: write I/N, for example 0/4 for the first of four")
    return int(first), int(second)
