"""Sparse dictionaries: learn, read and measure them, and put them into a model. See docs/dictionaries.md."""

__all__ = [
    "ITDA", "LAYOUTS", "TRAINERS", "ActivationSource", "Band", "Batch", "Checkpoint", "DenoiserTokens",
    "Dictionary", "Example", "FVUAtStep", "FVUByStep", "FeatureExamples", "Features", "FeaturesOverSteps",
    "Fidelity", "ITDAState", "Layout", "Normalisation", "Origin", "Place", "Point", "Provenance", "SAELens",
    "Semantics", "SparseCodes", "SpatialFeatures", "Spectrum", "Statistics", "StreamNorms", "TopK", "Trainer",
    "Verdict", "bands_of", "card", "clamp", "compared", "data_points_control", "denoising_fidelity",
    "difference_of_means", "drawn_pictures", "evaluate", "feature_address", "feature_attribution", "feature_embeddings",
    "feature_examples", "feature_writes", "features_over_steps", "fidelity", "fit", "fvu_by_step",
    "gradient_pursuit", "hook_name_of", "layout", "matching_pursuit", "mean_codes", "patch_grid", "pca_control",
    "random_dictionary", "save_sae_lens", "source_like", "spatial_features", "spectrum", "spliced",
    "spread_features", "steer", "step_and_position", "stream_norms", "trainer", "untrained_control",
    "untrained_direction", "verdicts", "with_controls", "zero_shot_accuracy",
]  # fmt: skip

from vit_lens.dictionaries.belonging import hook_name_of
from vit_lens.dictionaries.card import Verdict, card, compared, verdicts, with_controls
from vit_lens.dictionaries.controls import (
    data_points_control,
    pca_control,
    random_dictionary,
    untrained_control,
    untrained_direction,
)
from vit_lens.dictionaries.denoiser_tokens import DenoiserTokens
from vit_lens.dictionaries.denoisers import step_and_position
from vit_lens.dictionaries.denoising_fidelity import denoising_fidelity
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.drawn_pictures import drawn_pictures
from vit_lens.dictionaries.examples import Band, Example, FeatureExamples, bands_of, feature_examples, spread_features
from vit_lens.dictionaries.features import (
    Features,
    clamp,
    feature_address,
    feature_attribution,
    feature_embeddings,
    feature_writes,
    mean_codes,
)
from vit_lens.dictionaries.features_over_steps import FeaturesOverSteps, features_over_steps
from vit_lens.dictionaries.fidelity import Fidelity, Point, fidelity, zero_shot_accuracy
from vit_lens.dictionaries.fvu_by_step import FVUAtStep, FVUByStep, fvu_by_step
from vit_lens.dictionaries.itda import ITDA, ITDAState
from vit_lens.dictionaries.known import LAYOUTS, Layout, layout
from vit_lens.dictionaries.layouts import save_sae_lens
from vit_lens.dictionaries.normalisation import Normalisation
from vit_lens.dictionaries.pursuit import SparseCodes, gradient_pursuit, matching_pursuit
from vit_lens.dictionaries.sae_lens import SAELens
from vit_lens.dictionaries.semantics import Origin, Provenance, Semantics
from vit_lens.dictionaries.source import ActivationSource, Batch, Place
from vit_lens.dictionaries.source_like import source_like
from vit_lens.dictionaries.spatial import SpatialFeatures, patch_grid, spatial_features
from vit_lens.dictionaries.spectrum import Spectrum, spectrum
from vit_lens.dictionaries.splicing import spliced
from vit_lens.dictionaries.statistics import Statistics, evaluate
from vit_lens.dictionaries.steering import difference_of_means, steer
from vit_lens.dictionaries.stream_norms import StreamNorms, stream_norms
from vit_lens.dictionaries.topk import TopK
from vit_lens.dictionaries.training import TRAINERS, Checkpoint, Trainer, fit, trainer
