"""Hold a model against the tower that it came from, layer by layer."""

__all__ = ["BARS", "Difference", "Verification", "exact_float32", "load_source", "verify"]

from vit_lens.verification.copying import exact_float32
from vit_lens.verification.lockstep import Difference
from vit_lens.verification.result import BARS, Verification
from vit_lens.verification.verifying import load_source, verify
