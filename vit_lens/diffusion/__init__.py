"""Hooked diffusion models: FLUX, Stable Diffusion and their kin, step by step and branch by branch."""

__all__ = [
    "DENOISERS",
    "Blocks",
    "BranchCache",
    "Denoiser",
    "DiffusionHookPoint",
    "DrawnMaps",
    "HookedDiffusion",
    "HookedFlux",
    "HookedUNet",
    "Kept",
    "Port",
    "WordMaps",
    "lens_maps",
    "maps_of",
    "word_maps",
]

from vit_lens.diffusion.decoder_maps import DrawnMaps, lens_maps, maps_of
from vit_lens.diffusion.flux import HookedFlux
from vit_lens.diffusion.hooked import HookedDiffusion
from vit_lens.diffusion.kept import BranchCache, Kept
from vit_lens.diffusion.points import DiffusionHookPoint
from vit_lens.diffusion.ports import Blocks, Denoiser, Port
from vit_lens.diffusion.table import DENOISERS
from vit_lens.diffusion.unet import HookedUNet
from vit_lens.diffusion.word_maps import WordMaps, word_maps
