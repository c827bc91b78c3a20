"""A benchmark of planted truth: what does a lens, a dictionary or a steering function find of what is there?

A task is one file here, with a ``Task`` that says whom it asks and how; candidates are given by name. See
docs/benchmark.md.
"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "Bench": ".result", "Candidate": ".candidates", "Measured": ".measuring", "OWN": ".own", "Outcome": ".result",
    "Plants": ".plants", "TASKS": ".running", "Target": ".target", "load_bench": ".result",
    "named_candidate": ".candidates", "run_bench": ".running", "schema_errors": ".schema",
})  # fmt: skip
