"""The counterfactual lens of text encoders: what of another prompt changes when one part writes what it writes here."""

__all__ = ["TextAnchors", "TextCounterfactualLens"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.conditions import Condition
from vit_lens.errors import LensError, TextError, expect
from vit_lens.lenses.anchored import check_share
from vit_lens.lenses.contract import HookFn
from vit_lens.lenses.counterfactual_lens import anchored_hooks
from vit_lens.lenses.residual import same_start
from vit_lens.lenses.text_lens import TextDiffusionLens
from vit_lens.lenses.text_means import TextMeans
from vit_lens.lenses.text_run import PromptReader, TextRun
from vit_lens.text_formats import Reading
from vit_lens.towers import ViTActivationCache


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextAnchors:
    """Other prompts, run once through the same encoders.

    Attributes:
        runs: The run of each.
        roles: What each writes, by role: before the end position by position, at the end, in the filling.

    >>> anchors = vl.lenses.TextAnchors.of(text_to_image, ["a blue ring and a star", "two small stars"])
    >>> anchors, len(anchors)
    (TextAnchors('a blue ring and a star', 'two small stars'), 2)
    """

    runs: tuple[TextRun, ...]
    roles: tuple[TextMeans, ...]

    @classmethod
    def of(cls, encoder: PromptReader, prompts: Sequence[str] | str) -> "TextAnchors":
        """Run anchors, one after the other.

        Args:
            encoder: A :class:`vit_lens.decoders.PromptEncoder`.
            prompts: One other prompt, or several, all different.

        Raises:
            LensError: There is none, two are the same, or what should run is no encoder of prompts.
            TextError: One is no text, or too long.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise LensError("no anchors: give at least one other prompt")
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TextError(f"an anchor is a {type(wrong[0]).__name__}; anchors of text encoders are prompts")
        if len(set(texts)) < len(texts):
            raise LensError(f"anchors {texts}: two are the same; give one of them")
        runs = [TextRun.of(encoder, text) for text in texts]
        return cls(runs=tuple(runs), roles=tuple(TextMeans.of(encoder, [text]) for text in texts))

    @property
    def names(self) -> tuple[str, ...]:
        """The prompts."""
        return tuple(run.prompts[0] for run in self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def at(self, place: int) -> "TextAnchors":
        """Return one anchor alone."""
        return TextAnchors(runs=(self.runs[place],), roles=(self.roles[place],))

    def __repr__(self) -> str:
        return f"TextAnchors({', '.join(map(repr, self.names))})"


@dataclass(frozen=True, kw_only=True)
class TextCounterfactualLens(TextDiffusionLens):
    """Carry over into another prompt ``A``, at every position, by how much what one part writes differs in this one.

    The state is ``r(A) + c |r(A)| (h(x) - h(A)) / typical norm of that difference``, as in
    :class:`vit_lens.CounterfactualLens`; where there are several encoders, the others say ``A``, too, and so does a
    pooled vector. Positions are aligned as those of :class:`vit_lens.TextMeans` are: the k-th token of this prompt with
    the k-th of ``A``, the end with the end, the filling with the mean of its filling. So an anchor has at least as many
    tokens as the prompts that are read; what it says behind their last word is left out. Norms are root mean squares
    over the positions up to the end, without the filling, as the encoder's final norm sees a vector.

    A prompt is drawn from a sequence, of which there is no mean: every anchor has a lens of its own (:meth:`each`).

    Args:
        anchors: Other prompts.
        reference: Means over two reference prompts or more, which hold how far prompts usually lie apart at each site.
        share: The strength ``c``, above 0.
        norm: As for :class:`TextDiffusionLens`, and so are the others.
        encoder: The encoder whose parts are read.
        positions: The positions at which they are; the others are those of the anchor.
        held: The positions at which they are not.
        pooled: What a pooled vector is made of.

    Raises:
        LensError: The strength is no finite number above 0, the anchors are none, or the means hold no norms.

    >>> means = vl.TextMeans.of(text_to_image, ["a red star", "a blue ring", "two small stars"])
    >>> anchors = vl.lenses.TextAnchors.of(text_to_image, "two small rings")
    >>> lens = vl.TextCounterfactualLens(anchors=anchors, reference=means)
    >>> run = vl.TextRun.of(text_to_image, "a red star")
    >>> lens.read(run, "L0H1, L1.mlp")
    Condition([1, 2] rows of tokens [16, 32])
    >>> hooked = run.edited("text_encoder", lens.hooks(run, "L0H1")).condition.tokens
    >>> torch.allclose(hooked, lens.read(run, "L0H1").tokens[:, 0], atol=1e-4)
    True
    """

    anchors: TextAnchors
    reference: TextMeans
    share: float | int = 0.5

    name = "counterfactual"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.anchors, TextAnchors, "anchors", LensError, "as TextAnchors.of(encoder, other_prompts) makes them")
        expect(self.reference, TextMeans, "reference", LensError, "as TextMeans.of(encoder, prompts) makes it")
        if not self.reference.differences:
            raise LensError(
                "these means of prompts hold no norms of differences, being of one prompt or of an earlier version; "
                "make them again with TextMeans.of(encoder, prompts), or `vit-lens reference --prompts FILE`"
            )
        object.__setattr__(self, "share", check_share(self.share))

    def settings(self) -> dict[str, Any]:
        """Return the definition, the strength, which anchors it starts from, and every setting of the reading."""
        said, names = super().settings(), list(self.anchors.names)
        which = {"anchor": names[0]} if len(names) == 1 else {"anchors": names}
        measured = {"reference": self.reference.content, "reference_n": self.reference.n}
        return {"definition": said.pop("definition"), "share": self.share, **which, **said, **measured}

    @property
    def definition(self) -> str:
        """The state, in the symbols of the class."""
        return "r(A) + c |r(A)| (h(x) - h(A)) / typical norm, where the format reads"

    @property
    def _title(self) -> str:
        return "counterfactual"

    @property
    def words(self) -> str:
        """Two sentences on what is changed, and in what."""
        return (
            f"Starts from another prompt ({', '.join(map(repr, self.anchors.names))}) and changes in it what this site "
            "writes to what it writes for this one, everything else held. What differs from that prompt's own picture "
            "came from this site."
        )

    def each(self) -> "list[TextCounterfactualLens]":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a lens for every anchor, each with pictures of its own."""
        if len(self.anchors) == 1:
            return [self]
        return [replace(self, anchors=self.anchors.at(place)) for place in range(len(self.anchors))]

    def reads(self, site: Site) -> bool:
        """Return whether the site is something written to the residual stream, not the stream itself."""
        return not site.is_residual

    def hooks(self, cache: TextRun, site: Site | str) -> list[tuple[str, HookFn]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return hooks under which one encoder's residual, where the format reads it, is what the lens puts there.

        With them, that encoder's tokens in ``run.edited(encoder, hooks).condition`` are what :meth:`read` gives of the
        site at ``norm="format"`` and all positions, to rounding. Other encoders, which hooks of one do not reach, keep
        this prompt.

        Args:
            cache: A run of the prompts that will be run under the hooks.
            site: One site that lies before the read layer.

        Raises:
            UnknownSiteError: The site is not one of the encoder's.
            LensError: The site lies behind what the format reads, or as for :meth:`read`.
        """
        reading = self.moved_in(cache)
        own = self.check_site(cache.tower(reading.encoder), site)
        self._check_before(cache, own, "hooks that show it")
        held, anchor = (self._cache_of(run, reading.encoder) for run in (cache, self._means(cache)))
        strength = torch.full((len(cache),), self._strength(reading, own), dtype=torch.float64)
        return [*same_start(held, held.model.stream_of(own).start), *anchored_hooks(held, anchor, own, strength)]

    def _cache_of(self, run: TextRun, name: str) -> ViTActivationCache:
        cache = run.caches[name]
        expect(cache, ViTActivationCache, f"the run of {name}", LensError, "an encoder that no bridge hooks")
        return cache  # pyright: ignore[reportReturnType]

    def _means(self, run: TextRun) -> TextRun:
        """Return the one anchor, at each position of a run's prompts what it has at the position of that role."""
        if len(self.anchors) > 1:
            raise LensError(
                f"{len(self.anchors)} anchors have a picture each: take lens.each(), which has a lens for every anchor"
            )
        self.reference.check(run.encoder)
        (anchor,), (roles,) = self.anchors.runs, self.anchors.roles
        roles.check(run.encoder)
        for name in run.caches:
            ids, end, n_pos = anchor.ids[name], int(anchor.ends(name)[0]), run.ids[name].shape[1]
            for row, own in enumerate(run.ends(name).tolist()):
                if run.ids[name][row].tolist() == ids[0].tolist():
                    raise LensError(
                        f"prompt {run.prompts[row]!r:.60} is the anchor itself, in which nothing changes: leave it "
                        "out, or take another anchor"
                    )
                if own > end or (own < n_pos - 1 and end == n_pos - 1):
                    raise LensError(
                        f"anchor {anchor.prompts[0]!r:.60} has {end + 1} of {n_pos} tokens in {name}, and prompt "
                        f"{run.prompts[row]!r:.60} {own + 1}: an anchor has at least as many as what is read, and "
                        "filling where that has some"
                    )
        return roles.average(run)

    def _state(
        self, run: TextRun, means: TextRun | None, site: Site, output: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        reading = self.moved_in(run)
        self._check_before(run, site, "states that it adds to")
        anchor = (means or self._means(run)).read_residual(reading).to(output)
        return anchor + self._strength(reading, site) * output

    def _condition(
        self, run: TextRun, reading: Reading, state: Float[Tensor, "batch pos d_model"], done: int
    ) -> Condition:
        return super()._condition(self._means(run), reading, state, done)  # all but the state says the anchor

    def _strength(self, reading: Reading, site: Site) -> float:
        """Return by what a difference is multiplied at a site."""
        (anchor,) = self.anchors.runs
        typical = self.reference.difference(reading.encoder, site)
        if not typical:
            raise LensError(
                f"{site} writes the same for all {self.reference.n} reference prompts (but for rounding), so that "
                "nothing of it can change; leave it out"
            )
        centre = anchor.encoder.readouts[reading.encoder].centre
        last = anchor.read_residual(reading)[0, : int(anchor.ends(reading.encoder)[0]) + 1]
        return self.share * float(centre(last.double()).square().sum(-1).mean().sqrt()) / typical
