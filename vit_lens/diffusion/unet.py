"""HookedUNet: Stable Diffusion and SDXL with hook points."""

__all__ = ["HookedUNet"]

from typing import ClassVar

from vit_lens.diffusion.hooked import HookedDiffusion


class HookedUNet(HookedDiffusion):
    """Stable Diffusion 1 and 2, and SDXL, with hook points."""

    formats: ClassVar[tuple[str, ...]] = ("unet",)
