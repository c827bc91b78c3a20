"""Mean activations of one model, saved with what is needed to trust them."""

__all__ = ["ReferenceMeans"]

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import RESIDUAL_KINDS, Site, as_index
from vit_lens.errors import OutputError, ReferenceMismatchError, VitLensError, expect
from vit_lens.files import as_path, file_tensors, open_tensors, save_tensors
from vit_lens.identity import MINI_ENCODER, MINI_FILES, MINI_RAE_FILES, fingerprint, forget_fingerprints
from vit_lens.models import HookedViT, several
from vit_lens.numerics import without_autocast
from vit_lens.reference.collecting import Positions, collect, hook_points
from vit_lens.reference.differences import DifferenceNorms
from vit_lens.reference.stability import Stability
from vit_lens.towers import Tower, check_model, other_preprocessing, other_weights, preprocessing_of

_FORMAT = "vit_lens.reference_means.3"
_FORMATS = (  # .1 has neither positions (read-out rows alone) nor stability, .2 no norms of differences
    "vit_lens.reference_means.1", "vit_lens.reference_means.2", _FORMAT,
)  # fmt: skip
_POOL = ("pool_z", "pool_mlp_out")
_DIFFERENCE = "difference."  # before the names of their tensors
_ADVICE = "make them with ReferenceMeans.from_images(...).save(path)"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReferenceMeans:
    """Mean activations of one model over ``n`` images, at its read-out rows or at every token position.

    Attention outputs are not kept: they follow from ``z``, so that heads add up exactly.

    Attributes:
        encoder_id: The id of the model, such as ``vit_lens/mini``.
        fingerprint: Digits that identify the model's weights by content, rounded to bfloat16.
        n: The number of images.
        resid_pre: The mean residual stream that enters block 0.
        z: The mean ``z`` of every head.
        mlp_out: The mean output of every layer's MLP.
        positions: What the axis ``row`` holds: ``readout`` or ``all``.
        pool_z: The mean ``z`` of every head of attention pooling; None where the model has none.
        pool_mlp_out: The mean output of the pool's MLP; None where the model has none.
        stability: How far means over fewer images lie from these; None for files of an earlier version, and where
            positions were left out later.
        weights: What identifies the model's weights to the last bit; empty for files of an earlier version, which
            :attr:`fingerprint` has to tell from other models'.
        preprocess: How images became pixels, as plain values; empty where that is not known, as where pixels were
            given.
        differences: How far two of the images usually lie apart at every site, which
            :class:`vit_lens.CounterfactualLens` measures by; None for one image, and for files of an earlier version.

    >>> means = vl.ReferenceMeans.from_images(model, images)
    >>> means.save(tmp / "means.safetensors").name
    'means.safetensors'
    >>> vl.ReferenceMeans.load(tmp / "means.safetensors").content == means.content
    True
    >>> means.output(model, vl.Site.parse("L3H4")).shape
    torch.Size([1, 128])
    >>> vl.ReferenceMeans.shipped(model).n
    512
    """

    encoder_id: str
    fingerprint: str
    n: int
    resid_pre: Float[Tensor, "row d_model"]
    z: Float[Tensor, "layer row head d_head"]
    mlp_out: Float[Tensor, "layer row d_model"]
    positions: Positions = "readout"
    pool_z: Float[Tensor, "1 pool_head pool_d_head"] | None = None
    pool_mlp_out: Float[Tensor, "1 d_pooled"] | None = None
    stability: Stability | None = None
    weights: str = ""
    preprocess: dict[str, Any] = field(default_factory=dict)
    differences: DifferenceNorms | None = None

    def __post_init__(self) -> None:
        if (as_index(self.n) or 0) < 1 or str(self.positions) not in get_args(Positions):
            raise VitLensError(f"n={self.n!r}, positions={self.positions!r}; expected 1 or more, and readout or all")
        expect(self.preprocess, dict, "preprocess", VitLensError, _ADVICE)
        for name, mean in self._tensors().items():
            expect(mean, Tensor, name, VitLensError, _ADVICE)
        sound = {name: m.is_floating_point() and bool(torch.isfinite(m).all()) for name, m in self._tensors().items()}
        if bad := [name for name in sound if not sound[name]]:
            raise VitLensError(f"the means {bad} are no finite numbers; {_ADVICE}")

    @classmethod
    def from_images(
        cls, model: HookedViT, images: Any, *, positions: str = "readout", batch_size: int = 32, progress: bool = False
    ) -> "ReferenceMeans":
        """Run the model over images (paths, PIL images, arrays) or preprocessed pixels and average.

        Args:
            model: The model, without hooks.
            images: A few hundred images, in random order, so that :attr:`stability` tells something.
            positions: Which positions to keep: ``readout`` what lenses need, ``all`` what mean ablation of whole sites
                needs.
            batch_size: The number of images in one run.
            progress: Whether to show a bar.

        Raises:
            ImageError: An image cannot be read.
            VitLensError: There are no images, a batch would hold none, or ``positions`` is neither of the two.
        """
        check_model(model, VitLensError)
        expect(positions, str, "positions", VitLensError, "'readout' or 'all'")
        if positions != "readout" and positions != "all":
            raise VitLensError(f"positions={positions!r}; expected 'readout' or 'all'")
        images = several(images)
        n = len(images)
        if n == 0:
            raise VitLensError("reference means need at least one image; a few hundred give stable ones")
        model.refuse_hooks("saved means")
        forget_fingerprints(model)
        means, stability, norms = collect(model, images, positions=positions, batch_size=batch_size, progress=progress)
        stacked = {kind: torch.stack([means[name] for name in names]) for kind, names in hook_points(model).items()}
        return cls(
            encoder_id=model.encoder_id, fingerprint=model.fingerprint, n=n, positions=positions,
            resid_pre=stacked["resid_pre"][0], z=stacked["z"], mlp_out=stacked["mlp_out"],
            stability=stability, weights=model.exact_fingerprint(), preprocess=preprocessing_of(model, images),
            differences=norms,
            **{kind: stacked[kind][0] for kind in _POOL if kind in stacked},
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> "ReferenceMeans":
        """Read saved means; ``"mini"`` names those that ship with the embedded pair, ``"mini-rae"`` its of every token.

        Raises:
            VitLensError: The file is not one of these, or is truncated.
        """
        embedded = {"mini": MINI_FILES, "mini-rae": MINI_RAE_FILES}.get(str(path))
        place = as_path(path, VitLensError) if embedded is None else embedded / "reference_means.safetensors"
        with open_tensors(place, _FORMATS, what="reference means", error=VitLensError, advice=_ADVICE) as opened:
            file, meta = opened
            held = file_tensors(file)
            norms = {name.removeprefix(_DIFFERENCE): held[name] for name in held if name.startswith(_DIFFERENCE)}
            names = ["resid_pre", "z", "mlp_out", *(kind for kind in _POOL if kind in held)]
            means: dict[str, Any] = {name: held[name] for name in names}
            made: dict[str, Any] = {
                "encoder_id": meta["encoder_id"], "fingerprint": meta["fingerprint"], "n": int(meta["n"]),
                "weights": meta.get("weights", ""), "preprocess": json.loads(meta.get("preprocess", "{}")),
            }  # fmt: skip
            return cls(
                **made, positions=cast(Positions, meta.get("positions", "readout")),
                stability=Stability.from_json(meta["stability"]) if "stability" in meta else None,
                differences=DifferenceNorms(**made, values=norms) if norms else None,
                **means,
            )  # fmt: skip

    @classmethod
    def shipped(cls, model: Tower, positions: Positions = "readout") -> "ReferenceMeans | None":
        """Return the means that ship with the package for a model; None where there are none.

        Args:
            model: The model.
            positions: Which positions they hold: ``readout``, or ``all``, from which lenses of patches start.
        """
        check_model(model, VitLensError)
        if model.encoder_id != MINI_ENCODER:
            return None
        return cls.load("mini" if positions == "readout" else "mini-rae")

    def save(self, path: str | Path) -> Path:
        """Write the means as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        meta = {
            "format": _FORMAT, "encoder_id": self.encoder_id, "fingerprint": self.fingerprint, "n": str(self.n),
            "positions": self.positions,
        }  # fmt: skip
        if self.weights:
            meta["weights"] = self.weights
        if self.preprocess:
            meta["preprocess"] = json.dumps(self.preprocess)
        if self.stability is not None:
            meta["stability"] = self.stability.to_json()
        norms = {} if self.differences is None else self.differences.values
        held = self._tensors() | {f"{_DIFFERENCE}{kind}": value for kind, value in norms.items()}
        return save_tensors(held, as_path(path, OutputError), meta)

    def _tensors(self) -> dict[str, Tensor]:
        pool = {kind: getattr(self, kind) for kind in _POOL if getattr(self, kind) is not None}
        return {"resid_pre": self.resid_pre, "z": self.z, "mlp_out": self.mlp_out, **pool}

    def __repr__(self) -> str:
        where = "at every position" if self.positions == "all" else "at the read-out rows"
        if self.stability is None:
            return f"ReferenceMeans({self.encoder_id!r}, n={self.n}, {where}; stability unknown)"
        return f"ReferenceMeans({self.encoder_id!r}, n={self.n}, {where})\n{self.stability}"

    def check(self, model: Tower, positions: Positions | None = "readout") -> "ReferenceMeans":
        """Return the means if they are the model's own.

        Args:
            model: The model whose means they have to be.
            positions: Which positions the caller reads, ``readout`` or ``all``; None for one that handles both.

        Raises:
            ReferenceMismatchError: The means were made with other weights, or another preprocessing.
            VitLensError: The means hold other positions.
        """
        check_model(model, VitLensError)
        if told := other_weights(self, model):
            raise ReferenceMismatchError(
                f"these reference means (n={self.n}) were {told}; or it has the same weights in another precision. "
                "Make its own: ReferenceMeans.from_images(model, images)"
            )
        if told := other_preprocessing(self.preprocess, model):
            raise ReferenceMismatchError(
                f"these reference means (n={self.n}) are of images that were preprocessed with {told}. Make its own: "
                "ReferenceMeans.from_images(model, images)"
            )
        wanted, shapes = self._shapes(model), {name: tuple(mean.shape) for name, mean in self._tensors().items()}
        if wrong := {name: shape for name, shape in shapes.items() if wanted.get(name) != shape}:
            raise ReferenceMismatchError(f"means of shapes {wrong}, where the model has {wanted}; {_ADVICE}")
        if positions == "readout" and self.positions == "all":
            raise VitLensError(
                "these means hold every token position, and a lens reads the read-out rows alone; pass "
                "reference.at_readout(model)"
            )
        if positions == "all" and self.positions == "readout":
            raise VitLensError(
                "these means hold the read-out rows alone; make them with "
                "ReferenceMeans.from_images(model, images, positions='all')"
            )
        return self

    def _shapes(self, model: Tower) -> dict[str, tuple[int, ...]]:
        """Return the shapes that means of a model have."""
        cfg, pool = model.cfg, model.cfg.attn_pool
        rows = cfg.n_ctx if self.positions == "all" else len(model.readout.positions(cfg.n_ctx)) or 1
        of_all = (cfg.n_layers, rows, cfg.d_model)
        shapes = {"resid_pre": of_all[1:], "z": (*of_all[:2], cfg.n_heads, cfg.d_head), "mlp_out": of_all}
        if pool is not None:
            shapes |= {"pool_z": (1, pool.n_heads, pool.d_head), "pool_mlp_out": (1, pool.d_model)}
        return shapes

    def at_readout(self, model: Tower) -> "ReferenceMeans":
        """Return the means at the read-out rows, from means at every position.

        Raises:
            ReferenceMismatchError: The means were made with other weights.
        """
        self.check(model, None)
        if self.positions == "readout":
            return self
        readout, n_ctx = model.readout, model.cfg.n_ctx
        z, mlp_out = readout.rows(self.z).clone(), readout.rows(self.mlp_out).clone()
        stability = self.stability if readout.positions(n_ctx) == range(n_ctx) else None
        return replace(
            self, positions="readout", resid_pre=readout.rows(self.resid_pre[None])[0].clone(), z=z, mlp_out=mlp_out,
            stability=stability,
        )  # fmt: skip

    @property
    def content(self) -> str:
        """Sixteen digits that identify the means by their values."""
        return fingerprint(self._tensors())

    def z_of(self, site: Site) -> Float[Tensor, "row head d_head"]:
        """Return the mean ``z`` of all heads of the attention that a site belongs to.

        Raises:
            VitLensError: The model has no attention pooling, or it is no site.
        """
        expect(site, Site, "site", VitLensError, "such as Site.parse('L3H4')")
        return (self.z[site.layer] if site.layer is not None else self._of_pool(self.pool_z)).clone()

    @without_autocast()
    def output(self, model: Tower, site: Site) -> Float[Tensor, "row d_model"]:
        """Mean of what a site holds or writes; that of an attention block is all its heads' and its ``b_O``.

        Raises:
            UnknownSiteError: The site is not one of the model's.
        """
        check_model(model, VitLensError)
        expect(site, Site, "site", VitLensError, "such as Site.parse('L3H4')")
        site.check(model.cfg)
        if site.kind in ("mlp", "pool_mlp"):
            mlp_out = self.mlp_out[site.layer] if site.layer is not None else self._of_pool(self.pool_mlp_out)
            return mlp_out.to(model.device, copy=True)
        if site.layer is not None and site.is_residual:
            return self.resid(model, site.layer, site.kind)
        attn = model.attention_of(site)
        z = self.z_of(site).to(model.device)
        if site.head is not None:
            return z[:, site.head] @ attn.W_O[site.head].detach().to(z)
        return einsum(z, attn.W_O.detach().to(z), "row h k, h k d -> row d") + attn.b_O.detach().to(z)

    @without_autocast()
    def resid(self, model: Tower, layer: int, kind: str = "resid_post") -> Float[Tensor, "row d_model"]:
        """Mean residual stream at a place: the sum of the mean outputs before it, negative layers from the end.

        Args:
            model: The model that the means are of.
            layer: The index of the block, counted from 0; negative from the end.
            kind: The place in the block: ``resid_pre``, ``resid_mid`` or ``resid_post``.

        Raises:
            VitLensError: There is no such place.
        """
        check_model(model, VitLensError)
        n_layers = model.cfg.n_layers
        if str(kind) not in RESIDUAL_KINDS or as_index(layer) is None or not -n_layers <= layer < n_layers:
            raise VitLensError(f"resid({layer!r}, {kind!r}): layers are 0 to {n_layers - 1}, kinds {RESIDUAL_KINDS}")
        n_attn = layer % n_layers + (kind != "resid_pre")
        n_mlp = layer % n_layers + (kind == "resid_post")
        written = [self.output(model, Site(below, "attn")) for below in range(n_attn)]
        written += [self.output(model, Site(below, "mlp")) for below in range(n_mlp)]
        return torch.stack([self.resid_pre.to(model.device), *written]).sum(0)

    @without_autocast()
    def last_state(self, model: Tower, *, pooled: bool = False) -> Float[Tensor, "row d_model"]:
        """Mean of what outputs add up to: the last residual, or with ``pooled`` what attention pooling adds up.

        Args:
            model: The model that the means are of.
            pooled: Whether the outputs are those of attention pooling.

        Raises:
            UnknownSiteError: The model has no attention pooling.
        """
        check_model(model, VitLensError)
        if not pooled:
            return self.resid(model, -1)
        parts = [part for part in (*Site.attns(model), *Site.mlps(model)) if part.is_pool]
        if not parts:
            Site(None, "pool_attn").check(model.cfg)
        return torch.stack([self.output(model, part) for part in parts]).sum(0)

    def _of_pool(self, mean: Tensor | None) -> Tensor:
        if mean is None:
            raise VitLensError(
                f"these means of {self.encoder_id} hold nothing of attention pooling; if the model has it, make them "
                "again: ReferenceMeans.from_images(model, images)"
            )
        return mean
