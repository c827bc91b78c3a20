"""dictionary_learning: ``ae.pt``, a state dict, and ``config.json``."""

from pathlib import Path
from typing import Any

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.known import layout
from vit_lens.dictionaries.layouts.common import Said, built, config_of, has, only, torch_tensors
from vit_lens.errors import DictionaryError

_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
# By class: the encoder, the name of the bias, tensors that are read besides, and those that only training needs.
_CLASSES: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "AutoEncoder": ("relu", "bias", (), ()),
    "AutoEncoderNew": ("relu", "decoder.bias", (), ()),
    "AutoEncoderTopK": ("topk", "b_dec", ("k",), ("threshold",)),
    "BatchTopKSAE": ("batchtopk", "b_dec", ("threshold",), ("k",)),
    "JumpReluAutoEncoder": ("jumprelu", "b_dec", ("threshold",), ()),
}


@layout("dictionary_learning", has("ae.pt", "config.json"))
def read(path: Path, said: Said) -> Dictionary:
    """Read a dictionary of the class that its config names; gated ones and crosscoders are refused.

    A ``JumpReluAutoEncoder`` multiplies its codes by decoder norms and divides again, which is left out: codes are
    those before. It may subtract its bias or not, which no file says.
    """
    folder, cfg = config_of(path, "config.json")
    trainer: Any = cfg.get("trainer") if isinstance(cfg.get("trainer"), dict) else {}
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        where = folder / "config.json"
        raise DictionaryError(f"{where}: trainer.dict_class is {name!r}; read are {', '.join(_CLASSES)}")
    kind, bias, besides, ignored = _CLASSES[name]
    tensors = torch_tensors(folder / "ae.pt")
    is_jump = kind == "jumprelu"
    names = {key: key for key in _LINEAR} if is_jump else _LINEAR
    only(tensors, (*names.values(), bias, *besides), folder / "ae.pt", ignored)
    named = {key: tensors[value] if is_jump or key == "b_enc" else tensors[value].T for key, value in names.items()}
    named["b_dec"] = tensors[bias]
    if "threshold" in besides:
        named["threshold"] = tensors["threshold"].to(named["b_enc"]).expand(len(named["b_enc"]))
    semantics = {
        "encoder": kind, "k": int(tensors["k"]) if kind == "topk" else None,
        "subtracts_bias": None if is_jump else name != "AutoEncoderNew", "relu_after_topk": True, "input_scale": 1.0,
        "layer_norm": False, "rescales_by_decoder_norm": False,
    }  # fmt: skip
    return built(folder / "ae.pt", named, semantics, {"learnt": f"dictionary_learning {name}"}, said)
