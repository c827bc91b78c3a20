"""What explained units fire on, over the quantiles: the images and maps that explanations are about."""

__all__ = ["unit_examples"]

from collections.abc import Sequence

import torch
from PIL import Image

from vit_lens.dictionaries import Band, Dictionary, Example, FeatureExamples, bands_of
from vit_lens.errors import ExplanationError
from vit_lens.explaining.units import Units
from vit_lens.identity import fingerprint

_SIDE = 128  # pixels of a picture that is kept


def unit_examples(
    units: Units, dictionary: Dictionary, images: Sequence[Image.Image], features: Sequence[int], *,
    grid: tuple[int, int], prompts: Sequence[str] = (), per_band: int = 4,
) -> FeatureExamples:  # fmt: skip
    """Return the images on which features fire strongest, and such as lie behind a quarter, half and three quarters.

    Strengths and maps are those that explanations rest on: of a diffusion model at the strongest of the steps.

    Args:
        units: The dictionary's features on the images.
        dictionary: The dictionary.
        images: What the tower sees of the images, or the pictures that were drawn.
        features: Which features.
        grid: Rows and columns of patches.
        prompts: Of pictures that were drawn, the prompts.
        per_band: How many images of each band are kept.

    Raises:
        ExplanationError: The images are others than the units', or there is no such feature.

    >>> found = vl.Dictionary.from_pretrained("mini-topk")
    >>> oracle = vl.explaining.AttributeOracle.of_world(30)
    >>> source = vl.ActivationSource.of_model(model, oracle.pictures, "L5.resid_post", tokens="patches")
    >>> units = vl.explaining.Units.of_dictionary(found, source)
    >>> unit_examples(units, found, oracle.pictures, [3, 17], grid=(4, 4))
    FeatureExamples(2 features on 30 inputs)
    """
    if len(images) != len(units.source.inputs):
        raise ExplanationError(f"{units!r}, and {len(images)} images were given; expected the same ones")
    chosen, strengths = [units.unit(one) for one in features], torch.from_numpy(units.strongest())
    bands = tuple(
        tuple(
            Band(start, tuple(_example(units, unit, image) for image in part))
            for start, part in bands_of(strengths[:, unit], per_band)
        )
        for unit in chosen
    )
    shown = sorted({one.input for parts in bands for band in parts for one in band.examples})
    rates = torch.from_numpy(units.rates(range(len(images)))).float()
    return FeatureExamples(
        content=fingerprint({"W_dec": dictionary.W_dec}), features=tuple(chosen), bands=bands, frequency=rates[chosen],
        n_firing=tuple((strengths[:, chosen] > 0).sum(0).tolist()), n_inputs=len(images), grid=grid, n_prefix=0,
        pictures={index: _small(images[index]) for index in shown}, texts={},
        prompts={index: prompts[index] for index in shown} if prompts else {},
    )  # fmt: skip


def _example(units: Units, unit: int, image: int) -> Example:
    map_ = units.map(unit, image)
    at = int(map_.argmax())
    return Example(image, float(map_[at]), at, map_)


def _small(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    return small
