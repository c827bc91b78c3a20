"""What a sweep within a budget has drawn so far, in words."""

__all__ = ["budget_words", "settings_words"]

from collections.abc import Mapping
from typing import Any

from vit_lens.records.record import Record

_ORDER = (
    "The most informative come first: residual readings, then the sites, each with its control, whose cosine with the "
    "input differs most from that of random directions of equal norm."
)
_GO_ON = "Run the same command again to refine more, or without the budget to refine all."


def budget_words(record: Record) -> str:
    """Say what a budget was, what it was spent on, and how to go on; empty for a record without one."""
    plan, table = record.manifest["batch_plan"].get("budget"), record.table
    if plan is None:
        return ""
    settings = settings_words(record.manifest["decoder"]["settings"])
    counts = {drawn: int((table["drawn"] == drawn).sum()) for drawn in ("coarse", "full")}
    words = f"Drawn to a budget of {' and then '.join(record.manifest.get('budgets', []))}. "
    words += f"{counts['full']} of {len(table)} pictures are refined ({settings})"
    if record.complete:
        words += ", which is all."
    else:
        missing = len(table) - sum(counts.values())
        words += f", {counts['coarse']} are coarse ({settings_words(plan['coarse'])})" if plan["coarse"] else ""
        words += f"{f', {missing} not drawn yet' if missing else ''}. {_ORDER}"
    if shared := int(table["same_as"].notna().sum()):
        words += f" {shared} share{'s' * (shared == 1)} the picture of another row, whose embedding is all but equal "
        words += f"(cosine at least {plan['same_above']:g}, and as close in length)."
    return words if record.complete else f"{words} {_GO_ON}"


def settings_words(settings: Mapping[str, Any]) -> str:
    """Say how pictures were drawn, in a few words."""
    guided = settings["guidance"] > 1
    return f"{settings['steps']} steps, {'guidance ' + format(settings['guidance'], 'g') if guided else 'no guidance'}"
