"""Frozen results of a sweep with their provenance: written atomically, read back checked, merged from shards."""

from vit_lens.records.answers import Readouts
from vit_lens.records.budgets import budget_words, unfinished_words
from vit_lens.records.live import LiveNumbers
from vit_lens.records.readings import Reading, select
from vit_lens.records.record import Record
from vit_lens.records.schema import COLUMNS, FORMAT, MANIFEST_KEYS, PLAN_COLUMNS
from vit_lens.records.shards import merge
from vit_lens.records.spread import over_seeds
from vit_lens.records.writer import RecordWriter

__all__ = [
    "COLUMNS",
    "FORMAT",
    "MANIFEST_KEYS",
    "PLAN_COLUMNS",
    "LiveNumbers",
    "Reading",
    "Readouts",
    "Record",
    "RecordWriter",
    "budget_words",
    "merge",
    "over_seeds",
    "select",
    "unfinished_words",
]
