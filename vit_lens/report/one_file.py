"""A page as one file: a template with its styles and scripts inside, under a policy that lets nothing else in."""

__all__ = ["page_path", "write_page"]

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vit_lens.errors import OutputError
from vit_lens.files import as_path, make_directory, write_atomic

_NO_FILTERS: Mapping[str, Callable[..., str]] = {}


def page_path(out: str | os.PathLike[str]) -> Path:
    """Return where a page goes.

    Raises:
        OutputError: The name does not end in .html.

    >>> vl.report.page_path("sites.html").name
    'sites.html'
    >>> vl.report.page_path("sites.pdf")
    Traceback (most recent call last):
    vit_lens.errors.OutputError: the page is an HTML file, not 'sites.pdf'; give a path that ends in .html
    """
    target = as_path(out, OutputError, "out")
    if target.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"the page is an HTML file, not {target.name!r}; give a path that ends in .html")
    return target


def write_page(
    target: Path, template: tuple[str, str], *, styles: Sequence[tuple[str, str]],
    scripts: Sequence[tuple[str, str]] = (), images: str = "data:",
    filters: Mapping[str, Callable[..., str]] = _NO_FILTERS, **values: Any,
) -> Path:  # fmt: skip
    """Write a page as one file, whole or not at all; return its path.

    Nothing is loaded from a network: a policy in the page allows its own style and script, and ``images``.

    Args:
        target: The file to write, as :func:`page_path` gives it.
        template: Package and name of a Jinja template, which gets ``policy``, ``style``, ``script`` and ``values``, and
            may include others of its package.
        styles: Packages and names of style sheets, which are joined.
        scripts: Packages and names of scripts, which are joined.
        images: The sources that images may come from, in the words of a Content-Security-Policy.
        filters: Filters of the template, by name.
        values: What the template shows, by name.

    Raises:
        OutputError: The page cannot be written.
    """
    style, script = ("".join(map(_text, parts)) for parts in (styles, scripts))
    policy = f"default-src 'none'; img-src {images}; style-src {_hash(style)}"
    policy += f"; script-src {_hash(script)}" if script else ""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: _text((template[0], name))),
    )  # fmt: skip
    environment.filters |= filters
    inside = {"policy": Markup(policy), "style": Markup(style), "script": Markup(script)}
    page = environment.get_template(template[1]).render(**inside, **values)
    make_directory(target.parent)
    write_atomic(target, page.encode("utf-8", "replace"))  # a folder's name need not be UTF-8
    return target


def _text(place: tuple[str, str]) -> str:
    package, name = place
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode('ascii')}'"
