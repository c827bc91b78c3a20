"""The notebooks run top to bottom, on the embedded pair and unchanged on another; their pages are up to date."""

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_kandinsky
import tiny_pipelines
from conftest import randomize

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_TEXT = ("05_text_encoders",)
PAGES = ROOT / "docs" / "notebooks"
# What a reader with real weights changes, and nothing else; by whether the notebook is about text.
SETTABLE = {False: ("MODEL", "DECODER", "IMAGE"), True: ("PIPELINE", "PROMPTS")}
LARGEST_PAGE = 1_500_000

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)


def cells(notebook, kind):
    held = json.loads(notebook.read_text())
    assert held["nbformat"] == 4
    return [cell for cell in held["cells"] if cell["cell_type"] == kind]


def code(notebook):
    return ["".join(cell["source"]) for cell in cells(notebook, "code")]


def run(notebook, changed):
    """Run the cells, the first with other values for some of its names; every value that Jupyter would show shows."""
    import torch

    names = {"__name__": "__main__"}
    with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for index, text in enumerate(code(notebook)):
            tree = ast.parse(text)
            if isinstance(tree.body[-1], ast.Expr):
                target = ast.Name("shown", ast.Store(), lineno=1, col_offset=0)
                tree.body[-1] = ast.Assign([target], tree.body[-1].value, lineno=1, col_offset=0)
            exec(compile(tree, f"{notebook.name}[{index}]", "exec"), names)
            if index == 0:
                names |= {name: value for name, value in changed.items() if name in names}
            if (shown := names.pop("shown", None)) is not None:
                assert getattr(shown, "_repr_html_", shown.__repr__)()
    return names


@pytest.fixture(scope="module")
def other_pair(tmp_path_factory):
    """An encoder of other sizes with random weights, a decoder for it, and means: saved in the published formats."""
    from transformers import CLIPConfig, CLIPModel

    from vit_lens import HookedViT, ReferenceMeans
    from vit_lens.mini import world
    from vit_lens.mini.shipped import PAIR

    home = tmp_path_factory.mktemp("other pair")
    config = CLIPConfig.from_pretrained(PAIR / "encoder").to_dict() | {"projection_dim": tiny_kandinsky.D_EMBED}
    config["text_config"]["projection_dim"] = tiny_kandinsky.D_EMBED
    config["vision_config"] |= dict(
        hidden_size=36, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, image_size=48, patch_size=24,
        projection_dim=tiny_kandinsky.D_EMBED,
    )  # fmt: skip
    clip = CLIPModel(CLIPConfig.from_dict(config)).eval()
    randomize(clip.vision_model)
    randomize(clip.visual_projection)
    clip.save_pretrained(home / "encoder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(PAIR / "encoder" / name, home / "encoder")
    prepared = json.loads((PAIR / "encoder" / "preprocessor_config.json").read_text())
    text = re.sub(r"\b64\b", "48", json.dumps(prepared))
    (home / "encoder" / "preprocessor_config.json").write_text(text)
    model = HookedViT.from_pretrained(home / "encoder")
    (home / "decoder").mkdir()
    card = {
        "encoder_id": model.encoder_id,
        "image_size": 32,
        "steps": 1,
        "guidance": 1.0,
        "embed_dim": model.cfg.d_embed,
    }
    tiny_kandinsky.save(home / "decoder", card)
    scenes = list(world.render(world.sample_scenes(8, _generator())))
    means = ReferenceMeans.from_images(model, scenes).save(home / "means.safetensors")
    return {"MODEL": home / "encoder", "DECODER": home / "decoder", "REFERENCE": means, "SETTINGS": {"steps": 1}}


@pytest.fixture(scope="module")
def other_pipeline(tmp_path_factory):
    """A Stable Diffusion of random weights with a KL autoencoder, saved by diffusers."""
    home = tmp_path_factory.mktemp("other pipeline")
    tiny_pipelines.make("sd1").save_pretrained(home)
    prompts = ["a red star and a ring", "a blue star and a ring"]
    return {"PIPELINE": home, "PROMPTS": prompts, "SETTINGS": {"steps": 1}, "JUDGE": None}


def _generator():
    import numpy as np

    return np.random.default_rng(3)


@pytest.fixture
def notebook_folder(tmp_path, monkeypatch):
    """Where a notebook's files go, beside the docs as in the project."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")


@each_notebook
@pytest.mark.usefixtures("notebook_folder")
def test_it_runs_top_to_bottom(notebook):
    run(notebook, {})


@each_notebook
@pytest.mark.usefixtures("notebook_folder")
def test_it_runs_unchanged_on_another_model(notebook, other_pair, other_pipeline):
    of_text = notebook.stem in OF_TEXT
    names = run(notebook, other_pipeline if of_text else other_pair)
    model = names["tower" if of_text else "model"]
    assert (model.cfg.n_layers, model.cfg.n_heads) == (3, 4)


@each_notebook
def test_what_a_reader_changes_stands_in_the_first_cell(notebook):
    first, *rest = code(notebook)
    set_here = {t.id for n in ast.parse(first).body if isinstance(n, ast.Assign) for t in _names(n.targets)}
    assert set(SETTABLE[notebook.stem in OF_TEXT]) <= set_here
    stored = {n.id for text in rest for n in ast.walk(ast.parse(text)) if _stores(n)}
    assert not set_here & stored, "set again below"
    for text in rest:
        assert not re.search(r"\bmini\b|sample_images|\bL\d+H\d+\b", text), f"only true of the embedded pair:\n{text}"


def _names(targets):
    return [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def _stores(node):
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


@each_notebook
def test_it_is_kept_clean_and_reads_as_prose(notebook):
    blocks, prose = cells(notebook, "code"), cells(notebook, "markdown")
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in blocks)
    assert prose[0]["source"][0].startswith("# ") and prose[0]["id"].endswith("-00")
    assert 3 * len(prose) >= 2 * len(blocks)
    assert len({cell["id"] for cell in [*blocks, *prose]}) == len(blocks) + len(prose)
    functions = [n for text in code(notebook) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert all(len(function.body) <= 5 for function in functions)


@each_notebook
def test_it_uses_public_names_alone(notebook):
    for text in code(notebook):
        for node in ast.walk(ast.parse(text)):
            assert not (isinstance(node, ast.Attribute) and node.attr.startswith("_")), ast.unparse(node)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vit_lens":
                module = importlib.import_module(node.module)
                below = {Path(p).stem for path in getattr(module, "__path__", []) for p in Path(path).iterdir()}
                missing = {alias.name for alias in node.names} - set(module.__all__) - below
                assert not missing and "._" not in node.module, f"{node.module}: {missing}"


@each_notebook
def test_its_page_shows_what_it_is_today(notebook):
    page = (PAGES / f"{notebook.stem}.html").read_text()
    assert f'name="notebook" content="{_execute().digest(notebook)}"' in page, "run: python notebooks/execute.py"
    assert len(page.encode()) < LARGEST_PAGE
    assert "<script" not in page and "output_error" not in page and "output_stderr" not in page
    loaded = re.findall(r"""(?:src=["']?|url\(["']?|@import\s)([^"')\s>]+)""", page)
    assert loaded and all(link.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for link in loaded)
    pictures = re.findall(r"<img[^>]*>", page)
    assert pictures and all(re.search(r'alt="(?!No description)[^"]+"', picture) for picture in pictures)
    for link in re.findall(r'<a [^>]*href="([^"#]+)"', page):
        assert link.startswith("https://") or (PAGES / link).exists(), link


def _execute():
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_another_text_is_another_page(tmp_path):
    changed = tmp_path / NOTEBOOKS[0].name
    changed.write_text(NOTEBOOKS[0].read_text().replace("## Load", "## Loads", 1))
    digest = _execute().digest
    assert digest(changed) != digest(NOTEBOOKS[0])


def test_all_six_are_here():
    names = ["01_first_look", "02_hooks_you_know", "03_diffusion_steering_lens", "04_can_you_trust_it"]
    names += [*OF_TEXT, "06_dictionaries"]
    assert [notebook.stem for notebook in NOTEBOOKS] == names
    assert sorted(page.stem for page in PAGES.glob("*.html")) == names
