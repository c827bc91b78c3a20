"""Tokens of a diffusion model: each prompt is drawn with noise of its own, and read at chosen steps of one branch."""

__all__ = ["DenoiserTokens"]

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries.denoisers import Denoises, place_of, run_of, seed_of
from vit_lens.dictionaries.reading import ModelTokens, labels_of, reads
from vit_lens.dictionaries.semantics import Branch, Stream
from vit_lens.errors import DictionaryError, expect

_OURS = {
    "seed": "the noise of each input is drawn by noise_seed= and its index",
    "generator": "the noise of each input is drawn by noise_seed= and its index",
    "latents": "the noise of each input is drawn by noise_seed= and its index",
    "num_images_per_prompt": "repeat a prompt, which is drawn with other noise then",
    "output_type": "pictures are not looked at",
}


@reads(lambda model: isinstance(model, Denoises))
class DenoiserTokens(ModelTokens):
    """Activations of a hook point of a denoiser, while its pipeline draws prompts.

    The noise of an input depends on ``noise_seed`` and the input's index alone, not on what is drawn beside it; so the
    same prompt twice is two inputs, which are on one side of a split. A label is (input, place), of which
    :func:`step_and_position` makes step and position. Positions are those of the stream: of an image its cells in
    row-major order, of text all that the denoiser reads, filling included. Adapters, schedulers and text encoders are
    not in the fingerprint, which is the denoiser's; noise levels are kept and compared.

    One prompt is drawn at once, to see that there is such a run; all others when they are asked for.

    Args:
        model: A hooked diffusion model.
        inputs: Prompts; "" is one.
        site: The hook point, whose activations are [batch pos d].
        tokens: ``all``, or positions, such as ``"0,5"``.
        stream: ``output``, or the ``update`` of a block that keeps its width.
        batch_size: How many prompts are drawn at once.
        at_steps: The steps that are read, counted from 0; None for all of a run.
        branch: The branch of guidance that is read, ``cond`` or ``uncond``.
        noise_seed: What the noise of each input depends on, besides its index.
        **options: What the pipeline is called with: ``steps`` (how many there are), ``height``, ``guidance_scale``.

    Raises:
        DictionaryError: The inputs are no prompts, the hook point is not [batch pos d], or there is no such position.
        VitLensError: There is no such step or branch in a run, or the pipeline takes no such option.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> prompts = ["a red star", "", "a red star"]
    >>> source = vl.ActivationSource.of_model(sd, prompts, "mid.0.hook_update", at_steps=[0, 5], batch_size=7)
    >>> batch = next(source.in_order())
    >>> batch.tokens.shape, source.provenance.at_steps, source.provenance.branch
    (torch.Size([7, 112]), (0, 5), 'cond')
    >>> [len(side.inputs) for side in source.split(0.5)]
    [1, 2]
    """

    def __init__(
        self, model: Any, inputs: Any, site: str, *, tokens: str = "all", stream: Stream = "output",
        batch_size: int = 32, at_steps: Sequence[int] | None = None, branch: Branch = "cond", noise_seed: int = 0,
        **options: Any,
    ):  # fmt: skip
        expect(model, Denoises, "model", DictionaryError, "a hooked diffusion model")
        if isinstance(inputs, str) or not all(isinstance(each, str) for each in inputs):
            raise DictionaryError(
                f"inputs={inputs!r:.80}; a {type(model).__name__} draws prompts: give a list of texts"
            )
        for name in options:
            if name in _OURS:
                raise DictionaryError(f"{name}= is not taken of a source: {_OURS[name]}")
        if branch not in ("cond", "uncond"):
            raise DictionaryError(f"branch={branch!r}; a source reads one: 'cond' or 'uncond'")
        if (seed := as_index(noise_seed)) is None:
            raise DictionaryError(f"noise_seed={noise_seed!r}; expected a whole number")
        super().__init__(model, inputs, site, tokens=tokens, stream=stream, batch_size=batch_size)
        self.denoiser: Denoises = model
        axes = [model.axes_of(name) for name in self._names]
        if any(words.split()[:2] != ["batch", "pos"] or len(words.split()) != 3 for words in axes):
            raise DictionaryError(
                f"{site} is [{axes[0]}]; a dictionary is of tokens, [batch pos d]: split heads yourself, and give "
                "ActivationSource.of_array the result"
            )
        run = {
            name: list(one) if isinstance(one, tuple) else one for name, one in model.run_settings(**options).items()
        }
        run = {name: one for name, one in run.items() if name not in _OURS} | {"noise_seed": seed}
        self.provenance = replace(self.provenance, branch=branch, run=run)
        self._at_steps = None if at_steps is None else sorted(set(at_steps))
        cache, x = self._drawn([0])
        self._at_steps = [step.index for step in cache.steps]
        sigmas = tuple(step.sigma for step in cache.steps)
        self.provenance = replace(self.provenance, at_steps=tuple(self._at_steps), sigmas=sigmas)
        self.n_positions = x.shape[2]
        if absent := [each for each in self._positions or () if each >= self.n_positions]:
            raise DictionaryError(f"tokens={tokens!r}: {site} has positions 0 to {self.n_positions - 1}, not {absent}")

    def prompts(self, inputs: Sequence[int]) -> list[str]:
        """Return the prompts of inputs."""
        return [str(self.inputs[index]) for index in inputs]

    def seeds(self, inputs: Sequence[int]) -> list[int]:
        """Return the seeds of the noise that inputs are drawn from."""
        return [seed_of((self.provenance.run or {})["noise_seed"], index) for index in inputs]

    def _drawn(self, inputs: Sequence[int]) -> tuple[Any, Tensor]:
        """Draw inputs; return the cache and what is read [step input pos d]."""
        _, cache = self.denoiser.run_with_cache(
            self.prompts(inputs), names_filter=self._names, at_steps=self._at_steps,
            branch=self.provenance.branch, seed=self.seeds(inputs), output_type="latent", **run_of(self.provenance),
        )  # fmt: skip
        x = cache[self._names[0]]
        if len(self._names) > 1:
            before = cache[self._names[1]]
            if before.shape != x.shape:
                raise DictionaryError(
                    f"stream='update': the block is given {tuple(before.shape[2:])} and leaves {tuple(x.shape[2:])} "
                    f"(positions, width) at {self._names[0]}, so nothing is added to what it is given"
                )
            x = x - before
        return cache, x

    def _read(self, inputs: Sequence[int]) -> tuple[Tensor, Tensor]:
        _, x = self._drawn(inputs)
        if not torch.isfinite(x).all():
            raise DictionaryError(f"{self._names[0]} holds NaN or inf for some of the inputs {list(inputs)[:8]}")
        at = list(range(x.shape[2])) if self._positions is None else self._positions
        x = x[:, :, at].movedim(0, 1).flatten(1, 2)
        places = torch.tensor([place_of(step, position) for step in self._at_steps or () for position in at])
        return x.flatten(0, 1), labels_of(inputs, [len(places)] * len(inputs), [places] * len(inputs))
