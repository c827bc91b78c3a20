"""The layout tells the truth: rooms import one way, and each third-party package enters by its doors."""

import ast
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vit_lens"

# Each room imports only rooms above it. CONTRIBUTING.md says what each is for.
ROOMS = [
    "lazy", "axes", "errors", "numerics", "config", "addresses", "tokens", "identity", "files", "images", "hooking",
    "sources", "texts", "conditions", "text_formats", "towers", "verification", "models", "reference", "attribution",
    "interventions", "controls", "lenses", "readers", "dictionaries", "decoders", "diffusion", "estimates", "metrics",
    "records", "engine", "sweeping", "figures", "mini", "explaining", "report", "doctor", "cli", "mini.training",
    "studies", "bench",
]  # fmt: skip
WINGS = ["mini.training", "studies", "bench"]  # they mount their commands; the main path does not know them
DOORS = {
    "open_clip": {"sources", "texts"},
    "timm": {"sources"},
    "torchvision": set(),
    "transformers": {"sources", "texts", "decoders", "mini.training", "explaining", "doctor", "studies"},
    "diffusers": {"decoders", "mini.training", "doctor"},
    "transformer_lens": {"hooking", "towers", "models", "interventions", "lenses", "dictionaries", "diffusion"},
    "plotly": {"figures", "studies"},
    "jinja2": {"report"},
    "pandas": {
        "verification",
        "reference",
        "attribution",
        "interventions",
        "readers",
        "dictionaries",
        "records",
        "sweeping",
        "figures",
        "report",
        "explaining",
        "studies",
        "bench",
        "cli",
    },
    "openai": {"explaining"},
    "psutil": {"decoders"},
    "sae_lens": {"dictionaries"},
    "scipy": {"studies"},
    "typer": {"bench", "cli", "mini.training", "studies"},
    "pickle": {"sources"},  # for the name of the error that torch.load(weights_only=True) raises
}


def room_of(module):
    """The room of a module, given by the parts of its name within the package."""
    return next((wing for wing in WINGS if wing.split(".") == list(module[: wing.count(".") + 1])), module[0])


def imports():
    """Every (file, room, imported module), function bodies and names for type checkers included."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "vit_lens" else [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                yield path, room_of(parts), name


def test_every_file_is_in_a_room():
    found = {room_of(p.relative_to(PACKAGE).with_suffix("").parts) for p in PACKAGE.rglob("*.py")}
    assert found - {"__init__"} == set(ROOMS)


def imports_within():
    """Every (file, room, imported module, its room) inside the package; its face may import what it likes."""
    for path, room, name in imports():
        parts = name.split(".")
        if parts[0] == "vit_lens" and room != "__init__" and len(parts) > 1 and parts[1] in ROOMS:
            yield path, room, name, room_of(parts[1:])


def test_imports_point_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, room, name, other in imports_within()
        if ROOMS.index(other) > ROOMS.index(room)
    ]
    assert not wrong


def test_nothing_in_the_main_path_imports_studies_or_training():
    """Function bodies included; the command line mounts them by name, and no wing knows another: but bench plants as
    studies do.
    """
    from vit_lens.cli.program import MOUNTED

    assert {room_of(name.split(".")[1:]) for name in MOUNTED} == set(WINGS)
    seen = [(room, other, name) for _, room, name, other in imports_within() if other in WINGS]
    assert seen and not [one for one in seen if one[0] != one[1] and one[:2] != ("bench", "studies")]


def test_a_study_is_one_folder():
    """Nothing outside the folder of a study names it, but for the face and studies that rest on another's parts."""
    from vit_lens.studies import STUDIES

    for path, _, name in imports():
        parts = name.split(".")
        if parts[:2] == ["vit_lens", "studies"] and parts[2:3] and parts[2] in STUDIES:
            own = path.relative_to(PACKAGE).parts[:-1]
            assert own == ("studies", parts[2]) or (own[0] == "studies" and parts[3:] == []), f"{path} imports {name}"
    for study in STUDIES:
        assert (PACKAGE / "studies" / study / "command.py").is_file()


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


def test_rooms_answer_from_the_start():
    """Whatever was imported before: an attribute that works by accident fails in somebody else's notebook."""
    rooms = ["addresses", "decoders", "figures", "lenses", "mini", "models", "readers", "records", "sources", "towers"]
    for room in rooms:
        code = f"import vit_lens as vl; print(len(vl.{room}.__all__) > 0)"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert out.stdout.strip() == "True", room


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


def _edges():
    """Every (file, file or face that it imports), names for type checkers and function bodies included."""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("vit_lens", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        modules[name] = path
    trees = {name: ast.parse(path.read_text()) for name, path in modules.items()}
    offered = {name: _offered(tree) for name, tree in trees.items()}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            named = []
            if isinstance(node, ast.ImportFrom) and node.module:
                known = offered.get(node.module, ())  # plan, the function that the face offers, and not plan.py
                whole = [node.module if a.name in known else f"{node.module}.{a.name}" for a in node.names]
                named = [each if each in modules else node.module for each in whole]
            elif isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            yield from ((name, each) for each in named if each in modules and each != name)


def _offered(tree):
    """The names on a face: those of its ``__all__``, or of the table that it loads them by."""
    found = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    keys = found[0].elts if found else [key for n in ast.walk(tree) if isinstance(n, ast.Dict) for key in n.keys]
    return {each.value for each in keys if isinstance(each, ast.Constant)}


def test_no_file_comes_back_to_itself():
    """No circle, of names for type checkers neither: what a file needs can be read from the ground up."""
    below = {}
    for name, other in _edges():
        below.setdefault(name, set()).add(other)
    reached = {name: set(others) for name, others in below.items()}
    while True:
        grown = {
            name: set().union(found, *(reached.get(each, ()) for each in found)) for name, found in reached.items()
        }
        if grown == reached:
            break
        reached = grown
    assert not sorted(name for name, found in reached.items() if name in found)


def test_rooms_are_entered_by_their_faces():
    """What a room offers is on its face; nobody reaches past it. Its own files, and tests, may."""
    wrong = []
    for name, other in _edges():
        own, room = name.split(".")[1:2], other.split(".")[1:2]
        is_past = len(other.split(".")) > 2 and own != room and name != "vit_lens"
        if is_past and other != "vit_lens.cli.flags":  # of which a mounted command is made
            wrong.append(f"{name} imports {other}")
    assert not wrong
