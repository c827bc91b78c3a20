"""saev: one line of JSON, then the bytes of ``torch.save``."""

from pathlib import Path
from typing import Any

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.known import layout
from vit_lens.dictionaries.layouts.common import Said, built, only, torch_tensors
from vit_lens.errors import DictionaryError
from vit_lens.files import parse_json

_ENCODERS = {"Relu": "relu", "TopK": "topk", "BatchTopK": "batchtopk"}
_LINE, _SCHEMAS = 2**20, (1, 2, 3, 4, 5)


def _holds(path: Path) -> bool:
    if not path.is_file() or path.suffix == ".json":
        return False
    with path.open("rb") as file:
        return file.read(1) == b"{" and b"\n" in file.read(_LINE)


@layout("saev", _holds)
def read(path: Path, said: Said) -> Dictionary:
    """Read an SAE of saev, of any schema to 5.

    Its first versions took ``b_dec`` from the input, later ones do not, and files of schemas before 2 do not say which
    wrote them: ``subtracts_bias=`` is asked for there. TopK is without ReLU.
    """
    with path.open("rb") as file:
        line = file.readline(_LINE)
    header = parse_json(line, f"the first line of {path}", DictionaryError, "download or copy it again")
    schema, cls = header.get("schema"), header.get("cls", "SparseAutoencoderConfig")
    if schema is not None and schema not in _SCHEMAS:
        raise DictionaryError(f"{path}: schema {schema!r}; read are files without one, and {_SCHEMAS}")
    cfg: Any = header if schema is None else header.get("cfg")
    cfg = cfg if isinstance(cfg, dict) else {}
    activation: Any = cfg.get("activation") if isinstance(cfg.get("activation"), dict) else {}
    name = "Relu" if schema is None else cls if cls in _ENCODERS else activation.get("cls", "nothing")
    params: Any = activation.get("params") if isinstance(activation.get("params"), dict) else cfg
    if name not in _ENCODERS:
        raise DictionaryError(f"{path}: activation {name!r}; read are {', '.join(_ENCODERS)}")
    is_old = schema is None or (schema == 1 and cls != "SparseAutoencoderConfig")
    semantics = {
        "encoder": _ENCODERS[name], "k": params.get("top_k") if name == "TopK" else None,
        "subtracts_bias": None if is_old else False, "relu_after_topk": False, "input_scale": 1.0, "layer_norm": False,
        "rescales_by_decoder_norm": False,
    }  # fmt: skip
    tensors = torch_tensors(path, len(line))
    plain = ("W_enc", "b_enc", "W_dec", "b_dec")
    threshold = "activation.threshold"
    only(tensors, (*plain, *((threshold,) if name == "BatchTopK" else ())), path)
    named = {key: tensors[key] for key in plain}
    if name == "BatchTopK":  # a threshold of 0, which was never learnt, leaves a ReLU
        named["threshold"] = tensors[threshold].float().clamp(min=0).expand(len(named["b_enc"]))
    return built(path, named, semantics, {"learnt": "saev"}, said)
