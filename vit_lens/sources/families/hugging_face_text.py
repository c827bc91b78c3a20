"""What the text towers of Hugging Face's transformers have in common."""

__all__ = ["HuggingFaceText", "stored_tokenizer"]

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from vit_lens.errors import CheckpointError
from vit_lens.sources.families.family import Family, Kind
from vit_lens.sources.families.hugging_face import HuggingFace, no_progress_bars
from vit_lens.sources.folders import TowerFolder
from vit_lens.sources.refusals import kind
from vit_lens.sources.source_tower import SourceTower
from vit_lens.sources.tensors import ADVICE

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


class HuggingFaceText(HuggingFace):
    """A family of text towers of transformers, whose tokenizers lie in their folders or beside them.

    Attributes:
        projection: Name of what projects the pooled vector.
        least_bar: As of :class:`SourceTower`.
    """

    kind: ClassVar[Kind] = "text"
    nested = "text_model"
    config_part = "text_config"
    final_norm = "final_layer_norm"
    projection: str = "text_projection"
    least_bar: float = 0.0
    run: ClassVar[Callable[[Any, Tensor], Tensor]]
    """Returns the output of the parts that ``listen`` puts together."""

    size = Family.size

    def listen(self, tower: Any) -> SourceTower:
        core = self.core(tower)
        parts = nn.ModuleDict({"core": core, "project": getattr(tower, self.projection, nn.Identity())})
        return SourceTower(
            f"transformers {kind(tower)}",
            parts,
            type(self).run,
            blocks=self.layers(core),
            final_norm=getattr(core, self.final_norm),
            least_bar=self.least_bar,
        )

    def layers(self, core: Any) -> nn.ModuleList:
        """Return the blocks of a tower."""
        return core.encoder.layers

    def stored_spec(self, folder: TowerFolder, config: Mapping[str, Any]) -> None:
        return None

    def tokenizer(self, folder: TowerFolder, config: Mapping[str, Any]) -> Any:
        return stored_tokenizer(folder)


def stored_tokenizer(folder: TowerFolder) -> Any:
    """Return the tokenizer of a text tower's folder, or the one that a pipeline keeps beside it; None without one.

    Raises:
        CheckpointError: It cannot be read.
    """
    from transformers import AutoTokenizer

    places = [folder.subfolder]
    if Path(folder.subfolder).name.startswith("text_encoder"):
        places.insert(0, folder.subfolder.replace("text_encoder", "tokenizer"))
    for place in places:
        own = TowerFolder(folder.root, place, None, folder.name)
        if any(own.find(name) is not None for name in _TOKENIZER_FILES):
            where, options = own.library_place
            try:
                with no_progress_bars():
                    return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
            except Exception as error:  # libraries raise classes of their own here
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise CheckpointError(
                    f"the tokenizer in {own.label} cannot be read ({reason}); {ADVICE}, or take its files away and set "
                    "model.tokenizer"
                ) from error
    return None
