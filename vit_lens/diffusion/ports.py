"""How a stock denoiser is described: where its blocks are, and what each hook point is in a block."""

__all__ = ["Blocks", "Denoiser", "Port"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Port:
    """What a hook point reads, and writes, in a stock block.

    Attributes:
        name: The hook point's name below that of its block.
        axes: The axes of what it gives, in words.
        module: The module in the block, by its path; empty for the block itself.
        side: Whether it is what the module is given, or what it returns.
        item: Which of several: an argument's name or place, or the place in a returned tuple; None where a tensor is
            returned.
        of: The length of the tuple that is returned; None for any.
        stream: The part of a sequence in which text comes first and the image behind it; None for all of it.
        heads: The path of the attention whose heads lie side by side in the last axis; None for no heads.
        gate: The module, and the place in the tuple that it returns, of the vector that the block multiplies what the
            port gives with: the hook point is behind that product. None for no gate.
        in_place: Whether an edit is written into the tensor that the module is given, since the block goes on with it.
        needs: The path of a module without which a block has no such point.
    """

    name: str
    axes: str
    module: str = ""
    side: Literal["in", "out"] = "out"
    item: str | int | None = None
    of: int | None = None
    stream: Literal["text", "image"] | None = None
    heads: str | None = None
    gate: tuple[str, int] | None = None
    in_place: bool = False
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of one kind.

    Attributes:
        path: Where they are in the denoiser; ``*`` stands for each number of a list.
        name: What their hook points begin with; ``{}`` stands for each of those numbers.
        ports: Their hook points.
    """

    path: str
    name: str
    ports: tuple[Port, ...]


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A kind of denoiser, and how pipelines of diffusers call it.

    Attributes:
        pipelines: The pipelines that are hooked, by class.
        part: The denoiser's name in them.
        cls: Its class.
        blocks: Its blocks.
        guided: Whether a call of the pipeline, of these arguments, has an unconditional branch.
        together: Whether the branches are the rows of one pass, "uncond" first; else they are passes, "cond" first.
        sides: From the pipeline to height and width by default, in pixels.
        inputs: From the pipeline, the arguments of a call, and rows, height and width of what is drawn, to what the
            denoiser is given: the shape of each argument.
        text_parts: From the pipeline and the arguments of a call to the tokenizers whose tokens stand in the text
            stream, one behind the other, and how many positions each has.
        refused: Arguments of the pipelines that are not taken, and why.
    """

    pipelines: tuple[str, ...]
    part: str
    cls: str
    blocks: tuple[Blocks, ...]
    guided: Callable[[Any, Mapping[str, Any]], bool]
    together: bool
    sides: Callable[[Any], tuple[int, int]]
    inputs: Callable[[Any, Mapping[str, Any], int, int, int], dict[str, Any]]
    text_parts: Callable[[Any, Mapping[str, Any]], list[tuple[str, int]]] = lambda pipeline, call: []
    refused: Mapping[str, str] = field(default_factory=dict)

    def passes(self, pipeline: Any, call: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
        """Return the branches in the rows of each pass of a step, in the order in which the pipeline runs them."""
        if not self.guided(pipeline, call):
            return (("cond",),)
        return (("uncond", "cond"),) if self.together else (("cond",), ("uncond",))
