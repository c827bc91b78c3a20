"""From what the sweep command is given to a plan over prompts."""

__all__ = ["load_encoder", "plan_prompts", "read_prompts", "refuse_images_words"]

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_lens.cli import flags, intake
from vit_lens.errors import LensError, VitLensError

if TYPE_CHECKING:
    from vit_lens.decoders import PromptEncoder
    from vit_lens.sweeping import Budget, Controls, Execution, Plan


def refuse_images_words(**options: object) -> None:
    """Refuse options that are for images, where prompts are given.

    Raises:
        VitLensError: One of them was given.
    """
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
        raise VitLensError(
            f"{', '.join(given)} would have no effect on --prompts; leave {'it' if len(given) < 2 else 'them'} out"
        )


def read_prompts(given: Sequence[str]) -> list[str]:
    """Return prompts: those of files, one a line, and those that are given as they are.

    Raises:
        TextError: There is no such file, or it is a folder.
    """
    from vit_lens.errors import TextError
    from vit_lens.texts import read_captions

    if folder := next((text for text in given if text and _exists(text, os.path.isdir)), None):
        raise TextError(f"--prompts {folder} is a folder; expected a file of prompts, one on each line, or a prompt")
    is_file = [Path(text).suffix in (".txt", ".csv", ".tsv", ".json") or _exists(text) for text in given]
    return [
        one
        for text, file in zip(given, is_file, strict=True)
        for one in (read_captions(Path(text)) if file else [text])
    ]


def _exists(text: str, test: Callable[[str], bool] = os.path.isfile) -> bool:
    try:
        return test(text)
    except OSError:  # longer than a name can be
        return False


def plan_prompts(
    pair: flags.Pair, given: Sequence[str], *, truncate: bool, lens: Sequence[str] | None, reference: Path | None,
    anchors: Sequence[str] | None, sites: Sequence[str], dtype: str, asked: Mapping[str, Any],
    batch_size: int | None, noise: str, probes: Sequence[Path], controls: "Controls", budget: "Budget | None",
    execution: "Execution",
) -> "Plan":  # fmt: skip
    """Load both halves of a pipeline and plan a sweep.

    Raises:
        VitLensError: Two probes have one name.
        LensError: There is no such probe.
        DecoderError: There is no such pipeline, or something is wrong with its files.
    """
    from vit_lens.decoders import TextDecoder
    from vit_lens.lenses import TextMeans
    from vit_lens.readers import TextProbe
    from vit_lens.sweeping import Beside, Drawing, Prompts, plan

    prompts = Prompts(read_prompts(given), truncate=truncate)
    shared = None if noise == "shared" else noise
    intake.check_drawn(
        pair.decoder, **asked, decoder_seed=pair.decoder_seed, batch_size=batch_size, budget=budget, noise=shared
    )
    means = None if reference is None else TextMeans.load(reference)
    starts = read_prompts(anchors) if anchors else None
    if both := [text for text in starts or () if text in prompts.texts]:
        raise LensError(
            f"--anchors: {both[0]!r:.60} is among the prompts that are swept, and nothing of a prompt changes in "
            "itself; take another"
        )
    if len(named := {path.stem: path for path in probes}) < len(probes):
        raise VitLensError(
            f"--probe: files of different names, which the page shows; got {', '.join(map(str, probes))}"
        )
    beside = Beside(probes={name: TextProbe.load(path) for name, path in named.items()})
    encoder, decoder, settings = load_encoder(pair, dtype), None, None
    seeds = pair.decoder_seed or None
    if pair.decoder != "none":
        name = _pipeline(pair) if pair.decoder == "mini" else pair.decoder
        decoder = TextDecoder.from_pretrained(
            name, dtype=flags.torch_dtype(dtype), device=flags.torch_device(pair.device)
        )
        own = {"seed": flags.one(seeds, "--decoder-seed with --noise legacy")} if noise == "legacy" else {}
        sizes = {"height": asked["size"], "width": asked["size"]}
        settings = decoder.settings(**flags.known(**{**asked, **sizes, **own, "size": None}))
    drawing = Drawing(settings=settings, seeds=None if noise == "legacy" else seeds, batch_size=batch_size, noise=noise)
    return plan(
        encoder, decoder, prompts, lens=None if lens == flags.DEFAULT_LENSES else flags.split_list(lens or ()) or None,
        reference=means, anchors=starts, sites=None if sites == flags.DEFAULT_SITES else flags.split_list(sites),
        drawing=drawing, controls=controls, beside=beside, budget=budget, execution=execution,
    )  # fmt: skip


def load_encoder(tower: flags.Tower, dtype: str) -> "PromptEncoder":
    """Load the text half of a pipeline.

    Raises:
        DecoderError: There is no such pipeline, or something is wrong with its files.
    """
    from vit_lens.decoders import PromptEncoder

    return PromptEncoder.from_pretrained(
        _pipeline(tower), dtype=flags.torch_dtype(dtype), device=flags.torch_device(tower.device)
    )


def _pipeline(tower: flags.Tower) -> str:
    return "mini-sd" if tower.model == "mini" else tower.model
