"""Planted truth: does a lens find the one head that is known to tell an attribute?"""

__all__ = ["LabelledAttribute", "LabelledImages", "planted_study"]

from vit_lens.studies.planted.labels import LabelledAttribute, LabelledImages
from vit_lens.studies.planted.study import planted_study
