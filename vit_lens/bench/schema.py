"""Whether a value fits the JSON schema of ``bench.json``: the few words of JSON Schema that it uses."""

__all__ = ["SCHEMA", "schema_errors"]

import json
import math
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parent / "schema.json"
"""The schema, as JSON Schema 2020-12."""
_KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None),
}  # fmt: skip


def schema_errors(value: Any, schema: dict[str, Any] | None = None, at: str = "") -> list[str]:
    """Return what of a value does not fit a schema, in words; nothing if all does.

    It knows ``type``, ``enum``, ``const``, ``minimum``, ``properties``, ``required``, ``additionalProperties`` (false,
    or a schema) and ``items``.

    Args:
        value: Plain values, as JSON has them.
        schema: The schema; None for that of ``bench.json``.
        at: Where the value stands, for the words.

    >>> schema_errors({"format": "vit_lens.bench.1"})[0]
    'it lacks seeds'
    """
    rules = json.loads(SCHEMA.read_text()) if schema is None else schema
    here = at or "it"
    kinds = rules.get("type", [])
    if kinds and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return [f"{here} is {value!r:.60}, no {kinds if isinstance(kinds, str) else ' or '.join(kinds)}"]
    found = []
    if "const" in rules and value != rules["const"]:
        found.append(f"{here} is {value!r:.60}, not {rules['const']!r}")
    if "enum" in rules and value not in rules["enum"]:
        found.append(f"{here} is {value!r:.60}, none of {', '.join(map(repr, rules['enum']))}")
    if "minimum" in rules and isinstance(value, (int, float)) and value < rules["minimum"]:
        found.append(f"{here} is {value!r}, below {rules['minimum']}")
    if isinstance(value, dict):
        found += [f"{here} lacks {name}" for name in rules.get("required", ()) if name not in value]
        known, more = rules.get("properties", {}), rules.get("additionalProperties", {})
        for name, one in value.items():
            if name not in known and more is False:
                found.append(f"{here} has {name!r}, which the schema does not")
            else:
                found += schema_errors(one, known.get(name, more), f"{at}.{name}" if at else name)
    if isinstance(value, list) and "items" in rules:
        for number, one in enumerate(value):
            found += schema_errors(one, rules["items"], f"{at}[{number}]")
    return found


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, _KINDS[kind])
