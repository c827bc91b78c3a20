"""Pictures of lens embeddings, seen again by the encoder and by an independent judge; kept, so that nothing is lost."""

__all__ = ["Judge", "Pictures", "Seen"]

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.decoders import Decoder, check_decoder, check_encoder, seeded, settings_dict
from vit_lens.engine import OWN, Bench, draw
from vit_lens.errors import StudyError
from vit_lens.identity import same_encoder
from vit_lens.models import HookedViT
from vit_lens.studies.kept_tensors import kept
from vit_lens.texts import TextBank

_FORMAT = "vit_lens.seen_pictures.2"
_CHUNK = 512  # rows kept in one file: what an interruption can cost
_OWN, _JUDGE = "own.", "judge"
DrawnRows = tuple[UInt8[Tensor, "row height width 3"], dict[str, Condition]]


@dataclass(frozen=True, eq=False)
class Judge:
    """An encoder that reads pictures and never conditioned the decoder.

    Attributes:
        model: The encoder.
        texts: Captions embedded by it, for studies that read attributes; None where none do.

    Raises:
        TextError: The captions are another encoder's.

    >>> from vit_lens.mini import JUDGE
    >>> judge = vl.studies.Judge(
    ...     vl.HookedViT.from_pretrained(JUDGE).requires_grad_(False),
    ...     vl.TextBank.from_pretrained(JUDGE, ["a star", "a heart"]),
    ... )
    >>> seen = judge.model(judge.model.preprocess(images))
    >>> (judge.contrast(seen, ["a star", "a star"], ["a heart", "a heart"]) > 0).tolist()
    [True, False]
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

        Args:
            seen: Embeddings of the judge.
            toward: The caption whose logit counts, for each row.
            away: The caption whose logit is taken away, for each row.

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
    """Pictures read again.

    Attributes:
        own: The pictures as the decoder's own conditions, a row for each.
        judge: The judge's embeddings of them; None without a judge.

    >>> from vit_lens.conditions import Condition
    >>> seen = vl.studies.Seen(own=Condition(pooled=model(pixels)), judge=None)
    >>> seen.by("own").shape
    torch.Size([2, 128])
    """

    own: Condition
    judge: Float[Tensor, "row d_judge"] | None

    def by(self, reader: str) -> Float[Tensor, "row d"]:
        """Return what a reader sees, ``own`` or ``judge``, as one vector for each row.

        Raises:
            StudyError: There is no judge.
        """
        if reader == "own":
            return self.own.flat
        if self.judge is None:
            raise StudyError("pictures were seen without a judge; pass judge= (--judge)")
        return self.judge


@dataclass(frozen=True, eq=False, kw_only=True)
class Pictures:
    """Draws conditions and reads the pictures again; finished rows are kept in ``folder`` and never drawn twice.

    Attributes:
        model: The encoder that the decoder was made for.
        decoder: What draws.
        judge: An encoder that reads the pictures, too; None for no judge.
        settings: The decoder's settings; the seed is given with each call.
        folder: The folder where finished rows are kept.
        batch_size: Pictures drawn together. Batches are filled up, so that a row does not depend on the others.
        progress: Whether a bar is shown.

    Raises:
        ContractError: The decoder was made for another encoder.
        StudyError: The judge is the encoder itself.

    >>> drawing = vl.studies.Pictures(
    ...     model=model, decoder=decoder, judge=None, settings=decoder.settings(steps=1), folder=tmp / "seen",
    ...     batch_size=2,
    ... )
    >>> seen = drawing.see(model(pixels), noise_seed=0)
    >>> seen.own, seen.judge is None
    (Condition([2] rows of pooled [128]), True)
    """

    model: HookedViT
    decoder: Decoder
    judge: Judge | None
    settings: Any
    folder: Path
    batch_size: int = 64
    progress: bool = False

    def __post_init__(self) -> None:
        check_decoder(self.decoder)
        if self.decoder.encoder_id is not None:
            check_encoder(self.decoder.decoder_id, self.decoder.encoder_id, self.model)
        if self.judge is not None and (
            same_encoder(self.judge.model.encoder_id, self.model.encoder_id)
            or self.judge.model.fingerprint == self.model.fingerprint
        ):
            raise StudyError(
                f"the judge {self.judge.model.encoder_id} is the encoder that the decoder was made for, and would "
                "reward its round trip; give another encoder, or none"
            )

    @cached_property
    def bench(self) -> Bench:
        """What draws and looks."""
        readers = {} if self.judge is None else {_JUDGE: self.judge.model}
        return Bench(
            model=self.model, decoder=self.decoder, negative=self.decoder.negative(self.model), readers=readers
        )

    def draw(self, asked: Condition | Tensor, *, noise_seed: int, label: str = "pictures", **options: Any) -> DrawnRows:
        """Return the pictures and what is read of them, and keep neither; see :func:`vit_lens.engine.draw`."""
        asked = Condition.of(asked)
        self.decoder.check(asked)
        settings = seeded(self.settings, noise_seed)
        return draw(self.bench, asked, settings, self.batch_size, label=label, progress=self.progress, **options)

    def see(self, asked: Condition | Tensor, *, noise_seed: int, label: str = "pictures") -> Seen:
        """Draw every row and read its picture again; a tensor counts as pooled.

        Args:
            asked: What is drawn, a picture for each row.
            noise_seed: The seed of the decoder's noise, the same for all rows.
            label: The words before the bar.
        """
        asked = Condition.of(asked).kept()
        parts = []
        for start in range(0, len(asked), _CHUNK):
            rows = asked[start : start + _CHUNK]
            path = self.folder / f"{self._key(rows, noise_seed)}.safetensors"
            made = kept(path, _FORMAT, "seen pictures", partial(self._make, rows, noise_seed, label))
            own = {name.removeprefix(_OWN): part for name, part in made.items() if name.startswith(_OWN)}
            parts.append(Seen(Condition(**own), made.get(_JUDGE)))
        judged = [part.judge for part in parts if part.judge is not None]
        return Seen(Condition.cat([part.own for part in parts]), torch.cat(judged) if judged else None)

    def see_each(self, asked: Condition | Tensor, noise: Sequence[int], *, label: str = "pictures") -> Seen:
        """Draw every row with a noise seed of its own and read its picture again; see :meth:`see`."""
        rows = {seed: [row for row, own in enumerate(noise) if own == seed] for seed in dict.fromkeys(noise)}
        parts = [self.see(asked[some], noise_seed=seed, label=f"{label}, noise {seed}") for seed, some in rows.items()]
        order = torch.tensor([row for some in rows.values() for row in some]).argsort()
        judged = [part.judge for part in parts if part.judge is not None]
        own = Condition.cat([part.own for part in parts])[order]
        return Seen(own, torch.cat(judged)[order] if judged else None)

    def _make(self, rows: Condition, noise_seed: int, label: str) -> dict[str, Tensor]:
        _, seen = self.draw(rows, noise_seed=noise_seed, label=label)
        own = {f"{_OWN}{name}": part for name, part in seen[OWN].parts().items()}
        return own | ({_JUDGE: seen[_JUDGE].flat} if _JUDGE in seen else {})

    def _key(self, rows: Condition, noise_seed: int) -> str:
        readers = [self.model] if self.judge is None else [self.model, self.judge.model]
        who = [(one.fingerprint, repr(one.cfg), repr(one.preprocess_spec)) for one in readers]
        said = [who, self.decoder.identity(), settings_dict(self.settings), noise_seed, self.batch_size]
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for name, part in rows.parts().items():
            digest.update(name.encode() + part.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]
