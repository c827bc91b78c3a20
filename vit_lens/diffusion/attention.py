"""Attention of a stock denoiser to the tokens of its prompt, computed beside the pass that runs."""

__all__ = ["Recording", "attention_to", "recorded_attention", "rotated"]

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vit_lens.diffusion.table import DENOISERS
from vit_lens.diffusion.wiring import check_wirable, places
from vit_lens.errors import UnsupportedTowerError, VitLensError, nearest

# Of diffusers: each computes softmax(q k / sqrt(d_head)) v, in one piece or in several.
_STOCK = (
    "AttnProcessor", "AttnProcessor2_0", "FluxAttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor",
)  # fmt: skip

Take = Callable[[int, Tensor], None]


class Recording:
    """Counts the passes of a denoiser, and hands over what is found in those that are wanted.

    Args:
        of_step: For each pass of a step the branches in its rows.
        at_steps: The indices of the steps that are wanted; None for all.
        take: Called behind each wanted pass of "cond" with the step's index and the mean of what was added.
    """

    def __init__(self, of_step: Sequence[tuple[str, ...]], at_steps: Collection[int] | None, take: Take):
        self.of_step, self.at_steps, self.take = of_step, at_steps, take
        self.n_passes, self.is_wanted, self.n_text, self.size = 0, False, 0, (0, 0)
        self._branches: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._n = 0

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Take down which pass begins, and how large it is."""
        self.index, which = divmod(self.n_passes, len(self.of_step))
        self.n_passes += 1
        self._branches, self._sum, self._n = self.of_step[which], None, 0
        self.is_wanted = "cond" in self._branches and (self.at_steps is None or self.index in self.at_steps)
        self.n_text = kwargs["encoder_hidden_states"].shape[1]
        if kwargs.get("img_ids") is not None:
            height, width = (int(most) + 1 for most in kwargs["img_ids"][:, 1:].amax(0))
        else:
            height, width = (args[0] if args else kwargs["sample"]).shape[-2:]
        self.size = height, width

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hand over the mean of what was added in the pass."""
        if self.is_wanted and self._sum is not None:
            self.take(self.index, self._sum / self._n)
        self.is_wanted, self._sum = False, None

    def rows(self, value: Tensor) -> Tensor:
        """Return the rows of "cond"."""
        return value.chunk(len(self._branches))[self._branches.index("cond")]

    def add(self, maps: Float[Tensor, "picture token h w"]) -> None:
        """Count maps of one block in, enlarged (bicubic) to the size of the latents."""
        if tuple(maps.shape[-2:]) != tuple(self.size):
            maps = interpolate(maps, self.size, mode="bicubic", align_corners=False)
        self._sum = maps if self._sum is None else self._sum + maps
        self._n += 1


@contextmanager
def recorded_attention(
    denoiser: Any,
    of_step: Sequence[tuple[str, ...]],
    take: Take,
    *,
    at_steps: Collection[int] | None = None,
    blocks: str | Sequence[str] | None = None,
) -> Iterator[list[str]]:
    """Compute, inside the ``with`` block, what the image's cells read of each token, mean over heads and blocks.

    Of a UNet it is the softmax of cross-attention, over all tokens, enlarged to the size of the latents; of FLUX the
    part of the joint softmax that lies on the text. Queries and keys are those that the stock modules computed.

    Args:
        denoiser: A stock ``UNet2DConditionModel`` or ``FluxTransformer2DModel``.
        of_step: For each pass of a step the branches in its rows.
        take: Called behind each pass of "cond" with the step's index and [picture token h w], in float32 at least.
        at_steps: The indices of the steps that are wanted; None for all.
        blocks: What is counted in, by the beginnings of names of blocks: ``"up"``, ``"mid.0"``, ``"double.3"``. None
            takes, of a UNet, all but ``mid``, as Tang et al. 2022 do; of FLUX all.

    Returns:
        The names of the blocks that are counted in.

    Raises:
        UnsupportedTowerError: The denoiser is of another kind, or has no cross-attention.
        VitLensError: There is no such block, or attention is not computed as diffusers does it.
    """
    check_wirable(denoiser)
    chosen = _chosen(denoiser, blocks)
    now = Recording(of_step, at_steps, take)
    with ExitStack() as stack:
        handles = [denoiser.register_forward_pre_hook(now.before, with_kwargs=True)]
        handles.append(denoiser.register_forward_hook(now.after))
        for handle in handles:
            stack.callback(handle.remove)
        for name, path in chosen.items():
            for handle in _watched(denoiser, name, path, now):
                stack.callback(handle.remove)
        yield list(chosen)


def attention_to(
    q: Float[Tensor, "row query head d_head"], k: Float[Tensor, "row key head d_head"], n: int
) -> Float[Tensor, "row query {n}"]:
    """Return softmax(q k / sqrt(d_head)) of the first keys, mean over heads, in float32 at least, head by head.

    Args:
        q: The queries.
        k: The keys; the softmax is over all of them.
        n: How many keys are returned.

    >>> from vit_lens.diffusion.attention import attention_to
    >>> attention_to(torch.zeros(1, 2, 3, 4), torch.ones(1, 5, 3, 4), 2)
    tensor([[[0.2000, 0.2000],
             [0.2000, 0.2000]]])
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    total = q.new_zeros((len(q), q.shape[1], n), dtype=wide)
    for head in range(q.shape[2]):
        scores = q[:, :, head].to(wide) @ k[:, :, head].to(wide).transpose(1, 2) / q.shape[-1] ** 0.5
        total += scores.softmax(-1)[..., :n]
    return total / q.shape[2]


def rotated(
    x: Float[Tensor, "row pos head d_head"], turn: tuple[Tensor, Tensor], start: int = 0
) -> Float[Tensor, "row pos head d_head"]:
    """Return queries or keys turned by their positions, in the pairs and the precision of FLUX in diffusers.

    Args:
        x: The queries or keys.
        turn: Cosines and sines [pos d_head].
        start: The position of the first.
    """
    cos, sin = (part[start : start + x.shape[1], None].to(x.device) for part in turn)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], -1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def _chosen(denoiser: Any, blocks: str | Sequence[str] | None) -> dict[str, str]:
    """Return the paths of the attentions that are counted in, by the names of their blocks."""
    kinds = {row.cls: name for name, row in DENOISERS.items() if name in ("unet", "flux")}
    kind = next((kinds[cls.__name__] for cls in type(denoiser).__mro__ if cls.__name__ in kinds), None)
    if kind is None:
        raise UnsupportedTowerError(
            f"word maps of a {type(denoiser).__name__} are not known here; expected one of {', '.join(kinds)}"
        )
    part, below = ("cross_attn.hook_z", "attn2") if kind == "unet" else (".attn.hook_z", "attn")
    every = {
        name.removesuffix(part).rstrip("."): f"{place.block}.{below}"
        for name, place in places(denoiser, DENOISERS[kind]).items()
        if name.endswith(part) and ".text." not in name
    }
    if kind == "unet":
        every = {name: path for name, path in every.items() if denoiser.get_submodule(path).is_cross_attention}
    if not every:
        raise UnsupportedTowerError(
            f"this {type(denoiser).__name__} has no cross-attention: no part of it reads a prompt"
        )
    if blocks is None:
        usual = {name: path for name, path in every.items() if not name.startswith("mid.")}
        return usual or every
    wanted = [blocks] if isinstance(blocks, str) else list(blocks)
    for one in wanted:
        if not any(_is_in(name, one) for name in every):
            known = dict.fromkeys(".".join(name.split(".")[:n]) for name in every for n in (1, 2, 3))
            raise VitLensError(f"no block {one!r} that reads a prompt; nearest: {nearest(str(one), known)}")
    return {name: path for name, path in every.items() if any(_is_in(name, one) for one in wanted)}


def _is_in(name: str, block: str) -> bool:
    return f"{name}.".startswith(f"{block}.")


def _watched(denoiser: nn.Module, name: str, path: str, now: Recording) -> list[Any]:
    attn: Any = denoiser.get_submodule(path)
    processor = type(attn.processor).__name__
    if processor not in _STOCK or getattr(attn, "fused_projections", False):
        told = "has fused projections (unfuse_qkv_projections)" if processor in _STOCK else f"is run by a {processor}"
        raise VitLensError(f"attention in {name} {told}; expected a processor of diffusers: {', '.join(_STOCK)}")
    seen: dict[str, Any] = {}

    def keep(part: str) -> Callable[..., None]:
        def take(module: nn.Module, args: Any, output: Tensor) -> None:
            if now.is_wanted:
                seen[part] = now.rows(output)

        return take

    def check(module: nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs.get("attention_mask") is not None:
            raise VitLensError(f"attention in {name} is given a mask, which word maps do not know")
        seen["turn"] = kwargs.get("image_rotary_emb")

    handles = [attn.register_forward_pre_hook(check, with_kwargs=True)]
    if path.endswith("attn2"):
        if attn.norm_q is not None or attn.norm_k is not None:
            raise VitLensError(f"attention in {name} norms queries and keys, which word maps of a UNet do not know")
        parts = {"q": attn.to_q, "k": attn.to_k}
        transformer = denoiser.get_submodule(path.split(".transformer_blocks.")[0])

        def measure(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen["size"] = (args[0] if args else kwargs["hidden_states"]).shape[-2:]

        handles.append(transformer.register_forward_pre_hook(measure, with_kwargs=True))
    else:
        parts = {"q": attn.norm_q, "k": attn.norm_k}
        if attn.added_kv_proj_dim is not None:
            parts["text_k"] = attn.norm_added_k

    def done(module: nn.Module, args: Any, output: Any) -> None:
        if now.is_wanted:
            found = _of_unet(attn, seen) if "size" in seen else _of_flux(seen, now)
            size = seen.get("size", now.size)
            now.add(found.transpose(1, 2).unflatten(-1, tuple(size)))
        seen.clear()

    handles += [module.register_forward_hook(keep(part)) for part, module in parts.items()]
    return [*handles, attn.register_forward_hook(done)]


def _of_unet(attn: Any, seen: dict[str, Any]) -> Float[Tensor, "row query token"]:
    q, k = (seen[part].unflatten(-1, (attn.heads, -1)) for part in ("q", "k"))
    return attention_to(q, k, k.shape[1])


def _of_flux(seen: dict[str, Any], now: Recording) -> Float[Tensor, "row query token"]:
    q, k, n = seen["q"], seen["k"], now.n_text
    if "text_k" in seen:
        k = torch.cat([seen["text_k"], k], 1)
    else:  # text and image are one sequence
        q = q[:, n:]
    return attention_to(rotated(q, seen["turn"], n), rotated(k, seen["turn"]), n)
