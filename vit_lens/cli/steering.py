"""The command dict steer: a strip of pictures, a feature at several strengths beside directions of equal norm."""

__all__ = ["steer"]

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from vit_lens.cli import flags
from vit_lens.cli.dictionary_inputs import AtSteps, Branch, draws, load_pipeline
from vit_lens.errors import OutputError, VitLensError

if TYPE_CHECKING:
    from PIL import Image

    from vit_lens.dictionaries import Dictionary

_DOSES = [0.0, 0.1, 0.2, 0.4, 0.8]
_SETTINGS, _OURS = "steer.json", "vit_lens/"  # what embedded models' ids begin with
_SIDE = 64  # of a picture on the strip, at least


class _Stage(NamedTuple):
    """A model, and what draws it with hooks on it."""

    model: Any
    draw: Callable[[list[Any]], "Image.Image"]
    said: dict[str, Any]


def steer(
    dictionary: Annotated[str, typer.Argument(help="One that ships, a Hub id, a file or a folder.")],
    feature: Annotated[str, typer.Argument(help="Its number, or its address: 900, D1.img.f900.")],
    out: flags.Out,
    prompt: Annotated[str | None, typer.Option(help="The prompt that is drawn.")] = None,
    images: flags.Images = None,
    model: Annotated[str | None, typer.Option(help=flags.TOWER_NAME)] = None,
    tag: flags.Tag = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="How much: add counts in mean token norms, clamp sets codes to it, scale multiplies them; repeat. "
            "Default: 0, .1, .2, .4, .8 for add."
        ),
    ] = None,
    mode: Annotated[str, typer.Option(help="add, clamp, scale or ablate.")] = "add",
    region: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(
            help="A part of the picture that is steered: top left bottom right, in cells from 0, the last two outside."
        ),
    ] = None,
    at_steps: AtSteps = None,
    branch: Branch = None,
    decoder: flags.Decoder = "mini",
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    size: flags.Size = None,
    decoder_seed: flags.DecoderSeeds = None,
    control_seed: flags.ControlSeed = 0,
    device: flags.Device = "cpu",
) -> None:
    """Draw a strip: a feature at several strengths, beside a random direction and an untrained dictionary's, as long.

    Of a denoiser and of a text encoder a prompt is drawn, of an image encoder an image's embedding. Run it again to go
    on after an interruption.
    """
    from vit_lens import Dictionary

    found = Dictionary.from_pretrained(dictionary).to(flags.torch_device(device))
    name, seed = model or _own_model(found), flags.one(decoder_seed, "--decoder-seed") or 0
    given = flags.known(steps=steps, guidance=guidance, size=size)
    if prompt is not None and images:
        raise VitLensError("--prompt and --images are of other encoders; give one of them")
    if images:
        stage = _of_image(name, tag, images, decoder, seed, device, given)
    elif prompt is None:
        raise VitLensError("nothing to draw: give --prompt, or for an image encoder one of --images")
    elif draws(name, str(found.origin.site)):
        stage = _of_pipeline(name, found, prompt, seed, device, given)
    else:
        stage = _of_text(name, found, prompt, decoder, seed, device, given)
    index = int(feature) if feature.isdecimal() else feature
    where = flags.known(region=region, at_steps=at_steps, branch=branch)
    doses = _doses(strength, mode)
    rows = _rows(stage.model, found, index, mode, doses, where, control_seed)
    said = {
        "dictionary": dictionary, "features": found.n_features, "weights": found.origin.fingerprint, "feature": index,
        "mode": mode, "strengths": doses, **where, "control_seed": control_seed, "model": name, "noise_seed": seed,
        **stage.said,
    }  # fmt: skip
    pictures = _drawn(stage, rows, out, said)
    columns = ["not steered" if dose is None else "ablated" if mode == "ablate" else f"{dose:g}" for dose in doses]
    _write(pictures, columns, out, f"Feature {feature} of {dictionary}: {mode}; {prompt or (images or [None])[0]}")


def _doses(strength: Sequence[float] | None, mode: str) -> list[float | None]:
    """Return a strength for each column; None is no steering.

    Raises:
        VitLensError: There are none, or some where there is nothing to choose.
    """
    if mode == "ablate":
        if strength:
            raise VitLensError("--strength would have no effect on --mode ablate, which sets codes to 0; leave it out")
        return [None, 0.0]
    if not strength and mode != "add":
        raise VitLensError(f"--mode {mode} needs --strength, repeated for each picture of the strip")
    return list(dict.fromkeys(strength or _DOSES))


def _rows(
    model: Any, found: "Dictionary", feature: Any, mode: str, doses: Sequence[float | None], where: Mapping[str, Any],
    seed: int,
) -> dict[str, list[list[Any]]]:  # fmt: skip
    """Return hooks by row and column; what cannot be steered is refused here."""
    from vit_lens.dictionaries import random_dictionary, steer, untrained_direction

    others = {
        "random direction": random_dictionary(found.d, 1, k=1, seed=seed).W_dec[0],
        "untrained dictionary": untrained_direction(found, seed=seed + 1),  # never the random direction again
    }
    rows = {}
    for name, direction in {f"feature {feature}": None, **others}.items():
        is_added = mode == "add" and direction is not None
        what, along = (direction, None) if is_added else (feature, direction)
        rows[name] = [
            [] if dose is None
            else steer(
                model, found, what, None if mode == "ablate" else dose, mode=mode, along=along, **where  # pyright: ignore[reportArgumentType]
            )
            for dose in doses
        ]  # fmt: skip
    return rows


def _drawn(
    stage: _Stage, rows: Mapping[str, list[list[Any]]], out: Path, said: Mapping[str, Any]
) -> dict[str, list["Image.Image"]]:
    """Draw what is not there yet; every picture is kept when it is made.

    Raises:
        OutputError: The folder holds something else.
    """
    from PIL import Image

    from vit_lens.files import make_directory, write_atomic
    from vit_lens.records import encode_png

    text, path = json.dumps(said, indent=1, sort_keys=True, default=str), out / _SETTINGS
    if path.exists() and path.read_text() != text:
        raise OutputError(f"--out {out} holds a strip of other settings ({_SETTINGS}); choose another folder")
    if not path.exists() and out.is_dir() and (left := sorted(each.name for each in out.iterdir())):
        raise OutputError(f"--out {out} holds {', '.join(left[:3])} already; choose a folder of its own")
    make_directory(out / "pictures")
    write_atomic(path, text.encode())
    found = {}
    for row, (name, hooks) in enumerate(rows.items()):
        found[name] = []
        for column, one in enumerate(hooks):
            kept = out / "pictures" / f"{row}_{column}.png"
            if not kept.exists():
                write_atomic(kept, encode_png(stage.draw(one)))
            with Image.open(kept) as picture:
                found[name].append(picture.convert("RGB"))
    return found


def _write(pictures: Mapping[str, Sequence["Image.Image"]], columns: Sequence[str], out: Path, title: str) -> None:
    """Write the strip as a figure, and as one picture without words, rows and columns in the same order."""
    from PIL import Image

    from vit_lens.figures import picture_strips, save
    from vit_lens.files import write_atomic
    from vit_lens.records import encode_png

    save(picture_strips(pictures, columns, title), out / "strip.html")
    side = max(_SIDE, *(one.width for row in pictures.values() for one in row))
    sheet = Image.new("RGB", ((side + 2) * len(columns), (side + 2) * len(pictures)), "white")
    for y, row in enumerate(pictures.values()):
        for x, one in enumerate(row):
            sheet.paste(one.resize((side, side), Image.Resampling.NEAREST), (x * (side + 2), y * (side + 2)))
    write_atomic(out / "strip.png", encode_png(sheet))
    typer.echo(f"rows: {', '.join(pictures)}; columns: {', '.join(columns)}")
    typer.echo(f"strip: {out / 'strip.png'}\nfigure: {out / 'strip.html'}")


# ---- what draws


def _own_model(found: "Dictionary") -> str:
    """Return the name of the model that a dictionary says it is of.

    Raises:
        VitLensError: It says none.
    """
    if not (name := found.origin.model):
        raise VitLensError("the dictionary does not say which model it is of; give --model")
    return name.removeprefix(_OURS)


def _of_pipeline(
    name: str, found: "Dictionary", prompt: str, seed: int, device: str, given: Mapping[str, Any]
) -> _Stage:
    model = load_pipeline(name, device)
    own = {key: value for key, value in (found.origin.run or {}).items() if key != "noise_seed"}
    own |= {_CALLED[key]: value for key, value in given.items()} | ({"width": given["size"]} if "size" in given else {})
    settings = model.run_settings(**own)
    return _Stage(
        model, lambda hooks: model.run_with_hooks([prompt], seed=[seed], fwd_hooks=hooks, **own)[0],
        {"prompt": prompt, "settings": settings},
    )  # fmt: skip


_CALLED = {"steps": "steps", "guidance": "guidance_scale", "size": "height"}


def _of_text(
    name: str, found: "Dictionary", prompt: str, decoder: str, seed: int, device: str, given: Mapping[str, Any]
) -> _Stage:
    """Steer a text encoder of a pipeline, and draw what it then says.

    Raises:
        DictionaryError: The dictionary is of none of its encoders.
    """
    from vit_lens.decoders import PromptEncoder, TextDecoder, settings_dict
    from vit_lens.lenses import TextRun

    place = flags.torch_device(device)
    reader = PromptEncoder.from_pretrained(name, device=place)
    drawer = TextDecoder.from_pretrained(name if decoder == "mini" else decoder, device=place)
    settings = drawer.settings(seed=seed, **_sized(given))
    run, towers = TextRun.of(reader, prompt), reader.towers
    known = {tower.fingerprint: each for each, tower in towers.items()}
    which = known.get(found.origin.fingerprint or "", next(iter(towers)))
    found.check(towers[which])

    def draw(hooks: list[Any]) -> "Image.Image":
        condition = run.edited(which, hooks).condition
        return _picture(drawer.decode(condition, negative=drawer.negative() or reader.negative(), settings=settings))

    return _Stage(towers[which], draw, {"prompt": prompt, "encoder": which, "settings": settings_dict(settings)})


def _of_image(
    name: str, tag: str | None, images: Sequence[Path], decoder: str, seed: int, device: str, given: Mapping[str, Any]
) -> _Stage:
    import torch

    from vit_lens import load_decoder
    from vit_lens.decoders import settings_dict
    from vit_lens.images import find_images

    found = find_images(images)
    if len(found) != 1:
        raise VitLensError(f"--images holds {len(found)}, and one embedding is steered: give one image")
    model = flags.Tower(model=name, tag=tag, device=device).load().requires_grad_(False)
    drawer = load_decoder(decoder, encoder=model, device=flags.torch_device(device))
    settings = drawer.settings(seed=seed, **_sized(given))
    pixels = model.preprocess(found)

    @torch.no_grad()
    def draw(hooks: list[Any]) -> "Image.Image":
        embeds = model.run_with_hooks(pixels, fwd_hooks=hooks)
        return _picture(drawer.decode(embeds, negative=drawer.negative(model), settings=settings))

    return _Stage(model, draw, {"image": str(found[0]), "decoder": decoder, "settings": settings_dict(settings)})


def _sized(given: Mapping[str, Any]) -> dict[str, Any]:
    sides = {"height": given["size"], "width": given["size"]} if "size" in given else {}
    return {key: value for key, value in given.items() if key != "size"} | sides


def _picture(drawn: Any) -> "Image.Image":
    from PIL import Image

    return Image.fromarray(drawn[0].cpu().numpy())
