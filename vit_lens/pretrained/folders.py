"""Named files in a local directory, or in a repository on the Hugging Face Hub."""

__all__ = ["Folder", "HubFolder", "LocalFolder", "split_subfolder"]

from dataclasses import dataclass
from pathlib import Path

from vit_lens.errors import CheckpointError


@dataclass(frozen=True)
class LocalFolder:
    """A directory; the network is never touched."""

    root: Path

    @property
    def label(self) -> str:
        """How messages call it."""
        return str(self.root)

    def find(self, name: str) -> Path | None:
        """Return the path of a file, or None if there is no such file."""
        return self.root / name if (self.root / name).is_file() else None


@dataclass(frozen=True)
class HubFolder:
    """A repository on the Hugging Face Hub; files are fetched once and kept in the Hub's own cache."""

    repo_id: str
    revision: str | None = None
    cache_dir: str | Path | None = None

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.repo_id} on the Hugging Face Hub"

    def find(self, name: str) -> Path | None:
        """Fetch a file; None if the repository has no such file.

        Raises:
            CheckpointError: The Hub cannot be reached, or the id or revision is unknown or not public.
        """
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

        advice = "Check the id and the connection, or download the files elsewhere and pass their directory"
        try:
            path = huggingface_hub.hf_hub_download(self.repo_id, name, revision=self.revision, cache_dir=self.cache_dir)
        except RepositoryNotFoundError as error:
            raise CheckpointError(f"the Hub has no public repository {self.repo_id!r}. {advice}") from error
        except LocalEntryNotFoundError as error:
            raise CheckpointError(f"the Hub could not be reached for {self.repo_id!r}: {error} {advice}") from error
        except EntryNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.repo_id!r} could not be read from the Hub: {error}. {advice}") from error
        return Path(path)


Folder = LocalFolder | HubFolder


def split_subfolder(name: str) -> tuple[str, str]:
    """Split ``root:subfolder``; the subfolder is empty if there is none."""
    root, _, subfolder = name.partition(":")
    return root, subfolder.strip("/")
