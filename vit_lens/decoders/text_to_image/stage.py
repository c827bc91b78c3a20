"""One stock pipeline that draws: its parts checked against its format, its sizes and samplers, one run of it."""

__all__ = ["Stage"]

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from vit_lens.decoders.edited_parts import edits
from vit_lens.decoders.text_to_image.drawing import (
    SCHEDULERS,
    UPSCALER,
    Drawn,
    check_configs,
    check_parts,
    configs_of,
    stock,
)  # fmt: skip
from vit_lens.decoders.text_to_image.text_settings import SAMPLERS
from vit_lens.errors import DecoderError


class Stage:
    """A pipeline that draws: its stock class, with the parts that draw alone.

    Args:
        name: The class of diffusers.
        drawn: What draws it.
        parts: The parts of a pipeline, of which those that draw are taken.
        flow: Whether it is sampled along a flow.

    Raises:
        DecoderError: A part is missing or of another kind, or the scheduler's noise cannot be held.
    """

    def __init__(self, name: str, drawn: Drawn, parts: Mapping[str, Any], flow: bool):
        others = ["scheduler", *(["image_noising_scheduler"] if drawn is UPSCALER else [])]
        check_parts(parts, [*drawn.parts, *others], f"this {name}")
        self.name, self.drawn = name, drawn
        self.trained = {part: _of_class(part, parts[part], classes).eval() for part, classes in drawn.parts.items()}
        self.takes = check_configs(drawn, configs_of(self.trained), name)
        self.denoiser = self.trained[drawn.denoiser[0]]
        self._others = {part: parts[part] for part in others}
        scheduler, known = parts["scheduler"], (*SCHEDULERS[flow], *drawn.schedulers)
        stochastic = " with stochastic_sampling" if scheduler.config.get("stochastic_sampling") else ""
        if type(scheduler).__name__ not in known or stochastic:
            raise DecoderError(
                f"the scheduler of this {name} is a {type(scheduler).__name__}{stochastic}, whose noise cannot be held "
                f"from row to row; expected one of {', '.join(known)}: give the pipeline another scheduler"
            )
        self._flow = flow

    @property
    def factor(self) -> int:
        """Pixels for each number of the denoiser, along each side."""
        return self.drawn.factor(self.trained["vae"].config) if "vae" in self.trained else 1

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width that the denoiser was trained for."""
        size = self.drawn.sample_size or self.denoiser.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.factor, width * self.factor

    def check_size(self, **sizes: int) -> None:
        """Refuse sides that are no multiples of what the parts need; diffusers rounds some silently.

        Raises:
            DecoderError: One is none.
        """
        multiple = self.drawn.multiple(self.denoiser.config, self.factor)
        for name, size in sizes.items():
            if size % multiple:
                lower = size // multiple * multiple
                valid = " or ".join(str(each) for each in (lower, lower + multiple) if each)
                raise DecoderError(f"{name}={size}: this decoder needs multiples of {multiple}; nearest: {valid}")

    def check_scheduler(self, word: str, steps: int) -> None:
        """Refuse a sampler that cannot run on what the pipeline comes with.

        Raises:
            DecoderError: It is another kind's, or has fewer steps.
        """
        if self._flow and word != "own":
            raise DecoderError(f"scheduler {word!r} is a diffusion's, and {self.name} draws along a flow; take 'own'")
        if steps > (most := self._others["scheduler"].config.num_train_timesteps):
            raise DecoderError(f"steps={steps}, but the decoder was trained with {most}")

    def check_noise(self, level: int) -> None:
        """Refuse a level of noise that a small picture cannot get.

        Raises:
            DecoderError: It is beyond the timesteps of training.
        """
        if level >= (most := self._others["image_noising_scheduler"].config.num_train_timesteps):
            raise DecoderError(f"noise_level={level}, but the second stage was trained with 0 to {most - 1}")

    def run(self, word: str, arguments: dict[str, Any], **methods: Callable[..., Any]) -> Tensor:
        """Draw with a scheduler of its own, which keeps nothing of an earlier call.

        Args:
            word: What settings call the scheduler.
            arguments: What the pipeline is called with.
            **methods: Methods that are put in place of the pipeline's own.
        """
        import diffusers

        own = self._others["scheduler"]
        cls = type(own) if (named := SAMPLERS[word]) is None else getattr(diffusers, named)
        pipe = stock(self.name, self.trained | self._others | {"scheduler": cls.from_config(own.config)})
        for name, method in methods.items():
            setattr(pipe, name, method)
        with warnings.catch_warnings():  # diffusers hands torch tensors to numpy 2 in a way that it is leaving
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            return pipe(**arguments, **self.drawn.call, output_type="pt").images

    def identity(self) -> dict[str, Any]:
        """Return the configurations of all parts, as plain values, and what differs from them in memory."""
        parts = self.trained | self._others
        found: dict[str, Any] = {
            part: {"class": type(one).__name__, "config": _plain(one.config)} for part, one in parts.items()
        }
        for part, one in self.trained.items():
            if changed := edits(one):
                found[part]["edited"] = changed
        return found


def _of_class(name: str, part: Any, classes: Sequence[str]) -> Any:
    import diffusers

    if not isinstance(part, tuple(getattr(diffusers, cls) for cls in classes)):
        raise DecoderError(f"the {name} is a {type(part).__name__}; expected {' or '.join(classes)} of diffusers")
    return part


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in sorted(config.items()) if key[0] != "_"}
    return json.loads(json.dumps(kept, default=str), parse_constant=str)  # records hold no infinite numbers
