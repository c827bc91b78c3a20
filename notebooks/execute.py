"""Run the notebooks top to bottom and write them, with what they show, to docs/notebooks as single HTML files.

Usage: ``python notebooks/execute.py`` for all, ``python notebooks/execute.py 01 03`` for some. The notebooks themselves
keep no outputs. The files hold their style and pictures, no script, and load nothing.
"""

import hashlib
import html
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent / "docs" / "notebooks"
_LIMIT_S = 600
# Pictures of figures instead of plotly's script, and no progress bars.
_BEFORE = "import plotly.io; plotly.io.renderers['png'].scale = 1.3; plotly.io.renderers.default = 'png'"
_QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
_STYLE = """
body { max-width: 60rem; margin: 0 auto; padding: 1rem 1.2rem 4rem; background: #fff; color: #1c1b19;
  font: 16px/1.55 system-ui, Helvetica, Arial, sans-serif; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding-bottom: .6rem; border-bottom: 1px solid #ddd;
  font-size: .9rem; }
nav [aria-current] { font-weight: 600; color: inherit; text-decoration: none; }
a { color: #1f5fa8; }
h1 { margin: 1.6rem 0 .4rem; line-height: 1.2; }
h2 { margin: 2.2rem 0 .4rem; }
pre, code { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
p code, li code, td code { background: #f2f1ee; padding: .1em .3em; border-radius: 3px; }
.cell { margin: .7rem 0; }
.highlight { background: #f7f6f3; border: 1px solid #e4e2dc; border-radius: 5px; overflow-x: auto; }
.highlight pre { margin: 0; padding: .7rem .9rem; }
.output_wrapper { margin: .6rem 0 1.3rem .9rem; overflow-x: auto; }
.output_wrapper pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.output_png img { max-width: 100%; height: auto; }
table { border-collapse: collapse; border: 0; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: right; border: 0; border-bottom: 1px solid #e4e2dc; vertical-align: top; }
.text_cell th, .text_cell td { text-align: left; }
"""


def digest(notebook: Path) -> str:
    """Return what identifies a notebook's text and code; a page carries that of the notebook that it shows."""
    cells = json.loads(notebook.read_text())["cells"]
    text = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in cells])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def execute(notebook: Path) -> nbformat.NotebookNode:
    """Run a notebook in a kernel and a directory of its own; an error of a cell is raised."""
    node = nbformat.read(notebook, as_version=4)
    node.cells.insert(0, nbformat.v4.new_code_cell(_BEFORE))
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "notebooks"
        home.mkdir()
        (home.parent / "docs").symlink_to(HERE.parent / "docs")  # results lie at ../docs, as for a reader
        NotebookClient(node, timeout=_LIMIT_S, resources={"metadata": {"path": str(home)}}).execute()
    del node.cells[0]
    heading = ""
    for cell in node.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE) or [heading])[-1]
        if cell.cell_type == "code":  # what Chromium and libraries log is not the notebook's
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            for kind in ("image/png", "image/jpeg"):  # nbconvert reads alternative texts here
                if kind in output.get("data", {}):
                    output.metadata[kind] = {**output.metadata.get(kind, {}), "alt": f"Shown under: {heading}"}
    return node


def page(notebook: Path, node: nbformat.NotebookNode) -> str:
    """Return an executed notebook as a whole HTML file."""
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True
    )
    body, _ = exporter.from_notebook_node(node)
    title = node.cells[0].source.splitlines()[0].removeprefix("# ")
    style = _STYLE + HtmlFormatter(style="default").get_style_defs(".highlight")
    links = [_link(other, current=other == notebook) for other in sorted(HERE.glob("*.ipynb"))]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="notebook" content="{digest(notebook)}">
<title>{html.escape(title)} | vit_lens</title>
<style>{style}</style>
</head>
<body>
<nav><span>vit_lens</span>{"".join(links)}<a href="../../notebooks/{notebook.name}">as a notebook</a></nav>
<main>
{body}
</main>
</body>
</html>
"""


def _link(notebook: Path, *, current: bool) -> str:
    name = html.escape(notebook.stem.replace("_", " "))
    return f'<a href="{notebook.stem}.html"{" aria-current=page" if current else ""}>{name}</a>'


def main(wanted: list[str]) -> None:
    """Execute the notebooks whose names begin with one of ``wanted``, all without any."""
    os.environ |= _QUIET
    PAGES.mkdir(exist_ok=True)
    for notebook in sorted(HERE.glob("*.ipynb")):
        if not wanted or notebook.stem.startswith(tuple(wanted)):
            (PAGES / f"{notebook.stem}.html").write_text(page(notebook, execute(notebook)))


if __name__ == "__main__":
    main(sys.argv[1:])
