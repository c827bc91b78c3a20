"""How far two inputs usually lie apart at each site of a tower: the unit of lenses that carry a difference over."""

__all__ = ["DifferenceNorms", "Spreads", "typical_norm"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import OutputError, ReferenceMismatchError, VitLensError, expect
from vit_lens.files import as_path, file_tensors, open_tensors, save_tensors
from vit_lens.identity import fingerprint, forget_fingerprints
from vit_lens.models import HookedViT, batch_starts, several
from vit_lens.numerics import without_autocast
from vit_lens.towers import Tower, check_model, other_preprocessing, other_weights, preprocessing_of

_FORMAT = "vit_lens.difference_norms.1"
_ADVICE = "make them with DifferenceNorms.of(model, images).save(path)"
_ROUNDING = 4  # a spread below this many units in the last place of the mean is the rounding of a constant
_POINTS = {
    "head": "blocks.{}.attn.hook_z", "attn": "blocks.{}.hook_attn_out", "mlp": "blocks.{}.hook_mlp_out",
    "resid_pre": "blocks.{}.hook_resid_pre", "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
}  # fmt: skip
_POOL = {"head": "attn_pool.attn.hook_z", "attn": "attn_pool.hook_attn_out", "mlp": "attn_pool.hook_mlp_out"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DifferenceNorms:
    """The root mean square of ``||h(x) - h(x')||`` over all pairs of ``n`` inputs, for every site of a tower.

    ``h`` is what the site holds or writes at the read-out rows, a head's ``z W_O``, without its mean over d_model, to
    which a LayerNorm is blind.

    Attributes:
        encoder_id: The id of the model.
        fingerprint: Digits that identify the model's weights by content, rounded to bfloat16.
        n: The number of inputs.
        values: By kind of site ``attn``, ``mlp``, ``resid_pre``, ``resid_mid`` and ``resid_post`` [layer], ``head``
            [layer head]; of attention pooling ``pool_attn`` and ``pool_mlp`` [1], ``pool_head`` [1 head].
        weights: What identifies the model's weights to the last bit.
        preprocess: How images became pixels, as plain values; empty where that is not known, or of prompts.

    Raises:
        VitLensError: They are of fewer than two inputs, or no finite numbers.

    >>> norms = vl.reference.DifferenceNorms.of(model, images)
    >>> norms.of_sites([vl.Site.parse("L3H4"), vl.Site.parse("L5.mlp")]).shape
    torch.Size([2])
    >>> found = vl.reference.DifferenceNorms.load(norms.save(tmp / "differences.safetensors"))
    >>> found.content == norms.content, found
    (True, DifferenceNorms('vit_lens/mini', n=2))
    """

    encoder_id: str
    fingerprint: str
    n: int
    values: Mapping[str, Float[Tensor, "layer *head"]]
    weights: str = ""
    preprocess: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n < 2:
            raise VitLensError(f"norms of differences of n={self.n}: they are of pairs, of at least two inputs")
        expect(self.values, Mapping, "values", VitLensError, _ADVICE)
        for kind, value in self.values.items():
            expect(value, Tensor, kind, VitLensError, _ADVICE)
            if not value.is_floating_point() or not bool(value.isfinite().all()) or bool((value < 0).any()):
                raise VitLensError(f"the norms of {kind} are no finite numbers from 0; {_ADVICE}")

    @classmethod
    def of(cls, model: Tower, inputs: Any, *, batch_size: int = 32) -> "DifferenceNorms":
        """Run a tower over inputs and measure how far they lie apart.

        Args:
            model: The tower, without hooks.
            inputs: For a model that sees images paths, PIL images, arrays or preprocessed pixels; for a text encoder
                prompts. A few hundred that are not studied.
            batch_size: The number of inputs in one run.

        Raises:
            ImageError: An image cannot be read.
            TextError: A prompt is not one that the tower reads.
            VitLensError: There are fewer than two inputs, or a batch would hold none.
        """
        check_model(model, VitLensError)
        given = [inputs] if isinstance(inputs, str) else several(inputs)
        if len(given) < 2:
            raise VitLensError(f"norms of differences need at least two inputs, and {len(given)} came")
        model.refuse_hooks("saved norms")
        forget_fingerprints(model)
        spreads = Spreads(model)
        for start in batch_starts(len(given), batch_size):
            some = given[start : start + batch_size]
            if isinstance(model, HookedViT) and not isinstance(some, Tensor):
                some = model.preprocess(some)
            with torch.no_grad():
                _, cache = model.run_with_cache(some, rows="readout")
            for name in spreads.names:
                spreads.add(name, cache.readout(name))
        return spreads.norms(len(given), preprocessing_of(model, given))

    @classmethod
    def load(cls, path: str | Path) -> "DifferenceNorms":
        """Read saved norms.

        Raises:
            VitLensError: The file is not one of these, or is truncated.
        """
        place = as_path(path, VitLensError)
        with open_tensors(place, [_FORMAT], what="norms of differences", error=VitLensError, advice=_ADVICE) as opened:
            file, meta = opened
            return cls(
                encoder_id=meta["encoder_id"], fingerprint=meta["fingerprint"], n=int(meta["n"]),
                weights=meta["weights"], preprocess=json.loads(meta["preprocess"]), values=file_tensors(file),
            )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the norms as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        meta = {
            "format": _FORMAT, "encoder_id": self.encoder_id, "fingerprint": self.fingerprint, "n": str(self.n),
            "weights": self.weights, "preprocess": json.dumps(self.preprocess),
        }  # fmt: skip
        return save_tensors(dict(self.values), as_path(path, OutputError), meta)

    def check(self, model: Tower) -> "DifferenceNorms":
        """Return the norms if they are the model's own.

        Raises:
            ReferenceMismatchError: They were made with other weights or another preprocessing, or are of other sizes.
        """
        check_model(model, VitLensError)
        again = "Make its own: DifferenceNorms.of(model, images), or `vit-lens reference IMAGES`"
        if told := other_weights(self, model):
            raise ReferenceMismatchError(f"these norms of differences (n={self.n}) were {told}. {again}")
        if told := other_preprocessing(self.preprocess, model):
            raise ReferenceMismatchError(
                f"these norms of differences (n={self.n}) are of images that were preprocessed with {told}. {again}"
            )
        wanted = {kind: shape for kind, (_, shape) in _kinds(model).items()}
        found = {kind: tuple(value.shape) for kind, value in self.values.items()}
        if wanted != found:
            raise ReferenceMismatchError(f"norms of shapes {found}, where the model has {wanted}. {again}")
        return self

    def of_sites(self, sites: Sequence[Site]) -> Float[Tensor, " site"]:
        """Return the norms of some sites, in float64.

        Raises:
            VitLensError: Something is no site, or none of the tower's.
        """
        found = []
        for site in sites:
            expect(site, Site, "site", VitLensError, "such as Site.parse('L3H4')")
            value = self.values.get(site.kind)
            place = (site.layer or 0, *(() if site.head is None else (site.head,)))
            if value is None or any(at >= size for at, size in zip(place, value.shape, strict=True)):
                raise VitLensError(f"no norm of {site}: these are of {', '.join(self.values)} of {self.encoder_id}")
            found.append(value[place])
        return torch.stack(found).double()

    @property
    def content(self) -> str:
        """Sixteen digits that identify the norms by their values."""
        return fingerprint(dict(self.values))

    def __repr__(self) -> str:
        return f"DifferenceNorms({self.encoder_id!r}, n={self.n})"


class Spreads:
    """Sums of what every site writes, and of its squares, in float64 on the CPU: all that pairs are made of.

    Args:
        model: The tower.

    >>> from vit_lens.reference.differences import Spreads
    >>> Spreads(model).names[:2]
    ['blocks.0.attn.hook_z', 'blocks.1.attn.hook_z']
    """

    def __init__(self, model: Tower):
        self.model = model
        self.kinds = _kinds(model)
        heads = [*Site.heads(model)]
        self._weights = {site.hook_name: model.attention_of(site).W_O for site in heads if not site.head}
        self.names = [name for names, _ in self.kinds.values() for name in names]
        self._totals: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._metrics: dict[str, Tensor] = {}

    @without_autocast()
    def add(self, name: str, rows: Float[Tensor, "batch row *axes"]) -> None:
        """Add what some inputs have at a hook point, at the read-out rows."""
        rows = rows.detach().cpu().double()
        if not name.endswith("hook_z"):
            rows = rows - rows.mean(-1, keepdim=True)
        total = self._totals.setdefault(name, torch.zeros_like(rows[0]))
        if total.shape != rows.shape[1:]:
            raise VitLensError(
                f"inputs of {len(total)} and of {rows.shape[1]} positions, from all of which this tower's output is "
                "read, have no difference; give prompts of one length"
            )
        total += rows.sum(0)
        squares = torch.stack([self._squared(name, one) for one in rows]).sum(0)
        self._squares[name] = self._squares.get(name, torch.zeros_like(squares)) + squares

    def norms(self, n: int, preprocess: dict[str, Any]) -> DifferenceNorms:
        """Return the norms over all pairs of ``n`` inputs.

        Args:
            n: How many inputs were added.
            preprocess: How images became pixels.
        """
        eps = torch.finfo(self.model.dtype).eps
        values = {}
        for kind, (names, _) in self.kinds.items():
            means = [self._squared(name, self._totals[name] / n) for name in names]
            pairs = zip(names, means, strict=True)
            values[kind] = torch.stack([typical_norm(self._squares[name] / n, mean, n, eps) for name, mean in pairs])
        model = self.model
        return DifferenceNorms(
            encoder_id=model.encoder_id, fingerprint=model.fingerprint, weights=model.exact_fingerprint(), n=n,
            preprocess=preprocess, values=values,
        )  # fmt: skip

    def _squared(self, name: str, rows: Float[Tensor, "row *axes"]) -> Float[Tensor, "*head"]:
        """Return the squared norm over all rows; of each head, whose ``z`` is measured by what ``W_O`` makes of it."""
        if not name.endswith("hook_z"):
            return rows.square().sum()
        if name not in self._metrics:
            self._metrics[name] = _head_metric(self._weights[name])
        return einsum(rows, self._metrics[name], rows, "row h k, h k j, row h j -> h")


def _head_metric(W_O: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "head d_head d_head"]:
    """Return the matrices by which a head's ``z`` is as long as what it writes, without its mean over d_model."""
    weight = W_O.detach().cpu().double()
    weight = weight - weight.mean(-1, keepdim=True)
    return weight @ weight.mT


def typical_norm(
    squares: Float[Tensor, "*part"], of_mean: Float[Tensor, "*part"], n: int | Float[Tensor, "*#part"], eps: float
) -> Float[Tensor, "*part"]:
    """Return the root mean square distance of two different ones of ``n`` vectors.

    Args:
        squares: The mean of the vectors' squared norms.
        of_mean: The squared norm of their mean.
        n: How many there are, at least 2.
        eps: The unit in the last place of the vectors; what is a constant but for rounding gets 0.

    >>> from vit_lens.reference import typical_norm
    >>> typical_norm(torch.tensor(5.0), torch.tensor(4.0), 2, 1e-7)  # 1 and 3: twice 1, their distance is 2
    tensor(2.)
    """
    variance = squares - of_mean
    floor = max((_ROUNDING * eps) ** 2, 64 * torch.finfo(torch.float64).eps)
    variance = torch.where(variance > floor * of_mean, variance, torch.zeros_like(variance))
    return (2 * variance * n / (n - 1)).sqrt()


def _kinds(model: Tower) -> dict[str, tuple[list[str], tuple[int, ...]]]:
    """Return, for every kind of site, its hook points and the shape of its norms."""
    cfg, pool = model.cfg, model.cfg.attn_pool
    layers = range(cfg.n_layers)
    found = {
        kind: ([name.format(layer) for layer in layers], (cfg.n_layers, *((cfg.n_heads,) if kind == "head" else ())))
        for kind, name in _POINTS.items()
    }
    own: dict[str, tuple[list[str], tuple[int, ...]]] = {
        f"pool_{kind}": ([name], (1,)) for kind, name in _POOL.items() if name in model.hook_dict
    }
    if pool is not None:
        own["pool_head"] = ([_POOL["head"]], (1, pool.n_heads))
    return found | own
