"""How much of a denoiser's work survives when a dictionary stands in for an activation, by its loss or its pictures."""

__all__ = ["PictureMetric", "denoising_fidelity"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries.denoiser_tokens import DenoiserTokens
from vit_lens.dictionaries.denoisers import replayed, run_of
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.fidelity import Fidelity, given_names, scaled
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.errors import DictionaryError

PictureMetric = Callable[[list[Any]], Float[Tensor, " input"]]


@torch.no_grad()
def denoising_fidelity(
    model: Any,
    dictionaries: Dictionary | Mapping[str, Dictionary],
    prompts: Sequence[str] | ActivationSource,
    metric: PictureMetric | None = None,
    *,
    latents: Float[Tensor, "input *latent"] | None = None,
    site: str | None = None,
    ks: Sequence[int] | None = None,
    batch_size: int = 32,
    **run: Any,
) -> Fidelity:
    """Measure a diffusion model while dictionaries stand in for an activation, without their error terms.

    Dictionaries act at the steps, in the branch and on the tokens that they are of, and so does mean ablation, which is
    0 on the scale; 1 is the model itself. The mean is of the tokens that a source reads of these prompts.

    Without a metric it is the denoising loss: pictures are given noise of the level of each of these steps, and the
    squared error of what the denoiser says is averaged (:meth:`vit_lens.HookedDiffusion.denoising_loss`, float32). The
    noise is fixed by the inputs, and is not that which the pictures were drawn from. With a metric, pictures are drawn
    with each dictionary in the model, from noise that is fixed too, and judged.

    Args:
        model: A hooked diffusion model.
        dictionaries: One, or several by name, all of one site, and of the same steps and branch.
        prompts: Prompts that they were not learnt from; or a source of them, whose prompts and run are taken.
        metric: A function from pictures to a number for each, such as the share of attributes that a judge finds; None
            for the denoising loss.
        latents: The pictures of the loss, as a call with ``output_type="latent"`` leaves them; None for those that the
            model draws of the prompts.
        site: The hook point; None for the dictionaries' own.
        ks: Numbers of codes to ask of dictionaries that count them; None for their own.
        batch_size: How many prompts are drawn at once.
        **run: Of a run that dictionaries do not say: ``at_steps``, ``branch``, ``noise_seed``, ``steps``, ``height``.

    Raises:
        DictionaryError: A dictionary does not belong there, or mean ablation changes nothing.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> found = vl.dictionaries.random_dictionary(112, 200, k=20, site="mid.0.hook_update")
    >>> result = vl.dictionaries.denoising_fidelity(sd, found, ["a red star", "a ring"], steps=3, ks=[2, 60])
    >>> result.metric, [point.k for point in result.points]
    ('denoising loss at steps 0, 1, 2 (noise levels ...), branch cond', [2, 60])
    """
    named, first = given_names(dictionaries)
    name, origin = first.check(model, site), first.origin
    for label, one in named.items():
        if (one.origin.at_steps, one.origin.branch, one.origin.tokens) != (
            origin.at_steps,
            origin.branch,
            origin.tokens,
        ):
            raise DictionaryError(
                f"{label!r} is of other steps, another branch or other tokens than the first; measure each alone"
            )
    if isinstance(prompts, ActivationSource):
        source = prompts
    else:
        source = ActivationSource.of_model(
            model, prompts, name, tokens=origin.tokens, stream=origin.stream, inputs_at_once=batch_size,
            **(replayed(origin) | run),
        )  # fmt: skip
    reader = source.reader
    if not isinstance(reader, DenoiserTokens):
        raise DictionaryError(f"a source of {type(reader).__name__} draws nothing; expected one of a diffusion model")
    said = source.provenance
    if latents is not None and (metric is not None or len(latents) != len(source.inputs)):
        raise DictionaryError("latents= are the pictures of the denoising loss, without metric=, one for each prompt")
    runs = _Runs(model, reader, source.inputs, batch_size)
    if metric is None:
        pictures = runs.drawn(output_type="latent") if latents is None else latents
        levels = ", ".join("none" if one is None else f"{one:.4g}" for one in said.sigmas or ())
        steps = ", ".join(map(str, said.at_steps or ()))
        words = f"denoising loss at steps {steps} (noise levels {levels}), branch {said.branch}"
        measure = lambda: runs.losses(pictures)  # noqa: E731
    else:
        words = f"{getattr(metric, '__name__', type(metric).__name__)} of pictures"
        measure = lambda: _judged(metric, runs.drawn(output_type="pil"), len(source.inputs))  # noqa: E731
    acts = {} if origin.at_steps is not None and "at_steps" not in run else {"at_steps": said.at_steps}
    return scaled(
        model, named, name, measure, source, ks=ks, words=words, is_loss=metric is None, branch=said.branch, **acts
    )


class _Runs:
    """Runs of a model over the inputs of a reader, in batches, each input with noise of its own."""

    def __init__(self, model: Any, reader: DenoiserTokens, inputs: Sequence[int], batch_size: int):
        self.model, self.reader, self.options = model, reader, run_of(reader.provenance)
        self.parts = [list(inputs[start : start + batch_size]) for start in range(0, len(inputs), batch_size)]

    def drawn(self, output_type: str) -> Any:
        """Return pictures of all inputs, or their latents."""
        found = [
            self.model(self.reader.prompts(part), seed=self.reader.seeds(part), output_type=output_type, **self.options)
            for part in self.parts
        ]
        return torch.cat(found) if output_type == "latent" else [picture for part in found for picture in part]

    def losses(self, latents: Float[Tensor, "input *latent"]) -> Float[Tensor, " input"]:
        """Return the denoising loss of each picture, averaged over the steps that are read."""
        said, start, found = self.reader.provenance, 0, []
        for part in self.parts:
            found.append(
                self.model.denoising_loss(
                    self.reader.prompts(part), latents[start : start + len(part)], at_steps=said.at_steps,
                    branch=said.branch, seed=self.reader.seeds(part), **self.options,
                ).mean(0)
            )  # fmt: skip
            start += len(part)
        return torch.cat(found)


def _judged(metric: PictureMetric, pictures: list[Any], n: int) -> Float[Tensor, " input"]:
    found = torch.as_tensor(metric(pictures))
    if found.shape != (n,):
        raise DictionaryError(f"metric= gave {tuple(found.shape)} for {n} pictures; expected a number for each")
    return found
