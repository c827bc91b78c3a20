"""A procedural world of 64-pixel scenes whose every attribute is known, named and changeable."""

__all__ = [
    "ATTRIBUTES",
    "OVERLAY_ATTRIBUTES",
    "PROBES",
    "Scene",
    "caption",
    "decode",
    "encode",
    "is_held_out",
    "labels",
    "prompts",
    "render",
    "render_codes",
    "sample_codes",
    "sample_scene",
    "sample_scenes",
    "swap",
    "without_overlay",
]

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vit_lens.mini import shapes
from vit_lens.mini.attributes import ATTRIBUTES, OVERLAY_ATTRIBUTES, PROBES
from vit_lens.mini.painting import render_codes

_ABSENT = -1

Codes = Int[np.ndarray, "scene attribute"]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture's description; `symbol` and `corner` are both None in a scene without overlay."""

    shape: str
    colour: str
    texture: str
    size: str
    row: str
    column: str
    background: str
    pattern: str
    symbol: str | None = None
    corner: str | None = None

    def __post_init__(self) -> None:
        if (self.symbol is None) != (self.corner is None):
            raise ValueError(f"symbol={self.symbol!r} with corner={self.corner!r}: give both or neither")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in OVERLAY_ATTRIBUTES:
                continue
            if value not in ATTRIBUTES[field.name]:
                raise ValueError(f"{field.name}={value!r}; expected one of {', '.join(ATTRIBUTES[field.name])}")


def encode(scenes: Sequence[Scene]) -> Codes:
    """Write scenes as rows of value indices in the order of `ATTRIBUTES`; -1 where there is no overlay."""
    rows = [
        [
            _ABSENT if getattr(scene, name) is None else values.index(getattr(scene, name))
            for name, values in ATTRIBUTES.items()
        ]
        for scene in scenes
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(ATTRIBUTES))


def decode(codes: Codes) -> list[Scene]:
    """Invert `encode`."""
    rows: list[dict[str, Any]] = [
        {name: None if code < 0 else values[code] for (name, values), code in zip(ATTRIBUTES.items(), row, strict=True)}
        for row in codes
    ]
    return [Scene(**row) for row in rows]


def sample_codes(
    n_scenes: int, generator: np.random.Generator, *, overlay: float = 0.5, held_out: bool | None = None
) -> Codes:
    """Draw random scenes as rows of value indices.

    `overlay` is the probability of an overlay; `held_out` picks the training scenes (False), the evaluation
    scenes (True) or both (None).
    """
    if not 0.0 <= overlay <= 1.0:
        raise ValueError(f"overlay={overlay} is a probability; give a number from 0 to 1")
    sizes = np.array([len(values) for values in ATTRIBUTES.values()])
    kept = np.empty((0, len(sizes)), dtype=np.int64)
    while len(kept) < n_scenes:
        n_drawn = 64 + (n_scenes - len(kept)) * (20 if held_out else 2 if held_out is False else 1)
        codes = generator.integers(0, sizes, size=(n_drawn, len(sizes)))
        codes[generator.random(n_drawn) >= overlay, -len(OVERLAY_ATTRIBUTES) :] = _ABSENT
        if held_out is not None:
            codes = codes[_is_held_out(codes) == held_out]
        kept = np.concatenate([kept, codes])
    return kept[:n_scenes]


def sample_scenes(
    n_scenes: int, generator: np.random.Generator, *, overlay: float = 0.5, held_out: bool | None = None
) -> list[Scene]:
    """Draw random scenes; see `sample_codes`."""
    return decode(sample_codes(n_scenes, generator, overlay=overlay, held_out=held_out))


def sample_scene(generator: np.random.Generator, *, overlay: float = 0.5, held_out: bool | None = None) -> Scene:
    """Draw one random scene; see `sample_codes`."""
    return sample_scenes(1, generator, overlay=overlay, held_out=held_out)[0]


def is_held_out(scene: Scene) -> bool:
    """Say whether a scene belongs to the sixteenth of the world that no training run draws from."""
    return bool(_is_held_out(encode([scene]))[0])


def swap(scene: Scene, attribute: str, generator: np.random.Generator) -> Scene:
    """Give a scene that differs from `scene` in exactly one attribute."""
    if attribute not in ATTRIBUTES:
        raise ValueError(f"no attribute {attribute!r}; expected one of {', '.join(ATTRIBUTES)}")
    current = getattr(scene, attribute)
    if current is None:
        raise ValueError(f"this scene has no overlay, so its {attribute} cannot be swapped; draw with overlay=1")
    others = [value for value in ATTRIBUTES[attribute] if value != current]
    return replace(scene, **{attribute: others[int(generator.integers(len(others)))]})


def without_overlay(scene: Scene) -> Scene:
    """Give the clean partner of a scene."""
    return replace(scene, symbol=None, corner=None)


def caption(scene: Scene, keep: Collection[str] = PROBES) -> str:
    """Describe a scene in words, mentioning only the attributes in `keep`."""
    return _compose(
        {name: getattr(scene, name) for name in ATTRIBUTES if name in keep},
        overlay=None if "overlay" not in keep else scene.symbol is not None,
    )


def prompts(attribute: str) -> list[str]:
    """Give one zero-shot prompt for each value of an attribute ("overlay": absent, present)."""
    if attribute == "overlay":
        return [_compose({}, overlay=False), _compose({}, overlay=True)]
    if attribute not in ATTRIBUTES:
        raise ValueError(f"no attribute {attribute!r}; expected one of {', '.join(PROBES)}")
    return [_compose({attribute: value}, overlay=None) for value in ATTRIBUTES[attribute]]


def labels(codes: Codes, attribute: str) -> Int[np.ndarray, " scene"]:
    """Give each scene's index into `prompts(attribute)`; -1 where the attribute is absent."""
    if attribute == "overlay":
        return (codes[:, -1] >= 0).astype(np.int64)
    return codes[:, list(ATTRIBUTES).index(attribute)]


def render(scenes: Sequence[Scene], *, size: int = shapes.CANVAS) -> UInt8[np.ndarray, "scene height width 3"]:
    """Draw scenes as RGB pictures."""
    return render_codes(encode(scenes), size=size)


def _is_held_out(codes: Codes) -> np.ndarray:
    index = np.zeros(len(codes), dtype=np.uint64)
    for column, values in zip(codes.T, ATTRIBUTES.values(), strict=True):
        index = index * np.uint64(len(values) + 1) + (column + 1).astype(np.uint64)
    mixed = (index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(60)
    return mixed == 0


def _compose(values: dict[str, str | None], *, overlay: bool | None) -> str:
    body = [values[name] for name in ("size", "colour", "texture") if values.get(name)]
    words = [*body, values.get("shape") or "object"]
    words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    if values.get("row"):
        words += ["at", "the", values["row"]]
    if values.get("column"):
        words += ["on", "the", values["column"]]
    ground = [values[name] for name in ("background", "pattern") if values.get(name)]
    if ground:
        words += ["before", "a", *ground, "background"]
    symbol, corner = values.get("symbol"), values.get("corner")
    if overlay is False:
        words += ["without", "a", "symbol"]
    elif overlay or symbol or corner:
        words += ["with", "a", symbol or "symbol", *(["in", "the", corner, "corner"] if corner else [])]
    return " ".join(words)
