"""Which towers are covered, by tier, and what keeps the others out."""

__all__ = ["SupportedTower", "Tier", "supported_open_clip", "supported_towers"]

from dataclasses import dataclass
from typing import Literal

from vit_lens.sources.families import families

Tier = Literal["A", "B"]


@dataclass(frozen=True, kw_only=True)
class SupportedTower:
    """A row of the table of towers.

    Attributes:
        name: open_clip's model name, or a class of another library.
        library: Where the name is from.
        tier: ``A``: CLIP's own equations (CLS or mean pooling, GELU or QuickGELU). ``B``: attention pooling, no class
            token, registers, a patch bias or tanh GELU as well. None: not covered.
        reason: Why a tower is not covered; empty where it is.
        tags: Pretrained tags of open_clip.
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


def supported_towers() -> list[SupportedTower]:
    """Return a row for every configuration of the installed open_clip and for the classes of every other family.

    Nothing is downloaded. A config of a timm ViT is built without memory for its weights and read, because only the
    object says what it computes.
    """
    return [row for family in families() for row in family.table()]


def supported_open_clip() -> list[str]:
    """Return the names of open_clip's configurations that HookedViT covers, read from the installed version."""
    return [row.name for row in supported_towers() if row.library == "open_clip" and row.supported]
