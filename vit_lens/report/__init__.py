"""Pages without a network: of a record, with pictures of every site and their numbers; of patches; of a dictionary."""

from vit_lens.report.dictionary_page import write_dictionary_page
from vit_lens.report.feature_pages import FeatureStrip, best_first, write_feature_pages
from vit_lens.report.one_file import page_path, write_page
from vit_lens.report.page import write_report
from vit_lens.report.patches_page import write_patches_page
from vit_lens.report.word_maps_page import write_word_maps_page

__all__ = [
    "FeatureStrip", "best_first", "page_path", "write_dictionary_page", "write_feature_pages", "write_page",
    "write_patches_page", "write_report", "write_word_maps_page",
]  # fmt: skip
