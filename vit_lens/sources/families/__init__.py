"""The families of towers: one file each, and this list of them.

Another family is one more file with a ``FAMILY`` and its name below, or :func:`register_family` from outside.
"""

__all__ = ["families", "known_family", "refuse_kind", "register_family", "supported_open_clip", "supported_towers"]

import importlib
from typing import TYPE_CHECKING, NoReturn

from torch import nn

from vit_lens.errors import UnsupportedTowerError, expect
from vit_lens.sources.refusals import kind, refuse

if TYPE_CHECKING:
    from vit_lens.sources.families.family import Family, Kind, SupportedTower

_FAMILIES: list["str | Family"] = ["clip", "siglip", "dinov2", "open_clip", "timm", "clip_text", "open_clip_text", "t5"]


_CLASSES = {"image": "HookedViT", "text": "HookedTextEncoder"}


def families(kind: "Kind | None" = None) -> "list[Family]":
    """Return every family of a kind, None for all.

    The files are read here, and the libraries of the towers not before a tower needs them.
    """
    found = [_file(each) if isinstance(each, str) else each for each in _FAMILIES]
    return [family for family in found if kind in (None, family.kind)]


def refuse_kind(what: str, family: "Family", call: str) -> NoReturn:
    """Raise for a tower of another kind than was asked for, naming the ``call`` of the class that takes it."""
    raise UnsupportedTowerError(f"{what} is of the {family.kind} towers: vl.{_CLASSES[family.kind]}.{call} takes it")


def known_family(module: nn.Module, towers: "Kind") -> "Family":
    """Return the family, of image or of text towers, that knows how to read a module.

    Raises:
        UnsupportedTowerError: None does; the message names the class that takes it, where it is of the other kind.
    """
    if (found := next((family for family in families(towers) if family.owns(module)), None)) is not None:
        return found
    if (other := next((family for family in families() if family.owns(module)), None)) is not None:
        refuse_kind(f"a {kind(module)}", other, "from_module")
    known = ", ".join(family.towers for family in families(towers))
    parts = module.named_modules() if isinstance(module, nn.Module) else []
    own = families(towers)
    inner = next((f": its .{name} ({kind(part)})" for name, part in parts if any(f.owns(part) for f in own)), "")
    refuse(
        f"a {kind(module)} from {type(module).__module__}; known are {known}: hand over the model itself, "
        f"not a wrapper (torch.compile, DataParallel, an adapter) around it{inner}"
    )


def register_family(family: "Family") -> None:
    """Let a family of your own be read, converted and verified like those that ship; it is asked last.

    ``tests/test_families.py`` has a whole one in 50 lines.

    Raises:
        UnsupportedTowerError: It is no object of a class of families.
    """
    from vit_lens.sources.families.family import Family

    expect(family, Family, "family", UnsupportedTowerError, "an object of a class that inherits it, not the class")
    _FAMILIES.append(family)


def supported_towers() -> "list[SupportedTower]":
    """Return a row for every configuration of the installed open_clip and for the classes of other image families.

    Nothing is downloaded. A config of a timm ViT is built without memory for its weights and read, because only the
    object says what it computes.
    """
    return [row for family in families("image") for row in family.table()]


def supported_open_clip() -> list[str]:
    """Return the names of open_clip's configurations that HookedViT covers, read from the installed version."""
    return [row.name for row in supported_towers() if row.library == "open_clip" and row.supported]


def _file(name: str) -> "Family":
    return importlib.import_module(f"{__name__}.{name}").FAMILY
