"""What units fire on, in words, and whether that holds: explainers, judges, protocols. See docs/explaining.md."""

__all__ = [
    "BESIDE", "PROTOCOLS", "AttributeOracle", "EndpointVLM", "Explained", "Explainer", "Explanations", "FeatureJudge",
    "Halves", "ImageTextModel", "NothingToExplain", "PipelineVLM", "Replies", "Skipped", "StillLifeOracle",
    "Units", "auc", "difference", "explain", "highlighted", "neurons_site", "unit_examples", "units_beside",
]  # fmt: skip

from vit_lens.explaining.asking import highlighted
from vit_lens.explaining.beside import BESIDE, neurons_site, units_beside
from vit_lens.explaining.choosing import Halves
from vit_lens.explaining.endpoint_vlm import EndpointVLM
from vit_lens.explaining.image_text import ImageTextModel
from vit_lens.explaining.oracle import AttributeOracle
from vit_lens.explaining.pipeline_vlm import PipelineVLM
from vit_lens.explaining.protocols import Explainer, FeatureJudge
from vit_lens.explaining.replies import Replies
from vit_lens.explaining.results import Explained, Explanations, Skipped, difference
from vit_lens.explaining.running import PROTOCOLS, NothingToExplain, auc, explain
from vit_lens.explaining.shown import unit_examples
from vit_lens.explaining.still_life_oracle import StillLifeOracle
from vit_lens.explaining.units import Units
