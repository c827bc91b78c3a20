"""ViT-Prisma: ``config.json`` beside ``weights.pt`` or ``n_images_*.pt``, a state dict."""

from pathlib import Path

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.known import layout
from vit_lens.dictionaries.layouts.common import Said, built, config_of, only, torch_tensors
from vit_lens.errors import DictionaryError

_NORMS = {"none": False, "layer_norm": True}


def _weights(path: Path) -> list[Path]:
    folder = path if path.is_dir() else path.parent
    found = [folder / "weights.pt"] if (folder / "weights.pt").is_file() else sorted(folder.glob("n_images_*.pt"))
    return found if path.is_dir() or path.name == "config.json" else [one for one in found if one == path]


def _holds(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    return bool(_weights(path)) and (folder / "config.json").is_file()


@layout("prisma", _holds)
def read(path: Path, said: Said) -> Dictionary:
    """Read a standard or TopK SAE of the new form; checkpoints with a pickled config are refused."""
    folder, cfg = config_of(path, "config.json")
    if len(found := _weights(path)) != 1:
        raise DictionaryError(f"{folder} holds {len(found)} checkpoints; name one of them")
    kind, norm = cfg.get("activation_fn_str"), cfg.get("normalize_activations", "none")
    if cfg.get("architecture") != "standard" or kind not in ("relu", "topk") or norm not in _NORMS:
        raise DictionaryError(
            f"{folder / 'config.json'}: architecture={cfg.get('architecture')!r}, activation_fn_str={kind!r}, "
            f"normalize_activations={norm!r}; read are 'standard' with 'relu' or 'topk', and 'none' or 'layer_norm'"
        )
    tensors = torch_tensors(found[0])
    only(tensors, ("W_enc", "b_enc", "W_dec", "b_dec"), found[0])
    semantics = {
        "encoder": kind, "k": (cfg.get("activation_fn_kwargs") or {}).get("k") if kind == "topk" else None,
        "subtracts_bias": True, "relu_after_topk": True, "input_scale": 1.0, "layer_norm": _NORMS[norm],
        "rescales_by_decoder_norm": False,
    }  # fmt: skip
    layer, point = cfg.get("hook_point_layer"), cfg.get("layer_subtype")
    tokens = "cls" if cfg.get("cls_token_only") else "patches" if cfg.get("use_patches_only") else "all"
    site = f"blocks.{layer}.{point}" if isinstance(layer, int) and isinstance(point, str) else None
    return built(found[0], tensors, semantics, {"site": site, "tokens": tokens, "learnt": "ViT-Prisma"}, said)
