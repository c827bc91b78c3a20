"""Pictures of lens embeddings, seen again by the encoder and by an independent judge; kept, so that nothing is lost."""

__all__ = ["Judge", "Pictures", "Seen"]

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from vit_lens.decoders import DecodeSettings, KandinskyDecoder
from vit_lens.errors import StudyError
from vit_lens.files import open_tensors, save_tensors
from vit_lens.identity import same_encoder
from vit_lens.model import HookedViT
from vit_lens.texts import TextBank

_FORMAT = "vit_lens.seen_pictures.1"
_CHUNK = 512  # rows kept in one file: what an interruption can cost


@dataclass(frozen=True, eq=False)
class Judge:
    """An encoder that reads pictures and never conditioned the decoder.

    Attributes:
        model: The encoder.
        texts: Its captions, for studies that read attributes; None where none do.

    Raises:
        TextError: The captions are another encoder's.
    """

    model: HookedViT
    texts: TextBank | None = None

    def __post_init__(self) -> None:
        if self.texts is not None:
            self.texts.check(self.model)

    def contrast(
        self, seen: Float[Tensor, "*batch d_embed"], toward: Sequence[str], away: Sequence[str]
    ) -> Float[Tensor, "*batch"]:
        """Return the zero-shot logit of one caption minus that of another, one pair of captions for each row.

        Raises:
            StudyError: The judge has no captions.
            TextError: A caption is none of them.
        """
        if self.texts is None:
            raise StudyError("reading attributes needs the judge's captions: Judge(model, TextBank....)")
        logits = self.texts.logits(seen)
        rows = [torch.tensor([self.texts.index(caption) for caption in side]) for side in (toward, away)]
        first, second = (logits.gather(-1, index.to(logits.device)[..., None])[..., 0] for index in rows)
        return first - second


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures embedded again: by the encoder that they came from, and by the judge (None without one)."""

    own: Float[Tensor, "row d_embed"]
    judge: Float[Tensor, "row d_judge"] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Pictures:
    """Draws embeddings and embeds the pictures again; finished rows are kept in ``folder`` and never drawn twice.

    Attributes:
        model: The encoder that the decoder was made for.
        decoder: Draws.
        judge: Reads, too; None for no judge.
        settings: Of the decoder; the seed is given with each call.
        folder: Where finished rows are kept.
        batch_size: Pictures drawn together. Batches are padded, so that a row does not depend on the others.
        progress: Show a bar.

    Raises:
        ContractError: The decoder was made for another encoder.
        StudyError: The judge is the encoder itself.
    """

    model: HookedViT
    decoder: KandinskyDecoder
    judge: Judge | None
    settings: DecodeSettings
    folder: Path
    batch_size: int = 64
    progress: bool = False
    _negative: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._negative.append(self.model.zero_embedding())
        self.decoder.check(self._negative[0], encoder=self.model)
        if self.judge is not None and (
            same_encoder(self.judge.model.encoder_id, self.model.encoder_id)
            or self.judge.model.fingerprint == self.model.fingerprint
        ):
            raise StudyError(
                f"the judge {self.judge.model.encoder_id} is the encoder that the decoder was made for, and would "
                "reward its round trip; give another encoder, or none"
            )

    @torch.no_grad()
    def draw(self, embeds: Float[Tensor, "row d_embed"], *, noise_seed: int) -> UInt8[Tensor, "row height width 3"]:
        """Return the pictures themselves; they are not kept."""
        return self.decoder.decode(
            embeds.float().to(self.decoder.device), negative=self._negative[0].to(self.decoder.device),
            encoder=self.model, settings=replace(self.settings, seed=noise_seed), batch_size=self.batch_size,
        )  # fmt: skip

    @torch.no_grad()
    def see(self, embeds: Float[Tensor, "row d_embed"], *, noise_seed: int, label: str = "pictures") -> Seen:
        """Draw every row and embed its picture again."""
        embeds = embeds.float().cpu()
        parts = []
        with tqdm(total=len(embeds), desc=label, unit="picture", disable=not self.progress) as bar:
            for rows in embeds.split(_CHUNK):
                path = self.folder / f"{self._key(rows, noise_seed)}.safetensors"
                parts.append(_read(path) or self._make(rows, noise_seed, path))
                bar.update(len(rows))
        judged = [part.judge for part in parts if part.judge is not None]
        return Seen(torch.cat([part.own for part in parts]), torch.cat(judged) if judged else None)

    def _make(self, rows: Float[Tensor, "row d_embed"], noise_seed: int, path: Path) -> Seen:
        pictures = self.draw(rows, noise_seed=noise_seed)
        own = _embed(self.model, pictures, self.batch_size)
        judge = None if self.judge is None else _embed(self.judge.model, pictures, self.batch_size)
        tensors = {"own": own} | ({} if judge is None else {"judge": judge})
        save_tensors(tensors, path, {"format": _FORMAT})
        return Seen(own, judge)

    def _key(self, rows: Float[Tensor, "row d_embed"], noise_seed: int) -> str:
        readers = [self.model] if self.judge is None else [self.model, self.judge.model]
        who = [(one.fingerprint, repr(one.cfg), repr(one.preprocess_spec)) for one in readers]
        drawn = [self.decoder.fingerprint, str(self.decoder.dtype), repr(self.decoder.scheduler.config)]
        said = json.dumps([who, drawn, self.settings.to_dict(), noise_seed, self.batch_size], sort_keys=True)
        return hashlib.sha256(said.encode() + rows.contiguous().numpy().tobytes()).hexdigest()[:32]


def _embed(model: HookedViT, pictures: UInt8[Tensor, "row height width 3"], batch: int) -> Float[Tensor, "row d_embed"]:
    parts = [model(model.preprocess(list(some.numpy()))) for some in pictures.split(batch)]
    return torch.cat(parts).float().cpu()


def _read(path: Path) -> Seen | None:
    if not path.exists():
        return None
    with open_tensors(path, (_FORMAT,), what="seen pictures", error=StudyError, advice="remove it") as (file, _):
        names = set(file.keys())
        return Seen(file.get_tensor("own"), file.get_tensor("judge") if "judge" in names else None)
