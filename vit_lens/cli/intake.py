"""From what commands that read images are given to images, lenses and captions."""

__all__ = [
    "check_drawn", "check_lenses", "check_lenses_of_reference", "command_line", "embed_captions", "find_anchors",
    "find_given", "method_of", "read_bank", "read_captions", "read_lenses", "read_settings", "second_of",
]  # fmt: skip

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_lens.cli import flags
from vit_lens.errors import VitLensError

if TYPE_CHECKING:
    from vit_lens.controls import ControlBank
    from vit_lens.decoders import Decoder
    from vit_lens.lenses import Lens
    from vit_lens.models import HookedViT
    from vit_lens.readers import Gallery
    from vit_lens.sweeping import SecondDecoder
    from vit_lens.texts import TextBank


def command_line() -> str:
    """Return the command that is running, for what it makes."""
    return shlex.join(["vit-lens", *sys.argv[1:]])


def find_given(paths: Sequence[Path] | None, images: Sequence[Path] | None) -> list[Path]:
    """Return the images of the argument IMAGES and of the option ``--images``.

    Raises:
        VitLensError: Neither was given.
        ImageError: A path does not exist, or a folder holds no image.
    """
    from vit_lens.images import find_images

    if not (given := [*(paths or ()), *(images or ())]):
        raise VitLensError("no images: name files or folders after the command, or with --images")
    return find_images(given)


def _ships(tower: flags.Tower) -> bool:
    """Whether Jacobians and a gallery of a model ship with the package."""
    from vit_lens.identity import MINI_ENCODER, canonical_encoder_id

    return tower.tag is None and canonical_encoder_id(tower.model) == MINI_ENCODER


def check_lenses(
    specs: Sequence[str], tower: flags.Tower, *, reference: Path | None, jacobian: Path | None = None,
    anchors: Sequence[str] | None = None, gallery: Path | None = None,
) -> None:  # fmt: skip
    """Refuse misspelt lenses, what serves none, and what one lacks, before anything is loaded.

    Raises:
        VitLensError: No lens needs the file ``reference`` or ``jacobian``, or the anchors.
        LensError: A text names no lens, or a lens lacks Jacobians, anchors or a gallery.
    """
    from vit_lens.errors import LensError
    from vit_lens.lenses import check_spelling, needs_anchors, parse_lens

    said = [check_spelling(spec) for spec in specs]
    names = {name for name, _ in said}
    if reference is not None and not names & {"dsl-mean", "counterfactual", "patch-dsl-mean"}:
        raise VitLensError(
            "--reference serves the lenses dsl-mean, counterfactual and patch-dsl-mean, which were not asked for"
        )
    _check_jacobian(names, jacobian)
    if jacobian is None and "jacobian" in names and not _ships(tower):
        parse_lens("jacobian", None)
    starts = [spec for spec in specs if needs_anchors(spec)]
    if anchors and not starts:
        raise VitLensError(
            "--anchors serve the lenses counterfactual and jacobian:share=NUMBER alone, and neither was asked for"
        )
    if starts and not anchors:
        raise LensError(
            f"{starts[0]} starts from other images: give --anchors IMAGES, three or four that are not shown"
        )
    if gallery is None and any("project" in settings for _, settings in said) and not _ships(tower):
        raise LensError("a lens with :project projects on a gallery: give --gallery FOLDER, apart from what is shown")


def check_lenses_of_reference(specs: Sequence[str], jacobian: Path | None) -> None:
    """Do the same for figures and studies, which make everything that a lens needs of their reference images.

    Raises:
        VitLensError: No lens needs the file ``jacobian``.
        LensError: A text names no lens.
    """
    from vit_lens.lenses import check_spelling

    _check_jacobian({check_spelling(spec)[0] for spec in specs}, jacobian)


def _check_jacobian(names: set[str], jacobian: Path | None) -> None:
    if jacobian is not None and "jacobian" not in names:
        raise VitLensError(
            "--jacobian serves the lens jacobian alone, which was not asked for: --lens jacobian:alpha=5"
        )


def find_anchors(anchors: Sequence[str] | None, shown: Sequence[Path]) -> list[Path]:
    """Return the images of ``--anchors``.

    Raises:
        LensError: One is among the images that are shown.
        ImageError: A path does not exist, or a folder holds no image.
    """
    from vit_lens.errors import LensError
    from vit_lens.images import find_images

    found = find_images([Path(one) for one in anchors]) if anchors else []
    if both := {path.resolve() for path in found} & {path.resolve() for path in shown}:
        raise LensError(
            f"--anchors: {min(both)} is among the images that are shown, and nothing of an image changes in itself; "
            "take another"
        )
    return found


def read_lenses(
    specs: Sequence[str], reference: Path | None, model: "HookedViT", jacobian: Path | None = None, *,
    anchors: Sequence[Path] = (), gallery: "Gallery | None" = None, apart: bool = True,
) -> "list[Lens]":  # fmt: skip
    """Return lenses by name, those that need means with the file ``reference`` or with those that ship with the model.

    Raises:
        LensError: A text names no lens, or there is not what it needs.
        ReferenceMismatchError: The Jacobians are another model's.
    """
    from vit_lens import ReferenceMeans
    from vit_lens.lenses import parse_lenses
    from vit_lens.readers import Gallery
    from vit_lens.reference import Jacobians

    means = None if reference is None else ReferenceMeans.load(reference)
    jacobians = None if jacobian is None else Jacobians.load(jacobian).check(model)
    held = {"anchors": list(anchors) or None, "gallery": Gallery.shipped(model) if gallery is None else gallery}
    return parse_lenses(specs, model, means, jacobians, **held, apart=apart)


def read_bank(model: "HookedViT", given: Sequence[Path], lenses: "Sequence[Lens]", seed: int) -> "ControlBank":
    """Return the other images that controls are made of, run once.

    Args:
        model: The model.
        given: Images, or folders of them.
        lenses: That will read controls.
        seed: Of the draw from many.

    Raises:
        ImageError: There are none, or one cannot be read.
    """
    from vit_lens.controls import ControlBank
    from vit_lens.images import find_images

    rows = "all" if any(lens.rows == "all" for lens in lenses) else "readout"
    return ControlBank.from_images(model, find_images(list(given)), rows=rows, seed=seed)


def check_drawn(decoder: str, **options: object) -> None:
    """Refuse options that say how to draw, where nothing is drawn.

    Raises:
        VitLensError: The decoder is none, and one of the options was given.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value or type(value) in (int, float)]
    if decoder == "none" and given:
        raise VitLensError(f"with --decoder none nothing is drawn, so {', '.join(given)} would have no effect")


def method_of(decoder: "Decoder", name: str, lacks: str, option: str) -> Callable[..., Any]:
    """Return a method that not every decoder has, for an option.

    Raises:
        VitLensError: This one has it not.
    """
    if (method := getattr(decoder, name, None)) is None:
        raise VitLensError(f"decoder {decoder.decoder_id} {lacks}: leave {option} out")
    return method


def second_of(
    name: str | None, settings: str | None, judge: str | None, model: "HookedViT", dtype: str, device: str
) -> "SecondDecoder | None":
    """Return the second decoder that the options name, with its judge: of mini the one that ships, if nothing is said.

    Raises:
        VitLensError: Options of a second decoder were given, and none was named; or settings are none of it.
    """
    from vit_lens import HookedViT, load_decoder
    from vit_lens.mini import JUDGE, mini_judge
    from vit_lens.sweeping import SecondDecoder

    if name is None:
        if given := [f"--{option}" for option, value in {"second-settings": settings, "judge": judge}.items() if value]:
            raise VitLensError(f"{' and '.join(given)}: without --second-decoder there is no effect; give it, too")
        return None
    where = {"dtype": flags.torch_dtype(dtype), "device": flags.torch_device(device)}
    decoder = load_decoder(name, **where)
    seen_by = mini_judge(model) if judge is None else None
    if judge not in (None, "none"):
        named = JUDGE if judge == "mini" else judge
        seen_by = HookedViT.from_pretrained(named, device=where["device"]).requires_grad_(False)
    return SecondDecoder(decoder=decoder, settings=decoder.settings(**read_settings(settings)), judge=seen_by)


def read_settings(text: str | None) -> dict[str, Any]:
    """Read ``steps=20,guidance=4,size=512``; numbers are numbers, and a size is height and width.

    Raises:
        VitLensError: A part is no ``NAME=VALUE``.
    """
    found: dict[str, Any] = {}
    for part in flags.split_list([text]) if text else []:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise VitLensError(f"--second-settings {text!r}: write NAME=VALUE with commas, such as steps=20,size=512")
        try:
            number: Any = float(value) if "." in value else int(value)
        except ValueError:
            number = value
        given = dict.fromkeys(("height", "width"), number) if name == "size" else {name: number}
        if twice := [one for one in given if one in found]:
            raise VitLensError(f"--second-settings {text!r} gives {twice[0]} twice")
        found |= given
    return found


def read_captions(captions: str | None, tower: flags.Tower) -> "TextBank":
    """Embed what ``--captions`` names with the text tower of a model; by default the captions of mini.

    Raises:
        TextError: There is no such file, or the model has no text tower.
    """
    from vit_lens.texts import TextBank
    from vit_lens.texts import read_captions as caption_lines

    if captions is None:
        return TextBank.mini()
    path = Path(captions)
    if path.suffix == ".safetensors":
        return TextBank.load(path)
    is_file_name = "," not in captions and path.suffix in (".txt", ".csv", ".tsv", ".json")
    if is_file_name or os.path.lexists(captions):
        return embed_captions(caption_lines(path), tower)
    return embed_captions(list(dict.fromkeys(part.strip() for part in captions.split(",") if part.strip())), tower)


def embed_captions(captions: Sequence[str], tower: flags.Tower) -> "TextBank":
    """Embed captions with the text tower of a model."""
    from vit_lens.sources import known_models
    from vit_lens.texts import TextBank

    name, tag = tower.model.removeprefix("open_clip/"), tower.tag
    if tag is None and "/" in name and (name != tower.model or name.split("/")[0] in known_models()):
        name, tag = name.split("/", 1)
    if tag is not None:
        return TextBank.from_open_clip(name, tag, captions, quick_gelu=tower.quick_gelu, device=tower.device)
    return TextBank.from_pretrained(tower.model, captions, device=tower.device)
