"""Means of what text encoders write, over reference prompts, by aligned positions: start, word k, end, filling."""

__all__ = ["TextMeans"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import Site
from vit_lens.errors import LensError, OutputError, ReferenceMismatchError, TextError, VitLensError, expect
from vit_lens.files import as_path, file_tensors, open_tensors, save_tensors
from vit_lens.identity import fingerprint, forget_fingerprints
from vit_lens.lenses.text_run import PromptReader, TextRun
from vit_lens.numerics import without_autocast
from vit_lens.reference import typical_norm
from vit_lens.towers import ViTActivationCache

_FORMAT = "vit_lens.text_means.2"
_FORMATS = ("vit_lens.text_means.1", _FORMAT)  # .1 has no norms of differences
_SPREADS = ("head", "attn", "mlp")
_KINDS = ("resid_pre", "z", "mlp_out", "counts")
_DIFFERENCE = ".difference"  # behind the name of an encoder
_ADVICE = "make them with TextMeans.of(encoder, prompts).save(path), or `vit-lens reference --prompts FILE`"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TextMeans:
    """What parts of text encoders write on average where a prompt starts, at its word ``k``, at its end and behind it.

    As in :class:`vit_lens.ReferenceMeans`, attention outputs and later residuals are not kept: they follow from ``z``
    and the MLPs, so that heads add up exactly.

    Attributes:
        encoder_id: The id of the encoders, by the content of their weights and what these are kept in.
        n: The number of prompts.
        values: For each encoder, means by role: ``k`` for position ``k`` before the end, then the end, then the
            filling. ``resid_pre`` [role d_model] enters block 0; ``z`` [layer role head d_head] is of every head,
            ``mlp_out`` [layer role d_model] of every MLP.
        counts: For each encoder, how many positions each role's mean is of.
        differences: For each encoder, how far two prompts usually lie apart at the same role of what each head [layer
            head], attention block and MLP [layer] writes: the root mean square over pairs and over the positions up to
            the end, as the final norm sees a vector. Empty for one prompt, and for files of an earlier version.

    Raises:
        VitLensError: There is no prompt, or means are no finite numbers.

    >>> means = vl.TextMeans.of(text_to_image, ["a red star", "a blue ring", "two small stars"])
    >>> means, means.counts["text_encoder"][:4].tolist(), means.counts["text_encoder"][-2:].tolist()
    (TextMeans(3 prompts, text_encoder), [3, 3, 3, 3], [3, 31])
    >>> vl.TextSteeringLens(alpha=5, reference=means).label
    'DSL, mean-anchored, alpha 5'
    >>> vl.TextMeans.load(means.save(tmp / "prompts.safetensors")).content == means.content
    True
    """

    encoder_id: str
    n: int
    values: Mapping[str, Mapping[str, Tensor]]
    counts: Mapping[str, Int[Tensor, " role"]]
    differences: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    _averages: WeakKeyDictionary = field(default_factory=WeakKeyDictionary, init=False)

    def __post_init__(self) -> None:
        held = [mean for by in (self.values, self.differences) for of in by.values() for mean in of.values()]
        if self.n < 1 or not all(bool(mean.isfinite().all()) for mean in held):
            raise VitLensError(f"means of n={self.n} prompts that are no finite numbers; {_ADVICE}")

    @classmethod
    @torch.no_grad()
    def of(
        cls, encoder: PromptReader, prompts: Sequence[str], *, truncate: bool = False, progress: bool = False
    ) -> "TextMeans":
        """Take means over prompts, one after the other; a few hundred that are not studied.

        Args:
            encoder: A :class:`vit_lens.decoders.PromptEncoder`.
            prompts: Texts.
            truncate: Whether prompts that are too long lose their last words; else they are an error.
            progress: Whether to show a bar.

        Raises:
            TextError: There is no prompt, or one is too long.
            LensError: What should run is no encoder of prompts.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise TextError(f"prompts={prompts!r:.60}; means are over several texts, in a list")
        forget_fingerprints(encoder)
        sums: dict[str, dict[str, Tensor]] = {}
        for text in tqdm(prompts, desc="means", unit="prompt", disable=not progress):
            run = TextRun.of(encoder, text, truncate=truncate)
            for name in run.caches:
                _add(sums.setdefault(name, {}), run, name)
        counts = {name: held.pop("counts") for name, held in sums.items()}
        spread = {name: _differences(held, counts[name], encoder, name) for name, held in sums.items()}
        values = {}
        for name, held in sums.items():
            dtype = torch.promote_types(encoder.towers[name].dtype, torch.float32)
            values[name] = {kind: _shares(total, counts[name], kind).to(dtype) for kind, total in held.items()}
        differences = {name: of for name, of in spread.items() if of}
        return cls(encoder_id=encoder.encoder_id, n=len(prompts), values=values, counts=counts, differences=differences)

    @classmethod
    def load(cls, path: str | Path) -> "TextMeans":
        """Read saved means.

        Raises:
            VitLensError: The file is not one of these, or is truncated.
        """
        place = as_path(path, VitLensError)
        with open_tensors(place, _FORMATS, what="means of prompts", error=VitLensError, advice=_ADVICE) as opened:
            file, meta = opened
            held: dict[str, dict[str, Tensor]] = {}
            for name, tensor in file_tensors(file).items():
                encoder, _, kind = name.rpartition(".")
                held.setdefault(encoder, {})[kind] = tensor
            found = {name: held.pop(name) for name in list(held) if name.endswith(_DIFFERENCE)}
            differences = {name.removesuffix(_DIFFERENCE): of for name, of in found.items()}
            if any(sorted(of) != sorted(_SPREADS) for of in differences.values()) or set(differences) - set(held):
                raise VitLensError(f"{place} holds other norms of differences than {', '.join(_SPREADS)}; {_ADVICE}")
            if not held or any(sorted(of) != sorted(_KINDS) for of in held.values()):
                raise VitLensError(f"{place} lacks some of {', '.join(_KINDS)}; {_ADVICE}")
            counts = {encoder: of.pop("counts") for encoder, of in held.items()}
            return cls(
                encoder_id=meta["encoder_id"], n=int(meta["n"]), values=held, counts=counts, differences=differences
            )

    def save(self, path: str | Path) -> Path:
        """Write the means as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        meta = {"format": _FORMAT, "encoder_id": self.encoder_id, "n": str(self.n)}
        norms = {
            f"{name}{_DIFFERENCE}.{kind}": value for name, of in self.differences.items() for kind, value in of.items()
        }
        return save_tensors(self._tensors() | norms, as_path(path, OutputError), meta)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{kind}": value
            for name, of in self.values.items()
            for kind, value in {**of, "counts": self.counts[name]}.items()
        }

    @cached_property
    def content(self) -> str:
        """Sixteen digits that follow from the means."""
        return fingerprint(self._tensors())

    def check(self, encoder: PromptReader) -> "TextMeans":
        """Return the means if they are of these encoders.

        Raises:
            ReferenceMismatchError: They were made with others, or with the same in another precision.
        """
        if self.encoder_id != encoder.encoder_id:
            raise ReferenceMismatchError(
                f"these means of {self.n} prompts were made with {self.encoder_id}; the encoders are "
                f"{encoder.encoder_id}: other weights, or the same in another precision. Make their own: "
                "TextMeans.of(encoder, prompts)"
            )
        return self

    def difference(self, encoder: str, site: Site) -> float:
        """Return how far two prompts usually lie apart at a site of an encoder.

        Raises:
            LensError: The means hold no norms of it.
        """
        value = self.differences.get(encoder, {}).get(site.kind)
        if value is None or site.layer is None:
            raise LensError(f"these means of {self.n} prompts hold no norm of differences of {site} of {encoder}")
        found = value[site.layer]
        return float(found if site.head is None else found[site.head])

    @without_autocast()
    def average(self, run: TextRun) -> TextRun:
        """Return the average prompt as a run: at each position of a run's prompts, the mean of the position's role.

        Args:
            run: A run of prompts through the same encoders.

        Raises:
            ReferenceMismatchError: The means are of other encoders.
            LensError: They are of shorter prompts alone, or of another number of positions.
        """
        expect(run, TextRun, "run", LensError, "as TextRun.of(encoder, prompts) makes it")
        if run not in self._averages:
            self.check(run.encoder)
            made = replace(run, caches={name: self._average(run, name) for name in run.caches})
            self._averages[run] = replace(made, condition=made.condition_of({}, {}))
        return self._averages[run]

    @torch.no_grad()
    def _average(self, run: TextRun, name: str) -> ViTActivationCache:
        cache, means, roles = _own(run, name), self.values[name], _roles(run, name)
        if len(self.counts[name]) != run.ids[name].shape[1] + 2:
            raise LensError(
                f"the means are of {len(self.counts[name]) - 2} positions of {name}, which reads "
                f"{run.ids[name].shape[1]} now; make them with the same length="
            )
        seen = self.counts[name] > 0
        if not bool(seen[roles].all()):
            row = int((~seen[roles]).any(-1).nonzero()[0])
            raise LensError(
                f"prompt {run.prompts[row]!r:.60} has words, or filling, where no reference prompt has: add longer and "
                "shorter prompts to TextMeans.of(...)"
            )

        def placed(mean: Tensor) -> Tensor:
            return mean[roles].to(resid.device)

        resid = cache["blocks.0.hook_resid_pre"]
        resid, held = placed(means["resid_pre"]), {}
        for layer, (z, mlp_out) in enumerate(zip(means["z"], means["mlp_out"], strict=True)):
            attn, named = cache.model.attention_of(Site(layer, "attn")), f"blocks.{layer}."
            z, mlp_out = placed(z), placed(mlp_out)
            out = einsum(z, attn.W_O.detach().to(z), "b p h k, h k d -> b p d") + attn.b_O.detach().to(z)
            held |= {named + "hook_resid_pre": resid, named + "attn.hook_z": z, named + "hook_attn_out": out}
            held[named + "hook_resid_mid"] = resid + out
            resid = held[named + "hook_resid_post"] = resid + out + mlp_out
            held[named + "hook_mlp_out"] = mlp_out
        held = {point: value.to(cache[point].dtype) for point, value in held.items()}
        return ViTActivationCache(held, cache.model, rows="all", read_out=cache.read_out)

    def __repr__(self) -> str:
        return f"TextMeans({self.n} prompts, {', '.join(self.values)})"


def _own(run: TextRun, name: str) -> ViTActivationCache:
    cache = run.caches[name]
    if not isinstance(cache, ViTActivationCache):
        raise LensError(f"{name} is hooked by TransformerLens' bridge, and means are of our own towers alone")
    return cache


def _roles(run: TextRun, encoder: str) -> Int[Tensor, "batch pos"]:
    """Return which role each position has: before the end its own number, then the end, then the filling."""
    ids = run.ids[encoder]
    places = torch.arange(ids.shape[1]).expand(len(ids), -1)
    ends = run.ends(encoder).cpu()[:, None]
    behind = (places > ends).long()
    return torch.where(places < ends, places, ids.shape[1] + behind)


def _add(sums: dict[str, Tensor], run: TextRun, name: str) -> None:
    """Add one prompt to sums by role, in float64 on the CPU."""
    cache, roles = _own(run, name), _roles(run, name)[0]
    layers, n_roles = range(cache.model.cfg.n_layers), len(roles) + 2
    own = {
        "counts": torch.ones(len(roles), dtype=torch.long),
        "resid_pre": cache["blocks.0.hook_resid_pre"][0],
        "z": torch.stack([cache["z", layer][0] for layer in layers], 1),
        "mlp_out": torch.stack([cache["mlp_out", layer][0] for layer in layers], 1),
    }
    centre, attns = run.encoder.readouts[name].centre, [cache["attn_out", layer][0] for layer in layers]
    for layer in layers:
        metric = _metric(cache.model.attention_of(Site(layer, "attn")).W_O, centre)
        z = own["z"][:, layer].cpu().double()
        own[f"head.{layer}"] = einsum(z, metric, z, "p h k, h k j, p h j -> p h")
    own["attn_out"] = centre(torch.stack(attns, 1).cpu().double())
    own["attn"] = own["attn_out"].square().sum(-1)
    own["mlp"] = centre(own["mlp_out"].cpu().double()).square().sum(-1)
    for kind, value in own.items():
        value = value.cpu() if kind == "counts" else value.cpu().double()
        held = sums.setdefault(kind, value.new_zeros(n_roles, *value.shape[1:]))
        held.index_add_(0, roles, value)


def _metric(W_O: Float[Tensor, "head d_head d_model"], centre: Callable[[Tensor], Tensor]) -> Tensor:
    weight = centre(W_O.detach().cpu().double())
    return weight @ weight.mT


def _differences(sums: dict[str, Tensor], counts: Int[Tensor, " role"], encoder: PromptReader, name: str) -> dict:
    """Return how far prompts lie apart, and leave the sums of the means; empty where no role is there twice."""
    tower, centre = encoder.towers[name], encoder.readouts[name].centre
    layers = range(tower.cfg.n_layers)
    squares = {kind: sums.pop(kind) for kind in ("attn", "mlp")}
    squares["head"] = torch.stack([sums.pop(f"head.{layer}") for layer in layers], 1)
    attn_out = sums.pop("attn_out")
    there = (counts > 1).clone()
    there[-1] = False  # the filling
    if not bool(there.any()):
        return {}
    n = counts[there].double()
    means = {
        kind: centre(total[there] / n[:, None, None]).square().sum(-1)
        for kind, total in (("attn", attn_out), ("mlp", sums["mlp_out"]))
    }
    z = sums["z"][there] / n[:, None, None, None]
    metrics = [_metric(tower.attention_of(Site(layer, "attn")).W_O, centre) for layer in layers]  # pyright: ignore
    of_heads = [
        einsum(z[:, layer], metric, z[:, layer], "p h k, h k j, p h j -> p h") for layer, metric in enumerate(metrics)
    ]
    means["head"] = torch.stack(of_heads, 1)
    eps, found = torch.finfo(tower.dtype).eps, {}
    for kind, of_mean in means.items():
        own = n.reshape(-1, *[1] * (of_mean.ndim - 1))
        apart = typical_norm(squares[kind][there] / own, of_mean, own, eps)
        found[kind] = ((own * apart.square()).sum(0) / own.sum()).sqrt()
    return found


def _shares(total: Float[Tensor, "role *axes"], counts: Int[Tensor, " role"], kind: str) -> Float[Tensor, "..."]:
    """Return the means of sums by role, with the layer first where there are layers."""
    mean = total / counts.clamp(min=1).reshape(-1, *[1] * (total.ndim - 1))
    return mean if kind == "resid_pre" else mean.transpose(0, 1).contiguous()
