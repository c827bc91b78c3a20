"""What a tower's preprocessing consists of, read from open_clip's or Hugging Face's own settings."""

__all__ = ["INTERPOLATIONS", "Interpolation", "PreprocessSpec", "ResizeMode"]

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from vit_lens.errors import PreprocessError
from vit_lens.files import check_fields

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]

INTERPOLATIONS: dict[str, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

_MOST = 2**14  # pixels of a side
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """How pictures become pixels for one tower.

    Attributes:
        size: The (height, width) in pixels that the tower sees.
        mean: What is subtracted from red, green and blue after scaling to [0, 1].
        std: What red, green and blue are then divided by, above 0.
        interpolation: How pixels are interpolated by the resize, ``bicubic`` or ``bilinear``. open_clip ignores it for
            ``shortest`` on a non-square size, where it is always bicubic, and so do we.
        resize_mode: How a picture is fitted: ``shortest`` crops, ``longest`` pads, ``squash`` loses the aspect ratio.
        fill_color: The grey level in [0, 255] of the padding of ``longest``.
        resize_edge: What the shorter side is resized to, for ``shortest``, before ``size`` is cropped out of it, where
            that is more than the crop (DINOv2: 256, then 224). An odd margin is then cut as Hugging Face's
            processors do, the larger half at the bottom and right. None: the crop's own size, as in open_clip.

    Raises:
        PreprocessError: A value is out of its range, or ``resize_edge`` does not go with ``size`` and ``resize_mode``.

    >>> grey = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> spec = vl.PreprocessSpec(size=(224, 224), **grey, interpolation="bicubic", resize_mode="squash")
    >>> vl.images.preprocess(images, spec).shape
    torch.Size([2, 3, 224, 224])
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    resize_mode: ResizeMode
    fill_color: int = 0
    resize_edge: int | None = None

    def __post_init__(self) -> None:
        for name, value in check_fields(type(self), vars(self), "preprocessing", PreprocessError).items():
            object.__setattr__(self, name, value)
        if min(self.size) < 1 or max(*self.size, self.resize_edge or 0) > _MOST:
            raise PreprocessError(
                f"size={self.size}, resize_edge={self.resize_edge}; expected at least 1, at most {_MOST}"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise PreprocessError(f"mean={self.mean}, std={self.std}; expected finite numbers, std positive")
        if not 0 <= self.fill_color <= 255:
            raise PreprocessError(f"fill_color={self.fill_color}; expected a grey level in [0, 255]")
        if self.resize_edge is not None and (self.resize_mode != "shortest" or self.resize_edge < max(self.size)):
            raise PreprocessError(
                f"resize_edge={self.resize_edge} with size={self.size} and resize_mode={self.resize_mode!r}; expected "
                "at least the longer side of size, and 'shortest'"
            )

    def at(self, size: tuple[int, int]) -> "PreprocessSpec":
        """Return the same steps at another (height, width); a ``resize_edge`` keeps its ratio to the longer side.

        >>> model.spec().at((96, 96)).size
        (96, 96)
        """
        edge = self.resize_edge
        if edge is not None:
            edge = max(round(edge * max(size) / max(self.size)), max(size))
        return dataclasses.replace(self, size=size, resize_edge=edge)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PreprocessSpec":
        """Read what :meth:`to_dict` wrote.

        Raises:
            PreprocessError: A field is unknown or missing, or a value is out of its range.

        >>> vl.PreprocessSpec.from_dict(model.spec().to_dict()) == model.spec()
        True
        """
        return cls(**check_fields(cls, values, "preprocessing", PreprocessError))

    @classmethod
    def from_open_clip_cfg(cls, cfg: Mapping[str, Any]) -> "PreprocessSpec":
        """Read open_clip's ``preprocess_cfg``; what is absent there has open_clip's default.

        ``random`` is an interpolation of training only; open_clip evaluates with bicubic then.

        Raises:
            PreprocessError: A value is one that cannot be reproduced.

        >>> vl.PreprocessSpec.from_open_clip_cfg({"size": 64, "interpolation": "bilinear"}).size
        (64, 64)
        """
        cfg = {key: value for key, value in cfg.items() if value is not None}
        if cfg.get("mode", "RGB") != "RGB":
            raise PreprocessError(f"open_clip preprocessing for mode {cfg['mode']!r}; expected 'RGB'")
        interpolation = cfg.get("interpolation", "bicubic")
        return cls(
            size=_pair(cfg.get("size", 224)),
            mean=_triple(cfg.get("mean", _OPENAI_MEAN)),
            std=_triple(cfg.get("std", _OPENAI_STD)),
            interpolation="bicubic" if interpolation == "random" else interpolation,
            resize_mode=cfg.get("resize_mode", "shortest"),
            fill_color=cfg.get("fill_color", 0),
        )

    @classmethod
    def from_hf_preprocessor(cls, cfg: Mapping[str, Any]) -> "PreprocessSpec":
        """Read the content of a ``preprocessor_config.json``: CLIP's, SigLIP's or DINOv2's image processor.

        The resampling is Pillow's, as in open_clip; the tensor-backed Hugging Face processor differs from
        it by up to 0.02 in normalised units. Where resize and crop have one size, an odd margin is cropped as
        open_clip does. What the file leaves out has the default of CLIP's processor, and no other's.

        Raises:
            PreprocessError: The processor leaves a step out, or does one that cannot be reproduced.

        >>> cfg = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
        >>> spec = vl.PreprocessSpec.from_hf_preprocessor(cfg)
        >>> spec.size, spec.resize_edge
        ((224, 224), 256)
        """
        cfg = {key: value for key, value in cfg.items() if value is not None or key.startswith("do_")}
        _require_hf_steps(cfg)
        _require_named(cfg)
        size, crop = cfg.get("size", {"shortest_edge": 224}), cfg.get("crop_size")
        cropped = cfg.get("do_center_crop", True) and crop is not None
        if isinstance(size, Mapping) and {"height", "width"} <= set(size):
            mode: ResizeMode = "squash"
            edge, target = None, _pair(size)
            if cropped and _pair(crop) != target:
                raise PreprocessError(
                    f"image processor that resizes to {size!r} and crops to {crop!r}; only a crop of the resized "
                    "size is supported. Pass preprocess_spec= instead"
                )
        else:
            mode = "shortest"
            edge = size["shortest_edge"] if isinstance(size, Mapping) and "shortest_edge" in size else size
            if not isinstance(edge, int) or not cropped:
                raise PreprocessError(
                    f"image processor with size={size!r}, crop_size={crop!r}, "
                    f"do_center_crop={cfg.get('do_center_crop', True)}; expected a shortest_edge and a "
                    "centre crop, or height and width. Pass preprocess_spec= instead"
                )
            target = _pair(crop)
            if edge < max(target):
                raise PreprocessError(
                    f"image processor that resizes to {size!r} and pads to {crop!r}; expected a crop that fits. Pass "
                    "preprocess_spec= instead"
                )
        return cls(
            size=target,
            mean=_triple(cfg.get("image_mean", _OPENAI_MEAN)),
            std=_triple(cfg.get("image_std", _OPENAI_STD)),
            interpolation=_hf_interpolation(cfg.get("resample", Image.Resampling.BICUBIC)),
            resize_mode=mode,
            resize_edge=edge if edge is not None and target != (edge, edge) else None,
        )


def _pair(size: Any) -> tuple[int, int]:
    sides: Any = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else size
    sides = [sides] if isinstance(sides, int) else sides
    if isinstance(sides, Sequence) and len(sides) in (1, 2) and all(isinstance(side, int) for side in sides):
        return sides[0], sides[-1]
    raise PreprocessError(f"size {size!r}; expected a side, (height, width), or a mapping with both")


def _triple(values: Any) -> tuple[float, float, float]:
    values = [values] * 3 if isinstance(values, (int, float)) else values
    if not isinstance(values, Sequence) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
        raise PreprocessError(f"{values!r}; expected one number per channel, red, green, blue")
    red, green, blue = map(float, values)
    return red, green, blue


def _require_hf_steps(cfg: Mapping[str, Any]) -> None:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not cfg.get(step, True):
            raise PreprocessError(
                f"image processor with {step}=False; expected all steps. Pass preprocess_spec= instead"
            )
    factor = cfg.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise PreprocessError(f"image processor with rescale_factor={factor}; expected 1/255. Pass preprocess_spec=")


def _require_named(cfg: Mapping[str, Any]) -> None:
    kind = str(cfg.get("image_processor_type") or cfg.get("feature_extractor_type") or "CLIP")
    absent = [key for key in ("size", "image_mean", "image_std", "resample") if key not in cfg]
    if absent and not kind.startswith("CLIP"):
        raise PreprocessError(
            f"image processor of type {kind} that leaves out {', '.join(absent)}; its defaults are not known here. "
            "Pass preprocess_spec= instead"
        )


def _hf_interpolation(resample: Any) -> Interpolation:
    codes: dict[int, Interpolation] = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}
    if not isinstance(resample, int) or resample not in codes:
        raise PreprocessError(f"image processor with resample={resample!r}; expected 2 (bilinear) or 3 (bicubic)")
    return codes[resample]
