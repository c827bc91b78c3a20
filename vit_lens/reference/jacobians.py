"""Averaged Jacobians of one model: how what stands at any row of any layer reaches the read-out, to first order."""

__all__ = ["Jacobians"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import LensError, OutputError, ReferenceMismatchError, expect
from vit_lens.files import as_path, file_tensors, open_tensors, parse_json, save_tensors
from vit_lens.identity import MINI_ENCODER, MINI_FILES, fingerprint
from vit_lens.reference.patching_error import PatchingError
from vit_lens.reference.row_means import RowMeans, grouped, row_groups, state_width
from vit_lens.towers import Tower, ViTActivationCache, check_model, other_preprocessing, other_weights

_FORMAT = "vit_lens.jacobians.1"
_ADVICE = "make them with `vit-lens jacobian IMAGES --out FILE`, or JacobianLens.fit(model, images).save(path)"
_MOVED = "moved."
_MEANS = tuple(one.name for one in fields(RowMeans) if one.name != "n")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Jacobians:
    """``J[place, group] = E[d last / d r_place(row)]``, averaged over images and over the rows of a group.

    ``last`` is what the output is read from: the last residual at the class token, before the final norm (of towers
    that norm the mean of the patches: that mean). Where a tower pools normed rows (mean pooling behind the norm,
    attention pooling), it is what the projection reads, so that norm and pooling are part of the map.

    Places are the residual stream before block 0, then after attention and after the MLP of every block; groups are
    the class token, the registers and the patches (each where there are some), or every row by itself. A group's
    Jacobian is that of *one* of its rows, so what is transported is multiplied by it and summed over rows.

    Attributes:
        encoder_id: The id of the model.
        fingerprint: Digits that identify the model's weights by content, rounded to bfloat16.
        weights: What identifies them to the last bit.
        preprocess: How images became pixels, as plain values; empty where that is not known, as where pixels were
            given.
        values: The Jacobians.
        groups: The group of every row.
        means: Mean activations over the same images: what outputs are measured from.
        images: Sixteen digits of every image, by which parts that share one are told.
        error: The error against patching on held-out images; None where it was not measured.
        moved: How far what two of the held-out images write usually arrives apart, by kind of site: ``head`` [layer
            head], ``attn`` and ``mlp`` [layer]; None where the error was not measured.

    Raises:
        LensError: Shapes do not go together, or a number is not finite.

    >>> lens = vl.JacobianLens.fit(model, images, test=False)
    >>> lens.jacobians
    Jacobians('vit_lens/mini', 17 places, rows in 2 groups, n=2; error not measured)
    >>> lens.jacobians.values.shape
    torch.Size([17, 2, 128, 128])
    """

    encoder_id: str
    fingerprint: str
    weights: str
    preprocess: dict[str, Any] = field(default_factory=dict)
    values: Float[Tensor, "place group d_last d_model"]
    groups: Int[Tensor, " pos"]
    means: RowMeans
    images: tuple[str, ...]
    error: PatchingError | None = None
    moved: Mapping[str, Float[Tensor, "layer *head"]] | None = None

    def __post_init__(self) -> None:
        expect(self.means, RowMeans, "means", LensError, _ADVICE)
        held = {"values": self.values, **self.means.tensors(), **(self.moved or {})}
        if bad := [name for name, one in held.items() if not one.is_floating_point() or not one.isfinite().all()]:
            raise LensError(f"{bad} of these Jacobians are no finite numbers; {_ADVICE}")
        groups = self.groups.unique().tolist() if self.groups.ndim == 1 else []
        n, is_whole = len(self.images), self.groups.dtype == torch.int64
        fits = self.values.ndim == 4 and groups == list(range(self.values.shape[1])) and len(self.values) > 2
        if not (fits and is_whole and self.means.n == n == len(set(self.images)) and n):
            raise LensError(
                f"Jacobians of shape {tuple(self.values.shape)} for groups {groups[:9]}, of {n} images and means of "
                f"{self.means.n}: expected rows in every group, and as many different images as means; {_ADVICE}"
            )

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.images)

    @property
    def content(self) -> str:
        """Sixteen digits that identify the Jacobians, and the means, by their values."""
        return fingerprint({"values": self.values, "groups": self.groups.double(), **self.means.tensors()})

    # ---- what it is for

    def place(self, site: Site) -> int:
        """Return the index of the place that a site writes to, or is.

        Raises:
            LensError: The site is one of attention pooling, which lies behind every place.

        >>> lens = vl.JacobianLens.fit(model, images, test=False)
        >>> [lens.jacobians.place(vl.Site.parse(name)) for name in ("L0.resid_pre", "L0H3", "L0.mlp", "L1.resid_pre")]
        [0, 1, 2, 2]
        """
        if site.layer is None:
            raise LensError(f"{site} is behind the last residual, from where nothing is left to transport")
        if (found := 2 * site.layer + _BEHIND[site.kind]) >= len(self.values):
            raise LensError(f"{site}: these Jacobians have layers L0 to L{(len(self.values) - 1) // 2 - 1}")
        return found

    def transport(self, outputs: Float[Tensor, "*batch group d_model"], site: Site) -> Float[Tensor, "*batch d_last"]:
        """Return ``sum_rows J[row] h(row)``: where what is written at all rows arrives, to first order.

        Args:
            outputs: What is written at a site, or a difference of it, summed over the rows of each group
                (:meth:`written`).
            site: The site.

        Raises:
            LensError: The site is one of attention pooling, or of a layer that is not there.

        >>> lens = vl.JacobianLens.fit(model, images, test=False)
        >>> site = vl.Site.parse("L3.mlp")
        >>> ours, theirs = lens.jacobians.written(cache, site)
        >>> lens.jacobians.transport(ours - theirs, site).shape
        torch.Size([128])
        """
        jacobian = self.values[self.place(site)].to(outputs)
        return einsum(jacobian, outputs, "group d_last d, ... group d -> ... d_last")

    def written(self, cache: ViTActivationCache, site: Site) -> Float[Tensor, "batch group d_model"]:
        """Return what a site holds or writes in a run, summed over the rows of each group.

        Args:
            cache: The cache of a run at all rows.
            site: The site.
        """
        return grouped(cache, cache.model, site, self.groups)

    def mean_written(self, model: Tower, site: Site, means: RowMeans | None = None) -> Float[Tensor, "group d_model"]:
        """Return the mean of :meth:`written` over images.

        Args:
            model: The model.
            site: The site.
            means: Means over some images; None for those that the Jacobians are of.
        """
        mean = (means or self.means).output(model, site)
        return mean * torch.bincount(self.groups).to(mean)[:, None]

    # ---- whose it is

    def check(self, model: Tower) -> "Jacobians":
        """Return the Jacobians if they are the model's own.

        Raises:
            ReferenceMismatchError: They were made with other weights, or another preprocessing.
        """
        check_model(model)
        own = "Make its own: JacobianLens.fit(model, images), or `vit-lens jacobian`"
        if told := other_weights(self, model):
            raise ReferenceMismatchError(f"these Jacobians (n={self.n}) were {told}. {own}")
        if told := other_preprocessing(self.preprocess, model):
            raise ReferenceMismatchError(
                f"these Jacobians (n={self.n}) are of images that were preprocessed with {told}. {own}"
            )
        cfg, groups = model.cfg, self.values.shape[1]
        wanted = {
            "values": (2 * cfg.n_layers + 1, groups, state_width(model), cfg.d_model), "groups": (cfg.n_ctx,),
            "last": (state_width(model),), "resid_pre": (groups, cfg.d_model),
            "z": (cfg.n_layers, groups, cfg.n_heads, cfg.d_head), "mlp_out": (cfg.n_layers, groups, cfg.d_model),
            "moved.head": (cfg.n_layers, cfg.n_heads), "moved.attn": (cfg.n_layers,), "moved.mlp": (cfg.n_layers,),
        }  # fmt: skip
        shapes = {name: tuple(one.shape) for name, one in self._tensors().items()}
        if wrong := {name: shape for name, shape in shapes.items() if wanted.get(name) != shape}:
            raise ReferenceMismatchError(f"Jacobians of shapes {wrong}, where the model has {wanted}. {own}")
        if not any(torch.equal(self.groups.cpu(), row_groups(cfg, per_row=one)) for one in (False, True)):  # pyright: ignore[reportArgumentType]
            raise ReferenceMismatchError(f"Jacobians whose rows are grouped otherwise than the model's. {own}")
        return self

    # ---- parts

    @classmethod
    def merge(cls, parts: "Sequence[Jacobians]") -> "Jacobians":
        """Return the Jacobians over the images of all parts, each part weighing as many as it has.

        Errors against patching, and how far differences are moved, are those of the parts: the merged have none.

        Raises:
            LensError: There is no part, two parts share an image, or their rows are grouped otherwise.
            ReferenceMismatchError: Parts are of different weights, or of images that were preprocessed otherwise.
        """
        if not parts:
            raise LensError("no parts to merge; give two files or more")
        first = parts[0]
        for index, part in enumerate(parts):
            expect(part, cls, f"part {index}", LensError, "Jacobians, such as JacobianLens.load(path).jacobians")
            for what, one, other in (
                ("other weights", first.weights, part.weights),
                ("another preprocessing", first.preprocess, part.preprocess),
            ):  # fmt: skip
                if one != other:
                    raise ReferenceMismatchError(
                        f"part {index} was made with {what} than part 0: {other}, not {one}; parts of one "
                        "model, loaded alike, go together"
                    )
            if not torch.equal(first.groups, part.groups) or first.values.dtype != part.values.dtype:
                raise LensError(
                    f"part {index} has {part.values.shape[1]} groups of rows in {part.values.dtype}, part 0 has "
                    f"{first.values.shape[1]} in {first.values.dtype}; fit parts with the same options"
                )
        seen: dict[str, int] = {}
        for index, part in enumerate(parts):
            if shared := [digits for digits in part.images if digits in seen]:
                raise LensError(
                    f"parts {seen[shared[0]]} and {index} share {len(shared)} image{'s' * (len(shared) > 1)} (such as "
                    f"{shared[0]}), which would count twice; give each image to one part (--shard I/N does)"
                )
            seen |= dict.fromkeys(part.images, index)
        n = len(seen)

        def mean(of: str) -> Tensor:
            found = [part._tensors()[of] for part in parts]
            total = sum(one.double() * len(part.images) for one, part in zip(found, parts, strict=True))
            return (total / n).to(found[0].dtype)  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue]

        means = RowMeans(n=n, **{name: mean(name) for name in _MEANS})
        return replace(first, values=mean("values"), means=means, images=tuple(seen), error=None, moved=None)

    # ---- files

    @classmethod
    def load(cls, path: str | Path) -> "Jacobians":
        """Read saved Jacobians; ``"mini"`` names those that ship with the embedded encoder.

        Raises:
            LensError: The file is missing, truncated, changed, or not one of these.
        """
        place = MINI_FILES / "jacobians.safetensors" if str(path) == "mini" else as_path(path, LensError)
        with open_tensors(place, [_FORMAT], what="Jacobians", error=LensError, advice=_ADVICE) as (file, meta):
            said = parse_json(meta["fields"], f"the metadata of {place}", LensError, _ADVICE)
            held = file_tensors(file)
            error = said["error"] and PatchingError.from_json(said["error"])
            means = RowMeans(n=len(said["images"]), **{name: held[name] for name in _MEANS})
            return cls(
                encoder_id=str(said["encoder_id"]), fingerprint=str(said["fingerprint"]), weights=str(said["weights"]),
                preprocess=dict(said["preprocess"]), values=held["values"], groups=held["groups"], means=means,
                images=tuple(map(str, said["images"])), error=error or None,
                moved={name.removeprefix(_MOVED): value for name, value in held.items() if name.startswith(_MOVED)}
                or None,
            )  # fmt: skip

    @classmethod
    def shipped(cls, model: Tower) -> "Jacobians | None":
        """Return the Jacobians that ship with the package for a model; None where there are none.

        >>> vl.reference.Jacobians.shipped(model).n
        96
        """
        check_model(model)
        return cls.load("mini") if model.encoder_id == MINI_ENCODER else None

    def save(self, path: str | Path) -> Path:
        """Write the Jacobians as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        said = {
            "encoder_id": self.encoder_id, "fingerprint": self.fingerprint, "weights": self.weights,
            "preprocess": self.preprocess, "images": self.images, "error": self.error and self.error.to_json(),
        }  # fmt: skip
        meta = {"format": _FORMAT, "fields": json.dumps(said)}
        return save_tensors(self._tensors(), as_path(path, OutputError), meta)

    def _tensors(self) -> dict[str, Tensor]:
        moved = {_MOVED + kind: value for kind, value in (self.moved or {}).items()}
        return {"values": self.values, "groups": self.groups, **self.means.tensors(), **moved}

    def __repr__(self) -> str:
        told = "error not measured" if self.error is None else f"error measured on {self.error.n} pairs"
        places, groups = self.values.shape[:2]
        return f"Jacobians({self.encoder_id!r}, {places} places, rows in {groups} groups, n={self.n}; {told})"


# By kind of site, the place behind it: of a layer's three residuals the last is the next layer's first.
_BEHIND = {"resid_pre": 0, "head": 1, "attn": 1, "resid_mid": 1, "mlp": 2, "resid_post": 2}
