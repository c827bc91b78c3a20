"""The page of a dictionary, its card and its controls: what is shown is what was measured, escaped, in one file."""

import dataclasses
import io
import re
import shutil
import subprocess
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
import tiny_dictionaries as tiny
import torch
from PIL import Image

EVIL = "</script><img src=x onerror=alert(1)>\"'"


@pytest.fixture(scope="module")
def pixels_many():
    return torch.randn(19, 3, 22, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def of(kind="topk", **said):
    from vit_lens.dictionaries import Origin

    origin = Origin(site="blocks.1.hook_resid_post", tokens=said.pop("tokens", "patches"), model=EVIL, learnt=EVIL)
    return tiny.make(kind, origin=origin, **said)


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.text = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if "id" in found:
            assert found["id"] not in self.ids
            self.ids.add(found["id"])
        if tag == "a":
            self.links.append(found["href"])

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(vit, pixels_many, tmp_path_factory):
    from vit_lens.dictionaries import ActivationSource, feature_examples, with_controls
    from vit_lens.report import write_dictionary_page

    source = ActivationSource.of_model(vit, pixels_many, "L1.resid_post", tokens="patches", batch_size=32)
    dictionary = with_controls(of(n=23, k=3), *source.split(0.4))
    frequency = dictionary.frequency.clone()
    frequency[4] = 0
    dictionary = dataclasses.replace(dictionary, frequency=frequency)
    examples = feature_examples(dictionary, vit, pixels_many, [4, 0, 17, 9])
    path = write_dictionary_page(dictionary, examples, tmp_path_factory.mktemp("page") / "dictionary.html")
    return dictionary, examples, path, path.read_text()


def test_the_page_is_one_file_and_what_came_from_outside_is_text(written):
    text = written[3]
    page = Parsed(text)
    assert EVIL not in text and "alert(1)" in text
    assert not [tag for tag, found in page.tags if tag == "script" or any(name.startswith("on") for name in found)]
    assert not [found for tag, found in page.tags if "style" in found or tag == "link"]  # the policy would drop them
    sources = [found["src"] for tag, found in page.tags if tag == "img"]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in text and "http" not in re.sub(
        r"http-equiv", "", text
    )
    assert all("alt" in found for tag, found in page.tags if tag == "img")
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)


def test_the_page_shows_what_was_measured(written):
    from vit_lens.dictionaries import compared, verdicts

    dictionary, examples, _, text = written
    page = Parsed(text)
    said = " ".join(" ".join(page.text).split())
    for name, numbers in compared(dictionary).items():
        assert f"{name} {numbers['fvu']:.2f} {numbers['fvu_standardised']:.2f} {numbers['l0']:.2f}" in said
    for point in dictionary.statistics["fidelity"]["points"]:
        assert f"{point['fidelity']:.2f}".replace("-", "\u2212") in said
    assert all(one.words in said for one in verdicts(dictionary)) and len(verdicts(dictionary)) == 4
    assert "L1.resid_post.f4 dead" in said and "L1.resid_post.f17" in said
    cosines = torch.nn.functional.normalize(dictionary.W_dec, dim=1)
    near = (cosines @ cosines[17]).topk(5).indices.tolist()[1:]
    part = text[text.index('id="f17"') : text.index('id="f9"')]
    assert re.findall(r">?f(\d+)(?:</a>)? \(", part) == [str(one) for one in near]
    for bands in examples.bands:
        for band in bands:
            for one in band.examples:
                row, column = divmod(one.position - 1, 2)
                alt = f"input {one.input}, activation {one.activation:.2f}, strongest at patch ({row}, {column})"
                assert alt in [found.get("alt") for _, found in page.tags]


def test_a_heat_map_is_as_opaque_as_the_code(written):
    _, examples, _, text = written
    heats = re.findall(r'class="heat" src="data:image/png;base64,([^"]+)"', text)
    every = [(k, one) for k, bands in enumerate(examples.bands) for band in bands for one in band.examples]
    assert len(heats) == len(every)
    for data, (k, one) in zip(heats, every, strict=True):
        top = max(abs(each.activation) for band in examples.bands[k] for each in band.examples)
        pixels = np.asarray(Image.open(io.BytesIO(b64decode(data))).convert("RGBA"))
        codes = examples.on_grid(one).numpy()
        assert pixels.shape == (2, 2, 4)
        assert np.abs(pixels[..., 3] - 255 * 0.62 * np.minimum(1, np.abs(codes) / top)).max() <= 1


def test_controls_are_measured_as_they_are_made(vit, pixels_many):
    from vit_lens.dictionaries import (
        ActivationSource,
        data_points_control,
        evaluate,
        fidelity,
        pca_control,
        untrained_control,
        with_controls,
    )
    from vit_lens.errors import DictionaryError

    source = ActivationSource.of_model(vit, pixels_many, "L1.resid_post", tokens="patches", batch_size=32)
    train, held = source.split(0.4)
    dictionary = of(n=23, k=3)
    found = with_controls(dictionary, train, held, seed=5)
    known = dataclasses.replace(dictionary, statistics={"held_out": evaluate(dictionary, held).numbers()})
    made = {
        "untrained": untrained_control(known, train, seed=5), "principal components": pca_control(known, train),
        "random data points": data_points_control(known, train, seed=5),
    }  # fmt: skip
    for name, control in made.items():
        assert found.statistics["controls"][name] == evaluate(control, held).numbers()
    pursued = evaluate(dictionary, held, method="pursuit", k=3).numbers()
    assert found.statistics["controls"]["dictionary, by pursuit"] == pursued
    inputs = pixels_many[list(held.inputs)]
    expected = fidelity(vit, {"dictionary": dictionary, **made}, inputs, ks=[1, 3, 6])
    points = {(p["name"], p["k"]): p["fidelity"] for p in found.statistics["fidelity"]["points"]}
    for point in expected.points:
        assert points[point.name, point.k] == pytest.approx(point.fidelity, abs=1e-9)
    elsewhere = ActivationSource.of_model(vit, pixels_many, "L0.resid_post", tokens="patches", batch_size=32)
    with pytest.raises(DictionaryError, match=r"is of site 'blocks\.1\.hook_resid_post', the activations are of"):
        with_controls(dictionary, elsewhere.split(0.4)[0], held)
    few = with_controls(of(n=300, k=3), train, held)
    assert "random data points" not in few.statistics["controls"] and "fewer than 300" in few.statistics["left_out"]


def test_verdicts_say_plainly_what_is_weak():
    from vit_lens.dictionaries import card, verdicts

    def having(pursued, points, untrained, recovered, dead):
        def row(fvu):
            return {
                "fvu": fvu,
                "fvu_standardised": fvu,
                "l0": 7.0,
                "dead": dead,
                "dense": 0.0,
                "n_tokens": 9,
                "n_inputs": 3,
            }

        point = {"name": "dictionary", "k": 7, "l0": 7.0, "value": 0.0, "fidelity": recovered}
        controls = {
            "dictionary, by pursuit": row(pursued),
            "untrained": row(untrained),
            "random data points": row(points),
        }
        statistics = {"held_out": row(pursued), "controls": controls}
        return dataclasses.replace(of(), statistics=statistics | {"fidelity": {"n": 3, "points": [point]}})

    good = having(0.1, 0.2, 0.8, 0.95, 0.01)
    weak = having(0.201, 0.2, 0.15, 0.89, 0.2)
    assert [one.holds for one in verdicts(good)] == [True] * 4
    assert [one.holds for one in verdicts(weak)] == [False] * 4
    assert not verdicts(having(0.199, 0.2, 0.8, 0.95, 0.01))[0].holds  # not by what one sees
    assert "no more than as many random data points under the same encoder" in card(weak)
    assert "keeps 0.89 of what mean ablation takes away. A model with so much missing" in card(weak)
    assert "no controls" not in card(good).lower() and not verdicts(of())


def test_prompts_are_shaded_and_escaped(tmp_path):
    from vit_lens.dictionaries import Band, Example, FeatureExamples
    from vit_lens.identity import fingerprint
    from vit_lens.report import write_dictionary_page

    nan = float("nan")
    one = Example(0, -4.0, 2, torch.tensor([0.0, 1.0, -4.0, nan]))
    examples = FeatureExamples(
        content=fingerprint({"W_dec": of().W_dec}), features=(3,), frequency=torch.tensor([0.2]), n_firing=(1,),
        bands=((Band(0.0, (one,)), Band(0.25, ())),), n_inputs=1, grid=None, n_prefix=0, pictures={},
        texts={0: ["<start>", "a", EVIL, "x"]},
    )  # fmt: skip
    text = write_dictionary_page(of(), examples, tmp_path / "p.html").read_text()
    assert '<span class="t2" title="1.00">a</span>' in text and '<span class="t5 negative" title="-4.00">' in text
    assert "&lt;start&gt;" in text and EVIL not in text and "No controls beside this dictionary" in text


def test_pages_that_cannot_be_are_refused(written, tmp_path, unchecked):
    from vit_lens.errors import DictionaryError, OutputError
    from vit_lens.report import write_dictionary_page

    dictionary, examples, _, _ = written
    with pytest.raises(OutputError, match=r"ends in \.html"):
        write_dictionary_page(dictionary, examples, tmp_path / "page.pdf")
    with pytest.raises(DictionaryError, match="the examples are of another dictionary"):
        write_dictionary_page(of(n=23, k=3, seed=9), examples, tmp_path / "page.html")
    with pytest.raises(DictionaryError, match="examples"):
        write_dictionary_page(dictionary, [1], tmp_path / "page.html")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
def test_nothing_is_wider_than_a_phone(written, tmp_path):
    """The browser lays the page out at 400 pixels; what is wider would make it scroll sideways."""
    page = tmp_path / "probe.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", written[3])
    probe = "<script>document.title = `width ${document.documentElement.scrollWidth}`</script></body>"
    page.write_text(text.replace("</body>", probe))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    out = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert int(re.search(r"<title>width (\d+)", out.stdout)[1]) <= 500
