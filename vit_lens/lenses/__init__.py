"""Lenses: what would be drawn if one part of a model spoke alone, or louder."""

__all__ = [
    "DEFAULT_LENSES", "EACH_PATCH", "KAPPA", "AnchoredLens", "Anchors", "CounterfactualLens", "DiffusionLens",
    "DiffusionSteeringLens", "HookFn", "JacobianCounterfactualLens", "JacobianLens", "Lens", "LensDescription",
    "OwnPictureWarning", "PatchDiffusionLens", "PatchSteeringLens", "ProjectedLens", "PromptReader", "ResidualLens",
    "Sites", "TextAnchors", "TextCounterfactualLens", "TextDiffusionLens", "TextMeans", "TextRun", "TextSteeringLens",
    "average_reading", "centred_norm", "check_cache", "check_prompts", "check_spelling", "checked_clean",
    "checked_read", "is_patch_spelling", "needs_anchors", "no_control", "parse_lens", "parse_lenses",
    "parse_text_lenses", "run_for", "site_outputs", "soft_projection",
]  # fmt: skip

from vit_lens.addresses import Sites
from vit_lens.attribution import check_cache
from vit_lens.lenses.anchored import AnchoredLens, average_reading
from vit_lens.lenses.anchors import Anchors
from vit_lens.lenses.contract import HookFn, Lens, LensDescription, checked_clean, checked_read, no_control, run_for
from vit_lens.lenses.counterfactual_lens import CounterfactualLens
from vit_lens.lenses.diffusion_lens import DiffusionLens
from vit_lens.lenses.jacobian_counterfactual import JacobianCounterfactualLens
from vit_lens.lenses.jacobian_lens import JacobianLens
from vit_lens.lenses.patch_lens import PatchDiffusionLens, PatchSteeringLens
from vit_lens.lenses.patch_spelling import EACH_PATCH, is_patch_spelling
from vit_lens.lenses.projection import KAPPA, OwnPictureWarning, ProjectedLens, soft_projection
from vit_lens.lenses.residual import ResidualLens, centred_norm, site_outputs
from vit_lens.lenses.spelling import (
    DEFAULT_LENSES,
    check_spelling,
    needs_anchors,
    parse_lens,
    parse_lenses,
    parse_text_lenses,
)
from vit_lens.lenses.steering_lens import DiffusionSteeringLens
from vit_lens.lenses.text_counterfactual import TextAnchors, TextCounterfactualLens
from vit_lens.lenses.text_lens import TextDiffusionLens, TextSteeringLens
from vit_lens.lenses.text_means import TextMeans
from vit_lens.lenses.text_run import PromptReader, TextRun, check_prompts
