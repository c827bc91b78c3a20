"""Content: does a site's picture change in what the site changes?"""

__all__ = ["AttributePairs", "content_study"]

from vit_lens.studies.content.pairs import AttributePairs
from vit_lens.studies.content.study import content_study
