"""Faithfulness: does a picture show the embedding that it was asked to show?"""

__all__ = ["faithfulness_study"]

from vit_lens.studies.faithfulness.study import faithfulness_study
