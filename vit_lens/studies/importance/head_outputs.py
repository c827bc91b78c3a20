"""What the heads of a model write: measured, or made up for a null that keeps some of it and loses the rest."""

__all__ = [
    "BASELINES", "Origins", "Written", "check_replaceable", "covariance", "measured", "no_content", "other_image",
    "placebo",
]  # fmt: skip

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution import FrozenReadout
from vit_lens.controls import Spread, samples_of
from vit_lens.errors import StudyError
from vit_lens.lenses import AnchoredLens, Lens, ResidualLens, centred_norm, site_outputs
from vit_lens.metrics import cosine
from vit_lens.reference import ReferenceMeans
from vit_lens.towers import ViTActivationCache

BASELINES = (
    "norm of h", "norm of h minus its mean", "direct attribution", "cosine with the residual", "layer index"
)  # fmt: skip


def check_replaceable(lens: Lens) -> ResidualLens:
    """Return a lens whose heads' outputs can be replaced where the output is read from, by noise of a known size.

    Raises:
        StudyError: It does not read the last residual, reads other rows, or measures outputs from another image.
    """
    if isinstance(lens, ResidualLens) and not isinstance(lens, AnchoredLens):
        if type(lens)._outputs is ResidualLens._outputs:
            return lens
    raise StudyError(
        "study importance replaces what heads write at the read-out rows by noise as long as it, or as its deviation "
        f"from the mean, and {lens.describe().label} reads something else: give lenses such as 'diffusion', "
        "'dsl:alpha=10' or 'dsl-mean:alpha=5'; studies content, reach and faithfulness take it"
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Written:
    """What the heads of all blocks wrote for some images, and what the model made of it.

    Attributes:
        cache: Of which lenses read the last residual alone.
        heads: Sites.
        outputs: At the read-out rows.
        clean: The images' embeddings.
        whole: What lenses without a mean anchor read instead of ``outputs``; None for the same.
    """

    cache: ViTActivationCache
    heads: list[Site]
    outputs: Float[Tensor, "image head row d_model"]
    clean: Float[Tensor, "image d_embed"]
    whole: Float[Tensor, "image head row d_model"] | None = None

    @property
    def last(self) -> Float[Tensor, "image row d_model"]:
        """The last residual of the run."""
        return self.cache.model.streams[0].last(self.cache)

    def embed(self, lens: Lens) -> Float[Tensor, "image head d_embed"]:
        """Return the lens embeddings of these outputs.

        Raises:
            StudyError: The lens reads something else than the last residual, or measures outputs otherwise.
        """
        own = check_replaceable(lens)
        outputs = self.outputs
        if self.whole is not None and own._origin(self.cache, self.heads) is None:
            outputs = self.whole
        return self.cache.model.embed_rows(own._read(self.cache, self.heads, outputs))

    def replaced(self, values: Float[Tensor, "#image head row d_model"]) -> Float[Tensor, "image head d_embed"]:
        """Return the embedding with each head's output replaced in the last residual, and nothing recomputed."""
        return self.cache.model.embed_rows(self.last[:, None] + values.to(self.outputs) - self.outputs)

    def baselines(self, means: Float[Tensor, "head row d_model"]) -> dict[str, Float[Tensor, "image head"]]:
        """Return the scores that need no lens; ``direct attribution`` is missing where its read-out is unknown.

        Args:
            means: Of the heads' outputs over other images.
        """
        flat = self.outputs.flatten(-2)
        residual = self.last.flatten(-2)[:, None]
        found = {
            "norm of h": flat.norm(dim=-1),
            "norm of h minus its mean": (self.outputs - means).flatten(-2).norm(dim=-1),
            "cosine with the residual": cosine(flat, residual).nan_to_num(0.0),
            "layer index": torch.tensor([float(head.layer or 0) for head in self.heads]).expand(len(flat), -1),
        }
        if self.cache.model.readout.is_linear or "attn_pool.attn.hook_pattern" in self.cache.cache_dict:
            shares = FrozenReadout(self.cache)(self.outputs.transpose(0, 1))
            unit = self.clean / self.clean.norm(dim=-1, keepdim=True)
            found["direct attribution"] = (shares * unit.to(shares)).sum(-1).T
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class Origins:
    """Means of everything that is written to the residual stream: what deviations are measured from.

    Attributes:
        heads: Of the heads of all blocks.
        rest: Of the MLPs, and of what enters block 0.
        last: Of the last residual.
    """

    heads: Float[Tensor, "head row d_model"]
    rest: Float[Tensor, "part row d_model"]
    last: Float[Tensor, "row d_model"]

    @classmethod
    def of(cls, reference: ReferenceMeans, cache: ViTActivationCache, heads: Sequence[Site]) -> "Origins":
        """Take them from reference means at the read-out rows."""
        model = cache.model
        return cls(
            heads=torch.stack([reference.output(model, head) for head in heads]),
            rest=torch.stack([reference.output(model, part) for part in _rest(cache)]),
            last=reference.last_state(model),
        )


def measured(cache: ViTActivationCache, heads: list[Site], clean: Float[Tensor, "image d_embed"]) -> Written:
    """Return what the heads wrote."""
    return Written(cache=cache, heads=heads, outputs=site_outputs(cache, heads), clean=clean)


def placebo(written: Written, origins: Origins, generator: torch.Generator) -> Written:
    """Replace what each head writes by a random direction of the same norm; all else stays, and size is left.

    As ``Lens.placebo`` does: for mean-anchored lenses, and for baselines, it is the deviation from the mean that is
    replaced. Norms are those after mean removal over d_model, since LayerNorm is blind to the mean.
    """
    noise = _noise(written.outputs.shape, generator, written.outputs)
    deviation = _sized(noise, centred_norm(written.outputs - origins.heads))
    return replace(written, outputs=origins.heads + deviation, whole=_sized(noise, centred_norm(written.outputs)))


def covariance(
    written: Written, samples: Float[Tensor, "sample head row d_model"], origins: Origins, generator: torch.Generator
) -> Written:
    """Replace what each head writes by a random direction with its covariance over reference images.

    As the control ``covariance`` does: for mean-anchored lenses, and for baselines, it is that of deviations from the
    mean, for others second moments about zero.

    Args:
        written: What the heads wrote.
        samples: What they write for reference images, none of which is tested.
        origins: Means.
        generator: The source of random numbers.
    """
    noise = torch.randn(written.outputs.shape, generator=generator, dtype=samples.dtype).to(written.outputs.device)

    def like(what: Tensor) -> Tensor:
        spread = Spread.of(samples_of((what - what.mean(-1, keepdim=True)).to(noise)))
        found = spread.power(noise, 0.5)
        return found - found.mean(-1, keepdim=True)

    deviation = _sized(like(samples - origins.heads), centred_norm(written.outputs - origins.heads))
    return replace(
        written, outputs=origins.heads + deviation, whole=_sized(like(samples), centred_norm(written.outputs))
    )


def other_image(written: Written, other: Float[Tensor, "image head row d_model"], origins: Origins) -> Written:
    """Replace what each head writes by what it writes for another image, scaled to the norm of its own.

    As ``Lens.other_image`` does: for mean-anchored lenses, and for baselines, these are deviations from the mean.
    """
    own, foreign = written.outputs - origins.heads, other - origins.heads
    return replace(
        written,
        outputs=origins.heads + _sized(foreign, centred_norm(own)),
        whole=_sized(other, centred_norm(written.outputs)),
    )


def no_content(
    written: Written, origins: Origins, generator: torch.Generator
) -> tuple[Written, Float[Tensor, "image head row d_model"]]:
    """Make up a model of noise: every part writes its mean and a random direction of its measured norm.

    The last residual is their sum, and the embedding follows from it, so that what heads do (their direct effect)
    follows from the same noise. What a lens score and importance still share is built in.

    Returns:
        What is made up, and as much for other images, to resample from.
    """
    cache = written.cache
    sizes = centred_norm(written.outputs - origins.heads)
    parts = site_outputs(cache, _rest(cache))
    heads = _sized(_noise(written.outputs.shape, generator, parts), sizes)
    rest = _sized(_noise(parts.shape, generator, parts), centred_norm(parts - origins.rest))
    other = _sized(_noise(written.outputs.shape, generator, parts), sizes.roll(1, 0))
    last = origins.last + heads.sum(1) + rest.sum(1)
    name = f"blocks.{cache.model.cfg.n_layers - 1}.hook_resid_post"
    made = Written(
        cache=ViTActivationCache({name: last}, cache.model, rows="readout"), heads=written.heads,
        outputs=origins.heads + heads, clean=cache.model.embed_rows(last),
    )  # fmt: skip
    return made, origins.heads + other


def _noise(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Float[Tensor, "image part row d_model"]:
    noise = torch.randn(*shape, generator=generator, dtype=like.dtype).to(like.device)
    return noise - noise.mean(-1, keepdim=True)


def _sized(
    x: Float[Tensor, "image part row d_model"], sizes: Float[Tensor, "image part"]
) -> Float[Tensor, "image part row d_model"]:
    """Scale to norms; what writes nothing stays nothing."""
    return x * (sizes / centred_norm(x).clamp_min(torch.finfo(x.dtype).tiny))[..., None, None]


def _rest(cache: ViTActivationCache) -> list[Site]:
    """Return what writes to the residual stream besides heads: MLPs, and (as one part) what enters block 0."""
    mlps = [site for site in Site.mlps(cache.model) if not site.is_pool]
    return [Site(0, "resid_pre"), *mlps]
