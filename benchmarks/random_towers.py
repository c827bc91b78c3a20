"""Vision towers of published shapes with random weights, as open_clip and Hugging Face build them."""

__all__ = ["PRESETS", "add_preset", "hugging_face_tower", "open_clip_tower", "vision_config"]

import argparse
import sys
from typing import Any

import torch

# open_clip's names; the shapes alone are taken, weights are random.
PRESETS = {"mini": None, "b32": "ViT-B-32", "l14": "ViT-L-14", "h14": "ViT-H-14", "bigg": "ViT-bigG-14"}
PRESETS["a100"] = PRESETS["bigg"]  # as one runs it there: on CUDA in bfloat16
_MINI = {"width": 128, "layers": 8, "patch_size": 8, "image_size": 64, "head_width": 32}


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Add the preset, whose ``a100`` sets device and dtype where the command line does not."""
    parser.add_argument("preset", choices=PRESETS, help="whose shapes; a100 is bigg on CUDA in bfloat16")
    if "a100" in sys.argv[1:]:
        parser.set_defaults(device="cuda", dtype="bfloat16")


def vision_config(preset: str, layers: int | None = None) -> dict[str, Any]:
    """Return open_clip's config of a preset's shapes, ``embed_dim`` and ``vision_cfg``, with another depth if asked."""
    import open_clip

    name = PRESETS[preset]
    config: Any = {"embed_dim": 64, "vision_cfg": _MINI} if name is None else open_clip.get_model_config(name)
    depth = {} if layers is None else {"layers": layers}
    return {"embed_dim": config["embed_dim"], "vision_cfg": {**config["vision_cfg"], **depth}}


def open_clip_tower(
    preset: str, device: torch.device, dtype: torch.dtype, layers: int | None = None
) -> torch.nn.Module:
    """Build open_clip's vision tower with random weights."""
    from open_clip.model import _build_vision_tower

    with device:
        tower = _build_vision_tower(**vision_config(preset, layers))
    return tower.to(device, dtype).eval().requires_grad_(False)


def hugging_face_tower(preset: str, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Build transformers' vision tower of the same sizes with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = vision_config(preset)
    vision = config["vision_cfg"]
    tower = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=vision["width"], intermediate_size=int(vision["width"] * vision.get("mlp_ratio", 4)),
            num_hidden_layers=vision["layers"], num_attention_heads=vision["width"] // vision.get("head_width", 64),
            image_size=vision["image_size"], patch_size=vision["patch_size"], projection_dim=config["embed_dim"],
            hidden_act="gelu",
        )
    )  # fmt: skip
    return tower.to(device, dtype).eval().requires_grad_(False)
