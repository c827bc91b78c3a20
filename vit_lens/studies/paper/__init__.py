"""The paper's figures on any encoder and decoder that fit each other, as far as they can be reconstructed.

Takatsuki et al. 2025 (arXiv 2504.13763), of which the text, the settings and the code could not be read.
"""

__all__ = [
    "ALPHAS",
    "OVERLAY_LENSES",
    "RANKS",
    "PaperSetup",
    "diffusion_plate",
    "ladder_plate",
    "make_paper",
    "overlay_plate",
    "residual_plate",
]

from vit_lens.studies.paper.overlays import OVERLAY_LENSES, overlay_plate
from vit_lens.studies.paper.plates import ALPHAS, diffusion_plate, ladder_plate, residual_plate
from vit_lens.studies.paper.setup import PaperSetup, make_paper
from vit_lens.studies.paper.tiles import RANKS
