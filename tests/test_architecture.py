"""The layout tells the truth: rooms import one way, and each third-party package enters by its doors."""

import ast
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vit_lens"

# Each room imports only rooms above it. CONTRIBUTING.md says what each is for.
ROOMS = [
    "axes", "errors", "config", "addresses", "tokens", "identity", "files", "images", "hooking", "convert",
    "pretrained", "texts", "towers", "verification", "models", "conditions", "reference", "attribution",
    "interventions", "lenses", "readers", "decoders", "metrics", "records", "engine", "sweeping", "figures", "report",
    "studies", "mini", "doctor", "cli",
]  # fmt: skip
DOORS = {
    "open_clip": {"pretrained", "texts", "verification"},  # which compares with the source itself
    "timm": {"pretrained"},
    "torchvision": set(),
    "transformers": {"pretrained", "texts", "verification", "mini", "doctor"},
    "diffusers": {"decoders", "mini", "doctor"},
    "transformer_lens": {"hooking", "towers", "models", "interventions", "lenses"},
    "plotly": {"figures"},
    "jinja2": {"report"},
    "pandas": {
        "verification",
        "reference",
        "attribution",
        "interventions",
        "readers",
        "records",
        "sweeping",
        "figures",
        "report",
        "studies",
        "cli",
    },
    "psutil": {"decoders"},
    "scipy": {"studies"},
    "typer": {"cli"},
    "pickle": {"pretrained"},  # for the name of the error that torch.load(weights_only=True) raises
}


def imports():
    """Every (file, room, imported module), function bodies included, type-checking blocks left out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        tree = ast.parse(path.read_text())
        skipped = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if node in skipped:
                continue
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "vit_lens" else [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                yield path, parts[0], name


def test_every_file_is_in_a_room():
    found = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")}
    assert found - {"__init__"} == set(ROOMS)


def test_imports_point_one_way():
    wrong = []
    for path, room, name in imports():
        parts = name.split(".")
        if parts[0] != "vit_lens" or room == "__init__" or len(parts) < 2 or parts[1] not in ROOMS:
            continue
        if ROOMS.index(parts[1]) > ROOMS.index(room):
            wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_third_party_packages_enter_by_their_doors():
    wrong = []
    for path, room, name in imports():
        package = name.split(".")[0]
        if package in DOORS and room not in DOORS[package]:
            wrong.append(f"{path.relative_to(PACKAGE)} imports {package}")
    assert not wrong


def test_no_future_annotations():
    """They would turn jaxtyping's shapes into strings, and the checks of this suite off."""
    assert not [p for p in PACKAGE.rglob("*.py") if "from __future__ import annotations" in p.read_text()]


def test_importing_the_package_is_light_and_changes_nothing():
    code = (
        "import sys, vit_lens; vit_lens.Site.parse('L0H0'); "
        "print([m for m in ('torch', 'transformers', 'diffusers', 'plotly', 'open_clip') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_exist_and_are_documented():
    import vit_lens

    for name in vit_lens.__all__:
        value = getattr(vit_lens, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), name
    assert set(vit_lens.__all__) <= set(dir(vit_lens))


def test_a_cache_names_no_model_and_no_captions():
    """Not even for type checkers: it asks for a contract, so that any tower and any captions will do."""
    paths = [PACKAGE / "towers" / "caching.py", *(PACKAGE / "towers" / "cache").glob("*.py")]
    assert len(paths) > 5
    assert not [
        p.name for p in paths if re.search(r"import.*(models|texts)|from vit_lens\.(models|texts)", p.read_text())
    ]
