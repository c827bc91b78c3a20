"""Names: does a lens find the MLP that alone knows what names stand for?"""

__all__ = ["NAMES"]

import numpy as np

from vit_lens.bench.plants import Plants
from vit_lens.bench.tasks import Task
from vit_lens.bench.text_plants import TextPlant, asks_of_text, grow, run_on_text
from vit_lens.mini import still_life

_N = 16
_STREAM = 52


def _grown(plants: Plants) -> list[TextPlant]:
    return plants.kept("names", lambda: [_plant((*number, _STREAM)) for number in plants.numbers])


def _plant(seed: tuple[int, ...]) -> TextPlant:
    generator, lexicon = np.random.default_rng([*seed, 1]), still_life.Lexicon(0)
    some = [still_life.called(int(i), lexicon) for i in generator.permutation(len(lexicon.names))[:_N]]
    return grow([one.text for one in some], None, [one.scene for one in some], seed)


NAMES = Task(
    name="names", asks=asks_of_text, run=lambda candidate, plants: run_on_text("names", candidate, _grown(plants)),
    words="one MLP of a text encoder alone, a table of keys and values, knows what names stand for; another is a loud "
    "decoy that the output does not depend on",
)  # fmt: skip
