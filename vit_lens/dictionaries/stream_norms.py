"""How long the tokens of each stream are, behind each block and at each step, in one run that keeps no activation."""

__all__ = ["StreamNorms", "stream_norms"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.dictionaries.belonging import hook_name_of
from vit_lens.dictionaries.denoiser_tokens import DenoiserTokens
from vit_lens.dictionaries.denoisers import run_of
from vit_lens.dictionaries.reading import ModelTokens, reader_for
from vit_lens.dictionaries.tokens import reads_text, rule_mask
from vit_lens.errors import DictionaryError
from vit_lens.hooking import LoudHookedRootModule

if TYPE_CHECKING:
    import pandas as pd

_LAST = "hook_resid_post"


@dataclass(frozen=True, eq=False, repr=False)
class StreamNorms:
    """The lengths of tokens, as :func:`stream_norms` found them.

    Attributes:
        sites: The hook points, in the order of the model.
        streams: Of each ``image`` or ``text``.
        blocks: Of each the block, such as ``double.1``.
        steps: The steps, counted from 0; None for a model without any, whose axis of steps is 1 long.
        sigmas: Their noise levels; None for one that is not known, or not finite.
        mean: The mean over tokens of all inputs.
        spread: The standard deviation over the same tokens.
        by_input: The mean over the tokens of each input.
        n_tokens: Of each site how many tokens were measured at each step.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> found = stream_norms(sd, ["a red star", "a ring"], ["mid.0.update", "up.0.1.update"], steps=3)
    >>> found, found.mean.shape, found.by_input.shape
    (StreamNorms(2 sites, steps 0, 1, 2, 2 inputs), torch.Size([2, 3]), torch.Size([2, 3, 2]))
    """

    sites: tuple[str, ...]
    streams: tuple[str, ...]
    blocks: tuple[str, ...]
    steps: tuple[int, ...] | None
    sigmas: tuple[float | None, ...] | None
    mean: Float[Tensor, "site step"]
    spread: Float[Tensor, "site step"]
    by_input: Float[Tensor, "site step input"]
    n_tokens: tuple[int, ...]

    def __repr__(self) -> str:
        when = "no steps" if self.steps is None else f"steps {', '.join(map(str, self.steps))}"
        return f"StreamNorms({len(self.sites)} sites, {when}, {self.by_input.shape[2]} inputs)"

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each site and step: site, block, stream, step, sigma, mean, spread, n_tokens, n_inputs."""
        import pandas as pd

        when = list(zip(self.steps or (None,), self.sigmas or (None,), strict=True))
        rows = [
            {
                "site": site, "block": self.blocks[i], "stream": self.streams[i], "step": step, "sigma": sigma,
                "mean": float(self.mean[i, j]), "spread": float(self.spread[i, j]), "n_tokens": self.n_tokens[i],
                "n_inputs": self.by_input.shape[2],
            }
            for i, site in enumerate(self.sites)
            for j, (step, sigma) in enumerate(when)
        ]  # fmt: skip
        return pd.DataFrame(rows).astype({"step": "Int64", "sigma": "float64"})


@torch.no_grad()
def stream_norms(
    model: LoudHookedRootModule, inputs: Any, sites: Sequence[str] | None = None, *, tokens: str = "all",
    inputs_at_once: int = 32, **run: Any,
) -> StreamNorms:  # fmt: skip
    """Measure the Euclidean length of every token at several hook points, in one run.

    A number for each input, site and step is held, and never an activation of two points.

    Args:
        model: Any hooked model.
        inputs: What it runs on: prompts of a diffusion model or a text encoder, images, pixels.
        sites: Hook points, or their addresses; None takes every ``hook_resid_post``, of both streams.
        tokens: Which tokens, as :meth:`ActivationSource.of_model` takes it.
        inputs_at_once: How many inputs run together.
        **run: Of a diffusion model ``at_steps``, ``branch``, ``noise_seed``, and what its pipeline is called with, as
            :class:`vit_lens.dictionaries.DenoiserTokens` takes them: the noise is that of a source of these inputs.

    Raises:
        DictionaryError: There is no input or no such hook point, or what one holds is not [input token d], or not
            finite.

    >>> found = stream_norms(model, images, tokens="patches")
    >>> found.blocks[:2], found.to_frame()["mean"].between(1, 1000).all()
    (('blocks.0', 'blocks.1'), np.True_)
    """
    names = [name for name in model.hook_dict if name.endswith(f".{_LAST}")] if sites is None else list(sites)
    names = list(dict.fromkeys(hook_name_of(model, name) for name in names))
    if not names:
        raise DictionaryError(f"sites={sites!r}: no hook points; give names or addresses, such as 'D1.txt.resid_post'")
    order = list(model.hook_dict)
    names.sort(key=order.index)
    reader = reader_for(model)(model, inputs, names[0], tokens=tokens, batch_size=inputs_at_once, **run)
    sums = _Lengths(reader, names, rule_mask(model, tokens))
    for start in range(0, len(reader.keys), inputs_at_once):
        sums.run(list(range(start, min(start + inputs_at_once, len(reader.keys)))))
    return sums.result()


class _Lengths:
    """Counts, means and squares of lengths, filled by hooks."""

    def __init__(self, reader: ModelTokens, names: list[str], where: Any):
        self.reader, self.names, self.where = reader, names, where
        self.steps = reader.provenance.at_steps or (None,)
        shape = len(names), len(self.steps)
        self.n, self.mean, self.square = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        self.by_input = torch.full((*shape, len(reader.keys)), torch.nan, dtype=torch.float64)
        self.inputs: list[int] = []

    def run(self, inputs: list[int]) -> None:
        self.inputs, reader = inputs, self.reader
        hooks: Any = [(name, self._look) for name in self.names]
        if isinstance(reader, DenoiserTokens):
            given, how = reader.prompts(inputs), run_of(reader.provenance)
            how |= {"seed": reader.seeds(inputs), "output_type": "latent"}
        else:
            given, how = reader.given(inputs), {}
        reader.model.run_with_hooks(given, fwd_hooks=hooks, **how)  # pyright: ignore[reportAttributeAccessIssue]

    def _look(self, x: Tensor, hook: HookPoint) -> None:
        step = None
        if isinstance(self.reader, DenoiserTokens):
            at: Any = hook  # which knows its step and branch
            step = at.step.index
            if at.branch != self.reader.provenance.branch or step not in self.steps:
                return
        if x.ndim != 3 or len(x) != len(self.inputs):
            raise DictionaryError(f"{hook.name} is {tuple(x.shape)}; lengths are of tokens, [input token d]")
        i, j = self.names.index(str(hook.name)), self.steps.index(step)
        lengths = x.double().norm(dim=-1).cpu()
        if not torch.isfinite(lengths).all():
            raise DictionaryError(f"{hook.name} holds NaN or inf for some of the inputs {self.inputs[:8]}")
        mask = self.where(x, hook)
        mask = torch.ones_like(lengths) if mask is None else mask[..., 0].cpu().double().expand_as(lengths)
        self.by_input[i, j, self.inputs] = (lengths * mask).sum(1) / mask.sum(1)
        size = mask.sum()
        own = (lengths * mask).sum() / size
        gap, n = own - self.mean[i, j], self.n[i, j]
        self.square[i, j] += ((lengths - own).square() * mask).sum() + gap.square() * (n * size / (n + size))
        self.mean[i, j] += gap * (size / (n + size))
        self.n[i, j] += size

    _look.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]

    def result(self) -> StreamNorms:
        said, model = self.reader.provenance, self.reader.model
        if not (self.n > 0).all():
            silent = [name for name, n in zip(self.names, self.n, strict=True) if not (n > 0).all()]
            raise DictionaryError(f"{silent[0]} never fired in this run at some of the steps {said.at_steps}")
        if isinstance(self.reader, DenoiserTokens):
            texts = [self.reader.denoiser.is_text(name) for name in self.names]
        else:
            texts = [reads_text(model)] * len(self.names)
        return StreamNorms(
            sites=tuple(self.names), streams=tuple("text" if is_text else "image" for is_text in texts),
            blocks=tuple(name.rpartition(".")[0].removesuffix(".text") for name in self.names), steps=said.at_steps,
            sigmas=said.sigmas, mean=self.mean, spread=(self.square / self.n).sqrt(), by_input=self.by_input,
            n_tokens=tuple(int(n) for n in self.n[:, 0]),
        )  # fmt: skip
