"""The page of a record."""

__all__ = ["write_report"]

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from vit_lens.errors import RecordError
from vit_lens.identity import MINI_ENCODER, MINI_FLUX, MINI_SD
from vit_lens.records import (
    LIVE_BUDGET,
    Reading,
    Record,
    budget_words,
    has_picture,
    judge_words,
    unfinished_words,
)
from vit_lens.report.data import page_data
from vit_lens.report.one_file import page_path, write_page
from vit_lens.report.strips import strips_of

_HERE = "vit_lens.report"
_PARTS = {  # of a page of images, and of one of prompts: template, styles, scripts
    True: ("page.html.j2", ["page.css"], ["shared.js", "live.js", "page.js"]),
    False: ("prompts.html.j2", ["page.css", "prompts.css"], ["shared.js", "prompts.js"]),
}
JSON_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_report(
    record: Record | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    prompts: Record | str | os.PathLike[str] | None = None,
) -> Path:
    """Write the page of a record and return its path.

    Args:
        record: A record, or the directory that holds one; an unfinished one is shown as far as it goes.
        out: The file to write, ending in .html; None writes ``report.html`` beside the pictures. The page links the
            full-size pictures relative to where it lies.
        prompts: A record of prompts, whose layers stand below the sites of images; its own page, which is written,
            too, is linked. None shows images alone.

    Raises:
        RecordError: A directory holds no readable record, one of the two is of the other kind, or no layer of the
            prompts was swept.
        OutputError: The page cannot be written, or ``out`` is not an .html file.

    >>> drawing = vl.Drawing(settings=decoder.settings(steps=1), batch_size=2)
    >>> record = vl.sweep(
    ...     model, decoder, images[:1], lens="dsl:alpha=10", sites=["L7H0", "L7H1"], drawing=drawing, out=tmp / "page"
    ... )
    >>> vl.write_report(record).relative_to(tmp).as_posix()
    'page/report.html'
    """
    record = record if isinstance(record, Record) else Record.load(record)
    target = page_path(record.path / "report.html" if out is None else out)
    data = page_data(record, _base(record.path, target.parent))
    of_images = _is_of_images(record)
    template, styles, scripts = _PARTS[of_images]
    strips, strips_page = [], ""
    if prompts is not None:
        prompts = prompts if isinstance(prompts, Record) else Record.load(prompts)
        if not of_images or _is_of_images(prompts):
            raise RecordError(
                f"{record.path} is a record of {'images' if of_images else 'prompts'}, and prompts= is one of "
                f"{'images' if _is_of_images(prompts) else 'prompts'}; expected write_report(images, prompts=prompts)"
            )
        strips, strips_page = strips_of(prompts), _base(write_report(prompts), target.parent).rstrip("/")
        styles = [*styles, "prompts.css"]
    return write_page(
        target, (_HERE, template), styles=[(_HERE, name) for name in styles],
        scripts=[(_HERE, name) for name in scripts], images="data: 'self' file:",
        data=Markup(_embedded_json(data)), beside_words=_beside_words(record), strips=strips, strips_page=strips_page,
        **_live_header(record, data["live"]), **_header(record, data["rows"]["thumb"]),
    )  # fmt: skip


def _is_of_images(record: Record) -> bool:
    return all(map(has_picture, record.manifest["inputs"]))


def _base(record: Path, page: Path) -> str:
    try:
        relative = Path(os.path.relpath(record.resolve(), page.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return record.resolve().as_uri() + "/"
    return "" if relative == "." else quote(os.fsencode(relative)) + "/"


def _embedded_json(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.translate(JSON_ESCAPES)


def _header(record: Record, thumbs: Sequence[str | None]) -> dict[str, Any]:
    manifest, table = record.manifest, record.table
    n_done = len(table) - list(thumbs).count(None)
    is_whole = manifest["decoder"] is None or n_done == len(table)
    model, decoder = manifest["model"], manifest["decoder"]
    encoder_id = str(model["encoder_id"])
    return {
        "model": encoder_id, "decoder": str(decoder["decoder_id"]) if decoder else "none",
        "second": _second_words(record),
        "lenses": [_lens_words(one) for one in record.readings.values() if not one.control],
        "n_sites": table["site"].nunique(), "n_rows": len(table), "n_images": len(manifest["inputs"]),
        "n_done": n_done, "damaged": record.complete and not is_whole,
        "seeds": ", ".join(map(str, manifest["seeds"].get("decoder") or [])) or "none",
        "complete": record.complete and is_whole, "budget": budget_words(record), "go_on": unfinished_words(record),
        "coarse": bool((table["drawn"] == "coarse").any()),
        "legacy": manifest["batch_plan"].get("noise") == "legacy",
        "untrained": any(part and part.get("untrained") for part in (model, decoder)),
        "shared": bool(table["same_as"].notna().any()),
        "mini": encoder_id == MINI_ENCODER or bool(decoder and decoder["decoder_id"] in (MINI_SD, MINI_FLUX)),
        "notes": [str(note) for note in manifest["notes"]],
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        "provenance": _provenance(manifest),
    }  # fmt: skip


def _second_words(record: Record) -> str:
    """Say which second decoder drew, how, and who compared the pictures; empty without one."""
    if record.second is None:
        return ""
    drawn = record.second.manifest["decoder"]
    return f"{drawn['decoder_id']}, {drawn['words']}; compared by {judge_words(record.second.manifest)}"


def _beside_words(record: Record) -> str:
    beside = record.readouts
    there = {} if beside is None else {"nearest images": beside.by_image, "captions": beside.by_caption}
    given = [word for word, found in there.items() if found]
    return f"{', '.join(given).capitalize()} and numbers" if given else "Numbers"


def _live_header(record: Record, live: Mapping[str, Any] | None) -> dict[str, Any]:
    exact = "Direct effect: later layers are held fixed; the final LayerNorm is recomputed."
    frozen = (
        "Direct effect: later layers are held fixed, and so are the scales of the final LayerNorm and the pooling, "
        "since this tower norms every token on its own."
    )
    return {
        "live_words": frozen if record.live is not None and not record.live.recomputed else exact,
        "n_live": len(live["images"]) if live else 0,
        "live_megabytes": LIVE_BUDGET // 1_000_000,
    }


def _lens_words(reading: Reading) -> str:
    definition = str(reading.settings.get("definition") or "")
    return f"{reading.label}; {definition}" if definition.startswith("D") else reading.label


def _provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("Command", str(manifest["command"] or "called from Python"))]
    for part in ("model", "decoder", "batch_plan", "seeds", "machine", "threads"):
        facts.append((part.replace("_", " ").capitalize(), json.dumps(manifest[part])))
    if manifest["shard"]:
        facts.append(("Shard", json.dumps(manifest["shard"])))
    facts.append(("Readings", json.dumps(manifest["readings"])))
    return facts
