"""Captions stand where a language model has its vocabulary."""

__all__ = ["Vocabulary"]

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.errors import VitLensError
from vit_lens.towers.contract import CaptionBank


class Vocabulary(nn.Module):
    """What TransformerLens' tools ask of a model's tokens, for a model that has ``W_U``."""

    _vocabulary: CaptionBank | None = None

    if TYPE_CHECKING:  # what the model has

        @property
        def W_U(self) -> Float[Tensor, "d_pooled d_embed"]: ...

    @property
    def vocabulary(self) -> CaptionBank | None:
        """The captions that :meth:`to_single_token` and the cache's ``logit_attrs`` and ``logit_lens`` know.

        Raises:
            VitLensError: What is set is no text bank, or its captions were embedded for another encoder.
        """
        return self._vocabulary

    @vocabulary.setter
    def vocabulary(self, bank: CaptionBank | None) -> None:
        if bank is not None and not isinstance(bank, CaptionBank):
            raise VitLensError(f"a vocabulary is a TextBank, not {type(bank).__name__}: TextBank.from_open_clip(...)")
        self._vocabulary = None if bank is None else bank.check(self)

    def to_tokens(self, pixels: Any, prepend_bos: bool = True) -> Any:
        """Return the input as it is: TransformerLens' tools ask for tokens, and an image model reads pixels.

        ``prepend_bos`` is theirs too; images have no such token.
        """
        return pixels

    def to_single_token(self, caption: str) -> int:
        """Return the index of a caption of the :attr:`vocabulary`.

        Raises:
            VitLensError: There is no vocabulary, or no such caption.
        """
        if self.vocabulary is None:
            raise VitLensError(
                f"{caption!r} needs a vocabulary: model.vocabulary = TextBank.from_open_clip(name, tag, captions)"
            )
        return self.vocabulary.index(caption)

    def tokens_to_residual_directions(self, tokens: int | str | Tensor) -> Float[Tensor, "*tokens d_pooled"]:
        """Return the directions that the projection reads as captions, or as dimensions of the embedding.

        With a :attr:`vocabulary`, ``W_U`` times the caption's text embedding of unit norm: a dot product with it
        is the cosine times the norm of the image embedding. Without one, the columns of ``W_U``.

        Args:
            tokens: A caption, or indices of any shape.

        Raises:
            VitLensError: A caption is unknown, or an index out of range.
        """
        try:
            index = torch.as_tensor(self.to_single_token(tokens) if isinstance(tokens, str) else tokens)
            torch.iinfo(index.dtype)
        except VitLensError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:  # no numbers, or none that are whole
            told = f"dtype {tokens.dtype}" if isinstance(tokens, Tensor) else f"type {type(tokens).__name__}"
            raise VitLensError(f"tokens of {told}; expected a caption, or whole numbers of any shape") from error
        table = self.W_U.T
        if self.vocabulary is not None:
            table = self.vocabulary.unit.to(table) @ table
        if (outside := index[(index < 0) | (index >= len(table))]).numel():
            what = "dimensions of the embedding" if self.vocabulary is None else "captions"
            raise VitLensError(f"token {int(outside.flatten()[0])}: there are {len(table)} {what}, counted from 0")
        return table[index.to(table.device)].clone()  # one index gives a view of the weights
