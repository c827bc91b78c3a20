"""Whose work is it: is what a picture shows the encoder's, the denoiser's, or of the words alone?"""

from vit_lens.lazy import lazy

_HOME = {
    "AVERAGED": ".study", "EndLens": ".states", "HEADLINES": ".study", "InterpolationLens": ".interpolation",
    "LayerReader": ".other_layers", "PENALTY": ".probing", "POSITIONS": ".probing", "Translators": ".tuned",
    "TunedLens": ".tuned", "figures_of": ".figures", "open_reader": ".other_layers",
    "other_sentences": ".other_prompts", "ridge_classes": ".probing", "site_of": ".states", "whose_study": ".study",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
