"""Which towers are covered, by tier, and what keeps the others out."""

__all__ = ["supported_kinds", "supported_open_clip", "supported_towers"]

from vit_lens.sources.families import families
from vit_lens.sources.families.family import SupportedTower


def supported_towers() -> list[SupportedTower]:
    """Return a row for every configuration of the installed open_clip and for the classes of every other family.

    Nothing is downloaded. A config of a timm ViT is built without memory for its weights and read, because only the
    object says what it computes.
    """
    return [row for family in families() for row in family.table()]


def supported_open_clip() -> list[str]:
    """Return the names of open_clip's configurations that HookedViT covers, read from the installed version."""
    return [row.name for row in supported_towers() if row.library == "open_clip" and row.supported]


def supported_kinds() -> str:
    """Return the families in words."""
    return ", ".join(family.towers for family in families())
