"""EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors``."""

from pathlib import Path

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.known import layout
from vit_lens.dictionaries.layouts.common import Said, built, config_of, has, only, safe_tensors
from vit_lens.errors import DictionaryError


@layout("sparsify", has("cfg.json", "sae.safetensors"))
def read(path: Path, said: Said) -> Dictionary:
    """Read a TopK coder. Its ReLU comes before TopK, to the same codes; transcoders are refused."""
    folder, cfg = config_of(path, "cfg.json")
    if cfg.get("transcode") or cfg.get("skip_connection") or cfg.get("activation", "topk") != "topk":
        raise DictionaryError(
            f"{folder / 'cfg.json'}: transcode={cfg.get('transcode')}, skip_connection={cfg.get('skip_connection')}, "
            f"activation={cfg.get('activation')!r}; read are autoencoders with activation 'topk'"
        )
    tensors = safe_tensors(folder / "sae.safetensors")
    only(tensors, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), folder / "sae.safetensors")
    semantics = {
        "encoder": "topk", "k": cfg.get("k"), "subtracts_bias": True, "relu_after_topk": True, "input_scale": 1.0,
        "layer_norm": False, "rescales_by_decoder_norm": False,
    }  # fmt: skip
    named = {
        "W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"], "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }  # fmt: skip
    return built(folder / "sae.safetensors", named, semantics, {"learnt": "sparsify"}, said)
