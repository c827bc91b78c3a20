"""``Dictionary``: sparse features of a stream of activations, with everything that their meaning depends on."""

__all__ = ["Dictionary"]

import json
import warnings
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries.belonging import hook_name_of, identity_of
from vit_lens.dictionaries.known import find_layout
from vit_lens.dictionaries.pursuit import gradient_pursuit, matching_pursuit
from vit_lens.dictionaries.semantics import BY_THRESHOLD, COUNTED, PURSUITS, Origin, Semantics
from vit_lens.dictionaries.splicing import spliced
from vit_lens.errors import DictionaryError, OutputError, expect, nearest
from vit_lens.files import as_path, check_fields, file_tensors, open_tensors, parse_json, save_tensors
from vit_lens.numerics import without_autocast

_FORMAT = "vit_lens.dictionary.1"
_ADVICE = "vit_lens.dictionaries.fit(source, config).save(path) makes one"
_LN_EPS = 1e-5


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Dictionary:
    """Directions of a stream of activations, and how much of each is in a token.

    ``decode(encode(x))`` is near ``x``. :meth:`LoudHookedRootModule.spliced` puts one into a model.

    Attributes:
        W_dec: What a feature writes.
        b_dec: What is written whatever the features.
        semantics: How it encodes.
        W_enc: What a feature reads; None for pursuit.
        b_enc: What is added to it; None for pursuit.
        threshold: What a code must exceed, for ``jumprelu`` and ``batchtopk``; None for others.
        metric: What pursuit multiplies what is left by before it measures it: a factor for each dimension, or a matrix;
            None for activations as they are.
        origin: Which activations it is of.
        labels: The (input, token) that each atom of ITDA is; None for others.
        frequency: The share of held-out tokens that each feature fired on; None where that was not measured.
        statistics: Numbers of how good it is on held-out inputs, by name.

    Raises:
        DictionaryError: Tensors do not fit each other or the semantics, or are not finite.

    >>> x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    >>> found = vl.Dictionary(W_dec=torch.eye(6), b_dec=torch.zeros(6), semantics=Semantics.plain("signed", 6))
    >>> torch.allclose(found.decode(found.encode(x)), x, atol=1e-6)
    True
    >>> vl.Dictionary.load(found.save(tmp / "dictionary.safetensors"))
    Dictionary(6 features of width 6, signed k=6, of no site)
    """

    W_dec: Float[Tensor, "feature d"]
    b_dec: Float[Tensor, " d"]
    semantics: Semantics
    W_enc: Float[Tensor, "d feature"] | None = None
    b_enc: Float[Tensor, " feature"] | None = None
    threshold: Float[Tensor, " feature"] | None = None
    metric: Float[Tensor, " d"] | Float[Tensor, "d d"] | None = None
    origin: Origin = field(default_factory=Origin)
    labels: Int[Tensor, "feature 2"] | None = None
    frequency: Float[Tensor, " feature"] | None = None
    statistics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect(self.W_dec, Tensor, "W_dec", DictionaryError, "[feature d]")
        expect(
            self.semantics, Semantics, "semantics", DictionaryError, "how it encodes, vit_lens.dictionaries.Semantics"
        )
        if self.W_dec.ndim != 2 or not self.W_dec.is_floating_point() or 0 in self.W_dec.shape:
            raise DictionaryError(f"W_dec is {tuple(self.W_dec.shape)} {self.W_dec.dtype}; expected floats [feature d]")
        n, d = self.W_dec.shape
        kind = self.semantics.encoder
        shapes = {
            "b_dec": [(d,)], "W_enc": [(d, n)], "b_enc": [(n,)], "threshold": [(n,)], "metric": [(d,), (d, d)],
            "labels": [(n, 2)], "frequency": [(n,)],
        }  # fmt: skip
        needed = {"b_dec"} | ({"W_enc", "b_enc"} if kind not in PURSUITS else set())
        needed |= {"threshold"} if kind in BY_THRESHOLD else set()
        for name, allowed in shapes.items():
            value = getattr(self, name)
            if value is None and name not in needed:
                continue
            if not isinstance(value, Tensor) or tuple(value.shape) not in allowed:
                came = f"{tuple(value.shape)}" if isinstance(value, Tensor) else "not there"
                raise DictionaryError(
                    f"{name} is {came}; expected {' or '.join(map(str, allowed))} for {n} features of width {d} with "
                    f"encoder={kind!r}"
                )
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise DictionaryError(f"{name} holds NaN or inf")
        if not torch.isfinite(self.W_dec).all():
            raise DictionaryError("W_dec holds NaN or inf")
        if kind == "topk" and (self.semantics.k or 0) > n:
            raise DictionaryError(f"k={self.semantics.k} of {n} features")

    # ---- files -------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, layout: str | None = None, **said: Any) -> "Dictionary":
        """Read a dictionary: of :meth:`save`, or in the layout of another library.

        Args:
            path: The file, or the folder that holds it.
            layout: The name of the layout, a key of ``vit_lens.dictionaries.LAYOUTS``; None looks which one it is.
            **said: What a file leaves open, as fields of :class:`Semantics` and :class:`Origin`:
                ``subtracts_bias=True``, ``site="blocks.5.hook_resid_post"``.

        Raises:
            DictionaryError: There is none, it is damaged, of no known layout, or does not say what its numbers mean.
        """
        place = as_path(path, DictionaryError)
        return find_layout(place, layout)(place, said)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, layout: str | None = None, *, revision: str | None = None,
        cache_dir: str | Path | None = None, **said: Any,
    ) -> "Dictionary":  # fmt: skip
        """Read a dictionary by its name: one that ships, one on the Hugging Face Hub, or a path.

        Args:
            name: ``"mini-topk"``, ``"mini-itda"`` and the same of ``mini-sd`` and ``mini-flux``; a Hub id,
                ``"owner/name"`` or ``"owner/name:folder"``; or what :meth:`load` takes.
            layout: As :meth:`load` takes it.
            revision: The branch, tag or commit of a Hub id; None takes its main branch.
            cache_dir: Where downloads are kept; None takes Hugging Face's default.
            **said: As :meth:`load` takes it.

        Raises:
            DictionaryError: As :meth:`load` says, or it cannot be fetched.

        >>> vl.Dictionary.from_pretrained("mini-topk")
        Dictionary(512 features of width 128, topk k=16, of blocks.5.hook_resid_post)
        """
        from vit_lens.dictionaries.by_name import find_dictionary

        return cls.load(find_dictionary(name, revision=revision, cache_dir=cache_dir), layout, **said)

    @classmethod
    def load_own(cls, path: Path) -> "Dictionary":
        """Read what :meth:`save` wrote; see :meth:`load`."""
        with open_tensors(path, [_FORMAT], what="a dictionary", error=DictionaryError, advice=_ADVICE) as (file, meta):
            said = parse_json(meta["fields"], f"the metadata of {path}", DictionaryError, _ADVICE)
            tensors = file_tensors(file)
        semantics = Semantics(
            **check_fields(Semantics, said.pop("semantics", None), f"{path}: semantics", DictionaryError)
        )
        origin = Origin(**check_fields(Origin, said.pop("origin", None), f"{path}: origin", DictionaryError))
        return cls(**check_fields(cls, tensors | said | {"semantics": "", "origin": ""}, str(path), DictionaryError)
                   | {"semantics": semantics, "origin": origin})  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the dictionary as one safetensors file, whole or not at all, and return its path.

        Args:
            path: The file. :func:`vit_lens.dictionaries.save_sae_lens` writes SAELens' layout.

        Raises:
            OutputError: The file cannot be written.
        """
        told = {"semantics": asdict(self.semantics), "origin": asdict(self.origin), "statistics": self.statistics}
        place = as_path(path, OutputError)
        return save_tensors(self._tensors(), place, {"format": _FORMAT, "fields": json.dumps(told)})

    # ---- what it is --------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        k = "" if self.semantics.k is None else f" k={self.semantics.k}"
        where = "of no site" if self.origin.site is None else f"of {self.origin.site}"
        return f"Dictionary({self.n_features} features of width {self.d}, {self.semantics.encoder}{k}, {where})"

    @property
    def n_features(self) -> int:
        """The number of features."""
        return len(self.W_dec)

    @property
    def d(self) -> int:
        """The width of the activations."""
        return self.W_dec.shape[1]

    @property
    def dead(self) -> list[int]:
        """The features that fired on no held-out token.

        Raises:
            DictionaryError: That was not measured.
        """
        if self.frequency is None:
            raise DictionaryError("it was not measured how often features fire; evaluate(dictionary, source) does")
        return (self.frequency == 0).nonzero()[:, 0].tolist()

    @property
    def takes_gradients(self) -> bool:
        """Whether codes are a function that gradients go through; pursuit chooses, and has none."""
        return self.semantics.encoder not in PURSUITS

    def feature(self, index: int) -> int:
        """Return the index of a feature, of Python.

        Raises:
            DictionaryError: There is no such feature.
        """
        if (found := as_index(index)) is None or not 0 <= found < self.n_features:
            raise DictionaryError(f"no feature {index!r}: there are {self.n_features}, counted from 0")
        return found

    def direction(self, index: int) -> Float[Tensor, " d"]:
        """Return what a feature writes, at length 1.

        A feature that fired on no held-out token is named in a warning.

        Args:
            index: The feature.

        Raises:
            DictionaryError: There is no such feature, or it writes nothing.
        """
        row = self.W_dec[(found := self.feature(index))]
        if not (length := row.norm()) > 0:
            raise DictionaryError(f"feature {found} writes nothing: its row of W_dec is zero")
        if self.frequency is not None and self.frequency[found] == 0:
            warnings.warn(f"feature {found} is dead: it fired on no held-out token", stacklevel=2)
        return row / length

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Dictionary":
        """Return the dictionary on another device, or with numbers of another dtype.

        Args:
            device: The device; None leaves it.
            dtype: The floating-point dtype; None leaves it.
        """
        moved = {name: value.to(device=device) for name, value in self._tensors().items()}
        cast = {name: value.to(dtype=dtype) for name, value in moved.items() if value.is_floating_point()}
        return replace(self, **(moved | cast))

    def with_k(self, k: int) -> "Dictionary":
        """Return the same dictionary with another number of codes for each token.

        Raises:
            DictionaryError: Its encoder counts none.
        """
        if self.semantics.encoder not in COUNTED:
            raise DictionaryError(
                f"an encoder {self.semantics.encoder!r} counts no codes; encode(x, 'pursuit', k=...) does, with any "
                "dictionary"
            )
        return replace(self, semantics=replace(self.semantics, k=as_index(k)))

    def check(self, model: Any, site: str | None = None) -> str:
        """Return the name of the hook point at which the dictionary belongs in a model.

        Args:
            model: A hooked model.
            site: The hook point, or its address such as ``L5.resid_post``; None for the dictionary's own.

        Raises:
            DictionaryError: The dictionary is of another model, hook point or width, or says no hook point.
        """
        own, where = self.origin.site, self.origin.site if site is None else site
        if where is None:
            raise DictionaryError("this dictionary says no hook point; give site=")
        name = hook_name_of(model, str(where))
        if own is not None and hook_name_of(model, own) != name:
            raise DictionaryError(
                f"this dictionary is of {own!r}, not of {name!r}; learn one there, or splice it at its own"
            )
        if self.origin.fingerprint is not None:
            known, digits = identity_of(model)
            if digits != self.origin.fingerprint:
                raise DictionaryError(
                    f"this dictionary is of {self.origin.model} (weights {self.origin.fingerprint}), the model is "
                    f"{known} (weights {digits}); its features mean nothing there"
                )
        width = getattr(getattr(model, "cfg", None), "d_model", None)
        last = name.rpartition(".")[2]
        if width is not None and last.startswith(("hook_resid_", "hook_attn_out", "hook_mlp_out")) and width != self.d:
            if not name.startswith("attn_pool."):
                raise DictionaryError(f"this dictionary is of width {self.d}, {name!r} of width {width}")
        return name

    def spliced_into(self, model: Any, site: str | None = None, **options: Any) -> AbstractContextManager[Any]:
        """Put the dictionary into a model for the time of a ``with`` block; see :func:`spliced`.

        Args:
            model: Any hooked model.
            site: The hook point, or its address; None for the dictionary's own.
            **options: What :func:`spliced` takes.
        """
        return spliced(model, self, site, **options)

    # ---- codes -------------------------------------------------------------------------------------------

    @without_autocast()
    def encode(
        self, x: Float[Tensor, "*batch d"], method: Literal["own", "pursuit", "signed"] | None = None,
        *, k: int | None = None,
    ) -> Float[Tensor, "*batch feature"]:  # fmt: skip
        """Return how much of each feature is in each token.

        Args:
            x: Activations.
            method: ``pursuit`` and ``signed`` find codes by pursuit over the directions of any dictionary; None and
                ``own`` take the dictionary's encoder.
            k: The number of codes of a token, for pursuit; None takes the dictionary's.

        Returns:
            The codes, in the wider of the dtypes of ``x`` and the dictionary.

        Raises:
            DictionaryError: The activations are of another width or device, or pursuit has no ``k``.
        """
        kind = self._method(method)
        steps = self.semantics.k if k is None else k
        if kind not in COUNTED and k is not None:
            raise DictionaryError(f"k={k!r} with encoder {kind!r}, which counts no codes; method='pursuit' does")
        if kind not in PURSUITS:
            return self.activate(self.pre_codes(x), k=steps)
        if steps is None:
            raise DictionaryError(f"method={kind!r} needs k=, the number of codes: this dictionary counts none")
        target = _measured(self._prepared(x)[0] - self.b_dec, self.metric)
        unit, length = (part.to(target) for part in self._atoms)
        pursue = gradient_pursuit if kind == "pursuit" else matching_pursuit
        codes = pursue(target.reshape(-1, self.d), unit, steps).dense(self.n_features)
        return (codes / length).view(*x.shape[:-1], self.n_features)

    @without_autocast()
    def pre_codes(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch feature"]:
        """Return what the encoder computes before its nonlinearity.

        Raises:
            DictionaryError: The dictionary encodes by pursuit, which has no such thing, or the width differs.
        """
        if self.W_enc is None or self.b_enc is None:
            raise DictionaryError("this dictionary has no encoder of its own; method='pursuit' finds codes")
        inner = self._prepared(x)[0]
        inner = inner - self.b_dec if self.semantics.subtracts_bias else inner
        pre = inner @ self.W_enc.to(inner) + self.b_enc
        return pre * self.W_dec.norm(dim=1) if self.semantics.rescales_by_decoder_norm else pre

    def activate(
        self, pre: Float[Tensor, "*batch feature"], *, k: int | None = None
    ) -> Float[Tensor, "*batch feature"]:
        """Return the codes that the nonlinearity makes of :meth:`pre_codes`.

        Args:
            pre: What was computed before it.
            k: The number of codes of a token, for ``topk``; None takes the dictionary's.
        """
        said = self.semantics
        if said.encoder == "topk":
            top = pre.topk(said.k if k is None else k, dim=-1)  # pyright: ignore[reportArgumentType]
            values = top.values.relu() if said.relu_after_topk else top.values
            return torch.zeros_like(pre).scatter(-1, top.indices, values)
        if self.threshold is not None and said.encoder in BY_THRESHOLD:
            return pre.relu() * (pre > self.threshold)
        return pre.relu()

    @without_autocast()
    def decode(
        self, codes: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        """Return the activations that codes stand for.

        Args:
            codes: How much of each feature is in each token.
            x: The activations that were encoded, whose mean and spread a dictionary with ``layer_norm`` puts back.

        Raises:
            DictionaryError: The codes are of another number of features, or ``x`` is needed.
        """
        return self.write(codes, x) + self._offset(x)

    @without_autocast()
    def write(
        self, codes: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d"] | None = None,
        features: Int[Tensor, " chosen"] | None = None,
    ) -> Float[Tensor, "*batch d"]:  # fmt: skip
        """Return what codes write, without what is written whatever they are: :meth:`decode` without its bias.

        Args:
            codes: Codes, or changes of codes.
            x: As for :meth:`decode`.
            features: The features that the columns of ``codes`` are of; None for all.
        """
        rows = self.W_dec if features is None else self.W_dec[features]
        if codes.shape[-1] != len(rows):
            raise DictionaryError(f"codes of {codes.shape[-1]} features; this dictionary has {self.n_features}")
        wide = torch.promote_types(codes.dtype, rows.dtype)
        rows = rows.to(wide)
        if self.semantics.rescales_by_decoder_norm:
            rows = rows / rows.norm(dim=1, keepdim=True)
        return (codes.to(wide) @ rows) * self._spread(x)

    @cached_property
    def _atoms(self) -> tuple[Tensor, Tensor]:
        """What pursuit chooses from: unit rows in the space of the metric, and the lengths that they had there."""
        rows = self.W_dec
        if self.semantics.rescales_by_decoder_norm:
            rows = rows / rows.norm(dim=1, keepdim=True)
        rows = _measured(rows, self.metric)
        length = rows.norm(dim=1)
        length = torch.where(length > 0, length, 1)
        return rows / length[:, None], length

    def _method(self, method: str | None) -> str:
        known = ("own", *PURSUITS)
        if method is not None and method not in known:
            raise DictionaryError(f"method={method!r}; nearest: {nearest(str(method), known)}")
        return self.semantics.encoder if method in (None, "own") else str(method)

    def _prepared(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        expect(x, Tensor, "x", DictionaryError, "activations [... d]")
        if x.ndim < 1 or x.shape[-1] != self.d:
            raise DictionaryError(f"activations {tuple(x.shape)}; this dictionary is of width {self.d}")
        if x.device != self.W_dec.device:
            raise DictionaryError(
                f"activations on {x.device}, the dictionary on {self.W_dec.device}: dictionary.to(device)"
            )
        x = x.to(torch.promote_types(x.dtype, self.W_dec.dtype))
        x = x if self.semantics.input_scale == 1 else x * self.semantics.input_scale
        if not self.semantics.layer_norm:
            return x, None
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.std(-1, keepdim=True) + _LN_EPS), x

    def _spread(self, x: Tensor | None) -> Tensor | float:
        """Return what is decoded is multiplied by."""
        if not self.semantics.layer_norm:
            return 1 / self.semantics.input_scale
        return self._scaled(x).std(-1, keepdim=True) / self.semantics.input_scale

    def _offset(self, x: Tensor | None) -> Tensor:
        bias = self.b_dec * self._spread(x)
        if self.semantics.layer_norm:
            bias = bias + self._scaled(x).mean(-1, keepdim=True) / self.semantics.input_scale
        return bias

    def _scaled(self, x: Tensor | None) -> Tensor:
        if x is None:
            raise DictionaryError(
                "this dictionary normalises each token; decode(codes, x) needs the x that was encoded"
            )
        return self._prepared(x)[1]  # pyright: ignore[reportReturnType]

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


def _measured(x: Tensor, metric: Tensor | None) -> Tensor:
    if metric is None:
        return x
    return x * metric.to(x) if metric.ndim == 1 else x @ metric.to(x)
