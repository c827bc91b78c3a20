"""Steering: do features change what a picture shows, more than directions that nothing was learnt for?"""

from vit_lens.lazy import lazy

_HOME = {
    "HEADLINES": ".scores", "SteeringSetup": ".study", "figures_of": ".figures", "picture_rows": ".study",
    "steering_study": ".study",
}  # fmt: skip
__all__, __getattr__, __dir__ = lazy(__name__, _HOME)
