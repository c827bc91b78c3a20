"""A pipeline in memory as a hooked module: its hook points made from the table, and which weights it has."""

__all__ = ["PipelineModule"]

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vit_lens.diffusion.points import DiffusionHookPoint
from vit_lens.diffusion.table import DENOISERS
from vit_lens.diffusion.wiring import Place, places
from vit_lens.errors import UnsupportedTowerError, VitLensError, nearest
from vit_lens.hooking import LoudHookedRootModule, is_hooked
from vit_lens.identity import exact_fingerprint


class PipelineModule(LoudHookedRootModule):
    """A pipeline with hook points that nothing calls yet: what :class:`HookedDiffusion` is made of.

    Args:
        pipeline: The pipeline in memory.
        model_id: The id of its weights; None makes one from their content when it is asked for.
        defaults: Arguments of the pipeline that stand in for those that a call does not give.
    """

    formats: ClassVar[tuple[str, ...]] = tuple(DENOISERS)
    """The rows of the table that the class takes."""

    def __init__(self, pipeline: Any, *, model_id: str | None = None, defaults: dict[str, Any] | None = None):
        super().__init__()
        name = self._format_of(pipeline)
        self.format, self._row = name, DENOISERS[name]
        self.pipeline = pipeline
        if self._row.cls not in [cls.__name__ for cls in type(self.denoiser).__mro__]:
            raise UnsupportedTowerError(
                f"the {self._row.part} of this {type(pipeline).__name__} is a {type(self.denoiser).__name__}; expected "
                f"a {self._row.cls}, which is not compiled or wrapped"
            )
        self.defaults = dict(defaults or {})
        self._model_id = model_id
        self._places: dict[str, Place] = places(self.denoiser, self._row)
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}
        self._digits: tuple[Any, dict[Any, str]] = None, {}
        self._is_attached = False
        for each in self._places:
            self._add_point(each)
        self.setup()

    def _add_point(self, name: str) -> None:
        *parts, last = name.split(".")
        home: nn.Module = self
        for part in parts:
            home = home._modules.setdefault(part, nn.Module())  # pyright: ignore[reportAssignmentType]
        home.add_module(last, DiffusionHookPoint(self))

    @classmethod
    def _format_of(cls, pipeline: Any) -> str:
        kinds = [one.__name__ for one in type(pipeline).__mro__]
        for name in cls.formats:
            if any(kind in DENOISERS[name].pipelines for kind in kinds):
                return name
        other = next((each for each, row in DENOISERS.items() if set(kinds) & {*row.pipelines}), None)
        known = [kind for name in cls.formats for kind in DENOISERS[name].pipelines]
        advice = "" if other is None else "; HookedDiffusion.from_pipeline finds the class that takes it"
        raise UnsupportedTowerError(
            f"a {kinds[0]} is not hooked here; nearest: {nearest(kinds[0], known)} of diffusers{advice}"
        )

    @property
    def double(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The hook points of double blocks, where there are any; a pipeline is cast with :meth:`to`."""
        return self._modules["double"] if "double" in self._modules else super().double

    @property
    def model_id(self) -> str:
        """The id of the weights: where they were loaded from, and for weights in memory their fingerprint."""
        name = self._model_id or "module@"
        return name + self.fingerprint if name.endswith("@") else name

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that identify the denoiser's weights by content, rounded to bfloat16.

        Adapters that are loaded or fused change it. They are kept until the weights change; PyTorch does not count
        changes through ``.data``.

        Raises:
            VitLensError: The weights are on the meta device, as with sequential offloading.
        """
        return self._identified(torch.bfloat16)

    def exact_fingerprint(self, dtype: torch.dtype | None = None) -> str:
        """Return a dtype, and digits that identify the denoiser's weights to the last bit.

        Args:
            dtype: What the weights are rounded to; None for their own.

        Raises:
            VitLensError: The weights are on the meta device, as with sequential offloading.
        """
        return f"{str(dtype or self.dtype).removeprefix('torch.')}:{self._identified(dtype)}"

    def forget_fingerprint(self) -> None:
        """Hash the weights anew when they are next asked for; see :func:`vit_lens.identity.forget_fingerprints`."""
        self._digits = None, {}

    def _identified(self, dtype: torch.dtype | None) -> str:
        held = {name: _plain(one) for name, one in self.denoiser.state_dict().items()}
        versions = [(name, one.data_ptr(), 0 if one.is_inference() else one._version) for name, one in held.items()]
        if self._digits[0] != versions:
            self._digits = versions, {}
        found = self._digits[1]
        if dtype not in found:
            found[dtype] = exact_fingerprint(held, dtype)
        return found[dtype]

    @property
    def denoiser(self) -> Any:
        """The stock denoiser of the pipeline, which the hook points are in."""
        return getattr(self.pipeline, self._row.part, None)

    @property
    def device(self) -> torch.device:
        """The device that the pipeline computes on, wherever weights rest."""
        return torch.device(self.pipeline._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoiser, in which activations are."""
        return self.denoiser.dtype

    def to(self, *args: Any, **kwargs: Any) -> "PipelineModule":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move the whole pipeline, or cast it; it takes what ``DiffusionPipeline.to`` takes."""
        self.pipeline.to(*args, **kwargs)
        return self

    # TransformerLens writes a name into every part of a model, which stock modules have uses of their own for: the
    # denoiser is no part, and what asks for parts is answered here.

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Return the weights of the denoiser."""
        return self.denoiser.parameters(recurse)

    def hooked_names(self) -> list[str]:
        """Return the names of the hook points, and of stock modules of the denoiser, that carry a hook now."""
        named = self.denoiser.named_modules(prefix=self._row.part)
        return [*super().hooked_names(), *(name for name, module in named if is_hooked(module))]

    def train(self, mode: bool = True) -> "PipelineModule":
        """Put the denoiser into training mode, or out of it."""
        self.denoiser.train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        raise VitLensError("a pipeline is moved and cast as a whole: model.to(device), model.to(dtype)")

    def __repr__(self) -> str:
        where = [
            f"{len(paths)} {word}" for word, begins in _WORDS[self._row.part]
            if (paths := {p.block for name, p in self._places.items() if begins(p.block)})
        ]  # fmt: skip
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({type(self.pipeline).__name__}, {', '.join(where)}, {dtype} on {self.device})"


_WORDS = {
    "unet": (
        ("transformers", lambda path: "attentions" in path and "transformer_blocks" not in path),
        ("blocks", lambda path: "transformer_blocks" in path),
    ),
    "transformer": (
        ("double blocks", lambda path: path.startswith("transformer_blocks")),
        ("single blocks", lambda path: path.startswith("single_transformer_blocks")),
    ),
}


def _plain(weight: Tensor) -> Tensor:
    """Return a weight as numbers: some quantisations wrap tensors into one that has no memory of its own."""
    return weight.dequantize() if is_traceable_wrapper_subclass(weight) else weight
