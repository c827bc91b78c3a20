"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``, read and written."""

__all__ = ["save_sae_lens"]

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.known import layout
from vit_lens.dictionaries.layouts.common import Said, built, config_of, has, only, safe_tensors
from vit_lens.dictionaries.semantics import Origin
from vit_lens.errors import DictionaryError, OutputError
from vit_lens.files import as_path, check_fields, save_tensors, write_atomic

_CFG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
_ENCODERS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}
_NORMS = {"none": False, "layer_norm": True}


@layout("sae_lens", has(_CFG, _WEIGHTS))
def read(path: Path, said: Said) -> Dictionary:
    """Read an SAE of SAELens 3 to 6. Normalisation that is in no file, and other architectures, are refused."""
    folder, cfg = config_of(path, _CFG)
    where, meta = folder / _CFG, cfg.get("metadata") if isinstance(cfg.get("metadata"), dict) else {}
    kind = _of(cfg, "architecture", _ENCODERS, where)
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    kwargs = cfg.get("activation_fn_kwargs") or {}
    if kind == "relu" and activation != "relu":  # before version 6, TopK was an activation
        kind = _of({"activation_fn": activation}, "activation_fn", {"topk": "topk"}, where)
    if cfg.get("reshape_activations", "none") != "none" or cfg.get("finetuning_scaling_factor"):
        raise DictionaryError(
            f"{where} reshapes heads or scales after finetuning, which is not read; fold it with SAELens, then save it"
        )
    semantics = {
        "encoder": kind, "k": (cfg.get("k") or kwargs.get("k")) if kind == "topk" else None,
        "subtracts_bias": cfg.get("apply_b_dec_to_input"), "relu_after_topk": True, "input_scale": 1.0,
        "layer_norm": _of(cfg, "normalize_activations", _NORMS, where),
        "rescales_by_decoder_norm": bool(cfg.get("rescale_acts_by_decoder_norm", False)),
    }  # fmt: skip
    tensors = safe_tensors(folder / _WEIGHTS)
    only(tensors, (*_PLAIN, *(("threshold",) if kind == "jumprelu" else ())), folder / _WEIGHTS)
    own = meta.get("vit_lens") if isinstance(meta, dict) else None
    origin = {"site": _first(meta, cfg, "hook_name"), "model": _first(meta, cfg, "model_name"), "learnt": "SAELens"}
    if isinstance(own, dict):
        origin = check_fields(Origin, own.get("origin"), f"{where}: metadata", DictionaryError)
    made = built(folder / _WEIGHTS, tensors, semantics, origin, said)
    return replace(made, statistics=own["statistics"]) if isinstance(own, dict) and "statistics" in own else made


def save_sae_lens(dictionary: Dictionary, folder: str | Path) -> Path:
    """Write a dictionary as SAELens' ``SAE.load_from_disk`` reads it, and return the folder.

    Args:
        dictionary: A dictionary with an encoder of its own.
        folder: The folder; it is made where it is not there.

    Raises:
        DictionaryError: SAELens has no such dictionary: one that encodes by pursuit, TopK without ReLU.
        OutputError: The files cannot be written.

    >>> made = vl.dictionaries.random_dictionary(8, 20, k=3, site="blocks.1.hook_resid_post")
    >>> vl.Dictionary.load(vl.dictionaries.save_sae_lens(made, tmp / "sae"))
    Dictionary(20 features of width 8, topk k=3, of blocks.1.hook_resid_post)
    """
    place, own = as_path(folder, OutputError), _as_sae_lens(dictionary)
    said = own.semantics
    kind = {"relu": "standard", "topk": "topk"}.get(said.encoder, "jumprelu")
    cfg: dict[str, Any] = {
        "architecture": kind, "d_in": own.d, "d_sae": own.n_features, "device": "cpu",
        "dtype": str(own.W_dec.dtype).removeprefix("torch."), "apply_b_dec_to_input": said.subtracts_bias,
        "normalize_activations": "layer_norm" if said.layer_norm else "none", "reshape_activations": "none",
        "metadata": {
            "model_name": own.origin.model, "hook_name": own.origin.site,
            "vit_lens": {"origin": asdict(own.origin), "statistics": own.statistics},
        },
    }  # fmt: skip
    if kind == "topk":
        cfg |= {"k": said.k, "rescale_acts_by_decoder_norm": said.rescales_by_decoder_norm}
    tensors = {name: getattr(own, name) for name in (*_PLAIN, *(("threshold",) if kind == "jumprelu" else ()))}
    save_tensors(tensors, place / _WEIGHTS)
    write_atomic(place / _CFG, json.dumps(cfg, indent=1).encode())
    return place


def _as_sae_lens(dictionary: Dictionary) -> Dictionary:
    """Return the same function in SAELens' terms, which has no input scale, and rescales TopK alone."""
    said, own = dictionary.semantics, dictionary
    W_enc, b_enc = own.W_enc, own.b_enc
    if W_enc is None or b_enc is None or (said.encoder == "topk" and not said.relu_after_topk):
        raise DictionaryError(
            f"SAELens has no dictionary with encoder {said.encoder!r}{'' if W_enc is None else ' without ReLU'}; "
            "dictionary.save(path) keeps it"
        )
    if said.input_scale != 1 and said.layer_norm:
        raise DictionaryError("SAELens has no scale before a layer norm; dictionary.save(path) keeps it")
    if said.input_scale != 1:
        scale = said.input_scale
        own = replace(own, W_dec=own.W_dec / scale, b_dec=own.b_dec / scale)
        W_enc = W_enc * scale
        if said.rescales_by_decoder_norm:  # the norms are of what was before the scale
            norms = dictionary.W_dec.norm(dim=1)
            W_enc, b_enc, own = W_enc * norms, b_enc * norms, replace(own, W_dec=own.W_dec / norms[:, None])
    elif said.rescales_by_decoder_norm and said.encoder != "topk":
        norms = own.W_dec.norm(dim=1)
        W_enc, b_enc, own = W_enc * norms, b_enc * norms, replace(own, W_dec=own.W_dec / norms[:, None])
    else:
        return own
    plain = replace(said, input_scale=1.0, rescales_by_decoder_norm=False)
    return replace(own, W_enc=W_enc, b_enc=b_enc, semantics=plain)


def _of(cfg: dict[str, Any], key: str, known: dict[str, Any], where: Path) -> Any:
    value = cfg.get(key)
    if not isinstance(value, str) or value not in known:
        raise DictionaryError(
            f"{where}: {key} is {value!r}; read are {', '.join(map(repr, known))}. Fold or convert it with SAELens, or "
            "make a vl.Dictionary of its tensors, with what they mean"
        )
    return known[value]


def _first(meta: Any, cfg: dict[str, Any], key: str) -> str | None:
    found = meta.get(key) if isinstance(meta, dict) else None
    found = cfg.get(key) if found is None else found
    return found if isinstance(found, str) else None
