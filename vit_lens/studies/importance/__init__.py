"""Importance: does the head that resembles the input matter, beyond its size?"""

__all__ = ["importance_study"]

from vit_lens.studies.importance.study import importance_study
