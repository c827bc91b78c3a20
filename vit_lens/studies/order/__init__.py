"""Order: does an object appear by its place in the sentence, or by its place in the syntax?"""

from vit_lens.lazy import lazy

_HOME = {
    "AVERAGED": ".study", "HEADLINES": ".study", "NounPair": ".noun_pairs", "Parse": ".parses",
    "ask_of_captions": ".noun_pairs", "balanced": ".noun_pairs", "captions_order_study": ".captions",
    "figures_of": ".figures", "noun_pair": ".noun_pairs", "order_study": ".study", "parse_captions": ".parses",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
