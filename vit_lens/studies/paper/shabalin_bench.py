"""What the figures of Shabalin et al. are measured with: a model's activations and dictionaries, kept in a folder."""

__all__ = ["BESIDE", "Bench", "Recipe", "Sizes"]

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vit_lens.decoders import Decoder, settings_dict
from vit_lens.dictionaries import (
    ITDA,
    ActivationSource,
    Dictionary,
    FVUAtStep,
    TopK,
    data_points_control,
    fit,
    fvu_by_step,
    hook_name_of,
    patch_grid,
    pca_control,
    untrained_control,
)
from vit_lens.errors import StudyError
from vit_lens.studies.kept_tensors import kept
from vit_lens.studies.seen_pictures import Pictures

BESIDE = ("untrained", "data points", "PCA")
"""What is drawn beside dictionaries: nothing of it was learnt, but for the mean and the directions of variance."""
_PICTURES = "vit_lens.shabalin.pictures.1"
_MANY, _USUAL = 6, ("double.", "mid.")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is learnt from how much.

    Attributes:
        k: Codes of a token, where nothing else varies.
        width: Features, where nothing else varies; of ITDA at most so many.
        ks: Codes of a token, over which one figure is.
        widths: Features, over which another is.
        n_tokens: Tokens that TopK learns from, over all passes; ITDA takes each once, at most so many.
        held_out: The share of inputs that is held out.
        threshold: Of ITDA: the unexplained share of the variance above which a token becomes an atom.
        seed: Of the split, the order, the start and the controls.
        device: Where TopK is trained.
    """

    k: int
    width: int
    ks: tuple[int, ...]
    widths: tuple[int, ...]
    n_tokens: int
    held_out: float
    threshold: float
    seed: int
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A dictionary: what learns it, where, how large, of which steps (None for all) and inputs (None for all)."""

    kind: Literal["topk", "itda"]
    site: str
    k: int
    width: int
    steps: tuple[int, ...] | None = None
    n_inputs: int | None = None

    @property
    def name(self) -> str:
        """What its file is called."""
        steps = "" if self.steps is None else f"_steps{'-'.join(map(str, self.steps))}"
        part = "" if self.n_inputs is None else f"_n{self.n_inputs}"
        return f"{self.kind}_{self.site}_k{self.k}_w{self.width}{steps}{part}"


@dataclass(eq=False)
class Bench:
    """A model with inputs, and what was made of them so far.

    Args:
        model: Any hooked model.
        inputs: What it runs on.
        run: How a diffusion model draws, as sources take it.
        tokens: Which tokens are read.
        sizes: How much is learnt.
        folder: Where activations and dictionaries are kept; None keeps none, for a plan.
        block: The hook point at which all but the block varies; None for the last double block, the middle of a UNet,
            or the middle block.
        blocks: The hook points over which figures are; None for six at most, evenly spread.
        decoder: Of an image encoder what draws its embeddings, and how; None for nothing.

    Raises:
        DictionaryError: The model has no such hook point.
        StudyError: Fewer tokens are learnt from than there are features.
    """

    model: Any
    inputs: Sequence[Any]
    run: Mapping[str, Any]
    tokens: str
    sizes: Sizes
    folder: Path | None = None
    block: str | None = None
    blocks: Sequence[str] | None = None
    decoder: tuple[Decoder, Any] | None = None
    _sources: dict[str, ActivationSource] = field(default_factory=dict)
    _compared: dict[Any, list[tuple[FVUAtStep, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = sites_of(self.model)
        chosen = [hook_name_of(self.model, site) for site in self.blocks or _spread(known)]
        at = [next((site for site in reversed(known) if site.startswith(start)), None) for start in _USUAL]
        usual = next((site for site in at if site is not None), known[(len(known) - 1) // 2])
        self.block = usual if self.block is None else hook_name_of(self.model, self.block)
        self.blocks = tuple(dict.fromkeys(chosen))
        self.live = ActivationSource.of_model(
            self.model, self.inputs, self.main, tokens=self.tokens, seed=self.sizes.seed, **self.run
        )
        x, _ = self.live.reader.read([0])
        self.per_input, self.d = x.shape
        self.train_inputs = len(self.live.split(self.sizes.held_out)[0].inputs)
        widest = max(self.sizes.width, *self.sizes.widths)
        if (n := self.train_inputs * self.per_input) < widest:
            raise StudyError(
                f"{n} tokens of {self.train_inputs} inputs are learnt from, and {widest} features asked for: give more "
                "--n-inputs, or fewer --features and --widths"
            )

    @property
    def main(self) -> str:
        """The hook point at which all but the block varies."""
        return str(self.block)

    @property
    def steps(self) -> tuple[int, ...] | None:
        """The steps that are read; None of a model without any."""
        return self.live.provenance.at_steps

    @property
    def unit(self) -> str:
        """What inputs are, in a word."""
        return "prompts" if all(isinstance(one, str) for one in self.inputs[:1]) else "images"

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches; None where tokens are none of an image."""
        return patch_grid(self.live)

    @property
    def draws(self) -> bool:
        """Whether inputs become pictures: of a diffusion model, and of an image encoder with a decoder."""
        return self.steps is not None or self.decoder is not None

    def about(self) -> dict[str, Any]:
        """Return what every figure says: model, inputs, sizes, and the decoder where there is one."""
        said, drawn = self.live.provenance, {}
        if self.decoder is not None:
            drawn = {"decoder": self.decoder[0].decoder_id, "drawing": settings_dict(self.decoder[1])}
        return {
            "model": said.model, "fingerprint": said.fingerprint, "block": self.main, "blocks": list(self.blocks or ()),
            "tokens": self.tokens, "unit": self.unit, "n_inputs": len(self.inputs),
            "n_held_out": len(self.inputs) - self.train_inputs, "tokens_per_input": self.per_input, "d": self.d,
            "steps": None if self.steps is None else list(self.steps),
            "sigmas": None if said.sigmas is None else list(said.sigmas), "branch": said.branch, "run": said.run,
            "source": self.live.content, **asdict(self.sizes), **drawn,
        }  # fmt: skip

    # ---- tokens

    def source(self, site: str) -> ActivationSource:
        """Return the tokens of a hook point, of all inputs and steps, from the folder; the model runs once for each."""
        if site not in self._sources:
            kept = self._running(site).write(self._place("activations") / site, dtype=torch.float32)
            self._sources[site] = ActivationSource.open(kept, seed=self.sizes.seed)
        return self._sources[site]

    def numbers_at(self, site: str) -> int:
        """Return how many numbers are kept of an input at a hook point; neurons are more than the stream is wide."""
        if not site.endswith("mlp.hook_post"):
            return self.per_input * self.d
        return self._running(site).reader.read([0])[0].numel()

    def _running(self, site: str) -> ActivationSource:
        if site == self.main:
            return self.live
        return ActivationSource.of_model(
            self.model, self.inputs, site, tokens=self.tokens, seed=self.sizes.seed, **self.run
        )

    def split(self, site: str, steps: Sequence[int] | None = None) -> tuple[ActivationSource, ActivationSource]:
        """Return what is learnt from, and what is held out: the same inputs at every hook point and step."""
        train, held = self.source(site).split(self.sizes.held_out)
        return (train, held) if steps is None else (train.at_steps(steps), held.at_steps(steps))

    # ---- dictionaries

    def recipes(self, site: str, k: int, width: int) -> list[Recipe]:
        """Return those that are learnt for one comparison."""
        return [Recipe(kind=kind, site=site, k=k, width=width) for kind in ("topk", "itda")]

    def dictionary(self, recipe: Recipe) -> Dictionary:
        """Return a dictionary, from the folder if it is there; a training that was stopped goes on."""
        path = self._place("dictionaries") / f"{recipe.name}.safetensors"
        if path.is_file():
            return Dictionary.load(path)
        train, held = self.split(recipe.site, recipe.steps)
        if recipe.n_inputs is not None:
            train = replace(train, inputs=train.inputs[: recipe.n_inputs])
        sizes = self.sizes
        shared: dict[str, Any] = {"k": recipe.k, "n_tokens": sizes.n_tokens, "seed": sizes.seed}
        if recipe.kind == "topk":
            config = TopK(n_features=recipe.width, device=sizes.device, **shared)
        else:
            config = ITDA(threshold=sizes.threshold, max_atoms=recipe.width, **shared)
        checkpoint = path.with_suffix(".checkpoint")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* features fired on none of")  # the tables say it
            found = fit((train, held), config, checkpoint=checkpoint)
        found.save(path)
        checkpoint.unlink(missing_ok=True)
        return found

    def controls(self, dictionary: Dictionary, site: str) -> dict[str, Dictionary]:
        """Return what is drawn beside a dictionary: as many features and codes, and nothing learnt."""
        train, seed = self.split(site)[0], self.sizes.seed
        made = (
            untrained_control(dictionary, train, seed=seed),
            data_points_control(dictionary, train, seed=seed),
            pca_control(dictionary, train),
        )
        return dict(zip(BESIDE, made, strict=True))

    def compared(self, site: str, k: int, width: int) -> list[tuple[FVUAtStep, int]]:
        """Return what TopK, ITDA and what is beside them explain of held-out tokens, and how many features each has."""
        if (site, k, width) not in self._compared:
            topk, itda = (self.dictionary(recipe) for recipe in self.recipes(site, k, width))
            named = {"TopK": topk, "ITDA": itda, **self.controls(topk, site)}
            held = self.split(site)[1]
            found = [one for one in fvu_by_step(named, held).points if one.step is None]
            pursued = fvu_by_step({"TopK, by pursuit": topk}, held, method="pursuit", k=k).of("TopK, by pursuit")
            sizes = {"TopK, by pursuit": topk.n_features} | {name: one.n_features for name, one in named.items()}
            self._compared[site, k, width] = [(one, sizes[one.name]) for one in (found[0], pursued, *found[1:])]
        return self._compared[site, k, width]

    # ---- pictures

    def drawn(self, name: str, inputs: Sequence[int], hooks: Sequence[Any] = ()) -> UInt8[Tensor, "input tall wide 3"]:
        """Return pictures of some inputs, from the folder if they are there.

        Args:
            name: What they are called there; what else they follow from is the folder's.
            inputs: Their numbers.
            hooks: What acts on the model.
        """
        path = self._place("strips") / f"{name}.safetensors"
        return kept(path, _PICTURES, "pictures", lambda: {"pictures": self.draw(inputs, hooks)})["pictures"]

    @torch.no_grad()
    def draw(self, inputs: Sequence[int], hooks: Sequence[Any] = ()) -> UInt8[Tensor, "input tall wide 3"]:
        """Draw some inputs: prompts with the noise that they are read with, images by the decoder of their embeddings.

        Raises:
            StudyError: Nothing draws.
        """
        reader: Any = self.live.reader
        parts = [list(inputs[i : i + reader.batch_size]) for i in range(0, len(inputs), reader.batch_size)]
        if self.steps is not None:
            run = {name: value for name, value in (reader.provenance.run or {}).items() if name != "noise_seed"}
            made = [
                self.model.run_with_hooks(
                    reader.prompts(part), seed=reader.seeds(part), fwd_hooks=list(hooks), output_type="np", **run
                )
                for part in parts
            ]
            return torch.cat([torch.from_numpy(np.asarray(one)).mul(255).round().to(torch.uint8) for one in made])
        if self.decoder is None:
            raise StudyError("nothing draws embeddings of this model: give a decoder that was made for it")
        decoder, settings = self.decoder
        drawing = Pictures(
            model=self.model, decoder=decoder, judge=None, settings=settings, folder=Path(), batch_size=len(parts[0])
        )  # fmt: skip
        embeds = [
            self.model.run_with_hooks(self.model.preprocess([self.inputs[i] for i in part]), fwd_hooks=list(hooks))
            for part in parts
        ]
        return drawing.draw(torch.cat(embeds), noise_seed=settings.seed)[0].cpu()

    def _place(self, name: str) -> Path:
        if self.folder is None:
            raise StudyError("this bench keeps nothing: it is for a plan")
        return self.folder / name


def sites_of(model: Any) -> list[str]:
    """Return the hook points at which dictionaries may be learnt, block by block: the image's stream, or what is added.

    Of a UNet these are the updates of its transformers, as published dictionaries have them.
    """
    names = list(model.hook_dict)
    updates = [name for name in names if name.endswith(".hook_update") and re.match(r"(down|mid|up)\.", name)]
    found = updates or [name for name in names if name.endswith(".hook_resid_post") and ".text." not in name]
    if not found:
        raise StudyError(f"a {type(model).__name__} has no hook_resid_post, behind which dictionaries are learnt")
    return found


def _spread(names: Sequence[str]) -> list[str]:
    """Return at most so many, evenly spread, first and last among them."""
    n = min(_MANY, len(names))
    return [names[round(index * (len(names) - 1) / max(1, n - 1))] for index in range(n)]
