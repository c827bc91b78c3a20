"""Means of activations over a reference set of images: what a leak-free lens measures deviations from."""

__all__ = ["ReferenceMeans"]

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from vit_lens.errors import ReferenceMismatchError, VitLensError
from vit_lens.files import save_tensors
from vit_lens.identity import fingerprint
from vit_lens.model import HookedViT

_FORMAT = "vit_lens.reference_means.1"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReferenceMeans:
    """Mean activations of one model at its read-out rows, over ``n`` images.

    Attention outputs are not kept: they follow from ``z``, so that heads add up exactly.

    Attributes:
        encoder_id: The model.
        fingerprint: Of its weights.
        n: Images.
        resid_pre: Of block 0.
        z: Of every head.
        mlp_out: Of every layer.
    """

    encoder_id: str
    fingerprint: str
    n: int
    resid_pre: Float[Tensor, "row d_model"]
    z: Float[Tensor, "layer row head d_head"]
    mlp_out: Float[Tensor, "layer row d_model"]

    @classmethod
    def from_images(
        cls, model: HookedViT, images: Any, *, batch_size: int = 32, progress: bool = False
    ) -> "ReferenceMeans":
        """Run the model over images (paths, PIL images, arrays) or preprocessed pixels and average.

        Raises:
            ImageError: An image cannot be read.
            VitLensError: There are no images.
        """
        if not isinstance(images, (list, tuple)) and getattr(images, "ndim", 0) != 4:
            images = [images]
        n = len(images)
        if n == 0:
            raise VitLensError("reference means need at least one image; a few hundred give stable ones")
        model.refuse_hooks("saved means")
        sums: dict[str, Tensor] = {}
        starts: Iterable[int] = range(0, n, batch_size)
        for start in tqdm(starts, desc="reference means", disable=not progress):
            batch = images[start : start + batch_size]
            pixels = batch if isinstance(batch, Tensor) else model.preprocess(batch)
            with torch.no_grad():
                _, cache = model.run_with_cache(pixels, rows="readout")
            for name in _names(model):
                total = cache[name].cpu().double().sum(0)  # float64 is not on every device
                sums[name] = sums[name] + total if name in sums else total
        dtype = torch.promote_types(model.dtype, torch.float32)
        means = [(sums[name] / n).to(dtype) for name in _names(model)]
        n_layers = model.cfg.n_layers
        return cls(
            encoder_id=model.encoder_id, fingerprint=model.fingerprint, n=n, resid_pre=means[0],
            z=torch.stack(means[1 : n_layers + 1]), mlp_out=torch.stack(means[n_layers + 1 :]),
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> "ReferenceMeans":
        """Read saved means; ``"mini"`` names those that ship with the embedded pair.

        Raises:
            VitLensError: The file is not one of these, or is truncated.
        """
        if str(path) == "mini":
            with as_file(files("vit_lens") / "mini" / "pair" / "reference_means.safetensors") as shipped:
                return cls.load(shipped)
        if not Path(path).is_file():
            raise VitLensError(
                f"no reference means at {path}; make them with ReferenceMeans.from_images(...).save(path)"
            )
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("format") != _FORMAT:
                    raise VitLensError(
                        f"{path} does not hold reference means (format {meta.get('format')!r}, expected {_FORMAT!r})"
                    )
                tensors = {name: file.get_tensor(name) for name in ("resid_pre", "z", "mlp_out")}
        except SafetensorError as error:
            raise VitLensError(f"{path} is not a whole safetensors file of reference means: {error}") from error
        return cls(encoder_id=meta["encoder_id"], fingerprint=meta["fingerprint"], n=int(meta["n"]), **tensors)

    def save(self, path: str | Path) -> Path:
        """Write the means as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        meta = {
            "format": _FORMAT,
            "encoder_id": self.encoder_id,
            "fingerprint": self.fingerprint,
            "n": str(self.n),
        }
        return save_tensors({"resid_pre": self.resid_pre, "z": self.z, "mlp_out": self.mlp_out}, Path(path), meta)

    def __repr__(self) -> str:
        return f"ReferenceMeans({self.encoder_id!r}, n={self.n})"

    def check(self, model: HookedViT) -> "ReferenceMeans":
        """Return the means if they are the model's own.

        Raises:
            ReferenceMismatchError: They were made with other weights.
        """
        if self.fingerprint != model.fingerprint:
            raise ReferenceMismatchError(
                f"these reference means (n={self.n}) were made with {self.encoder_id} ({self.fingerprint}); the model "
                f"is {model.encoder_id} ({model.fingerprint}), or has the same weights in another precision. Make its "
                "own: ReferenceMeans.from_images(model, images)"
            )
        return self

    @property
    def content(self) -> str:
        """Sixteen digits that identify the means by their values."""
        return fingerprint({"resid_pre": self.resid_pre, "z": self.z, "mlp_out": self.mlp_out})

    def attn_out(self, model: HookedViT, layer: int) -> Float[Tensor, "row d_model"]:
        """Mean attention output of a layer: all heads and ``b_O``."""
        attn = model.blocks[layer].attn
        z = self.z[layer].to(model.device)
        return einsum(z, attn.W_O.to(z), "row h k, h k d -> row d") + attn.b_O.to(z)

    def head_out(self, model: HookedViT, layer: int, head: int) -> Float[Tensor, "row d_model"]:
        """Mean output of one head in the residual stream."""
        z = self.z[layer, :, head].to(model.device)
        return z @ model.blocks[layer].attn.W_O[head].to(z)

    def resid_final(self, model: HookedViT) -> Float[Tensor, "row d_model"]:
        """Mean residual after the last block: the sum of all mean outputs."""
        attn = sum(self.attn_out(model, layer) for layer in range(model.cfg.n_layers))
        return self.resid_pre.to(model.device) + attn + self.mlp_out.sum(0).to(model.device)


def _names(model: HookedViT) -> list[str]:
    layers = range(model.cfg.n_layers)
    return [
        "blocks.0.hook_resid_pre",
        *(f"blocks.{layer}.attn.hook_z" for layer in layers),
        *(f"blocks.{layer}.hook_mlp_out" for layer in layers),
    ]
