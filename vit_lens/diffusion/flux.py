"""HookedFlux: FLUX.1 with hook points."""

__all__ = ["HookedFlux"]

from typing import ClassVar

from vit_lens.diffusion.hooked import HookedDiffusion


class HookedFlux(HookedDiffusion):
    """FLUX.1 [schnell] and [dev], diffusers' ``FluxPipeline``, with hook points."""

    formats: ClassVar[tuple[str, ...]] = ("flux",)
