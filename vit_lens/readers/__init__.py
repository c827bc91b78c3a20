"""Read-outs without a decoder: captions, the user's own images and text directions, for every part of a tower."""

__all__ = [
    "Gallery", "Neighbours", "Probe", "SiteAnswers", "SiteEmbeddings", "SiteMeans", "TextImageRidge", "TextProbe",
    "TextSpan", "TextSpans", "ZeroShot", "ZeroShotMaps", "deviations", "head_contributions", "picture_hash",
    "read_sites", "retrieval_lens", "site_embeddings", "sites_of_each", "text_span", "text_spans", "top_captions",
    "zero_shot_lens", "zero_shot_maps",
]  # fmt: skip

from vit_lens.readers.cosines import deviations
from vit_lens.readers.embeddings import SiteEmbeddings, site_embeddings, sites_of_each
from vit_lens.readers.gallery import Gallery, picture_hash
from vit_lens.readers.patch_maps import ZeroShotMaps, zero_shot_maps
from vit_lens.readers.retrieval import Neighbours, retrieval_lens
from vit_lens.readers.side_by_side import SiteAnswers, read_sites
from vit_lens.readers.site_means import SiteMeans
from vit_lens.readers.text_image_ridge import TextImageRidge
from vit_lens.readers.text_probe import Probe, TextProbe
from vit_lens.readers.text_span import TextSpan, TextSpans, head_contributions, text_span, text_spans
from vit_lens.readers.zero_shot import ZeroShot, top_captions, zero_shot_lens
