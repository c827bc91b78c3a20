"""The denoising loss: what a denoiser says of noised pictures in a run of its pipeline, and what it should say."""

__all__ = ["Prediction", "losses_of", "noised", "prediction_of", "target_of"]

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import VitLensError

Prediction = Literal["flow", "epsilon", "v_prediction", "sample"]
_DIFFUSION = ("epsilon", "v_prediction", "sample")


def prediction_of(scheduler: Any) -> Prediction:
    """Return what a denoiser predicts, as its scheduler says.

    Raises:
        VitLensError: The scheduler is of none of the known kinds.
    """
    name, said = type(scheduler).__name__, scheduler.config.get("prediction_type")
    if name.startswith("FlowMatch") or said == "flow_prediction":
        return "flow"
    if said in _DIFFUSION and getattr(scheduler, "alphas_cumprod", None) is not None and not name.startswith("EDM"):
        return said
    raise VitLensError(
        f"a {name} with prediction_type={said!r}: it is not known here what its denoiser predicts; expected flow "
        f"matching, or one of {', '.join(map(repr, _DIFFUSION))} with a schedule of alphas"
    )


def noised(
    kind: Prediction, x: Float[Tensor, "input *latent"], noise: Float[Tensor, "input *latent"], sigma: float | None
) -> Float[Tensor, "input *latent"]:
    """Return what the denoiser is given of pictures: ``(1 - sigma) x + sigma noise`` along a flow, and of a diffusion
    ``(x + sigma noise) / sqrt(1 + sigma^2)``, which has variance 1 whatever the scheduler; noise alone for None.
    """
    keeps, adds = _shares(kind, sigma)
    return keeps * x + adds * noise


def target_of(
    kind: Prediction, x: Float[Tensor, "input *latent"], noise: Float[Tensor, "input *latent"], sigma: float | None
) -> Float[Tensor, "input *latent"]:
    """Return what a denoiser should say: ``noise - x`` (flow), ``noise``, ``x``, or ``keeps noise - adds x`` (v)."""
    keeps, adds = _shares(kind, sigma)
    return {
        "flow": lambda: noise - x, "epsilon": lambda: noise, "sample": lambda: x,
        "v_prediction": lambda: keeps * noise - adds * x,
    }[kind]()  # fmt: skip


def _shares(kind: Prediction, sigma: float | None) -> tuple[float, float]:
    if kind == "flow":
        if sigma is None:
            raise VitLensError("the scheduler says no noise level of a step, and a flow has one")
        return 1 - sigma, sigma
    if sigma is None:  # noise alone, at the last of schedules without a signal there
        return 0.0, 1.0
    length = (1 + sigma**2) ** 0.5
    return 1 / length, sigma / length


@contextmanager
def losses_of(
    model: Any, latents: Float[Tensor, "input *latent"], noise: Float[Tensor, "input *latent"], branch: str,
    wanted: Collection[int],
) -> Iterator[dict[int, Float[Tensor, " input"]]]:  # fmt: skip
    """Have the denoiser see noised pictures in every step of a run of its pipeline, and compare what it says.

    Args:
        model: The hooked model, which says step, noise level and branches of each pass.
        latents: The pictures, as the pipeline leaves them with ``output_type="latent"``.
        noise: The noise that is added, of the same shape.
        branch: The branch whose prediction counts.
        wanted: The steps that are compared.

    Yields:
        The mean squared error of each picture by step, filled in while the pipeline runs.
    """
    kind, found = prediction_of(model.pipeline.scheduler), {}

    def sees(module: Any, args: Any, kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        x = noised(kind, latents, noise, model.current_step.sigma).to(given)
        made = torch.cat([x] * len(model.row_branches))
        if made.shape != given.shape:
            raise VitLensError(
                f"latents of pictures are {tuple(latents.shape)}; the denoiser of this run takes "
                f"{tuple(given.shape)} in {len(model.row_branches)} branches: give height= and width= of the pictures"
            )
        return ((made, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": made})

    def says(module: Any, args: Any, output: Any) -> None:
        step = model.current_step
        if branch in model.row_branches and step.index in wanted:
            rows = output[0].chunk(len(model.row_branches))[model.row_branches.index(branch)]
            wide = torch.promote_types(rows.dtype, torch.float32)
            target = target_of(kind, latents.to(rows.device, wide), noise.to(rows.device, wide), step.sigma)
            found[step.index] = (rows.to(wide) - target).square().flatten(1).mean(1)

    handles = [
        model.denoiser.register_forward_pre_hook(sees, with_kwargs=True), model.denoiser.register_forward_hook(says),
    ]  # fmt: skip
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
