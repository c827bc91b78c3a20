"""What the kinds of input of a sweep differ in: how they are named, read and run, and what they are compared with."""

__all__ = ["ImageKind", "InputKind"]

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.controls import CONTROLS, MIN_SAMPLES
from vit_lens.decoders import Decoder
from vit_lens.errors import ContractError, LensError, VitLensError
from vit_lens.images import load_with_hash, to_display
from vit_lens.lenses import Sites, TextMeans, parse_lenses, run_for, site_outputs
from vit_lens.models import HookedViT
from vit_lens.readers import Gallery
from vit_lens.reference import ReferenceMeans
from vit_lens.sweeping.banks import BankSource, source_of
from vit_lens.sweeping.beside_pictures import Beside, BesideModel
from vit_lens.sweeping.controls import Centre
from vit_lens.sweeping.lens_readings import LensReading, make_readings
from vit_lens.sweeping.live_parts import live_part
from vit_lens.sweeping.request import Controls, Inputs

_SITES_AT_ONCE = 64
_EVERY_SITE = ("L0.resid_pre", "resid_post", "heads", "attn", "mlp")


@dataclass(frozen=True, eq=False)
class InputKind(ABC):
    """The inputs of a sweep with the encoder that reads them.

    Attributes:
        model: The encoder.
        inputs: The inputs, which have a length, and each a name.
    """

    model: Any
    inputs: Any

    default_sites: ClassVar[Sequence[str]]
    """What is read where nothing else is asked for."""

    @property
    def looks_again(self) -> HookedViT | None:
        """The encoder that reads the decoder's pictures again; None where it reads no pictures."""
        return None

    @abstractmethod
    def readings(
        self, lens: Any, reference: ReferenceMeans | TextMeans | None, sites: Sites, controls: Controls,
        others: BankSource, *, anchors: Any = None, gallery: Gallery | None = None,
    ) -> list[LensReading]:  # fmt: skip
        """Return what each lens reads, and its controls.

        Args:
            lens: Lenses, spellings or both; None for the usual ones.
            reference: The means that spelt lenses start from.
            sites: What is read.
            controls: What sites are held against.
            others: Where other inputs come from, of which controls are made.
            anchors: Other inputs that spelt lenses start from.
            gallery: What spelt lenses project on.
        """

    def others(self, controls: Controls, gallery: Gallery | None) -> BankSource:
        """Return where other inputs come from, of which controls are made; by default there are none."""
        return BankSource()

    @abstractmethod
    def check_decoder(self, decoder: Decoder, readings: list[LensReading]) -> None:
        """Refuse a decoder that does not draw what is read.

        Raises:
            ContractError: It was made for another encoder, or takes other parts.
        """

    @abstractmethod
    def negative(self, decoder: Decoder) -> Condition | None:
        """Return one row that guidance leads away from; None where there is none."""

    @abstractmethod
    def read(self, index: int) -> tuple[dict[str, Any], Image.Image | None]:
        """Read one input once; return what a record says of it, and what the model sees, where that is a picture."""

    @abstractmethod
    def run(self, entry: dict[str, Any], seen: Any, readings: list[LensReading]) -> tuple[Any, Any]:
        """Run the encoder on one input; return its output and what lenses read."""

    @abstractmethod
    def norms(self, cache: Any, readings: list[LensReading]) -> list[float]:
        """Return how long each site's output is, over all readings in order."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what identifies the encoder in a manifest."""

    @property
    @abstractmethod
    def row_numbers(self) -> int:
        """About how many numbers a row's condition has."""

    def numbers_of(self, readings: list[LensReading]) -> int:
        """About how many numbers the condition of a row of some readings has."""
        return self.row_numbers

    @abstractmethod
    def beside(self, given: Beside, readings: list[LensReading]) -> BesideModel:
        """Return what is kept beside the pictures."""

    def portions(self, readings: list[LensReading], row_numbers: int) -> list[list[LensReading]]:
        """Return the readings in portions of their sites, in order, each of which may be held at once.

        Args:
            readings: The readings.
            row_numbers: How many numbers the condition of one site has.
        """
        return [readings]

    @abstractmethod
    def centre(self, reading: LensReading, cache: Any, beside: BesideModel) -> Centre | None:
        """Return what is taken away before likeness to the input is measured; None where it is not known."""

    def answers(self, cache: Any, readings: list[LensReading], beside: BesideModel) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the answers of probes at every site, by the probe's name: the best, and how sure they are."""
        return {}

    def measured_from(self, readings: list[LensReading]) -> dict[str, Any]:
        """Return what identifies the means of :meth:`centre`, where no lens has them, nor what stands beside."""
        return {}

    def live(self, cache: Any, embeds: Any) -> dict[str, Tensor] | None:
        """Return the numbers of the live page; None where there are none."""
        return None


class ImageKind(InputKind):
    """Images, read by a hooked vision transformer."""

    model: HookedViT
    inputs: Inputs
    default_sites = _EVERY_SITE

    @property
    def looks_again(self) -> HookedViT:
        return self.model

    def readings(
        self, lens: Any, reference: ReferenceMeans | TextMeans | None, sites: Sites, controls: Controls,
        others: BankSource, *, anchors: Any = None, gallery: Gallery | None = None,
    ) -> list[LensReading]:  # fmt: skip
        if isinstance(reference, TextMeans):
            raise LensError("reference= holds means of prompts; a model that sees images takes ReferenceMeans")
        if unknown := [kind for kind in controls.kinds if kind not in CONTROLS]:
            known = ", ".join(CONTROLS)
            raise VitLensError(f"the control {unknown[0]!r} is one of prompts; those of images are {known}")
        kinds = controls.kinds if controls.drawn else ()
        if missing := [others.left_out[kind] for kind in kinds if kind in others.left_out]:
            raise VitLensError(missing[0])
        if controls.normalise is not None and others.n_others < MIN_SAMPLES:
            raise VitLensError(
                f"normalise={controls.normalise!r} is fitted on other images: it needs {MIN_SAMPLES}, and there "
                f"{'is' if others.n_others == 1 else 'are'} {others.n_others or 'none'}; give more images, or "
                "Controls(bank=ControlBank.from_images(model, images)) (--control-images)"
            )
        near = Gallery.shipped(self.model) if gallery is None else gallery
        lenses = parse_lenses(lens, self.model, reference, anchors=anchors, gallery=near)
        return make_readings(self.model, lenses, sites, kinds, controls.normalise)

    def others(self, controls: Controls, gallery: Gallery | None) -> BankSource:
        return source_of(self.model, self.inputs, controls, gallery)

    def check_decoder(self, decoder: Decoder, readings: list[LensReading]) -> None:
        for one in readings:
            if set(decoder.takes) != set(one.lens.parts):
                raise ContractError(
                    f"decoder {decoder.decoder_id} takes {' and '.join(decoder.takes)}, lens {one.reading.label} reads "
                    f"{' and '.join(one.lens.parts)}: sweep lenses that read what the decoder takes"
                )
        decoder.check_encoder(self.model)

    def negative(self, decoder: Decoder) -> Condition | None:
        return decoder.negative(self.model)

    def read(self, index: int) -> tuple[dict[str, Any], Image.Image]:
        picture, digest = load_with_hash(self.inputs.images[index])
        (seen,) = to_display([picture], self.model.spec())
        return {"kind": "image", "index": index, "name": self.inputs.name(index), "sha256": digest}, seen

    def run(self, entry: dict[str, Any], seen: Any, readings: list[LensReading]) -> tuple[Any, Any]:
        return run_for(self.model, self.model.preprocess([seen]), [reading.lens for reading in readings])

    def norms(self, cache: Any, readings: list[LensReading]) -> list[float]:
        found = []
        for reading in readings:
            for some in _portions(reading.sites):
                own = reading.lens.written_norms(cache, some)
                found.append(site_outputs(cache, some)[0].flatten(1).norm(dim=1) if own is None else own[0])
        return torch.cat(found).tolist()

    @property
    def row_numbers(self) -> int:
        return self.model.cfg.d_embed

    def numbers_of(self, readings: list[LensReading]) -> int:
        return max((reading.lens.numbers(self.model) for reading in readings), default=self.row_numbers)

    def beside(self, given: Beside, readings: list[LensReading]) -> BesideModel:
        if given.probes:
            raise VitLensError("probes= answer for prompts, and these are images; captions and a gallery answer there")
        of_tokens = next((one for one in readings if "pooled" not in one.lens.parts), None)
        if of_tokens and (given.texts is not None or given.gallery is not None or given.labels is not None):
            raise VitLensError(
                f"{of_tokens.reading.label} reads tokens, and captions, labels and neighbours are of embeddings: leave "
                "texts=, labels= and gallery= out (--captions, --gallery)"
            )
        return given.of(self.model, readings)

    def centre(self, reading: LensReading, cache: Any, beside: BesideModel) -> Centre | None:
        return beside.centre(reading)

    def live(self, cache: Any, embeds: Any) -> dict[str, Tensor]:
        return live_part(self.model, cache, embeds)

    def describe(self) -> dict[str, Any]:
        model = self.model
        return {
            "encoder_id": model.encoder_id, "fingerprint": model.fingerprint, "weights": _digest_of(model),
            "dtype": str(model.dtype).removeprefix("torch."), "config": model.cfg.to_dict() | {"device": None},
            "preprocess": model.preprocess_spec and model.preprocess_spec.to_dict(),
        }  # fmt: skip


def _portions(sites: list[Site]) -> Iterator[list[Site]]:
    """Yield the sites in order, a few at a time; those of attention pooling have another width and go together."""
    for _, together in groupby(sites, key=lambda site: site.is_pool):
        some = list(together)
        yield from (some[start : start + _SITES_AT_ONCE] for start in range(0, len(some), _SITES_AT_ONCE))


def _digest_of(model: HookedViT) -> str:
    """Return what identifies weights to the last bit; the fingerprint is theirs in bfloat16."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
