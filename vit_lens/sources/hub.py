"""Files of a repository on the Hugging Face Hub, or words that say why there are none."""

__all__ = ["fetch_snapshot"]

from collections.abc import Sequence
from pathlib import Path

from vit_lens.errors import VitLensError


def fetch_snapshot(
    repo_id: str,
    patterns: Sequence[str],
    what: str,
    error: type[VitLensError],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Fetch some files of a repository into the Hub's own cache, and return the folder that they are in.

    Args:
        repo_id: ``owner/name``.
        patterns: The names of the files, with ``*`` for any characters.
        what: What it is to hold, for messages.
        error: What is raised.
        revision: The branch, tag or commit; None takes the main branch.
        cache_dir: Where downloads are kept; None takes Hugging Face's default.

    Raises:
        VitLensError: The Hub cannot be reached, or the repository is unknown, not public, or gated.

    >>> fetch_snapshot("no owner", ["*.json"], "dictionary", vl.errors.DictionaryError)
    Traceback (most recent call last):
    vit_lens.errors.DictionaryError: dictionary 'no owner' cannot be fetched from the Hub: Repo id must use ...
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    where = {"revision": revision, "cache_dir": cache_dir}
    given = {name: value for name, value in where.items() if value is not None}
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(patterns), **given))
    except GatedRepoError as reason:
        raise error(
            f"{what} {repo_id!r} is gated: accept its licence at https://huggingface.co/{repo_id}, log in with 'hf "
            "auth login', then try again; or give a local directory that holds it"
        ) from reason
    except RepositoryNotFoundError as reason:
        raise error(
            f"the Hub has no public repository {repo_id!r}: check the id; where it was withdrawn, or is private and "
            "you are not logged in ('hf auth login'), give a local directory that holds it"
        ) from reason
    except (OSError, ValueError) as reason:
        raise error(f"{what} {repo_id!r} cannot be fetched from the Hub: {reason}") from reason
