"""The command that lists towers: models."""

__all__ = ["models"]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vit_lens.sources import SupportedTower

_TIERS = {
    "A": "CLIP's own equations: class token or mean of the patches, GELU or QuickGELU",
    "B": "with attention pooling, no class token, registers, a patch bias or tanh GELU",
}
_LIBRARIES = {"open_clip": "open_clip", "transformers": "Hugging Face transformers"}


def models(
    every: Annotated[
        bool, typer.Option("--all", help="Also the towers that are out, with the reason, and all tags.")
    ] = False,
) -> None:
    """List the towers that HookedViT reproduces exactly, by tier, read from the installed open_clip."""
    from vit_lens.sources import supported_towers

    rows = supported_towers()
    for library in dict.fromkeys([*_LIBRARIES, *(row.library for row in rows)]):
        title = _LIBRARIES.get(library, library)
        typer.echo("\n".join(_section([row for row in rows if row.library == library], title, every)))
    if not every:
        typer.echo("--all adds the towers that are out, with the reason, and the names of all tags.")


def _section(rows: "Sequence[SupportedTower]", title: str, every: bool) -> list[str]:
    lines = [f"{title}: {sum(row.supported for row in rows)} of {len(rows)}", ""]
    for tier, meaning in _TIERS.items():
        members = {row.name: _tags(row, every) for row in rows if row.supported and row.tier == tier}
        lines += [f"tier {tier} ({len(members)}): {meaning}", *_two_columns(members), ""]
    if every:
        out = {row.name: row.reason for row in rows if not row.supported}
        lines += [f"out ({len(out)})", *_two_columns(out), ""]
    return lines


def _tags(row: "SupportedTower", every: bool) -> str:
    if row.library != "open_clip":
        return ""
    if every:
        return ", ".join(row.tags) or "no tags"
    return f"{len(row.tags)} tag{'' if len(row.tags) == 1 else 's'}"


def _two_columns(texts: dict[str, str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [f"  {name:{width}}  {text}".rstrip() for name, text in texts.items()]
