"""The pictures that the prompts of a source are drawn to, from the same noise; kept in files."""

__all__ = ["drawn_pictures"]

import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from vit_lens.dictionaries.denoiser_tokens import DenoiserTokens
from vit_lens.dictionaries.denoisers import run_of
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.errors import DictionaryError, OutputError
from vit_lens.files import as_path, make_directory, write_atomic


def drawn_pictures(source: ActivationSource, folder: str | os.PathLike[str] | None = None) -> list[Image.Image]:
    """Draw the inputs of a source of a diffusion model, from the noise from which their tokens are read.

    Args:
        source: The source, which runs the model.
        folder: Where each picture is kept once it is drawn, by what it is of; those that are there are not drawn again.

    Returns:
        A picture for each input, in their order, as large as the model draws.

    Raises:
        DictionaryError: The source draws nothing, or a picture in the folder is damaged.
        OutputError: The folder cannot be written.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> source = vl.ActivationSource.of_model(sd, ["a red star", ""], "mid.0.hook_update", steps=2)
    >>> [picture.size for picture in drawn_pictures(source)]
    [(32, 32), (32, 32)]
    """
    reader = source.reader
    if not isinstance(reader, DenoiserTokens):
        raise DictionaryError(
            f"{source!r} draws nothing; give one of ActivationSource.of_model with a hooked diffusion model"
        )
    place = None if folder is None else as_path(folder, OutputError, "folder")
    if place is not None:
        make_directory(place)
    found: dict[int, Image.Image] = {}
    paths = {} if place is None else {index: place / f"{_name(reader, index)}.png" for index in source.inputs}
    for index, path in paths.items():
        if path.is_file():
            found[index] = _opened(path)
    left = [index for index in source.inputs if index not in found]
    for start in range(0, len(left), reader.batch_size):
        part = left[start : start + reader.batch_size]
        run = run_of(reader.provenance)
        drawn = reader.denoiser(reader.prompts(part), seed=reader.seeds(part), output_type="pil", **run)
        for index, picture in zip(part, drawn, strict=True):
            found[index] = picture.convert("RGB")
            if index in paths:
                png = io.BytesIO()
                found[index].save(png, "PNG")
                write_atomic(paths[index], png.getvalue())
    return [found[index] for index in source.inputs]


def _name(reader: DenoiserTokens, index: int) -> str:
    """Return digits that say what a picture is of: model, run, prompt, noise."""
    said = reader.provenance
    told = [said.fingerprint, sorted(run_of(said).items()), reader.prompts([index]), reader.seeds([index])]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:24]


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as damage:  # what Pillow raises of broken PNG files
        raise DictionaryError(f"{path} is no whole picture ({damage}); remove it, and it is drawn again") from damage
