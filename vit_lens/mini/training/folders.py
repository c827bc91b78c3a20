"""Folders of pipelines, written so that every version of diffusers and transformers that is supported reads them."""

__all__ = ["rename_for_every_version", "write_json"]

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from vit_lens.errors import OutputError
from vit_lens.files import read_json, write_atomic


def rename_for_every_version(folder: Path) -> None:
    """Give tokenizers, weights and dtypes in a saved pipeline the names that older and later versions read."""
    for path in (folder / "model_index.json", *folder.glob("tokenizer*/tokenizer_config.json")):
        # transformers 4 has no other name for it
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    # Classes before transformers 5.6 know no other names, and would draw with random weights; later ones read both.
    weights = folder / "text_encoder" / "model.safetensors"
    if read_json(folder / "text_encoder" / "config.json", OutputError, "assemble it again")["model_type"] != "t5":
        named = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(weights).items()}
        save_file(named, weights, {"format": "pt"})
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # a path of this machine
        if path.parent.name.startswith("text_encoder"):  # else it is loaded in half precision, and the others in single
            config["dtype"] = "float32"
        write_json(path, config)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a file of JSON, atomically."""
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
