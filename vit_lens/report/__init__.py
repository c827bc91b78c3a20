"""One page that shows a record: pictures of every site, their numbers, sorting and filtering, without a network."""

from vit_lens.report.page import write_report
from vit_lens.report.plate import write_plate

__all__ = ["write_plate", "write_report"]
