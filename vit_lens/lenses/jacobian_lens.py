"""Jacobian lens (Gurnee et al. 2026) on a vision transformer: what stands at any row, carried to the read-out."""

__all__ = ["JacobianLens", "keep_moved", "put_state"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_cache, finite, in_full
from vit_lens.conditions import Condition
from vit_lens.controls import Change
from vit_lens.errors import LensError, expect
from vit_lens.lenses.contract import HookFn
from vit_lens.lenses.residual import ResidualLens
from vit_lens.models import HookedViT, several
from vit_lens.reference import (
    FitCost,
    Jacobians,
    RowMeans,
    check_vit,
    fit_cost,
    grouped,
    last_state,
    make_jacobians,
    measure_error,
    read_state,
    row_means,
)
from vit_lens.towers import Readout, Stream, Tower, ViTActivationCache

_STRONGEST = 1e12
_ADVICE = "JacobianLens.fit(model, images), or JacobianLens.load(path)"


@dataclass(frozen=True, kw_only=True)
class JacobianLens(ResidualLens):
    """Carry what a site writes at *all* rows to the read-out by averaged Jacobians, and read it there.

    With ``h(row)`` a site's output, ``J`` the Jacobians of ``last``, what the output is read from
    (:class:`vit_lens.reference.Jacobians`), and ``mu`` means over the images that they are of:

    ============ =================================================================================================
    ``alpha``    ``LN(mu_last + alpha sum_rows J[row] (h(row) - mu_h(row))) proj``: what the site would change, to
                 first order, of the average image. :meth:`at` starts from images of your own in place of means.
    None         ``LN(sum_rows J[row] h(row)) proj``: the lens of the literature, on the raw write.
    ============ =================================================================================================

    The lens is that of Gurnee et al. 2026 ("Verbalizable Representations Form a Global Workspace in Language Models",
    Transformer Circuits Thread), there for causal language models, of the residual stream, and without means; averaged
    Jacobians as linear maps of a transformer are older (Hernandez et al. 2023, arXiv 2308.09124), and the tuned lens
    (Belrose et al. 2023, arXiv 2303.08112) learns from correlations what they take from derivatives. ``J = 1`` at the
    class token and 0 elsewhere is the logit lens, and here the steering lens. What departs: all rows count, each group
    of them with its own map, since early layers of a vision tower act through patches; and heads, attention blocks and
    MLPs are read, not the residual stream alone.

    At the last residual both forms, the first with ``alpha=1``, give the model's own embedding. A first-order map is no
    effect: :attr:`Jacobians.error <vit_lens.reference.Jacobians>` says how far patching is from it, and
    docs/jacobian_lens.md what to make of that.

    Args:
        jacobians: The Jacobians; :meth:`fit` makes them, :meth:`load` reads them.
        alpha: The strength, a number up to 1e12; None reads the raw write alone.
        anchor: Where it starts; None for the means over the images that the Jacobians are of.

    Raises:
        LensError: The strength is not finite, something is no Jacobians, or there is an anchor without a strength.

    >>> lens = vl.JacobianLens.fit(model, images, test=False)
    >>> lens.label, lens.embed(cache, ["L3H4", "L5.mlp", "L2.resid_post"]).shape
    ('Jacobian lens, mean-anchored, alpha 5', torch.Size([2, 3, 128]))
    >>> raw = vl.JacobianLens(jacobians=lens.jacobians, alpha=None)
    >>> bool(torch.allclose(raw.embed(cache, "L7.resid_post")[:, 0], model(pixels), atol=1e-3))
    True
    >>> lens.at(model, images[1]).label  # what of the second image would change, were the site's output another's
    'Jacobian lens, anchored at 1 image, alpha 5'
    >>> vl.JacobianLens.load(lens.save(tmp / "jacobian.safetensors"), alpha=2).label
    'Jacobian lens, mean-anchored, alpha 2'
    """

    jacobians: Jacobians
    alpha: float | int | None = 5.0
    anchor: RowMeans | None = None

    name = "jacobian"
    rows = "all"

    def __post_init__(self) -> None:
        expect(self.jacobians, Jacobians, "jacobians", LensError, _ADVICE)
        if self.anchor is not None:
            expect(self.anchor, RowMeans, "anchor", LensError, "lens.at(model, images) makes one")
        if self.alpha is None and self.anchor is not None:
            raise LensError("alpha=None reads the raw write alone, so the anchor would have no effect; give a strength")
        if self.alpha is not None:
            object.__setattr__(self, "alpha", finite("alpha", self.alpha, LensError))
            if abs(self.alpha) > _STRONGEST:
                raise LensError(
                    f"alpha={self.alpha!r}; at most {_STRONGEST:g}: in float32 the LayerNorm's squares would overflow"
                )

    # ---- where it comes from

    @classmethod
    def fit(
        cls, model: HookedViT, images: Any, *, held_out: Any = None, test: bool = True, alpha: float | int | None = 5.0,
        out: str | Path | None = None, per_row: bool = False, batch_size: int = 8, progress: bool = False,
    ) -> "JacobianLens":  # fmt: skip
        """Average the Jacobians of a model over images, and measure their error on others.

        For every image it takes as many vector-Jacobian products as the residual stream is wide (:meth:`cost`). The
        model's weights are left alone and need no gradients; those in half precision are computed with in float32.

        Args:
            model: The model, without hooks.
            images: Images (paths, PIL images, arrays) or preprocessed pixels, each once. Gurnee et al. report that 25
                prompts are often enough.
            held_out: Other images, on which patching is compared with the prediction; None keeps a quarter of
                ``images`` for it, at most 16, evenly spread.
            test: Whether the error is measured; False fits on all of ``images``.
            alpha: The strength of the lens.
            out: A file (.safetensors) to save to. Sums are kept beside it as ``FILE.partial``, so that the same call
                goes on after an interruption and ends with the same bits; Jacobians that are there, of the same images,
                are tested and not fitted again. None keeps nothing.
            per_row: Whether every token row has a Jacobian of its own, in place of one for the class token and one for
                all patches: as much larger as there are more rows.
            batch_size: The number of images in one run.
            progress: Whether to show bars.

        Raises:
            LensError: It is no model of images, there are too few images, one is given twice, or a held-out image was
                fitted on; or what is there under ``out`` is of other images or options.
            ReferenceMismatchError: What is there under ``out`` is another model's.
            ImageError: An image cannot be read.
            OutputError: A file cannot be written.

        >>> lens = vl.JacobianLens.fit(model, pixels, held_out=pixels.flip(-1), out=tmp / "j.safetensors")
        >>> lens.jacobians.error.frame().query("site == 'L7.mlp' and of == 'last'").error.round(3).tolist()
        [0.0, 0.0]
        """
        made = make_jacobians(
            model, images, held_out=held_out, test=test, out=out, per_row=per_row, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip
        return cls(jacobians=made, alpha=alpha)

    @classmethod
    def cost(cls, model: HookedViT, n: int, *, per_row: bool = False, batch_size: int = 8) -> FitCost:
        """Return what :meth:`fit` takes for ``n`` images, before anything runs.

        >>> vl.JacobianLens.cost(model, 25).products
        3200
        """
        check_vit(model)
        return fit_cost(model, n, per_row=per_row, batch_size=batch_size)

    @classmethod
    def load(cls, path: str | Path, *, alpha: float | int | None = 5.0) -> "JacobianLens":
        """Read what :meth:`save` wrote.

        Raises:
            LensError: The file is missing, damaged, or not one of these.
        """
        return cls(jacobians=Jacobians.load(path), alpha=alpha)

    def save(self, path: str | Path) -> Path:
        """Write Jacobians, means and error as safetensors, atomically; strength and anchor are not kept.

        Raises:
            OutputError: The file cannot be written.
        """
        return self.jacobians.save(path)

    @classmethod
    def merge(cls, parts: "Sequence[JacobianLens]", *, alpha: float | int | None = 5.0) -> "JacobianLens":
        """Return the lens over the images of all parts, each weighing as many as it has; :meth:`measure` its error.

        Raises:
            LensError: There is no part, or two share an image, or were fitted with other options.
            ReferenceMismatchError: Parts are of different models.

        >>> parts = [vl.JacobianLens.fit(model, one, test=False) for one in images]
        >>> vl.JacobianLens.merge(parts).jacobians.n
        2
        """
        for index, part in enumerate(parts):
            expect(part, cls, f"part {index}", LensError, "a JacobianLens, such as JacobianLens.load(path)")
        return cls(jacobians=Jacobians.merge([part.jacobians for part in parts]), alpha=alpha)

    def measure(self, model: HookedViT, held_out: Any, **options: Any) -> "JacobianLens":
        """Return this lens with its error against patching; see :func:`vit_lens.reference.measure_error`.

        Args:
            model: The model, without hooks.
            held_out: Images that were not fitted on, at least two.
            **options: ``sites``, ``batch_size`` and ``progress``.

        Raises:
            LensError: There are fewer than two, or one was fitted on.
            ReferenceMismatchError: The Jacobians are another model's.
        """
        return replace(self, jacobians=measure_error(self.jacobians, model, held_out, **options))

    def at(self, model: HookedViT, images: Any) -> "JacobianLens":
        """Return the lens that starts from images of your own: differences to them, added to what is read of them.

        With one image A it shows what of A would change, were the site's output that of the input:
        ``LN(last(A) + alpha sum_rows J[row] (h(row) - h_A(row))) proj``.

        Args:
            model: The model.
            images: One image or several, of which the means are taken; or preprocessed pixels.

        Raises:
            LensError: There is no image, or the lens reads the raw write.
            ReferenceMismatchError: The Jacobians are another model's.
        """
        check_vit(model)
        jacobians = self.jacobians.check(model)
        images = several(images)
        pixels = images if isinstance(images, Tensor) else model.preprocess(images) if len(images) else ()
        if not len(pixels):
            raise LensError("there are no images to start from; give one or more")
        with torch.no_grad():
            _, cache = model.run_with_cache(pixels, names_filter=model.is_readout_part)
            return replace(self, anchor=row_means(model, cache, jacobians.groups))

    # ---- how it describes itself

    def settings(self) -> dict[str, Any]:
        """Return definition, strength, and which Jacobians and anchor it goes by."""
        made = self.jacobians
        said = {
            "definition": "J-lens, all rows", "alpha": self.alpha, "jacobian": made.content, "jacobian_n": made.n,
            "row_groups": made.values.shape[1],
        }  # fmt: skip
        if self.anchor is None:
            return said | {"anchor": None if self.alpha is None else "mean"}
        return said | {"anchor": self.anchor.content, "anchor_n": self.anchor.n}

    @property
    def label(self) -> str:
        """The lens's anchor and strength, for legends."""
        if self.alpha is None:
            return "Jacobian lens, raw"
        n = 0 if self.anchor is None else self.anchor.n
        start = f"anchored at {n} image{'s' * (n > 1)}" if n else "mean-anchored"
        return f"Jacobian lens, {start}, alpha {self.alpha:g}"

    @property
    def words(self) -> str:
        """Two sentences on what is carried where."""
        carried = (
            "Carries what this site writes at all rows to the read-out, by the averaged derivative of everything that "
            "runs later, and decodes."
        )
        if self.alpha is None:
            return f"{carried} Nothing else is in the picture, and none of it was held against what the site does."
        start = (
            "the average image" if self.anchor is None else "another image" if self.anchor.n == 1 else "other images"
        )
        return f"{carried} It starts from {start}, and is right to first order alone."

    # ---- what it reads

    def reads(self, site: Site) -> bool:
        """Return whether the site is one of a layer: attention pooling is behind all that is transported."""
        return not site.is_pool

    def check_sites(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Tower, sites: Sites
    ) -> list[Site]:
        """Return the sites if they are the model's, and not of attention pooling.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: A site is one of attention pooling.
            ReferenceMismatchError: The Jacobians are another model's.
        """
        resolved = super().check_sites(model, sites)
        self.jacobians.check(model)
        return resolved

    def transport(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site d_last"]:
        """Return where what sites write at all rows arrives in ``last``: ``sum_rows J[row] h(row)``, raw.

        Differences of two images' are what anchored lenses add; what a state of ``last`` reads as,
        :meth:`read_last` says, and :meth:`last` what it is in a run.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: A site is one of attention pooling, or the cache does not hold all rows.
            ReferenceMismatchError: The Jacobians are another model's.

        >>> lens = vl.JacobianLens.fit(model, images, test=False)
        >>> moved = lens.transport(cache, "L3.mlp")
        >>> counterfactual = lens.last(cache)[1] + moved[0] - moved[1]  # the second image, with the first one's MLP
        >>> lens.read_last(model, counterfactual).shape
        torch.Size([1, 128])
        """
        own = self.check_sites(check_cache(cache).model, sites)
        with in_full(cache.model):
            return self._outputs(cache, own)[:, :, 0]

    def last(self, cache: ViTActivationCache) -> Float[Tensor, "batch d_last"]:
        """Return what the output is read from in a run at all rows: see :class:`vit_lens.reference.Jacobians`.

        Raises:
            LensError: The cache does not hold all rows.
        """
        _check_rows(cache)
        resid = cache[f"blocks.{cache.model.cfg.n_layers - 1}.hook_resid_post"].to(cache.model.device)
        return last_state(cache.model, resid.to(torch.promote_types(resid.dtype, torch.float32)))

    def read_last(self, model: Tower, states: Float[Tensor, "*batch d_last"]) -> Float[Tensor, "*batch d_embed"]:
        """Return the embeddings of such states, with fresh statistics of the final norm."""
        return read_state(model, states)

    def read_changed(self, cache: ViTActivationCache, sites: Sites, change: Change) -> Condition:
        _check_rows(cache)
        return super().read_changed(cache, sites, change)

    def _outputs(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "batch site 1 d_last"]:
        _check_rows(cache)
        made = self.jacobians
        moved = [made.transport(made.written(cache, site), site) for site in sites]
        return torch.stack(moved, 1)[:, :, None]

    def _origin(self, cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "1 site 1 d_last"] | None:
        if self.alpha is None:
            return None
        made, model = self.jacobians, cache.model
        moved = [made.transport(made.mean_written(model, site, self.anchor), site) for site in sites]
        return torch.stack(moved)[None, :, None]

    def _read(
        self, cache: ViTActivationCache, sites: list[Site], outputs: Float[Tensor, "batch site 1 d_last"]
    ) -> Float[Tensor, "batch site 1 d_last"]:
        origin = self._origin(cache, sites)
        if origin is None or self.alpha is None:
            return outputs
        return self._start.last.to(outputs) + self.alpha * (outputs - origin)

    def _embed(
        self, stream: Stream, states: Float[Tensor, "batch site 1 d_last"]
    ) -> Float[Tensor, "batch site d_embed"]:
        readout = stream.readout
        return readout.read(states) if readout.sees_one_row else readout.read_pooled(states[:, :, 0])

    @property
    def _start(self) -> RowMeans:
        return self.jacobians.means if self.anchor is None else self.anchor

    def read_writes(self, cache: ViTActivationCache, site: Site | str, writes: Tensor) -> Condition:
        """Refuse: what is written at the read-out rows alone is not what a site writes.

        Raises:
            LensError: Always.
        """
        raise LensError(
            f"{self.label} reads what is written at all rows, and these are the read-out rows; take "
            "DiffusionSteeringLens(alpha=5), or lens.jacobians.transport on outputs at all rows"
        )

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return hooks under which the model outputs the site's reading, for any images.

        What the site writes in the run, at every row, is carried to ``last`` and put in its place; the model's own
        norm, pooling and projection read it.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: It is one of attention pooling.
            ReferenceMismatchError: The Jacobians are another model's.
        """
        model = check_cache(cache).model
        site = self.check_site(model, site)
        origin = self._origin(cache, [site])
        start = None if origin is None else (self._start.last.to(origin), origin[0, 0, 0])
        moved: list[Tensor] = []
        keep = partial(keep_moved, moved=moved, jacobians=self.jacobians, model=model, site=site)
        put = partial(put_state, moved=moved, alpha=self.alpha, start=start, readout=model.readout)
        end = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post" if model.readout.sees_one_row else "hook_pooled"
        return [(site.hook_name, keep), (end, put)]


def keep_moved(
    act: Tensor, hook: HookPoint, *, moved: list[Tensor], jacobians: Jacobians, model: Tower, site: Site
) -> Tensor:
    """Keep where what a site writes at all rows arrives, as a hook on the site."""
    moved[:] = [jacobians.transport(grouped({hook.name or "": act}, model, site, jacobians.groups), site)]
    return act


def put_state(
    act: Tensor, hook: HookPoint, *, moved: list[Tensor], alpha: float | None, start: tuple[Tensor, Tensor] | None,
    readout: Readout,
) -> Tensor:  # fmt: skip
    """Put ``start + alpha (kept - origin)`` in the place of what the output is read from, as a hook there."""
    (state,) = moved
    if start is not None and alpha is not None:
        state = start[0] + alpha * (state - start[1])
    return readout.with_rows(act, state[:, None]) if readout.sees_one_row else state.to(act)


def _check_rows(cache: ViTActivationCache) -> None:
    """Raise unless a cache holds every row of every image.

    Raises:
        LensError: It holds the read-out rows alone, or was cut.
    """
    if check_cache(cache).rows != "all" or not cache.has_batch_dim:
        raise LensError(
            f"the cache holds rows={cache.rows!r}{'' if cache.has_batch_dim else ' and no batch axis'}; what is "
            "carried is written at all rows: vit_lens.lenses.run_for(model, pixels, lens) makes such a cache, or "
            "model.run_with_cache(pixels)"
        )
