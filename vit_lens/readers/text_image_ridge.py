"""From a CLIP's embeddings of texts to those of images, by ridge regression: unCLIP without a prior."""

__all__ = ["TextImageRidge"]

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.attribution import check_tensor
from vit_lens.errors import ContractError, OutputError, VitLensError, expect
from vit_lens.files import as_path, load_fields, save_fields
from vit_lens.identity import MINI_FILES, canonical_encoder_id
from vit_lens.numerics import without_autocast

_FORMAT = "vit_lens.text_image_ridge.1"
_ADVICE = "make it with TextImageRidge.fit(texts, images, encoder_id=...).save(path)"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextImageRidge:
    """An affine map, fitted by ridge regression, from what a CLIP makes of captions to what it makes of their images.

    A decoder of image embeddings draws what comes out. That is a read-out of one vector, the end of a text, by a map
    that somebody fitted; it is not the Diffusion Lens of Toker et al., which draws from the whole sequence and
    fits nothing (:class:`vit_lens.TextDiffusionLens`). unCLIP (Ramesh et al. 2022, section 2) has a diffusion prior in
    this place.

    Attributes:
        encoder_id: The id of the CLIP, as that of its image tower.
        weight: The linear part.
        bias: What is added.
        n: The number of pairs that it was fitted on.
        penalty: The ridge penalty, in units of ``n``.

    >>> ridge = vl.readers.TextImageRidge.load("mini")
    >>> _, cache = text_model.run_with_cache(["a red star"])
    >>> asked = ridge(vl.DiffusionLens().embed(cache, ["L0.resid_pre", "resid_post"]))
    >>> asked.shape
    torch.Size([1, 3, 128])
    >>> settings = decoder.settings(steps=1)
    >>> decoder.decode(asked[0], negative=model.zero_embedding(), encoder=ridge.encoder_id, settings=settings).shape
    torch.Size([3, 64, 64, 3])
    """

    encoder_id: str
    weight: Float[Tensor, "d_text d_image"]
    bias: Float[Tensor, " d_image"]
    n: int
    penalty: float

    def __post_init__(self) -> None:
        check_tensor("weight", self.weight, "d_text d_image", VitLensError)
        check_tensor("bias", self.bias, f"{self.weight.shape[1]}", VitLensError)
        if not (self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise VitLensError(f"the map's numbers are not finite; {_ADVICE}")

    @classmethod
    @without_autocast()
    def fit(
        cls,
        texts: Float[Tensor, "text d_text"],
        images: Float[Tensor, "image d_image"],
        *,
        encoder_id: str,
        penalty: float | int = 1e-2,
    ) -> "TextImageRidge":
        """Fit the map on pairs, in float64.

        Args:
            texts: Embeddings of captions.
            images: Embeddings of the images that they are of.
            encoder_id: The id of the CLIP, as ``model.encoder_id`` of its image tower.
            penalty: The ridge penalty on the weight, times the number of pairs; the bias is free.

        Raises:
            VitLensError: There are fewer than two pairs, or values that are not finite, or the penalty is below 0.
        """
        expect(encoder_id, str, "encoder_id", VitLensError, "the image tower's, as model.encoder_id")
        if len(texts) != len(images) or len(texts) < 2:
            raise VitLensError(f"{len(texts)} texts and {len(images)} images; expected as many of both, two or more")
        if not 0 <= penalty < float("inf"):
            raise VitLensError(f"penalty={penalty!r}; expected 0 or more")
        x, y = texts.detach().double().cpu(), images.detach().double().cpu()
        if not (x.isfinite().all() and y.isfinite().all()):
            raise VitLensError("some embeddings are not finite; leave these pairs out")
        centre, mean = x.mean(0), y.mean(0)
        gram = (x - centre).T @ (x - centre) + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(gram, (x - centre).T @ (y - mean))
        return cls(
            encoder_id=canonical_encoder_id(encoder_id), weight=weight.float(), bias=(mean - centre @ weight).float(),
            n=len(x), penalty=float(penalty),
        )  # fmt: skip

    @without_autocast()
    def __call__(self, texts: Float[Tensor, "*batch d_text"]) -> Float[Tensor, "*batch d_image"]:
        """Map embeddings of texts to embeddings of images; the dtype is kept.

        Raises:
            ContractError: They are of another width.
        """
        expect(texts, Tensor, "texts", ContractError, "embeddings [..., d_text]")
        if texts.ndim < 1 or texts.shape[-1] != len(self.weight):
            raise ContractError(
                f"texts of shape {tuple(texts.shape)}, where the map takes {len(self.weight)} numbers each: those of "
                f"the text side of {self.encoder_id}"
            )
        return texts @ self.weight.to(texts) + self.bias.to(texts)

    @classmethod
    def load(cls, path: str | Path) -> "TextImageRidge":
        """Read a saved map; ``"mini"`` names that of the embedded pair, fitted on 2,000 scenes.

        Raises:
            VitLensError: The file is not one of these, or is truncated.
        """
        place = MINI_FILES / "text_image_ridge.safetensors" if str(path) == "mini" else as_path(path, VitLensError)
        return cls(**load_fields(cls, place, _FORMAT, what="text-image map", error=VitLensError, advice=_ADVICE))

    def save(self, path: str | Path) -> Path:
        """Write the map as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        return save_fields(self, as_path(path, OutputError), _FORMAT)

    def __repr__(self) -> str:
        wide = " -> ".join(map(str, self.weight.shape))
        return f"TextImageRidge({self.encoder_id!r}, {wide}, fitted on {self.n} pairs, penalty {self.penalty:g})"
