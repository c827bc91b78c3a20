"""Steering: do features change what a model shows, more than directions that nothing was learnt for?"""

from vit_lens.lazy import lazy

_HOME = {
    "AVERAGED": ".scores", "Denoisers": ".denoisers", "HEADLINES": ".scores", "ImageEncoders": ".image_encoders",
    "SteeringSetup": ".study", "TextEncoders": ".text_encoders", "figures_of": ".figures", "picture_rows": ".study",
    "steering_study": ".study",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
