"""Knowledge: are rare names drawn later than common ones, and is what a name means looked up in one place?"""

from vit_lens.lazy import lazy

_HOME = {
    "AVERAGED": ".study", "HEADLINES": ".study", "NameRuns": ".name_runs", "figures_of": ".figures",
    "knowledge_study": ".study", "plant_table": ".planted_table",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
