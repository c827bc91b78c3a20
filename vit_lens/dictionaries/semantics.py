"""What the numbers of a dictionary mean, and which activations they are of."""

__all__ = [
    "BY_THRESHOLD",
    "COUNTED",
    "PURSUITS",
    "Branch",
    "EncoderKind",
    "Origin",
    "Provenance",
    "Semantics",
    "Stream",
]

from dataclasses import dataclass
from typing import Literal, get_args

from vit_lens.addresses import as_index
from vit_lens.errors import DictionaryError, nearest

EncoderKind = Literal["relu", "topk", "batchtopk", "jumprelu", "pursuit", "signed"]
Stream = Literal["output", "update"]
Branch = Literal["cond", "uncond"]
COUNTED, BY_THRESHOLD, PURSUITS = ("topk", "pursuit", "signed"), ("batchtopk", "jumprelu"), ("pursuit", "signed")


@dataclass(frozen=True, kw_only=True)
class Semantics:
    """How codes come from activations, and activations from codes. Nothing has a default: a file says it.

    Attributes:
        encoder: ``relu``; ``topk``, the ``k`` largest; ``batchtopk`` and ``jumprelu``, what lies above its threshold;
            ``pursuit``, non-negative gradient pursuit; ``signed``, matching pursuit with codes of either sign.
        k: How many codes of a token are not zero at most; None for those that count none.
        subtracts_bias: Whether ``b_dec`` is taken from the input before it is encoded.
        relu_after_topk: Whether a code that is among the ``k`` largest and negative becomes zero.
        input_scale: What activations are multiplied by first, and what is decoded divided by last.
        layer_norm: Whether each token is brought to mean 0 and spread 1 first, and what is decoded back.
        rescales_by_decoder_norm: Whether features are compared as if all rows of ``W_dec`` had length 1.

    Raises:
        DictionaryError: There is no such encoder, ``k`` is missing, or given where nothing counts.

    >>> Semantics(encoder="topk", k=None, subtracts_bias=True, relu_after_topk=True, input_scale=1.0, layer_norm=False,
    ...     rescales_by_decoder_norm=False)
    Traceback (most recent call last):
    vit_lens.errors.DictionaryError: k=None with encoder='topk'; expected a whole number of codes, at least 1
    """

    encoder: EncoderKind
    k: int | None
    subtracts_bias: bool
    relu_after_topk: bool
    input_scale: float
    layer_norm: bool
    rescales_by_decoder_norm: bool

    def __post_init__(self) -> None:
        if self.encoder not in get_args(EncoderKind):
            raise DictionaryError(
                f"encoder={self.encoder!r}; nearest: {nearest(str(self.encoder), get_args(EncoderKind))}"
            )
        k = as_index(self.k)
        if self.encoder in COUNTED and (k is None or k < 1):
            raise DictionaryError(
                f"k={self.k!r} with encoder={self.encoder!r}; expected a whole number of codes, at least 1"
            )
        if self.encoder not in COUNTED and self.k is not None:
            raise DictionaryError(f"k={self.k!r} with encoder={self.encoder!r}, which counts no codes; give k=None")
        if not self.input_scale > 0:
            raise DictionaryError(f"input_scale={self.input_scale!r}; expected a number above 0")

    @classmethod
    def plain(cls, encoder: EncoderKind, k: int | None = None) -> "Semantics":
        """Return those of the dictionaries that are learnt here: the bias is subtracted, and no code negative.

        >>> Semantics.plain("topk", 16).subtracts_bias
        True
        """
        return cls(
            encoder=encoder, k=k, subtracts_bias=True, relu_after_topk=True, input_scale=1.0, layer_norm=False,
            rescales_by_decoder_norm=False,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which activations tokens are. What is None is not known, and not checked; of models without steps, there is none.

    Attributes:
        site: The name of the hook point.
        stream: ``output``, what the hook point holds; ``update``, what a block adds: its ``hook_resid_post`` without
            its ``hook_resid_pre``.
        tokens: Which tokens were read, as :class:`ActivationSource` takes them: ``all``, ``patches``, ``cls``.
        model: The id of the model.
        fingerprint: The digits that identify its weights.
        at_steps: The steps that a denoiser was read at, counted from 0.
        sigmas: The noise levels of these steps; None for one that is not known, or not finite.
        branch: The branch of guidance, ``cond`` or ``uncond``.
        run: What its pipeline was called with: ``steps``, ``height``, ``width``, ``guidance_scale`` and so on, and the
            ``noise_seed`` that the noise of each input is drawn by.

    >>> Provenance(site="blocks.5.hook_resid_post", tokens="patches").stream
    'output'
    """

    site: str | None = None
    stream: Stream = "output"
    tokens: str = "all"
    model: str | None = None
    fingerprint: str | None = None
    at_steps: tuple[int, ...] | None = None
    sigmas: tuple[float | None, ...] | None = None
    branch: Branch | None = None
    run: dict | None = None


@dataclass(frozen=True, kw_only=True)
class Origin(Provenance):
    """Which activations a dictionary is of, and how it came to be. What is None is not known, and not checked.

    Attributes:
        learnt: How it was learnt, or read, in words.

    >>> Origin(site="blocks.5.hook_resid_post").tokens
    'all'
    """

    learnt: str = ""
