"""See, as a picture, what every part of a CLIP vision transformer contributes."""

from vit_lens.lazy import lazy

__version__ = "0.1.0"

_HOME = {
    "ActivationSource": "vit_lens.dictionaries",
    "Address": "vit_lens.addresses",
    "Beside": "vit_lens.sweeping",
    "Budget": "vit_lens.sweeping",
    "Condition": "vit_lens.conditions",
    "Controls": "vit_lens.sweeping",
    "DecodeSettings": "vit_lens.decoders",
    "Decoder": "vit_lens.decoders",
    "Dictionary": "vit_lens.dictionaries",
    "DiffusionLens": "vit_lens.lenses",
    "DiffusionSteeringLens": "vit_lens.lenses",
    "Drawing": "vit_lens.sweeping",
    "Execution": "vit_lens.sweeping",
    "HookedTextConfig": "vit_lens.config",
    "HookedTextEncoder": "vit_lens.models",
    "HookedViT": "vit_lens.models",
    "HookedViTConfig": "vit_lens.config",
    "Inputs": "vit_lens.sweeping",
    "KandinskyDecoder": "vit_lens.decoders",
    "Lens": "vit_lens.lenses",
    "Plan": "vit_lens.sweeping",
    "PreprocessSpec": "vit_lens.images",
    "Record": "vit_lens.records",
    "Prompts": "vit_lens.sweeping",
    "ReferenceMeans": "vit_lens.reference",
    "Site": "vit_lens.addresses",
    "TextBank": "vit_lens.texts",
    "TextDiffusionLens": "vit_lens.lenses",
    "TextMeans": "vit_lens.lenses",
    "TextRun": "vit_lens.lenses",
    "TextSteeringLens": "vit_lens.lenses",
    "VitLensError": "vit_lens.errors",
    "ZeroShotLabels": "vit_lens.texts",
    "addresses": "vit_lens",
    "attribution": "vit_lens",
    "decoders": "vit_lens",
    "dictionaries": "vit_lens",
    "doctor": "vit_lens",
    "engine": "vit_lens",
    "errors": "vit_lens",
    "figures": "vit_lens",
    "hooking": "vit_lens",
    "images": "vit_lens",
    "interventions": "vit_lens",
    "lenses": "vit_lens",
    "load_decoder": "vit_lens.decoders",
    "mini": "vit_lens",
    "models": "vit_lens",
    "plan": "vit_lens.sweeping",
    "readers": "vit_lens",
    "records": "vit_lens",
    "reference": "vit_lens",
    "sources": "vit_lens",
    "studies": "vit_lens",
    "sweep": "vit_lens.sweeping",
    "texts": "vit_lens",
    "towers": "vit_lens",
    "verification": "vit_lens",
    "write_report": "vit_lens.report",
}
_names, __getattr__, _ = lazy(__name__, _HOME)
__all__ = ["__version__", *_names]  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted(__all__)
