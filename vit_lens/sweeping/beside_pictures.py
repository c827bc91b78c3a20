"""What stands beside the pictures: captions, nearest images and live numbers, image by image of a sweep."""

__all__ = ["Beside", "BesideModel", "Collected"]

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import GalleryError, LensError, VitLensError
from vit_lens.lenses import TextRun
from vit_lens.readers import Gallery, Probe, SiteMeans, deviations, picture_hash, top_captions
from vit_lens.records import Found, LiveNumbers, Readouts, RecordWriter, gallery_name
from vit_lens.sweeping.controls import Centre
from vit_lens.sweeping.lens_readings import LensReading
from vit_lens.sweeping.live_parts import gather_live, n_live_images
from vit_lens.sweeping.request import check_kind
from vit_lens.texts import TextBank, ZeroShotLabels

_K = 4  # captions, images, and answers of a probe, beside every picture
_THUMB = 128  # pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class Beside:
    """What a sweep keeps beside the pictures.

    Args:
        labels: Zero-shot labels whose words stand beside every picture; None for no words.
        texts: Captions embedded by this encoder: the nearest stand beside every picture, and the live page gives their
            probabilities; None for no captions.
        groups: Captions that exclude each other, by name: the live page takes a softmax over each group. By default
            all captions are one group.
        gallery: Images embedded by this encoder, among which the nearest to every lens embedding are sought; small
            copies of those that are found go into the record. None seeks none.
        means: The means of the lenses, which the centred form of captions and neighbours takes away; rows of a lens
            without means have the raw form alone.
        probes: Probes of prompts, by a name for each: what they answer at each site stands beside its picture.
        live: Whether the numbers of the live page are kept, for as many of the first images as a page can carry (8 MB).

    Raises:
        VitLensError: An argument would have no effect.

    >>> beside = vl.Beside(texts=bank, groups={"shape": bank.captions[:4]}, live=True)
    >>> record = vl.sweep(model, None, images, lens="diffusion", sites="resid_post", beside=beside, out=tmp / "beside")
    >>> [answer["caption"] for answer in record.readouts.of(7)["captions"]["raw"]][:1]
    ['a blue star']
    >>> record.live
    LiveNumbers(81 parts, 2 images)
    """

    labels: ZeroShotLabels | None = None
    texts: TextBank | None = None
    groups: Mapping[str, Sequence[str]] | None = None
    gallery: Gallery | None = None
    means: Sequence[SiteMeans] = ()
    probes: Mapping[str, Probe] = field(default_factory=dict)
    live: bool = False

    def __post_init__(self) -> None:
        check_kind("labels", self.labels, ZeroShotLabels, "ZeroShotLabels, such as ZeroShotLabels.mini(model)")
        check_kind("texts", self.texts, TextBank, "a TextBank, which holds captions with their embeddings")
        check_kind("gallery", self.gallery, Gallery, "a Gallery, such as Gallery.of(model, images)")
        if self.groups is not None and self.texts is None:
            raise VitLensError("groups= sorts the captions of texts=, which were not given")
        if self.means and self.texts is None and self.gallery is None:
            raise VitLensError("means= centre captions and neighbours; without texts= and gallery= they have no effect")
        check_kind("probes", self.probes, Mapping, "probes by name, such as {'shape': TextProbe.load(path)}")
        for name, probe in self.probes.items():
            check_kind(f"probe {name!r}", probe, Probe, "a vit_lens.readers.TextProbe, or what has its five names")

    def of(self, model: Any, readings: list[LensReading]) -> "BesideModel":
        """Return what is kept for the readings of a model.

        Raises:
            TextError: The captions are another encoder's, or a group names one that is not there.
            GalleryError: The gallery is another model's, or has fewer than two different pictures.
            LensError: Means are of no lens of the sweep, or lack a site.
            ReferenceMismatchError: Means are another model's.
        """
        return BesideModel(**vars(self), model=model, readings=readings)


@dataclass(frozen=True, eq=False, kw_only=True)
class BesideModel(Beside):
    """The same for the readings of one model; see :meth:`Beside.of`."""

    model: Any
    readings: list[LensReading]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.texts is not None:
            self.texts.check(self.model)
            self.group_indices()
        if self.gallery is not None and len(self.gallery.check(self.model).distinct) < 2:
            raise GalleryError("the nearest of one picture says nothing; a gallery needs at least two different ones")
        if unused := [mean for mean in self.means if not any(mean.reads(r.lens) for r in self.readings)]:
            raise LensError(
                f"{unused[0]!r} belongs to no lens of this sweep: {[r.reading.label for r in self.readings]}"
            )
        for reading in self.readings:
            self._mean_of(reading)

    @property
    def reads(self) -> bool:
        """Whether there are captions, a gallery or probes."""
        return self.texts is not None or self.gallery is not None or bool(self.probes)

    def describe(self) -> dict[str, Any] | None:
        """Return what identifies this in a manifest; None if nothing is kept."""
        found: dict[str, Any] = {}
        if self.texts is not None:
            bank = self.texts
            parts = [bank.captions, bank.templates, bank.logit_scale, bank.logit_bias, self.group_indices()]
            found["texts"] = {"n": len(bank), "content": _digest(parts, bank.embeds)}
        if self.gallery is not None:
            parts = [self.gallery.names, self.gallery.hashes]
            found["gallery"] = {"n": len(self.gallery), "content": _digest(parts, self.gallery.embeds)}
        if self.means:
            found["means"] = [
                {"lens": mean.lens, "n": mean.n, "content": _digest(list(map(str, mean.sites)), mean.values)}
                for mean in self.means
            ]
        if self.probes:
            found["probes"] = {
                name: {"answers": list(probe.answers), "content": probe.content} for name, probe in self.probes.items()
            }
        if self.live:
            found["live"] = True
        if (labels := self.labels) is not None:
            said = [dict(labels.names), dict(labels.only_if)]
            found["labels"] = {"content": _digest(said, torch.cat([*labels.embeds.values()]))}
        return {"k": _K, **found} if found else None

    def wants_live(self, image: int) -> bool:
        """Whether live numbers of an image are kept: those of the first, as many as a page can carry."""
        return self.live and image < n_live_images(self.model)

    def group_indices(self) -> dict[str, list[int]]:
        """Return the groups as indices of captions."""
        if self.texts is None:
            return {}
        if self.groups is None:
            return {"captions": list(range(len(self.texts)))}
        return {name: [self.texts.index(text) for text in group] for name, group in self.groups.items()}

    def read(
        self, embeds: Float[Tensor, "row d_embed"], seen: Image.Image
    ) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
        """Return the answers to the rows of one image, by kind and form; its own picture is not one of them."""
        origins = self._origins(embeds)
        found: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        if self.texts is not None:
            found["by_caption", "raw"] = self._best(embeds, self.texts)
            if origins is not None:
                found["by_caption", "centred"] = self._best(deviations(embeds, origins), self.texts)
            if families := self._families():
                found["by_caption", "averaged"] = self._averaged(embeds, self.texts, families)
        if self.gallery is not None:
            asked = {"k": min(_K, len(self.gallery.distinct) - 1), "leave_out": [picture_hash(seen)] * len(embeds)}
            found["by_image", "raw"] = self.gallery.nearest(embeds, **asked)
            if origins is not None:
                known = torch.where(origins.isnan(), embeds, origins)  # what equals its origin has no neighbour
                found["by_image", "centred"] = self.gallery.nearest(embeds, origins=known, **asked)
        return {key: (index.int().cpu(), cosine.float().cpu()) for key, (index, cosine) in found.items()}

    def asked(self, run: TextRun, reading: LensReading, encoder: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the best answers of every probe at a reading's sites, and how sure it is; -1 and nan for none.

        A control has none: what stands in for a site is not in the encoder.
        """
        found = {}
        for name, probe in self.probes.items():
            k, n = min(_K, len(probe.answers)), len(reading.sites)
            index, sure = torch.full((n, k), -1, dtype=torch.int32), torch.full((n, k), torch.nan)
            for place, site in enumerate(reading.sites):
                if not reading.reading.control and probe.encoder == encoder and probe.reads(site):
                    scores, order = probe.scores(run, site)[0].sort(descending=True, stable=True)
                    index[place], sure[place] = order[:k].int(), scores[:k].float()
            found[name] = index, sure
        return found

    def _best(self, embeds: Float[Tensor, "row d_embed"], bank: TextBank) -> tuple[Tensor, Tensor]:
        top = top_captions(bank.cosines(embeds), bank, min(_K, len(bank)))
        return top.index.masked_fill(top.cosine.isnan(), -1), top.cosine

    def _averaged(
        self, embeds: Float[Tensor, "row d_embed"], bank: TextBank, families: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        cosines = bank.cosines(embeds)
        mean = torch.full_like(cosines, torch.nan)
        for rows in families:
            mean[rows] = cosines[rows].mean(0)
        top = top_captions(mean, bank, min(_K, len(bank)))
        return top.index.masked_fill(top.cosine.isnan(), -1), top.cosine

    def _families(self) -> list[list[int]]:
        """Return the rows of an image that read one site from several anchors, together."""
        found: dict[tuple[str, Site], list[int]] = {}
        places = ((reading.family, site) for reading in self.readings for site in reading.sites)
        for row, (family, site) in enumerate(places):
            if family is not None:
                found.setdefault((family, site), []).append(row)
        return [rows for rows in found.values() if len(rows) > 1]

    def centre(self, reading: LensReading) -> Centre | None:
        """Return what S takes away, means over other images: known with ``means`` of the lens and a gallery."""
        mean = self._mean_of(reading)
        if mean is None or self.gallery is None:
            return None
        return Centre(mean.float().cpu(), self.gallery.mean.float().cpu())

    def words(self) -> str:
        """Say what the centred form takes away."""
        if not self.means:
            return ""
        counts = sorted({mean.n for mean in self.means})
        return f"the site's mean reading over {' or '.join(map(str, counts))} other images"

    def _mean_of(self, reading: LensReading) -> Float[Tensor, "site d_embed"] | None:
        mean = next((mean for mean in self.means if mean.reads(reading.lens)), None)
        return None if mean is None else mean.of(self.model, reading.lens, reading.sites)

    def _origins(self, embeds: Float[Tensor, "row d_embed"]) -> Float[Tensor, "row d_embed"] | None:
        """Return what is taken from every row; nan, which has no caption, for a lens without means."""
        if not self.means:
            return None
        parts = [
            torch.full((len(reading.sites), embeds.shape[1]), torch.nan) if (mean := self._mean_of(reading)) is None
            else mean.cpu()
            for reading in self.readings
        ]  # fmt: skip
        return torch.cat(parts).to(embeds)


@dataclass
class Collected:
    """The answers of the rows so far, of a record that may have been begun earlier."""

    beside: BesideModel
    n_rows: int
    by: dict[str, dict[str, Found]] = field(default_factory=dict)
    live: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, beside: BesideModel, n_rows: int, readouts: Readouts | None, live: LiveNumbers | None) -> "Collected":
        """Go on with what a record holds."""
        found = cls(beside, n_rows, live={} if live is None else live.by_image())
        for what in ("by_caption", "by_image", "by_probe"):
            held = {} if readouts is None else getattr(readouts, what)
            found.by[what] = {form: Found(one.index.clone(), one.cosine.clone()) for form, one in held.items()}
        return found

    def has(self, image: int) -> bool:
        """Whether the answers and live numbers of an image that was embedded are here."""
        return (any(self.by.values()) or not self.beside.reads) and (
            image in self.live or not self.beside.wants_live(image)
        )

    def add(self, vectors: Float[Tensor, "row d_embed"], seen: Image.Image, rows: list[int], of: list[int]) -> None:
        """Read one image's embeddings, and keep the answer to ``of[i]`` for the record's row ``rows[i]``."""
        if not self.beside.reads or not rows:
            return
        for (what, form), (index, cosine) in self.beside.read(vectors, seen).items():
            self._put(what, form, index[of], cosine[of], rows)

    def add_answers(self, answers: Mapping[str, tuple[Tensor, Tensor]], rows: list[int], of: list[int]) -> None:
        """Keep the answers of probes to ``of[i]`` for the record's row ``rows[i]``."""
        for name, (index, sure) in answers.items() if rows else ():
            self._put("by_probe", name, index[of], sure[of], rows)

    def _put(self, what: str, form: str, index: Tensor, sure: Tensor, rows: list[int]) -> None:
        shape = (self.n_rows, index.shape[1])
        empty = Found(torch.full(shape, -1, dtype=index.dtype), torch.full(shape, torch.nan))
        held = self.by[what].setdefault(form, empty)
        held.index[rows], held.cosine[rows] = index, sure

    def write(self, writer: RecordWriter) -> None:
        """Store everything: pictures first, then what refers to them."""
        beside, bank, names = self.beside, self.beside.texts, {}
        if self.live:
            writer.write_live(gather_live(beside.model, self.live))
        if not beside.reads:
            return
        if beside.gallery is not None and self.by["by_image"]:
            used = torch.cat([found.index.flatten() for found in self.by["by_image"].values()]).unique().tolist()
            names = {int(index): beside.gallery.names[index] for index in used if index >= 0}
            _copy_pictures(beside.gallery, names, writer)
        said: dict[str, Any] = {"groups": beside.group_indices(), "names": names, "means": beside.words(), **self.by}
        said["answers"] = {name: list(beside.probes[name].answers) for name in self.by["by_probe"]}
        if bank is not None:
            said |= {name: getattr(bank, name) for name in ("captions", "logit_scale", "logit_bias")}
            said["texts"] = bank.unit.float().cpu()
        writer.write_readouts(Readouts(**said))


def _copy_pictures(gallery: Gallery, names: Mapping[int, str], writer: RecordWriter) -> None:
    for index in names:
        if writer.holds(gallery_name(index)):
            continue
        try:
            picture = gallery.picture(index)
        except GalleryError:
            if gallery.folder:
                raise
            continue  # handed over from memory: the page shows its name
        picture.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
        writer.write_neighbour(index, picture)


def _digest(described: Any, values: Tensor) -> str:
    data = repr(described).encode() + values.detach().cpu().contiguous().double().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:32]
