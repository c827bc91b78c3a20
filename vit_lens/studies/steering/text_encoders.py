"""Text encoders whose pipeline draws still lifes: their stream is steered, and the exact judge sees what is drawn."""

__all__ = ["TextEncoders"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from vit_lens.decoders import PromptEncoder
from vit_lens.dictionaries import Dictionary, steer
from vit_lens.diffusion import HookedDiffusion
from vit_lens.errors import StudyError
from vit_lens.hooking import LoudHookedRootModule
from vit_lens.lenses import TextRun
from vit_lens.mini import still_life
from vit_lens.studies.steering import still_lifes
from vit_lens.studies.steering.choosing import Pool, tokens_of
from vit_lens.studies.steering.kinds import Kind
from vit_lens.studies.steering.scores import Plan
from vit_lens.studies.steering.targets import RELATIONS, TARGETS, Target, prompts_for
from vit_lens.studies.steering.watching import Push


@dataclass(frozen=True, eq=False, kw_only=True)
class TextEncoders(Kind):
    """The text encoder of a pipeline that draws still lifes, of which :class:`Kind` says what is asked.

    Attributes:
        reader: The text half of the pipeline.
        pipeline: The whole pipeline, which draws what the encoder says.
        limit: The residual above which a picture is no scene.
        objects: The numbers of the objects that lift is measured on; None for all.

    Raises:
        StudyError: There are several encoders, or conditions are more than tokens.
    """

    name = "text encoder"
    plan = Plan(level="decoded", relations=RELATIONS, edit="prompt that says it", outputs="pictures")
    targets = TARGETS

    reader: PromptEncoder
    pipeline: HookedDiffusion
    limit: float
    objects: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        parts, towers = set(self.reader.encode([""]).parts()), list(self.reader.towers)
        if parts != {"tokens"} or len(towers) > 1:
            raise StudyError(
                f"a pipeline of {', '.join(towers)}, whose conditions are {', '.join(sorted(parts))}; expected one "
                "encoder and tokens alone, as mini-sd and what `vit-lens mini train-text` makes have"
            )

    @property
    def model(self) -> LoudHookedRootModule:
        """What is steered."""
        return next(iter(self.reader.towers.values()))

    def describe(self) -> dict[str, Any]:
        """Return the encoder, what draws, and the judge."""
        return {
            "encoder": self.reader.encoder_id, "fingerprint": self.reader.encoder_id,
            "decoder": self.pipeline.model_id, "judge": "exact", "residual_limit": self.limit,
            "settings": self.pipeline.run_settings(),
        }  # fmt: skip

    def notes(self, dictionary: Dictionary) -> tuple[str, ...]:
        """Return what is steered, and what is left out."""
        return (
            f"Strength is in units of the mean norm of the steered tokens ({dictionary.origin.tokens}, without what a "
            "prompt is filled up with), of each prompt for itself; every direction has length 1. What the encoder then "
            "says is drawn by its own pipeline.",
            "A picture whose residual is beyond the limit is no scene, and does not show the target. A target that is "
            "to go away is gone where there is a scene without it.",
            "Left out: time, since an encoder has no steps; place, since a prompt that does not say the target has no "
            "word of it.",
        )

    # ---- inputs

    def inputs(self, target: Target, n: int, generator: np.random.Generator, *, studied: bool) -> dict[str, list[str]]:
        """Return prompts; those that directions are chosen on have other noises."""
        found = prompts_for(target, n, generator)
        return {name: found[name] for name in RELATIONS}

    def pool(self, dictionary: Dictionary, seeds: Sequence[int]) -> Pool:
        """Return the tokens of a prompt about every object, which says all of it."""
        objects = range(still_life.N_OBJECTS) if self.objects is None else self.objects
        scenes = [still_life.Scene("alone", (number,)) for number in objects]
        prompts = [" ".join(["a", *still_life.object_of(number)]) for number in objects]
        return Pool(tokens_of(self.model, prompts, dictionary), still_life.codes(scenes)[:, 1:4])

    # ---- what comes out

    def identity(self, dictionary: Dictionary) -> list[Any]:
        """Return both halves' weights, how pictures are drawn, and where is steered."""
        where = [dictionary.check(self.model), dictionary.origin.tokens]
        return [self.reader.encoder_id, self.pipeline.fingerprint, self.pipeline.run_settings(), *where]

    def run(
        self, dictionary: Dictionary, inputs: Sequence[str], seeds: Sequence[int], push: Push | None
    ) -> UInt8[np.ndarray, "picture height width 3"]:
        """Return pictures, one for each prompt and seed; without steering, too, of the hooked encoder."""
        hooks = [] if push is None else steer(self.model, dictionary, push.direction, push.strength)
        (encoder,), empty = self.reader.towers, self.reader.negative()
        away = None if empty is None else empty.tokens
        made = []
        for start in range(0, len(inputs), still_lifes.AT_ONCE):
            some = slice(start, start + still_lifes.AT_ONCE)
            said: Any = TextRun.of(self.reader, list(inputs[some])).edited(encoder, hooks).condition.tokens
            options: dict[str, Any] = {"prompt_embeds": said}
            if away is not None:
                options["negative_prompt_embeds"] = away.expand(*said.shape)
            made.append(still_lifes.drawn(self.pipeline, None, seeds[some], **options))
        return np.concatenate(made)

    def look(self, outputs: UInt8[np.ndarray, "picture height width 3"]) -> dict[str, Tensor]:
        """Return what the exact judge reads."""
        return still_lifes.look(outputs)

    def seen(self, found: Mapping[str, Tensor]) -> still_lifes.SeenPictures:
        """Return what was read."""
        return still_lifes.seen(found, self.limit)
