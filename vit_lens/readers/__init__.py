"""Read-outs without a decoder: captions, the user's own images and text directions, for every part of a tower."""

__all__ = [
    "CONTROLS",
    "Gallery",
    "Neighbours",
    "ReadoutMeans",
    "SiteEmbeddings",
    "SiteReadouts",
    "TextSpan",
    "TextSpans",
    "ZeroShot",
    "ZeroShotMaps",
    "head_contributions",
    "picture_hash",
    "read_sites",
    "retrieval_lens",
    "site_embeddings",
    "text_span",
    "text_spans",
    "zero_shot_lens",
    "zero_shot_maps",
]

from vit_lens.readers.embeddings import CONTROLS, SiteEmbeddings, site_embeddings
from vit_lens.readers.gallery import Gallery, picture_hash
from vit_lens.readers.maps import ZeroShotMaps, zero_shot_maps
from vit_lens.readers.means import ReadoutMeans
from vit_lens.readers.reading import SiteReadouts, read_sites
from vit_lens.readers.retrieval import Neighbours, retrieval_lens
from vit_lens.readers.text_span import TextSpan, TextSpans, head_contributions, text_span, text_spans
from vit_lens.readers.zero_shot import ZeroShot, zero_shot_lens
