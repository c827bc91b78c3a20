"""Diffusion Lens (Toker et al. 2024, arXiv 2403.05846) on the text encoders of a pipeline, and steering."""

__all__ = ["TextDiffusionLens", "TextSteeringLens"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import finite
from vit_lens.conditions import Condition
from vit_lens.errors import LensError, expect, nearest
from vit_lens.lenses.contract import Addressed, HookFn, Lens
from vit_lens.lenses.diffusion_lens import DiffusionLens
from vit_lens.lenses.steering_lens import DiffusionSteeringLens
from vit_lens.lenses.text_means import TextMeans
from vit_lens.lenses.text_run import TextRun, Tokens, check_bridged
from vit_lens.models import BridgedTextEncoder
from vit_lens.text_formats import Reading, TextFormat
from vit_lens.towers import ViTActivationCache

Norm = Literal["format", "final", "match", "none"]
Pooled = Literal["final", "layer", "empty"]
_Change = Callable[[Site, Tensor], Tensor]  # of what a site writes at all positions, less the mean where there is one


@dataclass(frozen=True, kw_only=True)
class TextDiffusionLens(Lens):
    """Put a state where the format reads its text encoder, and do what the format does.

    At a residual it is the paper's lens: with all positions of layer ``l``, those of the filling included, in the place
    of the layer that the pipeline reads, the decoder draws what that layer says. At that layer itself the condition is
    the pipeline's own, to the last bit. Of a head, an attention block or an MLP, what it writes stands there alone.

    ==================== =======================================================================================
    ``norm="format"``    what the format does: the final norm (Stable Diffusion, T5), or none (CLIP in SDXL, SD3)
    ``norm="final"``     the final norm, whatever the format does
    ``norm="match"``     each position is scaled to the norm that the read layer has there, then ``format``
    ``norm="none"``      the state as it is
    ==================== =======================================================================================

    Args:
        norm: How a state leaves the encoder.
        encoder: The name of the encoder that is moved through its layers; the others are held where the format reads
            them. None takes the T5, or else the CLIP that gives tokens and has the most layers.
        positions: The positions that are moved, as :meth:`TextRun.places` takes them (``"eos"``, ``"pad"``, ``4``,
            ``'"star"'``); the others are held at the read layer. None moves all.
        held: The positions that are held, and all others are moved.
        pooled: What a pooled vector is made of: of the last layer (``"final"``), of the state's own end of the text
            (``"layer"``), or of the text "" (``"empty"``). None is "final", or "layer" where the moved encoder gives
            nothing else.

    Raises:
        LensError: An argument is none of these, or positions are both moved and held.

    >>> run = vl.TextRun.of(text_to_image, ["a red star", "a blue ring"])
    >>> lens = vl.TextDiffusionLens()
    >>> lens.read(run, ["L0.resid_pre", "L1.resid_post", "L2H3"])
    Condition([2, 3] rows of tokens [16, 32])
    >>> torch.equal(lens.read(run, "L2.resid_post").tokens[:, 0], run.condition.tokens)
    True
    >>> vl.TextDiffusionLens(positions="eos").label
    'Diffusion Lens, positions eos'
    """

    norm: Norm = "format"
    encoder: str | None = None
    positions: Tokens | None = None
    held: Tokens | None = None
    pooled: Pooled | None = None

    name = "diffusion"
    parts = ("tokens",)
    rows = "all"

    def __post_init__(self) -> None:
        for what, value, known in (("norm", self.norm, get_args(Norm)), ("pooled", self.pooled, get_args(Pooled))):
            if value is not None and value not in known:
                raise LensError(f"{what}={value!r}; nearest: {nearest(str(value), known)}")
        if self.positions is not None and self.held is not None:
            raise LensError(f"positions={self.positions!r} are moved and held={self.held!r} are held: give one of them")
        for what, given in (("positions", self.positions), ("held", self.held)):
            if isinstance(given, (list, tuple)) and not given:
                raise LensError(f"{what} is empty; name positions, as 'eos' or 4, or leave it out: all are moved")

    def settings(self) -> dict[str, Any]:
        """Return the definition, and every setting in the words of records."""
        said = {"definition": self.definition, "norm": self.norm, "encoder": self.encoder, "pooled": self.pooled}
        return said | {"positions": _said(self.positions), "held": _said(self.held)}

    @property
    def definition(self) -> str:
        """The state, in the symbols of the class."""
        return "h_l where the format reads"

    @property
    def label(self) -> str:
        """The lens's name and what is set otherwise than by default."""
        hidden = ("definition", "reference", "reference_n")
        given = {name: value for name, value in self.settings().items() if value is not None and name not in hidden}
        said = [f"{name} {f'{value:g}' if isinstance(value, float) else value}" for name, value in given.items() if
                (name, value) != ("norm", "format")]  # fmt: skip
        return ", ".join([self._title, *said])

    @property
    def _title(self) -> str:
        return "Diffusion Lens"

    @property
    def words(self) -> str:
        """A sentence on how a state is read."""
        return "Puts the state where the format reads its text encoder, and does what the format does."

    def reads(self, site: Site) -> bool:
        """Return True: the lens is defined on sites of all kinds."""
        return True

    def moved(self, format: TextFormat, n_layers: Any) -> Reading:
        """Return what the format reads of the encoder that is moved.

        Args:
            format: The format.
            n_layers: The number of layers of each encoder, by name.

        Raises:
            LensError: The format has no such encoder.
        """
        readings = {one.encoder: one for one in format.readings}
        if self.encoder is None:
            giving = [one for one in readings.values() if one.below is not None]
            return max(giving, key=lambda one: (one.kind == "t5", n_layers[one.encoder]))
        if self.encoder not in readings:
            raise LensError(f"no encoder {self.encoder!r} in format {format.name}; it has {', '.join(readings)}")
        return readings[self.encoder]

    def moved_in(self, run: TextRun) -> Reading:
        """Return what the format reads of the encoder that is moved, for a run."""
        expect(run, TextRun, "run", LensError, "as TextRun.of(encoder, prompts) makes it")
        return self.moved(run.format, {name: run.tower(name).cfg.n_layers for name in run.caches})

    def check_sites(self, model: Addressed, sites: Sites) -> list[Site]:
        """Return the sites, parsed and in range, if the lens is defined on all of them for this tower.

        Raises:
            UnknownSiteError: A site is not one of the tower's.
            LensError: The lens is not defined on a site, or the tower is a bridged one and the site none of its
                residuals before and behind blocks.
        """
        found = super().check_sites(model, sites)
        if isinstance(model, BridgedTextEncoder):
            for site in found:
                check_bridged(site, model)
        return found

    # ---- reading

    def read(self, cache: TextRun, sites: Sites) -> Condition:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the condition of every site, from the run alone; rows are [prompt site].

        Args:
            cache: A run of prompts.
            sites: Sites of the encoder that is moved, as ``Site.resolve`` takes them.

        Raises:
            UnknownSiteError: A site is not one of the encoder's.
            LensError: The lens is not defined on a site, the format has no such encoder, or a prompt no such position.
        """
        return self._change(cache, sites, lambda site, output: output)

    def read_control(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, cache: TextRun, sites: Sites, *, generator: torch.Generator
    ) -> Condition:
        """Return the control: at every position a random direction as long as the site's output there.

        Where the format norms the encoder's tokens, length is what that norm sees (of CLIP, without the mean). For a
        lens that starts from means it is that of the deviation from them.

        Args:
            cache: A run of prompts.
            sites: Sites of the encoder that is moved.
            generator: The source of the random directions, on the CPU.
        """
        seen = self._seen(cache)

        def random_like(site: Site, output: Tensor) -> Tensor:
            noise = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
            return _as_long_as(noise, output, seen)

        return self._change(cache, sites, random_like)

    def read_other(self, run: TextRun, sites: Sites, other: TextRun) -> Condition:
        """Return the control: at every position what the site writes for another text, as long as it is for this one.

        For a lens that starts from means it is how far that lies from the mean there.

        Args:
            run: A run of prompts.
            sites: Sites of the encoder that is moved.
            other: A run of as many other texts, through the same encoders.
        """
        seen, name = self._seen(run), self.moved_in(run).encoder
        means = self._means(other)

        def of_other(site: Site, output: Tensor) -> Tensor:
            return _as_long_as(_written(other, means, name, site), output, seen)

        return self._change(run, sites, of_other)

    def clean(self, embeds: Any, cache: TextRun) -> Condition:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return what the pipeline itself makes of the prompts.

        Args:
            embeds: Nothing that is looked at.
            cache: A run of prompts.
        """
        return cache.condition

    def hooks(self, cache: TextRun, site: Site | str) -> list[tuple[str, HookFn]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return hooks under which the encoder's residual, where the format reads it, is what the lens puts there.

        With them, the tokens of ``run.edited(encoder, hooks).condition`` are what :meth:`read` gives of the site at
        ``norm="format"`` and all positions, to rounding. Pooled vectors follow the tower to its end.

        Args:
            cache: A run of the prompts that will be run under the hooks.
            site: One site that lies before the read layer.

        Raises:
            UnknownSiteError: The site is not one of the encoder's.
            LensError: The site lies behind what the format reads.
        """
        reading = self.moved_in(cache)
        tower, held = cache.tower(reading.encoder), cache.caches[reading.encoder]
        own = self.check_site(tower, site)
        self._check_before(cache, own, "hooks that show it")
        if isinstance(held, ViTActivationCache):
            return self._image_lens().hooks(held, own)
        return _through(own, [layer for layer in reading.layers(tower.cfg.n_layers) if layer > _done(own)])

    def _image_lens(self) -> Lens:
        return DiffusionLens()

    def _check_before(self, run: TextRun, site: Site, what: str) -> None:
        reading = self.moved_in(run)
        layer = reading.layer(run.tower(reading.encoder).cfg.n_layers)
        done = _done(site)
        if done > layer or (done == layer and site.kind != "resid_post"):
            raise LensError(
                f"{site} lies behind what format {run.format.name} reads of {reading.encoder}, the residual after "
                f"{layer} blocks, so there are no {what}"
            )

    def _change(self, run: TextRun, sites: Sites, change: _Change) -> Condition:
        reading, found = self.moved_in(run), []
        with torch.no_grad():
            means = self._means(run)
            for site in self.check_sites(run.tower(reading.encoder), sites):
                if reading.at:
                    self._check_before(run, site, "layers in whose place it could stand")
                output = change(site, _written(run, means, reading.encoder, site))
                found.append(self._condition(run, reading, self._state(run, means, site, output), _done(site)))
        return Condition(**{name: torch.stack([one.parts()[name] for one in found], 1) for name in found[0].parts()})

    def _means(self, run: TextRun) -> TextRun | None:
        """Return the average prompt, which outputs are measured from; None where they are measured from zero."""
        return None

    def _state(
        self, run: TextRun, means: TextRun | None, site: Site, output: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        """Return the residual in which a site's output is seen."""
        return output

    def _condition(
        self, run: TextRun, reading: Reading, state: Float[Tensor, "batch pos d_model"], done: int
    ) -> Condition:
        """Return the condition in which one state stands where the format reads; ``done`` blocks have run at it."""
        name, tokens, ends = reading.encoder, {}, {}
        norm = run.encoder.readouts[name].norm
        state = state.to(run.residual(name, 0).dtype)
        if reading.below is not None:
            parts = []
            for layer in reading.layers(run.tower(name).cfg.n_layers):
                kept = run.residual(name, layer)
                if reading.at and layer < done:  # before the state, the encoder is as it was
                    parts.append(run.format_norm(reading, kept))
                    continue
                seen = _as_long_as(state, kept, _plain) if self.norm == "match" else state
                is_normed = {"final": True, "none": False}.get(self.norm, reading.norm)
                seen = norm(seen) if is_normed else seen
                if (places := self._places(run, name)) is not None:
                    seen = torch.where(places[..., None], seen, run.format_norm(reading, kept))
                parts.append(seen)
            tokens[name] = torch.cat(parts, -1)
        pooled = self.pooled or ("final" if reading.below is not None else "layer")
        if pooled == "layer":
            if reading.pooled is None:
                raise LensError(
                    f"pooled='layer': format {run.format.name} makes no pooled vector of {name}; take pooled='final', "
                    "or encoder= another"
                )
            ends[name] = norm(run.at_end(name, state))
        made = run.condition_of(tokens, ends)
        if pooled != "empty":
            return made
        if made.pooled is None or run.empty.pooled is None:
            raise LensError(f"pooled='empty': format {run.format.name} has no pooled vector; leave pooled out")
        return Condition(tokens=made.tokens, mask=made.mask, pooled=run.empty.pooled.expand_as(made.pooled))

    def _seen(self, run: TextRun) -> Callable[[Tensor], Tensor]:
        """Return what the format's norm sees of a vector."""
        reading = self.moved_in(run)
        return run.encoder.readouts[reading.encoder].centre if reading.norm else _plain

    def _places(self, run: TextRun, name: str) -> Tensor | None:
        if self.positions is not None:
            return run.places(name, self.positions)
        return None if self.held is None else ~run.places(name, self.held)


@dataclass(frozen=True, kw_only=True)
class TextSteeringLens(TextDiffusionLens):
    """Make what one part of a text encoder writes louder, hold everything later fixed, and do what the format does.

    With ``h`` the part's output and ``r`` the residual that the format reads, the state is ``r + (alpha - 1) h`` at
    every position: the steering lens of arXiv 2504.13763, with a sequence in the place of one vector. With means ``mu``
    over reference prompts it is ``mu_r + alpha (h - mu_h)``: nothing of the prompt but what ``h`` carries.

    Args:
        alpha: The strength; without means the condition is the pipeline's own at 1.
        reference: Means over other prompts, by aligned positions; None starts from the prompt's own residual.
        norm: As for :class:`TextDiffusionLens`, and so are the others.
        encoder: The encoder whose parts are steered.
        positions: The positions at which they are.
        held: The positions at which they are not.
        pooled: What a pooled vector is made of.

    Raises:
        LensError: The strength is no finite number, or another argument is none of those allowed.

    >>> run = vl.TextRun.of(text_to_image, "a red star")
    >>> vl.TextSteeringLens(alpha=5).read(run, "L0H1, L1.mlp")
    Condition([1, 2] rows of tokens [16, 32])
    >>> vl.TextSteeringLens(alpha=5).read(run, "L1.resid_post")
    Traceback (most recent call last):
    vit_lens.errors.LensError: DSL, alpha 5 is not defined on L1.resid_post
    """

    alpha: float | int
    reference: TextMeans | None = None

    name = "dsl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is not None:
            expect(self.reference, TextMeans, "reference", LensError, "as TextMeans.of(encoder, prompts) makes it")
        object.__setattr__(self, "alpha", finite("alpha", self.alpha, LensError))

    def settings(self) -> dict[str, Any]:
        """Return the definition, the strength, and every setting of the reading."""
        said = super().settings()
        means = self.reference
        said |= {} if means is None else {"reference": means.content, "reference_n": means.n}
        return {"definition": said.pop("definition"), "alpha": self.alpha, **said}

    @property
    def definition(self) -> str:
        """The state, in the symbols of the class."""
        return f"{'r + (alpha - 1) h' if self.reference is None else 'mu_r + alpha (h - mu_h)'} where the format reads"

    @property
    def _title(self) -> str:
        return "DSL" if self.reference is None else "DSL, mean-anchored"

    @property
    def words(self) -> str:
        """Two sentences on what is steered, and from where."""
        start = (
            "the prompt's own residual, so the prompt shows through whatever the site does"
            if self.reference is None
            else "the average prompt, so that whatever resembles this one comes from the site"
        )
        return (
            "Steers the residual that the format reads along what this site writes, everything later held fixed. It "
            f"starts from {start}."
        )

    def reads(self, site: Site) -> bool:
        """Return whether the site is something written to the residual stream, not the stream itself."""
        return not site.is_residual

    def _image_lens(self) -> Lens:
        if self.reference is not None:
            raise LensError(f"{self.label} has no hook functions; read(run, sites) is its closed form")
        return DiffusionSteeringLens(alpha=self.alpha)

    def _means(self, run: TextRun) -> TextRun | None:
        return None if self.reference is None else self.reference.average(run)

    def _state(
        self, run: TextRun, means: TextRun | None, site: Site, output: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        reading = self.moved_in(run)
        self._check_before(run, site, "states that it adds to")
        if means is None:
            return run.read_residual(reading).to(output) + (self.alpha - 1) * output
        return means.read_residual(reading).to(output) + self.alpha * output


def _written(run: TextRun, means: TextRun | None, name: str, site: Site) -> Float[Tensor, "batch pos d"]:
    """Return what a site of an encoder holds or writes, less its mean where there are means."""
    output = run.output(name, site)
    return output if means is None else output - means.output(name, site)


def _done(site: Site) -> int:
    """Return how many blocks have run whole at a site."""
    return (site.layer or 0) + (site.kind == "resid_post")


def _through(site: Site, layers: list[int]) -> list[tuple[str, HookFn]]:
    """Return hooks under which what a run has at a residual stands in the place of the residuals of later layers."""
    held: dict[str, Tensor] = {}

    def keep(act: Tensor, hook: HookPoint) -> Tensor:
        held["state"] = act
        return act

    def put(act: Tensor, hook: HookPoint) -> Tensor:
        return held["state"]

    return [(site.hook_name, keep), *((f"blocks.{layer - 1}.hook_resid_post", put) for layer in layers)]


def _said(tokens: Tokens | None) -> str | None:
    if tokens is None or isinstance(tokens, str):
        return tokens
    return ", ".join(map(str, tokens)) if isinstance(tokens, (list, tuple)) else str(tokens)


def _plain(x: Tensor) -> Tensor:
    return x


def _as_long_as(x: Tensor, like: Tensor, seen: Callable[[Tensor], Tensor]) -> Tensor:
    """Return vectors scaled to the norms of others, position by position; zero stays zero."""
    own, wanted = (seen(one).norm(dim=-1, keepdim=True) for one in (x, like))
    return x * (wanted / own.where(own > 0, torch.ones_like(own)))
