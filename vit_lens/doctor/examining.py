"""Run every check, in an order in which a later one can use what an earlier one loaded, and stop at none."""

__all__ = ["examine", "sample_pictures"]

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.decoders import (
    Decoder,
    EncoderRef,
    KandinskyDecoder,
    check_decoder,
    encoder_id_of,
    load_decoder,
    settings_dict,
)
from vit_lens.doctor import decoder_checks, encoder_checks, kandinsky_checks, machine
from vit_lens.doctor.reporting import Check, Report, dtype_name
from vit_lens.errors import VitLensError
from vit_lens.identity import MINI_ENCODER, same_encoder
from vit_lens.images import PreprocessSpec, preprocess
from vit_lens.models import HookedViT
from vit_lens.verification import exact_float32, load_source

_SAMPLE_SEED = 1000
_BATCH = 8
_N_STAGES = 13
_HALF = (0.5, 0.5, 0.5)


def examine(
    model: HookedViT | str | Path,
    decoder: Decoder | str | Path | None,
    *,
    tag: str | Path | None = None,
    quick_gelu: bool | None = None,
    encoder: EncoderRef | None = None,
    images: Sequence[Any] | None = None,
    encoder_dtype: torch.dtype = torch.float32,
    decoder_dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    steps: int | None = None,
    progress: bool = False,
) -> Report:
    """Examine an encoder and a decoder, and report every finding; what fails becomes a row, never an exception.

    Only errors that vit_lens raises on purpose become rows. Float32 is computed as float32 on a GPU too
    (TF32 is off meanwhile). About two copies of the encoder are held while it is compared with its source.

    Args:
        model: A model, or its name as for ``HookedViT.from_pretrained``. One in memory has no source to be compared
            with: that is ``model.verify(source)``.
        decoder: A decoder of any kind, or its name as for ``load_decoder``; None examines the encoder alone.
        tag: The pretrained tag, as for ``HookedViT.from_pretrained``.
        quick_gelu: The activation, as for ``HookedViT.from_pretrained``.
        encoder: The id of the encoder that the decoder was made for, where its files do not say it.
        images: Photographs, as ``model.preprocess`` takes them; by default pictures of the mini world, which are no
            photographs: the published denoising errors are then not judged.
        encoder_dtype: The type of the encoder's weights.
        decoder_dtype: The type of the decoder's weights.
        device: The device of all weights.
        steps: Denoising steps; None takes the decoder's default.
        progress: Whether bars are shown on the standard error stream.

    Raises:
        VitLensError: The device is not there.

    >>> report = vl.doctor.examine(model, None, images=images)
    >>> report.passed, report["sample images"].given
    (True, '2 images')
    """
    started, device = time.monotonic(), torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise VitLensError(f"device={str(device)!r}, but PyTorch sees no CUDA device here; take device='cpu'")
    dtypes = {"encoder": encoder_dtype, "decoder": decoder_dtype}
    command = _command(model, decoder, tag, quick_gelu, encoder, images, dtypes, device, steps)
    run = _Examination(dtypes=dtypes, device=device, progress=progress)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with exact_float32(), run.bar:
        run.load_encoder(model, tag, quick_gelu)
        run.embed(images)
        if decoder is not None:
            run.load_decoder(decoder, encoder, steps)
            run.judge_decoder()
        run.checks += machine.memory_checks(device)
    return Report(
        checks=run.checks, subject=run.subject(), machine=machine.describe_machine(device),
        versions=machine.package_versions(), command=command, seconds=round(time.monotonic() - started, 2),
    )  # fmt: skip


def sample_pictures(n: int = 8) -> list[np.ndarray]:
    """Draw pictures of the mini world that its encoder was not trained on; they stand in where no images are given."""
    from vit_lens.mini import world

    return list(world.render_codes(world.sample_codes(n, np.random.default_rng(_SAMPLE_SEED), held_out=True)))


@dataclass
class _Examination:
    """What has been found and loaded so far; a stage whose needs are not met is a row without a verdict."""

    dtypes: Mapping[str, torch.dtype]
    device: torch.device
    progress: bool
    checks: list[Check] = field(default_factory=list)
    model: HookedViT | None = None
    decoder: Decoder | None = None
    settings: Any = None
    scheduler: Any = None
    asked: Condition | None = None
    pictures: list[Any] | None = None
    embeds: Float[Tensor, "image d_embed"] | None = None
    negative: Float[Tensor, "1 d_embed"] | None = None
    photographs: bool = False

    def __post_init__(self) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=_N_STAGES, disable=not self.progress, desc="doctor", unit="check")

    def load_encoder(self, given: HookedViT | str | Path, tag: str | Path | None, quick_gelu: bool | None) -> None:
        def load() -> list[Check]:
            if isinstance(given, HookedViT):
                model = given
            else:
                where = {"dtype": self.dtypes["encoder"], "device": self.device}
                model = HookedViT.from_pretrained(given, tag=tag, quick_gelu=quick_gelu, **where)
            self.model = model.requires_grad_(False)
            return [Check("encoder loads", True, f"{model.encoder_id}, fingerprint {model.fingerprint}")]

        def compare(model: HookedViT) -> list[Check]:
            if isinstance(given, HookedViT):
                note = "Made in memory, so that no source is known: model.verify(source) compares it with one."
                return [Check("parity", None, "not run", "", note)]
            return encoder_checks.parity_checks(model, load_source(given, model, tag=tag))

        self._stage("encoder loads", load)
        dtype = self.model.dtype if isinstance(given, HookedViT) and self.model else self.dtypes["encoder"]
        self._stage("encoder inventory", encoder_checks.encoder_inventory, model=self.model, dtype=dtype)
        self._stage("parity", compare, model=self.model)

    def embed(self, images: Sequence[Any] | None) -> None:
        def run(model: HookedViT) -> list[Check]:
            given = sample_pictures() if images is None else list(images)
            pixels = model.preprocess(given)
            with torch.no_grad():
                embeds = torch.cat([model(part) for part in pixels.split(_BATCH)])
            self.pictures, self.embeds, self.negative = given, embeds, model.zero_embedding()
            self.photographs = images is not None
            return [_images_check(len(given), self.photographs, same_encoder(model.encoder_id, MINI_ENCODER))]

        self._stage("sample images", run, model=self.model)
        self._stage("embedding norms", encoder_checks.norm_checks, embeddings=self.embeds, negative=self.negative)

    def load_decoder(self, given: Decoder | str | Path, encoder: EncoderRef | None, steps: int | None) -> None:
        def load() -> list[Check]:
            if isinstance(given, (str, Path)):
                decoder = load_decoder(given, encoder=encoder, dtype=self.dtypes["decoder"], device=self.device)
                has_own = isinstance(decoder, KandinskyDecoder)
                self.scheduler = kandinsky_checks.stock_scheduler(given) if has_own else None
            else:
                decoder, self.scheduler = check_decoder(given), getattr(given, "scheduler", None)
            self.settings = decoder.defaults if steps is None else decoder.settings(steps=steps)
            self.decoder = decoder
            return [Check("decoder loads", True, decoder.decoder_id)]

        self._stage("decoder loads", load)
        dtype = self.dtypes["decoder"] if isinstance(given, (str, Path)) or self.decoder is None else self.decoder.dtype
        self._stage("decoder inventory", decoder_checks.decoder_inventory, decoder=self.decoder, dtype=dtype)

    def judge_decoder(self) -> None:
        decoder, embeds, negative, settings = self.decoder, self.embeds, self.negative, self.settings
        if decoder is None or isinstance(decoder, KandinskyDecoder):
            self._stage("scheduler", kandinsky_checks.scheduler_check, decoder=decoder, scheduler=self.scheduler)
        self._stage("contract", self._read, decoder=decoder, model=self.model, embeddings=self.pictures)
        self._stage(
            "rows", decoder_checks.rows_check, model=self.model, decoder=decoder, asked=self.asked, settings=settings
        )
        if decoder is None or isinstance(decoder, KandinskyDecoder):
            self._stage(
                "stock pipeline", kandinsky_checks.pipeline_check, decoder=decoder, scheduler=self.scheduler,
                embeddings=None if embeds is None else embeds[:1], negative=negative, settings=settings,
            )  # fmt: skip
            self._stage("denoising error", self._denoise, decoder=decoder, embeddings=embeds, settings=settings)
        self._stage(
            "round trip", lambda *needs: decoder_checks.round_trip_check(*needs, progress=self.progress),
            model=self.model, decoder=decoder, embeddings=self.asked, settings=settings,
        )  # fmt: skip

    def subject(self) -> dict[str, Any]:
        """Return what was examined, as far as it could be loaded."""
        told: dict[str, Any] = {"dtypes": {part: dtype_name(dtype) for part, dtype in self.dtypes.items()}}
        if self.model is not None:
            told["encoder"] = {"id": self.model.encoder_id, "fingerprint": self.model.fingerprint}
        if self.decoder is not None and self.settings is not None:
            told["decoder"] = {"id": self.decoder.decoder_id, "made_for": self.decoder.encoder_id}
            told["settings"] = settings_dict(self.settings)
        return told

    def _read(self, decoder: Decoder, model: HookedViT, pictures: list[Any]) -> list[Check]:
        with torch.no_grad():
            parts = [decoder.read(model, part) for part in model.preprocess(pictures).split(_BATCH)]
        self.asked = Condition.cat(parts)
        decoder.check(self.asked, encoder=model)
        return [Check("contract", True, f"encoder {model.encoder_id}", f"encoder {decoder.encoder_id}")]

    def _denoise(self, decoder: KandinskyDecoder, embeds: Tensor, settings: Any) -> list[Check]:
        size = settings.height, settings.width
        spec = PreprocessSpec(size=size, mean=_HALF, std=_HALF, interpolation="bicubic", resize_mode="shortest")
        pictures = preprocess(self.pictures or [], spec)
        return kandinsky_checks.denoising_checks(decoder, pictures, embeds, photographs=self.photographs)

    def _stage(self, name: str, check: Callable[..., list[Check]], **needs: Any) -> None:
        self.bar.set_postfix_str(name)
        missing = [need for need, value in needs.items() if value is None]
        if missing:
            note = f"It needs the {' and the '.join(missing)}, see above."
            self.checks.append(Check(name, None, "not run", "", note))
        else:
            try:
                self.checks += check(*needs.values())
            except VitLensError as error:
                message = " ".join(str(error).split())
                self.checks.append(Check(name, False, type(error).__name__, "", message))
        self.bar.update()


def _images_check(n: int, given: bool, is_mini: bool) -> Check:
    told = f"{n} images" if given else f"{n} held-out pictures of the mini world"
    if given or is_mini:
        return Check("sample images", None, told, "reported")
    note = "They are no photographs, which this encoder was trained on: give photographs as images for a full verdict."
    return Check("sample images", None, told, "photographs", note)


def _command(
    model: HookedViT | str | Path, decoder: Decoder | str | Path | None, tag: Any, quick_gelu: bool | None,
    encoder: EncoderRef | None, images: Sequence[Any] | None, dtypes: Mapping[str, torch.dtype], device: torch.device,
    steps: int | None,
) -> str:  # fmt: skip
    """Return what repeats the examination on the command line; empty where something was made in memory."""
    if isinstance(model, HookedViT) or isinstance(decoder, Decoder):
        return ""
    words = ["vit-lens", "doctor", "--model", str(model), "--decoder", "none" if decoder is None else str(decoder)]
    words += [word for image in images or () if isinstance(image, (str, Path)) for word in ("--images", str(image))]
    said = {"--tag": tag, "--decoder-encoder": None if encoder is None else encoder_id_of(encoder), "--steps": steps}
    for option, value in said.items():
        words += [option, str(value)] if value is not None else []
    if quick_gelu is not None:
        words.append("--quick-gelu" if quick_gelu else "--gelu")
    words += [word for part, dtype in dtypes.items() for word in (f"--{part}-dtype", dtype_name(dtype))]
    return shlex.join([*words, "--device", str(device)])
