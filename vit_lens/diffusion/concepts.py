"""ConceptAttention in FLUX's double blocks: words as tokens that read the picture, and that nothing reads."""

__all__ = ["recorded_concepts"]

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.diffusion.attention import Recording, Take
from vit_lens.diffusion.hooked import HookedDiffusion
from vit_lens.diffusion.wiring import check_wirable
from vit_lens.errors import TextError, UnsupportedTowerError, VitLensError, nearest

_MOST = 65504  # of float16, where diffusers cuts the text stream off


@contextmanager
def recorded_concepts(
    model: HookedDiffusion,
    words: Sequence[str],
    of_step: Sequence[tuple[str, ...]],
    take: Take,
    *,
    length: int,
    at_steps: Collection[int] | None = None,
    blocks: str | Sequence[str] | None = None,
) -> Iterator[None]:
    """Compute, inside the ``with`` block, each cell's softmax over words in the output space of attention.

    As in the authors' code for diffusers: a word's token is T5's first of the word alone, its pooled vector CLIP's of
    all words; it goes through the text stream's weights at position 0, and reads the image and the other words. What
    attention writes, behind the output projections, is compared by its product.

    Args:
        model: The hooked FLUX.
        words: The words.
        of_step: For each pass of a step the branches in its rows.
        take: Called behind each pass of "cond" with the step's index and [picture word h w], mean over blocks.
        length: How many positions T5 reads.
        at_steps: The indices of the steps that are wanted; None for all.
        blocks: Which double blocks are counted, such as ``["double.10", "double.11"]``; None for all.

    Raises:
        UnsupportedTowerError: The model is no FLUX.
        VitLensError: There is no such block, or hooks are on the model.
        TextError: There are no two words to choose between.
    """
    if model.format != "flux":
        raise UnsupportedTowerError(
            f"kind='concepts' is of FLUX's double blocks; a {model.format} has kind='attention'"
        )
    if len(words) < 2:
        raise TextError(f"a softmax over {list(words)} is 1 everywhere; give two words or more")
    if hooked := model.hooked_names():
        raise VitLensError(f"kind='concepts' runs blocks once more, and {hooked[0]} has a hook; take it off first")
    check_wirable(model.denoiser)
    double = list(model.denoiser.transformer_blocks)
    names = [f"double.{index}" for index in range(len(double))]
    wanted = names if blocks is None else [blocks] if isinstance(blocks, str) else list(blocks)
    wanted = names if wanted == ["double"] else wanted
    if absent := [one for one in wanted if one not in names]:
        raise VitLensError(
            f"concepts are read in double blocks, not in {absent[0]!r}; nearest: {nearest(absent[0], names)}"
        )
    now = Recording(of_step, at_steps, take)
    stream = _Concepts(now, model.denoiser, *_encoded(model.pipeline, words, length))
    with ExitStack() as stack:
        handles = [
            model.denoiser.register_forward_pre_hook(now.before, with_kwargs=True),
            model.denoiser.time_text_embed.register_forward_hook(stream.begin),
            *(
                block.attn.register_forward_hook(stream.through(block, name in wanted), with_kwargs=True)
                for name, block in zip(names, double, strict=True)
            ),
            model.denoiser.register_forward_hook(now.after),
        ]
        for handle in handles:
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def _encoded(
    pipeline: Any, words: Sequence[str], length: int
) -> tuple[Float[Tensor, "word d_text"], Float[Tensor, "1 d_pooled"]]:
    given = {"prompt_2": None, "max_sequence_length": length, "num_images_per_prompt": 1}
    tokens, _, _ = pipeline.encode_prompt(prompt=list(words), **given)
    _, pooled, _ = pipeline.encode_prompt(prompt=" ".join(words), **given)
    return tokens[:, 0], pooled


class _Concepts:
    """The words' own stream, which goes along with a pass."""

    def __init__(self, now: Recording, denoiser: Any, tokens: Tensor, pooled: Tensor):
        self.now, self.denoiser, self.tokens, self.pooled = now, denoiser, tokens, pooled

    # Modules run by their forward: hooks on them are for the pass itself.

    def begin(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Embed the words, and the step with their pooled vector."""
        if self.now.is_wanted:
            *time, pooled = args
            self.temb = module.forward(*time, self.pooled.to(pooled).expand_as(pooled))
            held = self.denoiser.context_embedder.forward(self.tokens.to(output))
            self.held = held.expand(len(output), *held.shape)

    def through(self, block: Any, is_counted: bool) -> Callable[..., None]:
        def after(attn: Any, args: Any, kwargs: Any, output: Any) -> None:
            if not self.now.is_wanted:
                return
            normed, gate, shift, scale, gate_mlp = block.norm1_context.forward(self.held, emb=self.temb)
            n = normed.shape[1]
            cos, sin = (part[self.now.n_text :] for part in kwargs["image_rotary_emb"])
            still = torch.cat([cos.new_ones(n, cos.shape[1]), cos]), torch.cat([sin.new_zeros(n, sin.shape[1]), sin])
            written = attn.forward(kwargs["hidden_states"], normed, image_rotary_emb=still)[1]
            if is_counted:
                wide = torch.promote_types(written.dtype, torch.float32)
                shares = (output[0].to(wide) @ written.to(wide).transpose(1, 2)).softmax(-1)
                self.now.add(shares.transpose(1, 2).unflatten(-1, self.now.size))
            held = self.held + gate[:, None] * written
            normed = block.norm2_context.forward(held) * (1 + scale[:, None]) + shift[:, None]
            held = held + gate_mlp[:, None] * block.ff_context.forward(normed)
            self.held = held.clip(-_MOST, _MOST) if held.dtype == torch.float16 else held

        return after
