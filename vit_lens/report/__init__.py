"""One page that shows a record: pictures of every site, their numbers, sorting and filtering, without a network."""

from vit_lens.report.one_file import page_path, write_page
from vit_lens.report.page import write_report

__all__ = ["page_path", "write_page", "write_report"]
