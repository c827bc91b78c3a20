"""States other than a layer's own, put where the format reads its text encoder; the end of the text at all places."""

__all__ = ["EndLens", "StateLens", "layer_of", "site_of"]

from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import LensError
from vit_lens.lenses import HookFn, TextDiffusionLens, TextRun

_STREAM = ("resid_pre", "resid_post")


class StateLens(TextDiffusionLens):
    """A lens that makes another state of what the stream holds before or behind a block, and of nothing else."""

    def reads(self, site: Site) -> bool:
        """Return whether the site is the stream before or behind a block."""
        return site.kind in _STREAM

    def hooks(self, cache: TextRun, site: Site | str) -> list[tuple[str, HookFn]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raise: such a state exists in closed form alone.

        Raises:
            LensError: Always.
        """
        raise LensError(f"{self.label} has no hook functions; read(run, sites) is its closed form")


class EndLens(StateLens):
    """The state at the end of the text, at every position: what a denoiser was shown that read the end alone."""

    name = "end"

    @property
    def definition(self) -> str:
        """The state, in the symbols of the class."""
        return "h_l at the end of the text, at every position, where the format reads"

    @property
    def words(self) -> str:
        """A sentence on how a state is read."""
        return "Puts the state at the end of the text at every position where the format reads its text encoder."

    @property
    def _title(self) -> str:
        return "end of the text at every position"

    def _state(
        self, run: TextRun, means: TextRun | None, site: Site, output: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        return run.at_end(self.moved_in(run).encoder, output)[:, None].expand_as(output)


def layer_of(site: Site) -> int:
    """Return after how many blocks a site of the stream is.

    >>> layer_of(Site.parse("L0.resid_pre")), layer_of(Site.parse("L3.resid_post"))
    (0, 4)

    Raises:
        LensError: It is no site of the stream before or behind a block.
    """
    if site.layer is None or site.kind not in _STREAM:
        raise LensError(f"{site} is not the stream before or behind a block, such as L0.resid_pre or L3.resid_post")
    return site.layer + (site.kind == "resid_post")


def site_of(layer: int) -> str:
    """Return the address of the stream after so many blocks.

    >>> site_of(0), site_of(4)
    ('L0.resid_pre', 'L3.resid_post')
    """
    return f"L{layer - 1}.resid_post" if layer else "L0.resid_pre"
