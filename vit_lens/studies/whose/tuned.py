"""The tuned lens of a text encoder: an affine map from each layer to the last, fitted on other prompts, drawn.

Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned lens" (arXiv 2303.08112): a basis
may turn from layer to layer, and what a layer holds is then there in a form that the denoiser does not read.
"""

__all__ = ["Translators", "TunedLens"]

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import check_tensor, finite
from vit_lens.errors import LensError, ReferenceMismatchError, StudyError, expect
from vit_lens.identity import fingerprint
from vit_lens.lenses import PromptReader, TextDiffusionLens, TextRun
from vit_lens.studies.kept_tensors import kept
from vit_lens.studies.whose.states import StateLens, layer_of

RIDGE = 1e-3
_BATCH = 32
_FORM = "vit_lens.translators.1"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Translators:
    """Affine maps ``h_l + h_l A_l + b_l`` from every layer of a text encoder to the one that the format reads.

    All positions of the fitted prompts are alike, those of the filling included. ``A_l`` is a ridge regression of what
    is still to come, ``h_L - h_l``: directions that the fit has hardly seen stay as they are, and at the last layer the
    map is the identity, to the last bit.

    Attributes:
        encoder_id: The id of the encoders.
        weight: ``A_l``; a state stands on its left.
        bias: ``b_l``.
        n: The number of prompts.
        ridge: The weight of the squares of ``A_l``, in units of the mean variance of the layer's dimensions.

    Raises:
        LensError: A number is not finite, or there is not one map for each layer.
    """

    encoder_id: str
    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    n: int
    ridge: float

    def __post_init__(self) -> None:
        layers, width = self.bias.shape
        check_tensor("weight", self.weight, f"{layers} {width} {width}")
        if not (self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise LensError("a map from a layer to the last is not finite; fit it on more prompts, or with more ridge")

    @classmethod
    def fit(cls, reader: PromptReader, prompts: Sequence[str], *, ridge: float = RIDGE) -> "Translators":
        """Fit the maps, in float64.

        Args:
            reader: A :class:`vit_lens.decoders.PromptEncoder`.
            prompts: Texts; none that is studied.
            ridge: See :attr:`ridge`.

        Raises:
            LensError: The ridge is not above 0.
            StudyError: There are no prompts.
        """
        if finite("ridge", ridge, LensError) <= 0:
            raise LensError(f"ridge={ridge}; expected more than 0")
        if not prompts:
            raise StudyError("there are no prompts to fit maps between layers on")
        n, totals = 0, None
        for states in layers_of(reader, prompts):
            x = states.flatten(1, 2)
            rest = x[-1] - x
            n += x.shape[1]
            found = (x.sum(1), rest.sum(1), x.mT @ x, x.mT @ rest)
            totals = found if totals is None else tuple(a + b for a, b in zip(totals, found, strict=True))
        sums, rests, squares, mixed = totals  # pyright: ignore[reportGeneralTypeIssues]
        moments = squares - sums[:, :, None] * sums[:, None] / n
        size = moments.diagonal(dim1=1, dim2=2).mean(-1)
        penalty = (ridge * size)[:, None, None] * torch.eye(moments.shape[-1], dtype=torch.float64)
        weight = torch.linalg.solve(moments + penalty, mixed - sums[:, :, None] * rests[:, None] / n)
        bias = (rests - (sums[:, None] @ weight)[:, 0]) / n
        return cls(encoder_id=reader.encoder_id, weight=weight, bias=bias, n=len(prompts), ridge=float(ridge))

    @classmethod
    def of_folder(
        cls, folder: Path, reader: PromptReader, prompts: Sequence[str], *, ridge: float = RIDGE
    ) -> "Translators":
        """Return the maps in a folder, fitted and kept there where there are none: the last bit depends on threads.

        Args:
            folder: The folder.
            reader: As for :meth:`fit`, and so are the others.
            prompts: Texts.
            ridge: See :attr:`ridge`.

        Raises:
            StudyError: The file is damaged.
        """
        said = "\n".join([reader.encoder_id, repr(float(ridge)), *prompts])
        digits = hashlib.sha256(said.encode()).hexdigest()[:8]

        def make() -> dict[str, Tensor]:
            found = cls.fit(reader, prompts, ridge=ridge)
            return {"weight": found.weight, "bias": found.bias}

        held = kept(folder / f"tuned-{digits}.safetensors", _FORM, "maps from each layer to the last", make)
        if set(held) != {"weight", "bias"}:
            raise StudyError(f"{folder / f'tuned-{digits}.safetensors'} holds {', '.join(held)}; remove it")
        return cls(encoder_id=reader.encoder_id, n=len(prompts), ridge=float(ridge), **held)

    @property
    def content(self) -> str:
        """Sixteen digits that identify the maps by their numbers."""
        return fingerprint({"weight": self.weight, "bias": self.bias})

    def __call__(self, layer: int, state: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Return what the last layer would be, of states after so many blocks, in float64."""
        wide = state.double()
        weight, bias = (x[layer].to(wide.device) for x in (self.weight, self.bias))
        return wide + (wide @ weight + bias)


@dataclass(frozen=True, kw_only=True)
class TunedLens(StateLens):
    """Read, in a layer's place, what an affine map makes of it, that was fitted to reach the last layer.

    Args:
        translators: The maps.
        norm: As for :class:`vit_lens.TextDiffusionLens`, and so are the others.
        encoder: The encoder that is moved.
        positions: The positions that are moved.
        held: The positions that are held.
        pooled: What a pooled vector is made of.

    Raises:
        LensError: The maps are none.
    """

    translators: Translators

    name = "tuned"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.translators, Translators, "translators", LensError, "as Translators.fit(encoder, prompts) makes it")

    def settings(self) -> dict[str, object]:
        """Return the definition, which maps, and every setting of the reading."""
        maps = self.translators
        return super().settings() | {"maps": maps.content, "n_fit": maps.n, "ridge": maps.ridge}

    @property
    def definition(self) -> str:
        """The state, in the symbols of the class."""
        return "h_l + h_l A_l + b_l where the format reads"

    @property
    def words(self) -> str:
        """A sentence on how a state is read."""
        return (
            "Puts, where the format reads its text encoder, what an affine map makes of the state that was fitted on "
            "other prompts to reach the last layer."
        )

    @property
    def _title(self) -> str:
        return "tuned lens"

    def _state(
        self, run: TextRun, means: TextRun | None, site: Site, output: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        if run.encoder.encoder_id != self.translators.encoder_id:
            raise ReferenceMismatchError(
                f"these maps were fitted to {self.translators.encoder_id}, and the encoders are "
                f"{run.encoder.encoder_id}: fit their own"
            )
        return self.translators(layer_of(site), output)


@torch.no_grad()
def layers_of(reader: PromptReader, prompts: Sequence[str]) -> Iterator[Float[Tensor, "layer batch pos d_model"]]:
    """Give the stream of prompts, a few at a time, in float64 on the CPU: the embeddings, then behind every block."""
    for start in range(0, len(prompts), _BATCH):
        run = TextRun.of(reader, prompts[start : start + _BATCH])
        reading = TextDiffusionLens().moved_in(run)
        last = reading.layer(run.tower(reading.encoder).cfg.n_layers)
        yield torch.stack([run.residual(reading.encoder, layer).cpu().double() for layer in range(last + 1)])
