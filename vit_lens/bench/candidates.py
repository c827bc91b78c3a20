"""What the bench asks: lenses, dictionaries and steering functions by name, ours or anybody's."""

__all__ = ["KINDS", "Candidate", "Kind", "as_lens", "named_candidate"]

import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vit_lens.bench.own import OWN
from vit_lens.dictionaries import Dictionary
from vit_lens.errors import DictionaryError, InterventionError, LensError, VitLensError, nearest
from vit_lens.lenses import Lens, check_spelling

Kind = Literal["lens", "dictionary", "steer"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_ERRORS: dict[str, type[VitLensError]] = {
    "lens": LensError, "dictionary": DictionaryError, "steer": InterventionError,
}  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """One that is asked.

    Attributes:
        name: What it is called in results.
        kind: ``lens``, ``dictionary`` or ``steer``.
        thing: A lens, a lens's class, or a function ``(model, pixels) -> lens``; a spelling of one of ours; a
            dictionary, or a function ``(source) -> dictionary``; a function ``(model, target, strength) -> hooks``.

    >>> vl.bench.Candidate(name="mine", kind="lens", thing=vl.DiffusionLens()).name
    'mine'
    """

    name: str
    kind: Kind
    thing: Any


def named_candidate(kind: Kind, spec: str) -> Candidate:
    """Return a candidate by its name.

    Args:
        kind: What it is.
        spec: One of ours (:data:`OWN`); a lens as the command line spells it; a dictionary as
            ``Dictionary.from_pretrained`` takes it; or ``module:attribute``, which imports the module, and so runs its
            code, from the current directory or wherever Python finds it.

    Raises:
        LensError: There is no such lens.
        DictionaryError: There is no such dictionary, or it cannot be read.
        InterventionError: There is no such steering function.

    >>> vl.bench.named_candidate("lens", "dsl-mean:alpha=5").kind
    'lens'
    >>> vl.bench.named_candidate("steer", "mean-diference")
    Traceback (most recent call last):
    vit_lens.errors.InterventionError: no steering function 'mean-diference'; nearest: 'mean-difference', ...
    """
    if spec in OWN[kind]:
        return Candidate(name=spec, kind=kind, thing=OWN[kind][spec])
    if kind == "dictionary":
        return Candidate(name=spec, kind=kind, thing=Dictionary.from_pretrained(spec))
    module, colon, attribute = spec.partition(":")
    if kind == "lens" and (not colon or "=" in attribute or attribute.startswith("project")):
        check_spelling(spec)
        return Candidate(name=spec, kind=kind, thing=spec)
    if not colon or not module or not attribute:
        raise InterventionError(
            f"no steering function {spec!r}; nearest: {nearest(spec, OWN[kind])}. Of your own: module:function"
        )
    return Candidate(name=spec, kind=kind, thing=_imported(module, attribute, _ERRORS[kind]))


def _imported(module: str, attribute: str, error: type[VitLensError]) -> Any:
    """Import a module by name, which runs its code, and return one of its attributes.

    Raises:
        VitLensError: There is no such module or attribute, or importing it raises.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or not (module == missing.name or module.startswith(f"{missing.name}.")):
            raise error(f"module {module!r} needs {missing.name!r}, which is not installed") from missing
        known = [one.name for one in pkgutil.iter_modules() if not one.name.startswith("_")]
        raise error(
            f"no module {module!r} in {here} or where Python looks; nearest: {nearest(missing.name, known)}"
        ) from None
    except Exception as wrong:
        raise error(f"module {module!r} cannot be imported ({type(wrong).__name__}: {wrong})") from wrong
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise error(f"module {module!r} has no {attribute!r}; nearest: {nearest(part, public) or 'nothing'}")
        found = getattr(found, part)
    return found


def as_lens(candidate: Candidate, make_spelt: Callable[[str], Lens], model: Any, pixels: Any) -> Lens:
    """Return a candidate's lens for a model.

    Args:
        candidate: A lens.
        make_spelt: Makes one of our lenses of its spelling.
        model: What is read: an image encoder, or a run of prompts' encoder.
        pixels: What the lens may learn from.

    Raises:
        LensError: It is no lens, and makes none.
    """
    thing = candidate.thing
    if isinstance(thing, str):
        return make_spelt(thing)
    if isinstance(thing, type) and issubclass(thing, Lens):
        thing = thing()
    elif not isinstance(thing, Lens) and callable(thing):
        thing = thing(model, pixels)
    if not isinstance(thing, Lens):
        raise LensError(
            f"{candidate.name} is a {type(thing).__name__}; expected a vit_lens.Lens, its class, or a function "
            "(model, pixels) that makes one"
        )
    return thing
