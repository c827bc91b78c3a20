"""Whose work is it: is what a picture shows the encoder's, the denoiser's, or of the words alone?"""

from vit_lens.lazy import lazy

_HOME = {
    "AVERAGED": ".study", "EndLens": ".states", "HEADLINES": ".study", "InterpolationLens": ".interpolation",
    "LayerReader": ".other_layers", "figures_of": ".figures",
    "Translators": ".tuned", "TunedLens": ".tuned", "open_reader": ".other_layers", "whose_study": ".study",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
