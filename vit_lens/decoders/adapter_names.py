"""How a decoder's name says that an image adapter goes into its pipeline."""

__all__ = ["CARD", "named_adapter", "split_name"]

from pathlib import Path

from vit_lens.decoders.configs import read_config
from vit_lens.decoders.part_files import fetch

CARD = "vit_lens.json"


def split_name(name: str | Path) -> tuple[str | Path, str | None]:
    """Return the name of a pipeline, and that of the adapter behind a ``+``; the name of a folder is one as it is.

    >>> from vit_lens.decoders.adapter_names import split_name
    >>> split_name("owner/sdxl+h94/IP-Adapter:sdxl_models/ip-adapter_sdxl.safetensors")
    ('owner/sdxl', 'h94/IP-Adapter:sdxl_models/ip-adapter_sdxl.safetensors')
    >>> split_name("mini")
    ('mini', None)
    """
    if not isinstance(name, str) or "+" not in name or _is_folder(name):
        return name, None
    pipeline, _, adapter = name.rpartition("+")
    return pipeline, adapter


def named_adapter(name: str | Path) -> str | None:
    """Return the adapter of a decoder: what its name says, or the card ``vit_lens.json`` in its folder; None for none.

    Raises:
        DecoderError: There is no such decoder, or its card is no JSON object.
    """
    pipeline, said = split_name(name)
    if said is not None:
        return said
    card = fetch(pipeline, [CARD]) / CARD
    return read_config(card).get("adapter") if card.is_file() else None


def _is_folder(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # no name that a file can have
        return False
