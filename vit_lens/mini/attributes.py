"""The names of everything that can vary in a scene of the procedural world."""

__all__ = ["ATTRIBUTES", "OVERLAY_ATTRIBUTES", "PROBES"]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon"),
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "texture": ("solid", "striped", "dotted", "checkered"),
    "size": ("small", "medium", "large"),
    "row": ("top", "middle", "bottom"),
    "column": ("left", "centre", "right"),
    "background": ("white", "grey", "sand", "sky", "mint", "lilac"),
    "pattern": ("plain", "hatched", "faded"),
    "symbol": ("dot", "bar", "plus", "saltire", "wedge"),
    "corner": ("top left", "top right", "bottom left", "bottom right"),
}
OVERLAY_ATTRIBUTES = ("symbol", "corner")
PROBES = (*ATTRIBUTES, "overlay")
