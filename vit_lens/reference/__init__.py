"""What lenses start from, over a set of images: mean activations, and averaged Jacobians to the read-out."""

__all__ = [
    "DifferenceNorms", "FitCost", "Jacobians", "PatchingError", "ReferenceMeans", "RowMeans", "Stability",
    "check_vit", "fit_cost", "fit_jacobians", "grouped", "last_state", "make_jacobians", "measure_error",
    "read_state", "row_groups", "row_means", "split_held_out", "typical_norm",
]  # fmt: skip

from vit_lens.reference.backward import FitCost, fit_cost
from vit_lens.reference.differences import DifferenceNorms, typical_norm
from vit_lens.reference.fitting import check_vit, fit_jacobians
from vit_lens.reference.jacobians import Jacobians
from vit_lens.reference.making import make_jacobians, split_held_out
from vit_lens.reference.patching import measure_error
from vit_lens.reference.patching_error import PatchingError
from vit_lens.reference.reference_means import ReferenceMeans
from vit_lens.reference.row_means import RowMeans, grouped, last_state, read_state, row_groups, row_means
from vit_lens.reference.stability import Stability
