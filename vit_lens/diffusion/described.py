"""What a pipeline with hook points says of itself before it runs: what a call comes to, and what its positions are."""

__all__ = ["DescribedPipeline"]

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vit_lens.diffusion.calls import Call
from vit_lens.diffusion.encoding import encoded
from vit_lens.diffusion.pipeline import PipelineModule
from vit_lens.diffusion.wiring import Place
from vit_lens.errors import VitLensError

_NEURONS = "double.1.mlp.hook_post or mid.0.blocks.0.mlp.hook_post"


class DescribedPipeline(PipelineModule):
    """A pipeline with hook points that answers questions of its calls; what :class:`HookedDiffusion` rests on."""

    def run_settings(self, *, steps: int | None = None, **options: Any) -> dict[str, Any]:
        """Return what a call comes to: the options that are numbers, words or truths, defaults included, and sizes.

        ``model(prompts, **settings)`` is that call again.

        Args:
            steps: As for :meth:`forward`.
            **options: As for :meth:`forward`.

        Raises:
            VitLensError: The pipeline has no such argument, or one cannot be written down: tensors, generators.

        >>> settings = vl.HookedUNet.from_pretrained("mini-sd").run_settings(steps=3)
        >>> settings["steps"], settings["guidance_scale"], settings["height"]
        (3, 1.5, 32)
        """
        call = self._call([""], steps, None, options)
        found = {key: value for key, value in call.every.items() if key not in options and _is_plain(value)}
        found |= {key: value for key, value in options.items() if value is not None}
        found["steps"] = found.pop("num_inference_steps")
        found["height"], found["width"] = call.sides(self.pipeline, self._row)
        if unsaid := [key for key, value in found.items() if not _is_plain(value) and not _are_numbers(value)]:
            raise VitLensError(f"{', '.join(unsaid)}: expected numbers or words, which can be written down")
        return {key: value for key, value in sorted(found.items()) if key != "return_dict"}

    def latents_of(self, pictures: Any, **options: Any) -> Float[Tensor, "input *latent"]:
        """Return pictures as a call with ``output_type="latent"`` would leave them, by the pipeline's own VAE.

        Args:
            pictures: PIL images, arrays or tensors, as the pipeline's image processor takes them.
            **options: As for :meth:`forward`; ``height`` and ``width`` are what pictures are brought to.

        Raises:
            VitLensError: The VAE's latents are scaled in a way that is not known here.

        >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
        >>> sd.latents_of(sd("a red star")).shape
        torch.Size([1, 4, 8, 8])
        """
        call = self._call([""], None, None, options)
        return encoded(self.pipeline, pictures, *call.sides(self.pipeline, self._row))

    def text_length(self) -> dict[str, int]:
        """Return ``max_sequence_length=`` where a tokenizer takes fewer tokens than the pipeline fills up to.

        A model of short prompts reads filling that it never saw where the pipeline's default stays.

        >>> vl.HookedUNet.from_pretrained("mini-sd").text_length()
        {}
        """
        call = self._call([""], None, None, {}).every
        if (most := call.get("max_sequence_length")) is None or not (
            parts := self._row.text_parts(self.pipeline, call)
        ):
            return {}
        own = getattr(self.pipeline, parts[-1][0]).model_max_length
        return {"max_sequence_length": own} if own < most else {}

    def is_text(self, name: str) -> bool:
        """Whether a hook point is of the text stream of a block, and else of the image.

        Raises:
            UnknownHookError: There is no such hook point.
        """
        return self._place_of(name).port.name.startswith("text.")

    def axes_of(self, name: str) -> str:
        """Return the axes of a hook point in words, such as ``batch pos d_model``.

        Raises:
            UnknownHookError: There is no such hook point.
        """
        return self._place_of(name).port.axes

    def neuron_rows(self, name: str) -> Float[Tensor, "neuron d_model"]:
        """Return what each neuron of an MLP writes into its stream when it is 1, before the block's gate.

        Args:
            name: The neurons' hook point, such as ``double.1.mlp.hook_post``.

        Raises:
            UnknownHookError: There is no such hook point.
            VitLensError: It is not that of neurons.

        >>> vl.HookedUNet.from_pretrained("mini-sd").neuron_rows("mid.0.blocks.0.mlp.hook_post").shape
        torch.Size([448, 112])
        """
        place = self._place_of(name)
        if not place.port.name.endswith("mlp.hook_post"):
            raise VitLensError(f"{name} is no hook point of neurons; expected one such as {_NEURONS}")
        if place.port.side == "in":  # of the matrix that reads them
            rows = self.denoiser.get_submodule(place.path(place.port.module)).weight.T
        else:  # a single block's matrix reads heads, and behind them neurons
            block: Any = self.denoiser.get_submodule(place.block)
            rows = block.proj_out.weight[:, -block.mlp_hidden_dim :].T
        return rows.detach().float().cpu()  # pyright: ignore[reportCallIssue]

    def _place_of(self, name: str) -> Place:
        ((known, _),) = self.hook_points_named(name)
        return self._places[known]

    def text_tokens(self, prompts: Sequence[str], **options: Any) -> list[list[str]]:
        """Return the tokens of prompts at the positions of the text stream; none where there is no such stream.

        Args:
            prompts: The prompts.
            **options: As for :meth:`forward`.

        >>> vl.HookedUNet.from_pretrained("mini-sd").text_tokens(["a red star"])
        [[]]
        """
        call = self._call(list(prompts), None, None, options)
        found: list[list[str]] = [[] for _ in prompts]
        for part, length in self._row.text_parts(self.pipeline, call.every):
            reads = getattr(self.pipeline, part)
            given = reads(list(prompts), padding="max_length", max_length=length, truncation=True).input_ids
            for row, ids in zip(found, given, strict=True):
                row += [token.replace("\u2581", "").replace("</w>", "") for token in reads.convert_ids_to_tokens(ids)]
        return found

    def _call(self, prompts: Any, steps: Any, seed: Any, options: dict[str, Any]) -> Call:
        return Call.of(self.pipeline, self._row, prompts, steps, seed, options, self.defaults)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, (int, float)) for one in value)
