"""sdxl-unbox, and its FLUX SAE: ``state_dict.pth`` and ``config.json``, of what blocks add."""

from pathlib import Path

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.known import layout
from vit_lens.dictionaries.layouts.common import Said, built, config_of, has, only, torch_tensors


@layout("sdxl_unbox", has("state_dict.pth", "config.json"))
def read(path: Path, said: Said) -> Dictionary:
    """Read a TopK SAE on the update of a block.

    ``mean.pt`` beside it holds no part of it: mean codes, in which that library measures the strength of an edit.
    """
    folder, cfg = config_of(path, "config.json")
    where = folder / "state_dict.pth"
    tensors = torch_tensors(where)
    only(tensors, ("encoder.weight", "decoder.weight", "pre_bias", "latent_bias"), where, ("stats_last_nonzero",))
    semantics = {
        "encoder": "topk", "k": cfg.get("k"), "subtracts_bias": True, "relu_after_topk": True, "input_scale": 1.0,
        "layer_norm": False, "rescales_by_decoder_norm": False,
    }  # fmt: skip
    named = {
        "W_enc": tensors["encoder.weight"].T, "b_enc": tensors["latent_bias"], "W_dec": tensors["decoder.weight"].T,
        "b_dec": tensors["pre_bias"],
    }  # fmt: skip
    return built(where, named, semantics, {"stream": "update", "learnt": "sdxl-unbox"}, said)
