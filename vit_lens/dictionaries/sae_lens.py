"""Training by SAELens, which knows more kinds of autoencoders: behind the extra ``vit-lens[sae]``."""

__all__ = ["SAELens"]

import importlib
import importlib.metadata
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.layouts.sae_lens import read
from vit_lens.dictionaries.normalisation import Normalisation
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.training import Checkpoint, Trainer, trainer
from vit_lens.errors import DictionaryError

Architecture = Literal["topk", "batchtopk", "jumprelu", "matryoshka"]


@trainer("sae_lens")
@dataclass(frozen=True, kw_only=True)
class SAELens(Trainer):
    """Train an autoencoder of SAELens, on activations that are normalised here.

    The decoder starts at length 1 and the learning rate is 1e-3: SAELens' own start of 0.1 left two thirds of the
    latents dead where this was tried. SAELens needs TransformerLens before 4, which the extra installs in the place of
    a newer one. It keeps no state that this package could resume.

    Attributes:
        n_features: The number of features.
        architecture: The kind. BatchTopK and Matryoshka become thresholds after training.
        k: How many codes of a token are not zero; of ``jumprelu`` none, which has ``l0_coefficient``.
        widths: The nested numbers of features of ``matryoshka``, the last of them ``n_features``; empty takes a
            quarter, a half and all.
        lr: The learning rate of Adam.
        l0_coefficient: The weight of the number of codes in the loss of ``jumprelu``.

    Raises:
        DictionaryError: A number is out of range; or, in :func:`fit`, SAELens is not installed.

    >>> vl.dictionaries.TRAINERS["sae_lens"](n_features=64, k=65)
    Traceback (most recent call last):
    vit_lens.errors.DictionaryError: k=65 of 64 features; expected whole numbers from 1, k the smaller
    """

    n_features: int
    architecture: Architecture = "topk"
    k: int = 32
    widths: tuple[int, ...] = ()
    lr: float = 1e-3
    l0_coefficient: float = 1.0

    def __post_init__(self) -> None:
        n, k = as_index(self.n_features) or 0, as_index(self.k) or 0
        if not 1 <= k <= n:
            raise DictionaryError(
                f"k={self.k} of {self.n_features} features; expected whole numbers from 1, k the smaller"
            )
        if self.architecture not in (known := get_args(Architecture)):
            raise DictionaryError(f"architecture={self.architecture!r}; expected one of {known}")

    def learn(
        self, source: ActivationSource, normalisation: Normalisation, checkpoint: Checkpoint
    ) -> tuple[Dictionary, dict[str, Any]]:
        library = _library()
        if checkpoint.path is not None:
            raise DictionaryError("SAELens keeps no state that could be resumed here; the trainer 'topk' does")
        d = len(normalisation.mean)
        sizes: dict[str, Any] = {"d_in": d, "d_sae": self.n_features, "decoder_init_norm": 1.0, "device": "cpu"}
        if self.architecture == "jumprelu":
            cfg = library.JumpReLUTrainingSAEConfig(**sizes, l0_coefficient=self.l0_coefficient)
        elif self.architecture == "topk":
            cfg = library.TopKTrainingSAEConfig(**sizes, k=self.k)
        elif self.architecture == "batchtopk":
            cfg = library.BatchTopKTrainingSAEConfig(**sizes, k=self.k)
        else:
            n = self.n_features
            widths = self.widths or sorted({max(1, n // 4), max(1, n // 2), n})
            cfg = library.MatryoshkaBatchTopKTrainingSAEConfig(**sizes, k=self.k, matryoshka_widths=list(widths))
        size = min(source.batch_size, self.n_tokens)
        settings = importlib.import_module("sae_lens.config").SAETrainerConfig(
            total_training_samples=self.n_tokens // size * size,
            train_batch_size_samples=size,
            lr=self.lr,
            lr_end=self.lr,
        )
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            sae = library.TrainingSAE.get_sae_class_for_architecture(cfg.architecture())(cfg)
            sae.b_dec.data = normalisation.centre.to(sae.b_dec)
            run = importlib.import_module("sae_lens.training.sae_trainer").SAETrainer
            run(cfg=settings, sae=sae, data_provider=self._tokens(source, normalisation)).fit()
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            return read(Path(folder), {}), {"sae_lens": importlib.metadata.version("sae-lens")}

    def _tokens(self, source: ActivationSource, normalisation: Normalisation) -> Iterator[Tensor]:
        for batch in source.stream():
            yield normalisation.apply(batch.tokens.float(), self.clip)


def _library() -> Any:
    try:
        return importlib.import_module("sae_lens")
    except ImportError as error:
        version = importlib.metadata.version("transformer-lens")
        raise DictionaryError(
            f"the trainer 'sae_lens' needs SAELens, which does not load here ({error}): pip install 'vit-lens[sae]'. "
            f"It needs transformer-lens<4 (SAELens issue 738); installed is {version}. The trainer 'topk' needs neither"
        ) from error
