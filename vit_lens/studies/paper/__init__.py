"""The paper's figures on any encoder and decoder that fit each other, as far as they can be reconstructed.

Takatsuki et al. 2025 (arXiv 2504.13763), of which the text, the settings and the code could not be read.
"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "ALPHAS": ".top_plates", "OVERLAY_LENSES": ".overlays", "PaperSetup": ".paper_setup", "Plate": ".plate",
    "RANKS": ".tiles", "Strip": ".plate", "Tile": ".plate", "diffusion_plate": ".top_plates",
    "ladder_plate": ".top_plates", "make_paper": ".paper_setup", "overlay_plate": ".overlays",
    "plate_figure": ".figures", "residual_plate": ".top_plates", "write_plate": ".plate_page",
})  # fmt: skip
