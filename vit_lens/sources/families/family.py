"""What a family of towers is: how its towers are recognised, read, converted, loaded and run."""

__all__ = ["Blueprint", "Family", "Kind", "SupportedTower", "Tier"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor, nn

from vit_lens.config import TowerConfig
from vit_lens.errors import CheckpointError
from vit_lens.images import PreprocessSpec
from vit_lens.sources.folders import TowerFolder
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import refuse
from vit_lens.sources.source_tower import SourceTower

Tier = Literal["A", "B"]
Kind = Literal["image", "text"]
Config = TypeVar("Config", bound=TowerConfig)


@dataclass(frozen=True, kw_only=True)
class SupportedTower:
    """A row of the table of towers.

    Attributes:
        name: The name of open_clip's model, or of a class of another library.
        library: The library that the name is from.
        tier: How it is covered: ``A`` for CLIP's own equations (CLS or mean pooling, GELU or QuickGELU); ``B`` where
            there is attention pooling, no class token, registers, a patch bias or tanh GELU as well; None where it is
            not covered.
        reason: Why a tower is not covered; empty where it is.
        tags: The pretrained tags of open_clip; empty for another library.

    >>> SupportedTower(name="SiglipModel", library="transformers", tier="B").supported
    True
    """

    name: str
    library: str
    tier: Tier | None
    reason: str = ""
    tags: tuple[str, ...] = ()

    @property
    def supported(self) -> bool:
        """Whether HookedViT covers it."""
        return self.tier is not None


@dataclass(frozen=True)
class Blueprint(Generic[Config]):
    """What a family learns from a tower without looking at its values.

    Attributes:
        cfg: The sizes and switches of the tower.
        recipe: Says how the source's tensors, of which it reads names and shapes, are converted.
    """

    cfg: Config
    recipe: Callable[[Mapping[str, Tensor]], Recipe]


class Family(ABC):
    """One family of towers, which a file of its own knows and nothing else does.

    From memory it needs :meth:`blueprint` and :meth:`listen`; for directories and Hub ids the attributes from
    ``model_types`` on and :meth:`build`, and :meth:`load` to be verified by name.

    Attributes:
        kind: What its towers read.
        towers: The family's towers in words, for messages.
        homes: The modules of Python, or packages, whose classes are of this family.
        classes: The names of those classes, subclasses included; empty for every class of ``homes``.
        built_from: The further packages, beside torch, whose modules may sit inside a tower.
        tier: The tier of the family's classes in the table of towers.
        unused: The prefixes of submodules of a whole model that the tower's output does not run through.
        prefix: What the names of the tower's tensors begin with in a whole model.
        other_prefixes: What the names of the other tensors of a whole model begin with.
        config_file: The name of the file that describes a tower in a directory.
        model_types: What ``model_type`` in that file may say, each with what the family keeps about it.
        weight_files: The names that weights are looked for by; the first that is there counts.
    """

    kind: ClassVar[Kind] = "image"
    towers: str
    homes: tuple[str, ...]
    classes: tuple[str, ...] = ()
    built_from: tuple[str, ...] = ()
    tier: Tier = "B"
    unused: tuple[str, ...] = ()
    prefix: str = ""
    other_prefixes: tuple[str, ...] = ()
    config_file: str = "config.json"
    model_types: ClassVar[Mapping[str, Any]] = {}
    weight_files: tuple[str, ...] = (
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
    )  # fmt: skip

    # ---- a tower in memory --------------------------------------------------------------------------------------

    def owns(self, module: nn.Module) -> bool:
        """Whether a module is of this family, seen from its class alone; nothing is imported."""
        return any(
            f"{cls.__module__}.".startswith(tuple(f"{home}." for home in self.homes))
            and (not self.classes or cls.__name__ in self.classes)
            for cls in type(module).__mro__
        )

    def part(self, tower: Any) -> nn.Module:
        """Return the part of a whole model whose code makes the output."""
        return tower

    @abstractmethod
    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        """Read sizes and weight map from a tower, which may be on the meta device.

        Args:
            tower: A module that the family owns.
            image_size: The (height, width) in pixels to fit the positions to; None for the tower's own, and for texts.

        Raises:
            UnsupportedTowerError: The tower would not be exact; the message names the part.
        """

    @abstractmethod
    def listen(self, tower: Any) -> SourceTower:
        """Return a tower as something to run and to compare with, block by block.

        Raises:
            UnsupportedTowerError: The tower cannot be run block by block.
        """

    def tensors(self, tower: Any) -> dict[str, Tensor]:
        """Return the tensors of a tower in memory by the names of its recipe."""
        stored = self.part(tower).state_dict()
        return {name: stored[key] for name, key in self.names(stored).items()}

    def spec(self, tower: Any) -> PreprocessSpec | None:
        """Return the preprocessing that a tower in memory carries, or None."""
        return None

    def size(
        self, image_size: tuple[int, int] | None, spec: PreprocessSpec | None, what: str
    ) -> tuple[int, int] | None:
        """Return the image size to fit positions to; None for the tower's own.

        Raises:
            UnsupportedTowerError: One is asked for, and the family's towers cannot do so; ``what`` names the tower.
        """
        if image_size is not None:
            refuse(f"image_size= for {what}, which has no interpolate_pos_encoding")
        return None

    # ---- a tower in files ---------------------------------------------------------------------------------------

    def names(self, stored: Iterable[str]) -> dict[str, str]:
        """Return the tower's tensors by the names of its recipe, each with its name in a file or a state dict.

        Raises:
            CheckpointError: Two tensors have one name.
        """
        keys = list(stored)
        if any(key.startswith(self.prefix) for key in keys):  # else the tower is alone
            keys = [key for key in keys if not key.startswith(self.other_prefixes)]
        found = {self.current_name(key.removeprefix(self.prefix)): key for key in keys}
        if twice := sorted(set(keys) - set(found.values())):
            raise CheckpointError(f"tensors occur twice, under two names: {', '.join(twice[:8])}")
        return found

    def current_name(self, name: str) -> str:
        """Return what the recipe calls a tensor that older files call otherwise."""
        return name

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether the content of ``config_file`` describes a tower of this family.

        Raises:
            UnsupportedTowerError: The config describes a relative that would not be exact.
        """
        return str(config.get("model_type")) in self.model_types

    def library_config(self, config: Mapping[str, Any], path: Path) -> Any:
        """Return the config of the tower's library that the content of ``config_file`` stands for.

        Raises:
            CheckpointError: The family's library has none, or the content is not plausible.
        """
        raise CheckpointError(f"{path}: {self.towers} have no config of their library's")

    def build(self, config: Mapping[str, Any], path: Path, names: Collection[str]) -> nn.Module:
        """Build the tower that a config describes without memory for its weights, so that its parts can be asked.

        Args:
            config: The content of ``config_file``.
            path: The path of that file, for messages.
            names: The names of the tensors that there are, as :meth:`names` gives them.

        Raises:
            CheckpointError: The config is incomplete.
            UnsupportedTowerError: The tower is not one that would be exact.
        """
        raise CheckpointError(f"{path}: {self.towers} are read from memory alone; hand over the module")

    def stored_spec(self, folder: TowerFolder, config: Mapping[str, Any]) -> PreprocessSpec | None:
        """Return the preprocessing that files carry; by default that of Hugging Face's image processor."""
        return folder.preprocessor()

    def tokenizer(self, folder: TowerFolder, config: Mapping[str, Any]) -> Any:
        """Return the tokenizer that lies with a text tower's files; None where there is none, and for images."""
        return None

    def load(self, folder: TowerFolder, config: Mapping[str, Any]) -> nn.Module:
        """Load a tower with the library that published it, without the readers of weights of this package.

        Raises:
            CheckpointError: The library cannot load it whole.
        """
        raise CheckpointError(f"{folder.told}: {self.towers} are not loaded by name; hand over the module")

    # ---- the table of towers ------------------------------------------------------------------------------------

    def table(self) -> list[SupportedTower]:
        """Return the family's rows of the table of towers, by default its classes."""
        library = self.homes[0].split(".")[0]
        return [SupportedTower(name=name, library=library, tier=self.tier) for name in self.classes]
