"""Papers' figures on other models.

Takatsuki et al. 2025 (arXiv 2504.13763), of which the text, the settings and the code could not be read, on any encoder
and decoder that fit each other; Shabalin et al. 2025 (arXiv 2505.24360) on any model that activations are read of.
"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "ALPHAS": ".top_plates", "FIGURES": ".shabalin", "OVERLAY_LENSES": ".overlays", "RANKS": ".tiles", "Bench":
    ".shabalin_bench", "PaperFigure": ".shabalin_figure", "PaperSetup": ".paper_setup", "Plate": ".plate", "Recipe":
    ".shabalin_bench", "Sizes": ".shabalin_bench", "Strip": ".plate", "Tile": ".plate", "chosen_figures":
    ".shabalin", "cost_of": ".shabalin_cost", "diffusion_plate": ".top_plates", "ladder_plate": ".top_plates",
    "make_paper": ".paper_setup", "overlay_plate": ".overlays", "plate_figure": ".figures", "residual_plate":
    ".top_plates", "shabalin_figures": ".shabalin", "write_plate": ".plate_page",
})  # fmt: skip
