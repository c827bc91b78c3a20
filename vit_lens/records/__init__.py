"""Frozen results of a sweep with their provenance: written atomically, read back checked, merged from shards."""

from vit_lens.records.answers import FORMS, Found, Readouts, anchor_name, gallery_name
from vit_lens.records.budgets import budget_words, unfinished_words
from vit_lens.records.cells import csv_bytes, csv_text
from vit_lens.records.encoding import encode_png, is_whole_png, thumbnail_uri
from vit_lens.records.leaks import leaks
from vit_lens.records.live import LIVE_BUDGET, LiveNumbers, live_bytes, live_labels
from vit_lens.records.named_readings import Reading, told_apart
from vit_lens.records.opening import read_manifest
from vit_lens.records.record import Record
from vit_lens.records.rows import over_seeds, select
from vit_lens.records.schema import (
    COLUMNS,
    DRAWN,
    FORMAT,
    PLAN_COLUMNS,
    has_picture,
    input_name,
    looks_again,
    picture_name,
    to_table,
)
from vit_lens.records.second import (
    AGREES,
    DISAGREES,
    JUDGED,
    JUDGED_FIRST,
    LEAST,
    SECOND,
    WHOLLY,
    agreement_table,
    agreement_words,
    judge_words,
    remove_second,
    write_agreement,
)  # fmt: skip
from vit_lens.records.shards import merge, ranges
from vit_lens.records.writer import RecordWriter

__all__ = [
    "AGREES", "COLUMNS", "DISAGREES", "DRAWN", "FORMAT", "FORMS", "JUDGED", "JUDGED_FIRST", "LEAST", "LIVE_BUDGET",
    "PLAN_COLUMNS", "SECOND", "WHOLLY", "Found", "LiveNumbers", "Reading", "Readouts", "Record", "RecordWriter",
    "agreement_table", "agreement_words", "anchor_name", "budget_words", "csv_bytes", "csv_text", "encode_png",
    "gallery_name", "has_picture", "input_name", "is_whole_png", "judge_words", "leaks", "live_bytes", "live_labels",
    "looks_again", "merge", "over_seeds", "picture_name", "ranges", "read_manifest", "remove_second", "select",
    "thumbnail_uri", "to_table", "told_apart", "unfinished_words", "write_agreement",
]  # fmt: skip
