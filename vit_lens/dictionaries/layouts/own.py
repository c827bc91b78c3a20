"""What :meth:`Dictionary.save` writes: one safetensors file that says everything."""

from pathlib import Path

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.known import layout
from vit_lens.dictionaries.layouts.common import Said
from vit_lens.errors import DictionaryError

_HEADER = 2**20  # of safetensors, where its metadata are


def _holds(path: Path) -> bool:
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    with path.open("rb") as file:
        return b"vit_lens.dictionary." in file.read(_HEADER)


@layout("vit_lens", _holds)
def read(path: Path, said: Said) -> Dictionary:
    """Read a dictionary as :meth:`Dictionary.save` wrote it; it leaves nothing to be said."""
    if said:
        raise DictionaryError(f"{', '.join(said)}: {path} says what it is itself; leave it out")
    return Dictionary.load_own(path)
