"""What a sweep is asked for, in a few objects: what is read, how it is drawn, held against what, by whom."""

__all__ = ["FORMULA", "Controls", "Drawing", "Execution", "Inputs", "SecondDecoder", "check_kind"]

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_lens.addresses import as_index
from vit_lens.controls import CONTROLS, ControlBank, check_normalisation
from vit_lens.decoders import Decoder
from vit_lens.engine import Executor
from vit_lens.errors import ImageError, VitLensError, nearest
from vit_lens.files import as_path
from vit_lens.identity import same_encoder
from vit_lens.images import find_images
from vit_lens.models import HookedViT

CONTROLS_OF_PROMPTS = ("random", "other", "shuffled", "empty")
"""What may stand in for what a site writes for a prompt; for an image it is one of ``vit_lens.controls.CONTROLS``."""
_MOST_THREADS = 1024  # OpenMP ends the process where there is no memory for more
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def check_kind(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise a VitLensError that says what was expected, if a value is of none of some kinds; None always passes."""
    if value is not None and not isinstance(value, kinds):
        raise VitLensError(f"{name} is {_said(value)}; expected {expected}")


def _check_whole(name: str, value: object, least: int | None = None, most: int = 2**63 - 1) -> None:
    """The same for whole numbers, of Python, numpy or torch; what a record cannot hold is told before it is begun."""
    number = as_index(value)
    if number is None:
        raise VitLensError(f"{name}={_said(value)}; expected a whole number")
    if least is not None and number < least:
        raise VitLensError(f"{name}={value}; expected at least {least}")
    if number > most:
        raise VitLensError(f"{name}={_said(value)}; expected at most {most}")


def _said(value: object) -> str:
    plain = isinstance(value, (bool, int, float, str, tuple, list, dict, type(None)))
    return repr(value)[:60] if plain else f"of type {type(value).__name__}"


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a sweep reads.

    Args:
        images: Paths (of a folder: the images in it), PIL images or uint8 arrays [height width 3], one or several.

    Raises:
        ImageError: There is none, or a folder holds none.

    >>> inputs = vl.Inputs(images)
    >>> len(inputs), inputs.name(0)
    (2, '1_star.png')
    """

    images: Any

    def __post_init__(self) -> None:
        given = self.images
        items = list(given) if isinstance(given, (list, tuple)) else [given]
        found: list[Any] = []
        for item in items:
            item = as_path(item, ImageError, "image") if isinstance(item, (str, os.PathLike)) else item
            found += find_images([item]) if isinstance(item, Path) and item.is_dir() else [item]
        if not found:
            raise ImageError("no images given")
        object.__setattr__(self, "images", found)

    @classmethod
    def of(cls, given: Any) -> "Inputs":
        """Return inputs as they are; everything else counts as images."""
        return given if isinstance(given, cls) else cls(given)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def _names(self) -> list[str]:
        """All names, which differ: folders stand before file names that repeat, numbers behind what is given twice."""
        paths = [Path(image).absolute() if isinstance(image, (str, os.PathLike)) else None for image in self.images]
        files, root = [path for path in paths if path is not None], ""
        is_plain = len({path.name for path in files}) == len(files)
        if not is_plain:
            root = os.path.commonprefix([path.as_posix() for path in files])  # noqa: RUF071, of drives there is none
            root = root[: root.rfind("/") + 1]
        turns, found = Counter[str](), []
        for i, path in enumerate(paths):
            name = f"image {i}" if path is None else path.name if is_plain else path.as_posix().removeprefix(root)
            name = f"./{name}" if name.startswith(FORMULA) else name
            name = name.encode("utf-8", "backslashreplace").decode()
            turns[name] += 1
            found.append(f"{name} ({turns[name]})" if turns[name] > 1 else name)
        return found

    def name(self, index: int) -> str:
        """Return what tables call an input: a file's name, with its folders where names repeat; a number from memory.

        No two are equal, and none begins with what a spreadsheet takes for a formula.
        """
        return self._names[index]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn.

    Args:
        settings: The decoder's settings, as ``decoder.settings(...)`` makes them; None takes its own defaults.
        seeds: Noise seeds, all different; every row is drawn once with each. None takes the one of the settings.
        batch_size: Pictures that are drawn together, the last batch filled up; None takes the decoder's constant for
            these settings, which memory may lower. A record says so then, since another size is other bits.
        noise: ``"shared"``: all rows of a seed have the same. ``"legacy"``, of prompts alone: as in the released code
            of Diffusion Lens, for every prompt one generator is consumed site after site, several pictures of each.
            ``seeds`` then number these pictures, 0, 1, 2, 3 by default, and the generator's seed is the settings'.
            Every lens, and every control, begins the generator anew.

    Raises:
        VitLensError: Seeds are equal or missing, the batch holds nothing, or the noise is neither of the two.

    >>> drawing = vl.Drawing(settings=decoder.settings(steps=2), seeds=[0, 1])
    >>> vl.plan(model, decoder, images[:1], lens="diffusion", sites="resid_post", drawing=drawing).n_rows
    16
    """

    settings: Any = None
    seeds: Sequence[int] | None = None
    batch_size: int | None = None
    noise: str = "shared"

    def __post_init__(self) -> None:
        if self.noise not in ("shared", "legacy"):
            raise VitLensError(f"noise={_said(self.noise)}; expected 'shared' or 'legacy'")
        check_kind("seeds", self.seeds, Sequence, "a list of whole numbers, such as [0, 1]")
        for seed in self.seeds or ():
            _check_whole("seed", seed)
        if self.seeds is not None and (not len(self.seeds) or len(set(self.seeds)) < len(self.seeds)):
            raise VitLensError(f"seeds={list(self.seeds)}: give different seeds, at least one")
        if self.batch_size is not None:
            _check_whole("batch_size", self.batch_size, 1)
        if self.noise == "legacy":
            if self.batch_size is not None:
                raise VitLensError("noise='legacy' draws the pictures of a site together: leave batch_size out")
            if self.seeds is not None and list(self.seeds) != list(range(len(self.seeds))):
                raise VitLensError(
                    f"seeds={list(self.seeds)} with noise='legacy' number the pictures of a site: give range(n); the "
                    "generator's seed is decoder.settings(seed=...)"
                )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SecondDecoder:
    """A second decoder, which draws every row that the first draws, so that their pictures can be compared.

    What two decoders draw alike that share nothing but the embedding, neither made up alone. How alike they are
    stands beside the same for mismatched sites (:attr:`vit_lens.Record.agreement`).

    Args:
        decoder: The second decoder, made for the same encoder as the first.
        settings: How it draws; None takes its own defaults. Noise seeds are those of the sweep.
        judge: The encoder that compares the pictures, one for which neither decoder was made; None takes the encoder
            itself, which sees what both decoders were asked for, and a record says so.

    Raises:
        VitLensError: The judge is none, or the encoder that a decoder was made for; or settings have a seed.

    >>> second = vl.SecondDecoder(decoder=vl.load_decoder("mini-ip"))
    >>> print(vl.plan(model, decoder, images[:1], lens="diffusion", sites="resid_post", second_decoder=second))
    inputs: 1
    ...
    second decoder: 8 pictures by vit_lens/mini-ip, compared by the encoder itself; about ...
    """

    decoder: Decoder
    settings: Any = None
    judge: HookedViT | None = None

    def __post_init__(self) -> None:
        check_kind("judge", self.judge, HookedViT, "an encoder, such as HookedViT.from_pretrained(...)")
        if self.judge is not None and self.decoder.encoder_id is not None:
            if same_encoder(self.judge.encoder_id, self.decoder.encoder_id):
                raise VitLensError(
                    f"the judge {self.judge.encoder_id} is the encoder that the second decoder was made for: leave "
                    "judge out, and the record says so, or give another encoder"
                )
        seed = getattr(self.settings, "seed", None)
        if seed is not None and seed != getattr(self.decoder.defaults, "seed", None):
            raise VitLensError(
                f"a second decoder draws with the noise seeds of the sweep, and its own, {seed}, would have no effect: "
                "leave seed out (the sweep's are Drawing(seeds=...), --decoder-seed)"
            )

    def __repr__(self) -> str:
        judge = None if self.judge is None else self.judge.encoder_id
        return f"SecondDecoder({self.decoder.decoder_id}, settings={self.settings}, judge={judge})"

    @classmethod
    def of(cls, given: "SecondDecoder | Decoder | None") -> "SecondDecoder | None":
        """Return a second decoder as it is; a decoder alone draws with its defaults, compared by the encoder itself."""
        check_kind("second_decoder", given, (SecondDecoder, Decoder), "a decoder, or vit_lens.SecondDecoder(...)")
        return cls(decoder=given) if isinstance(given, Decoder) else given


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What sites are held against: what may stand in for a site's output, as long as it.

    All controls of images that can be made of what is there are measured before decoding (``cos_lens_control``,
    ``cos_lens_other``, ``cos_lens_covariance``, their leak indices, the order of a budget); ``kinds`` says which are
    drawn, too.

    Args:
        drawn: Whether controls are drawn beside every row that is not a residual.
        seed: The seed of the directions and of the draw of other images, 0 or more; what stands in follows from it,
            from the image, and of the bank from that.
        draws: How many draws stand behind the numbers of a control, which need no drawing; at least 1.
        kinds: Which are drawn, each as many pictures again: ``"random"``, a random direction alike in all dimensions;
            ``"other"``, what the site writes for another image; ``"covariance"``, a random direction with the site's
            covariance (``vit_lens.controls.CONTROLS``). For prompts, at every position and as long as the site's
            output there, ``"random"``, and what the site writes for another text: for the next prompt of the sweep
            (``"other"``), for the prompt with its words in another order (``"shuffled"``), for the text ""
            (``"empty"``: of several encoders, those that are held speak alone).
        bank: The other images; None takes those of the gallery beside the pictures, or else the sweep's own inputs. An
            image never stands in for itself.
        normalise: ``"std"`` or ``"whiten"``: lengths and cosines before decoding are taken in coordinates where every
            dimension counts alike, for encoders with massive activations (:class:`vit_lens.controls.Normaliser`, which
            says the price); None takes them as they are.

    Raises:
        VitLensError: A number is out of range, or there is no such control or normalisation.

    >>> plan = vl.plan(model, None, images[:1], lens="dsl:alpha=10", sites=["L7H0"], controls=vl.Controls(seed=1))
    >>> plan.table(plan.rows)["reading"].str.endswith("random").tolist()
    [False, True]
    """

    drawn: bool = True
    seed: int = 0
    draws: int = 20
    kinds: Sequence[str] = ("random",)
    bank: ControlBank | None = None
    normalise: str | None = None

    def __post_init__(self) -> None:
        check_kind("drawn", self.drawn, bool, "True or False")
        _check_whole("seed", self.seed, 0)
        _check_whole("draws", self.draws, 1)
        kinds = (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds)
        known = dict.fromkeys((*CONTROLS, *CONTROLS_OF_PROMPTS))
        if unknown := [kind for kind in kinds if kind not in known]:
            raise VitLensError(f"no control {unknown[0]!r}; nearest: {nearest(str(unknown[0]), known)}")
        check_kind("bank", self.bank, ControlBank, "a bank, such as ControlBank.from_images(model, images)")
        check_normalisation(self.normalise)
        if not kinds or len(set(kinds)) < len(kinds):
            raise VitLensError(f"kinds={list(kinds)}: give different kinds of control, at least one")
        object.__setattr__(self, "kinds", kinds)

    @classmethod
    def of(cls, given: "Controls | bool") -> "Controls":
        """Return controls as they are; True and False say whether they are drawn."""
        check_kind("controls", given, (Controls, bool), "True, False or vit_lens.Controls(seed=..., draws=...)")
        return given if isinstance(given, Controls) else cls(drawn=bool(given))


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Who draws, and which part of the sweep.

    Args:
        executor: An executor, or the name of one with its options: ``"local"``.
        shard: (i, n) takes the i-th of n parts of the batches, counted from 0, so that several can share one image;
            :func:`vit_lens.records.merge` joins the parts to the bits of the whole. A part may be empty. Within a
            budget a part embeds every input at each start, since its rows follow from all of them. None: all.
        threads: Threads of the processor; None takes as many as PyTorch has now. A record goes on with those it was
            begun with.

    Raises:
        VitLensError: A number is out of range.

    >>> second = vl.Execution(shard=(1, 2))
    >>> four = vl.Drawing(batch_size=4)
    >>> vl.plan(model, None, images, lens="diffusion", sites="resid_post", drawing=four, execution=second).rows
    [4, 5, 6, 7, 12, 13, 14, 15]
    """

    executor: Executor | str = "local"
    shard: tuple[int, int] | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_kind("executor", self.executor, (Executor, str), "an executor or the name of one, such as 'local'")
        if self.shard is not None:
            is_pair = isinstance(self.shard, (tuple, list)) and len(self.shard) == 2
            pair = [as_index(one) for one in self.shard] if is_pair else [None]
            if None in pair or not 0 <= pair[0] < pair[1] <= 1_000_000:  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
                raise VitLensError(
                    f"shard={_said(self.shard)}; expected (i, n) with 0 <= i < n, such as (0, 4); n is at most 1e6"
                )
        if self.threads is not None:
            _check_whole("threads", self.threads, 1, _MOST_THREADS)
