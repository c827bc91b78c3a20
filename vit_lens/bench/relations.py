"""Relations: does a lens find the MLP that alone tells left from right and above from below?"""

__all__ = ["RELATIONS"]

import numpy as np

from vit_lens.bench.plants import Plants
from vit_lens.bench.tasks import Task
from vit_lens.bench.text_plants import TextPlant, asks_of_text, grow, run_on_text
from vit_lens.mini import still_life

_N_PAIRS = 4  # of objects, each in every relation
_STREAM = 53
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _grown(plants: Plants) -> list[TextPlant]:
    return plants.kept("relations", lambda: [_plant((*number, _STREAM)) for number in plants.numbers])


def _plant(seed: tuple[int, ...]) -> TextPlant:
    generator = np.random.default_rng([*seed, 1])
    pairs = generator.permutation(still_life.N_OBJECTS)[: 2 * _N_PAIRS].reshape(-1, 2)
    said = [(pair, relation) for pair in range(_N_PAIRS) for relation in _OPPOSITE]
    words = [[" ".join(still_life.object_of(int(number))) for number in pair] for pair in pairs]
    prompts = [f"a {words[pair][0]} {relation} a {words[pair][1]}" for pair, relation in said]
    return grow(prompts, [said.index((pair, _OPPOSITE[relation])) for pair, relation in said], said, seed)


RELATIONS = Task(
    name="relations", asks=asks_of_text,
    run=lambda candidate, plants: run_on_text("relations", candidate, _grown(plants)),
    words="the same of sentences that differ in their relation alone, left of and right of, above and below",
)  # fmt: skip
