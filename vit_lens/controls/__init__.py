"""Controls: what may stand in for a site's output, and the coordinates in which it is as long."""

__all__ = [
    "CONTROLS", "MIN_SAMPLES", "NORMALISATIONS", "Against", "Change", "Control", "ControlBank", "CovarianceMatched",
    "Material", "Normaliser", "OtherImage", "Others", "RandomDirection", "Spread", "centred_norm", "check_controls",
    "check_normalisation", "control", "control_named", "samples_of", "stand_in",
]  # fmt: skip

from vit_lens.controls.random_direction import RandomDirection  # isort: skip  # the order of pages
from vit_lens.controls.other_image import OtherImage  # isort: skip
from vit_lens.controls.covariance import CovarianceMatched, samples_of  # isort: skip
from vit_lens.controls.against import Against, centred_norm
from vit_lens.controls.bank import ControlBank, Others
from vit_lens.controls.contract import (
    CONTROLS,
    Change,
    Control,
    Material,
    check_controls,
    control,
    control_named,
    stand_in,
)
from vit_lens.controls.normalising import NORMALISATIONS, Normaliser, check_normalisation
from vit_lens.controls.spreads import MIN_SAMPLES, Spread
