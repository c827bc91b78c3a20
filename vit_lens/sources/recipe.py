"""How the tensors of a source become those of a hooked tower: a list of steps that is made before any value is read."""

__all__ = ["FLOATS", "Heads", "Recipe", "Shape", "StateDict", "build"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vit_lens.config import TowerConfig
from vit_lens.errors import CheckpointError
from vit_lens.sources.tensors import StoredTensors

StateDict = dict[str, Tensor]
Shape = tuple[int, ...]
Heads = tuple[int, int]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class Step:
    """One tensor of the result: ``make`` of one or more tensors of the source.

    A step that is a view only rearranges one tensor, so its result can share the source's memory. Any other
    computes, and is handed its tensors in float32 or wider.
    """

    target: str
    sources: tuple[str, ...]
    make: Callable[..., Tensor]
    is_view: bool


@dataclass
class Recipe:
    """Every tensor that a source must have, with its shape, and what becomes of it.

    Attributes:
        allowed: The names of tensors that published files carry and that no weight is made of.
        shapes: The name and shape of every tensor that the source must have.
        steps: What is made of them, one step for each tensor of the result.

    >>> recipe = Recipe()
    >>> recipe.norm("ln_final", "post_layernorm", 8)
    >>> recipe.shapes
    {'post_layernorm.weight': (8,), 'post_layernorm.bias': (8,)}
    >>> recipe.check({"post_layernorm.weight": torch.ones(8)})
    Traceback (most recent call last):
    vit_lens.errors.CheckpointError: the weights do not fit this tower (1 missing: post_layernorm.bias)
    """

    allowed: frozenset[str] = frozenset()
    shapes: dict[str, Shape] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def take(
        self,
        target: str,
        source: str,
        shape: Shape,
        view: Callable[[Tensor], Tensor] = lambda x: x,
        *,
        gain: str | None = None,
    ) -> None:
        """Rearrange one tensor; with a ``gain`` (LayerScale) scale its last axis, d_model."""
        self.shapes[source] = shape
        if gain is None:
            self.steps.append(Step(target, (source,), view, is_view=True))
            return
        self.steps.append(Step(target, (source, gain), lambda x, g: view(x) * g, is_view=False))

    def compute(self, target: str, sources: Mapping[str, Shape], make: Callable[..., Tensor]) -> None:
        """Compute a tensor from several, handed over in the order of ``sources``."""
        self.shapes |= sources
        self.steps.append(Step(target, tuple(sources), make, is_view=False))

    def norm(self, target: str, source: str, width: int) -> None:
        """Take the weight and bias of a LayerNorm."""
        self.take(f"{target}.w", f"{source}.weight", (width,))
        self.take(f"{target}.b", f"{source}.bias", (width,))

    def patches(self, weight: str, d_model: int, patch: tuple[int, int], bias: str | None) -> None:
        """Take the convolution that embeds patches."""
        self.take("embed.W_E", weight, (d_model, 3, *patch), lambda x: x.flatten(1).T)
        if bias is not None:
            self.take("embed.b_E", bias, (d_model,))

    def mlp(self, target: str, first: str, second: str, d_model: int, d_mlp: int, gain: str | None = None) -> None:
        """Take a two-layer perceptron from the names of its linear maps."""
        self.take(f"{target}.W_in", f"{first}.weight", (d_mlp, d_model), lambda x: x.T)
        self.take(f"{target}.b_in", f"{first}.bias", (d_mlp,))
        self.take(f"{target}.W_out", f"{second}.weight", (d_model, d_mlp), lambda x: x.T, gain=gain)
        self.take(f"{target}.b_out", f"{second}.bias", (d_model,), gain=gain)

    def projection(
        self, target: str, names: tuple[str, str], heads: Heads, d_in: int, part: int = 0, parts: int = 1
    ) -> None:
        """Take queries, keys or values: part number ``part`` of a linear map that makes ``parts`` of them."""
        weight, bias = names
        width = heads[0] * heads[1]

        def rows(x: Tensor) -> Tensor:
            return x.narrow(0, part * width, width).unflatten(0, heads)

        where, letter = target.rsplit(".", 1)
        self.take(f"{where}.W_{letter}", weight, (parts * width, d_in), lambda x: rows(x).transpose(1, 2))
        self.take(f"{where}.b_{letter}", bias, (parts * width,), rows)

    def attention(self, target: str, stems: Sequence[str], heads: Heads, d_in: int) -> None:
        """Take queries, keys and values from one linear map, or from three; ``stems`` are names up to ``weight``."""
        for i, letter in enumerate("QKV"):
            stem, *which = (stems[0], i, 3) if len(stems) == 1 else (stems[i], 0, 1)
            self.projection(f"{target}.{letter}", (f"{stem}weight", f"{stem}bias"), heads, d_in, *which)

    def output(self, target: str, source: str, heads: Heads, d_out: int, gain: str | None = None) -> None:
        """Take the output map of attention."""
        shape = (d_out, heads[0] * heads[1])
        self.take(f"{target}.W_O", f"{source}.weight", shape, lambda x: x.T.unflatten(0, heads), gain=gain)
        self.take(f"{target}.b_O", f"{source}.bias", (d_out,), gain=gain)

    def blocks(
        self,
        cfg: TowerConfig,
        source: str,
        *,
        norms: tuple[str, str],
        qkv: Sequence[str],
        out: str,
        mlp: tuple[str, str],
        gains: tuple[str, str] | None = None,
    ) -> None:
        """Take every block from the names of its parts, which follow ``source`` and the block's number.

        Args:
            cfg: The sizes of the tower.
            source: The name of the list of blocks.
            norms: The names of the norms before attention and before the MLP.
            qkv: The names of queries, keys and values, as ``stems`` of :meth:`attention`.
            out: The name of the output map of attention.
            mlp: The names of the two linear maps of the MLP.
            gains: The names of LayerScale after attention and after the MLP, which is folded in; None for none.
        """
        d, heads = cfg.d_model, (cfg.n_heads, cfg.d_head)
        for layer in range(cfg.n_layers):
            name, target = f"{source}.{layer}", f"blocks.{layer}"
            scales = [self.gain(f"{name}.{gain}", d) for gain in gains] if gains else [None, None]
            self.norm(f"{target}.ln1", f"{name}.{norms[0]}", d)
            self.norm(f"{target}.ln2", f"{name}.{norms[1]}", d)
            self.attention(f"{target}.attn", [f"{name}.{stem}" for stem in qkv], heads, d)
            self.output(f"{target}.attn", f"{name}.{out}", heads, d, scales[0])
            self.mlp(f"{target}.mlp", f"{name}.{mlp[0]}", f"{name}.{mlp[1]}", d, cfg.d_mlp, scales[1])

    def gain(self, name: str, width: int) -> str:
        """Require a LayerScale vector, which other steps fold in; returns its name."""
        self.shapes[name] = (width,)
        return name

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Compare names, shapes and kinds; values are not looked at.

        Raises:
            CheckpointError: Tensors are missing, extra or misshapen; the message lists them.
        """
        missing = [name for name in self.shapes if name not in tensors]
        extra = [name for name in tensors if name not in self.shapes and name not in self.allowed]
        known = {name: (tensors[name], shape) for name, shape in self.shapes.items() if name in tensors}
        misshapen = [
            f"{name} {list(tensor.shape)} instead of {list(shape)}"
            for name, (tensor, shape) in known.items()
            if tuple(tensor.shape) != shape
        ]
        kinds = {name: tensor.dtype for name, (tensor, _) in known.items() if tensor.dtype not in FLOATS}
        not_float = [name for name, dtype in kinds.items() if not dtype.is_floating_point]
        quantised = [f"{name} ({dtype})" for name, dtype in kinds.items() if dtype.is_floating_point]
        faults = {
            "missing": missing, "extra": extra, "misshapen": misshapen, "not floating point": not_float,
            "quantised": quantised,
        }  # fmt: skip
        found = [f"{len(names)} {fault}: {_shorten(names)}" for fault, names in faults.items() if names]
        if found:
            raise CheckpointError(f"the weights do not fit this tower ({'; '.join(found)})")


def build(
    recipe: Recipe,
    tensors: StateDict | StoredTensors,
    dtype: torch.dtype,
    *,
    device: str | torch.device | None = None,
    copy: bool = True,
) -> StateDict:
    """Carry a recipe out, one tensor at a time; each source tensor is asked for when it is needed and then let go.

    Args:
        recipe: Checked against ``tensors`` by the caller (:meth:`Recipe.check`).
        tensors: The source's; one that reads files on access holds little more than the result in memory.
        dtype: Of the result.
        device: Of the result; None keeps the source's.
        copy: False gives views of the source's memory.

    Raises:
        CheckpointError: Without ``copy``, tensors that are computed.
    """
    if not copy and (computed := [step.target for step in recipe.steps if not step.is_view]):
        raise CheckpointError(
            f"copy=False cannot share memory for {_shorten(computed)}, which are computed from several of the source's "
            "tensors (LayerScale, a query's norm or positions of another size are folded in); leave copy=True"
        )
    out: StateDict = {}
    for step in recipe.steps:
        sources = [tensors[name].detach() for name in step.sources]
        if step.is_view:
            value = step.make(sources[0])
            out[step.target] = _copied(value, dtype, device) if copy else value
        else:
            wide = torch.promote_types(dtype, torch.float32)
            value = step.make(*(x.to(torch.promote_types(x.dtype, wide)) for x in sources))
            out[step.target] = value.to(dtype=dtype, device=device or value.device)
        del sources, value
    return out


def _copied(view: Tensor, dtype: torch.dtype, device: str | torch.device | None) -> Tensor:
    """Cast, move and lay out in one copy; a transposed tensor stays so, the layout that matrix products read."""
    return torch.empty_like(view, dtype=dtype, device=device or view.device).copy_(view)


def _shorten(names: list[str]) -> str:
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
