"""Named files in a local directory, or in a repository on the Hugging Face Hub."""

__all__ = ["HubFolder", "TowerFolder"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_lens.errors import CheckpointError, PreprocessError, expect
from vit_lens.files import read_json, read_shards
from vit_lens.images import PreprocessSpec
from vit_lens.sources.tensors import ADVICE

# A processor's own file, which transformers 5 writes and looks into first, holds its image processor.
_PREPROCESSORS = ("processor_config.json", "preprocessor_config.json")
# Where pipelines that keep the tower in a subfolder keep its image processor.
_PREPROCESSOR_FOLDERS = ("image_processor", "feature_extractor", "")


@dataclass(frozen=True)
class HubFolder:
    """A repository on the Hugging Face Hub; files are fetched once and kept in the Hub's own cache."""

    repo_id: str
    revision: str | None = None
    cache_dir: str | Path | None = None

    def __str__(self) -> str:
        return f"{self.repo_id} on the Hugging Face Hub"

    def find(self, name: str) -> Path | None:
        """Fetch a file; None if the repository has no such file.

        Raises:
            CheckpointError: The Hub cannot be reached, or the id or revision is unknown or not public, or gated.
        """
        import huggingface_hub
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )

        advice = "Check the id and the connection, or download the files elsewhere and pass their directory"
        try:
            path = huggingface_hub.hf_hub_download(self.repo_id, name, revision=self.revision, cache_dir=self.cache_dir)
        except GatedRepoError as error:
            raise CheckpointError(
                f"{self.repo_id!r} is gated: accept its terms at https://huggingface.co/{self.repo_id}, log in with "
                "`hf auth login`, or download the files elsewhere and pass their directory"
            ) from error
        except RepositoryNotFoundError as error:
            raise CheckpointError(f"the Hub has no public repository {self.repo_id!r}. {advice}") from error
        except LocalEntryNotFoundError as error:
            raise CheckpointError(f"the Hub could not be reached for {self.repo_id!r}: {error} {advice}") from error
        except EntryNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.repo_id!r} could not be read from the Hub: {error}. {advice}") from error
        return Path(path)


@dataclass(frozen=True)
class TowerFolder:
    """Where the files of one tower are.

    Attributes:
        root: A directory, for which the network is never touched, or a repository on the Hub.
        subfolder: In it; empty if there is none.
        encoder_id: Of the weights; None for a local directory, where their content says it.
        name: A short name for a local id.
    """

    root: Path | HubFolder
    subfolder: str
    encoder_id: str | None
    name: str

    @property
    def label(self) -> str:
        """How messages call it."""
        return str(self.root) + (f", subfolder {self.subfolder!r}" if self.subfolder else "")

    @property
    def told(self) -> str:
        """The id of its weights if it is known, else how messages call it."""
        return self.encoder_id or self.label

    @property
    def library_place(self) -> tuple[str, dict[str, Any]]:
        """What ``from_pretrained`` of Hugging Face's libraries is given to look there, and nowhere else."""
        if isinstance(self.root, HubFolder):
            options = {"revision": self.root.revision, "cache_dir": self.root.cache_dir}
            return self.root.repo_id, {"subfolder": self.subfolder, **options}
        return str(self.root), {"subfolder": self.subfolder, "local_files_only": True}

    def find(self, name: str) -> Path | None:
        """Return the path of a file, or None if there is no such file."""
        return self._at(self.subfolder, name)

    def _at(self, place: str, name: str) -> Path | None:
        name = f"{place}/{name}" if place else name
        if isinstance(self.root, HubFolder):
            return self.root.find(name)
        return path if (path := self.root / name).is_file() else None

    def weights(self, names: Sequence[str]) -> list[Path]:
        """Return the first of these files that is there, or the shards that it lists.

        Raises:
            CheckpointError: There is none, or a shard is missing or lies outside.
        """
        path = next((path for name in names if (path := self.find(name)) is not None), None)
        if path is None:
            raise CheckpointError(f"{self.label} has no weights; expected one of {', '.join(names)}")
        if path.suffix != ".json":
            return [path]
        shards = []
        for shard in read_shards(path, CheckpointError, ADVICE):
            if (found := self.find(shard)) is None:
                raise CheckpointError(f"{self.label} lacks {shard}, which {path.name} names")
            shards.append(found)
        return shards

    def preprocessor(self) -> PreprocessSpec | None:
        """Return what Hugging Face's image processor does, which may lie beside the tower's folder; None without one.

        Raises:
            PreprocessError: It does what cannot be reproduced.
        """
        for place in dict.fromkeys((self.subfolder, *(_PREPROCESSOR_FOLDERS if self.subfolder else ()))):
            for name in _PREPROCESSORS:
                if (path := self._at(place, name)) is None:
                    continue
                found = read_json(path, CheckpointError, ADVICE)
                if (said := found.get("image_processor") if name == _PREPROCESSORS[0] else found) is not None:
                    expect(said, dict, f"image_processor in {path}", PreprocessError, "an image processor's settings")
                    return PreprocessSpec.from_hf_preprocessor(said)
        return None
