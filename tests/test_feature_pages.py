"""Pages of features: a folder that needs nothing else, in the order of what is to be trusted, searched and escaped."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageColor
from test_dictionary_page import EVIL, Parsed, of

N = 23
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def made(vit):
    from vit_lens.dictionaries import feature_examples

    pixels = torch.randn(19, 3, 22, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    dictionary = of(n=N, k=3)
    return dictionary, feature_examples(dictionary, vit, pixels, [4, 0, 17, 9, 12])


def said(**numbers):
    from vit_lens.explaining import Explained

    given = {"kind": "dictionary", "n_firing": 9, "explained_on": (0,), "positives": (1, 2), "negatives": (3,)}
    given |= {"score": 0.5, "auc": 0.5, "localisation": None, "shuffled": 0.45, "constant": 0.5}
    return Explained(**(given | numbers))


@pytest.fixture(scope="module")
def explanations():
    from vit_lens.explaining import Explanations, Skipped

    rows = [
        said(unit=4, text="a blue ring", auc=0.6, score=0.9),
        said(unit=0, text=EVIL, auc=0.9, score=0.7),
        said(unit=17, text="a red star", auc=0.9, score=0.8, localisation=0.7),
        *(said(unit=k, text="not on the page", auc=0.8, score=0.6) for k in (5, 6, 7)),
        *(said(unit=k, text="noise", kind="untrained", auc=0.1 + 0.01 * k, score=0.95) for k in range(7)),
    ]
    skipped = Skipped(kind="dictionary", unit=9, why=f"fires on too few {EVIL}")
    return Explanations(
        protocol="mended", explainer="oracle", judge="oracle", n_images=19, least=10, seed=0, rows=tuple(rows),
        skipped=(skipped,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(made, explanations, tmp_path_factory):
    from vit_lens.report import FeatureStrip, write_feature_pages

    row = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    strip = FeatureStrip(EVIL, ("0", "0.4"), {"f17": row, "random direction": row[::-1]})
    out = tmp_path_factory.mktemp("pages")
    return write_feature_pages(*made, out, explanations=explanations, strips={17: strip}).parent


def test_the_folder_is_whole_and_what_came_from_outside_is_text(written):
    pages = sorted(written.rglob("*.html"))
    assert len(pages) == 1 + 5
    for path in pages:
        text = path.read_text()
        page = Parsed(text)
        assert EVIL not in text and "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
        assert not [found for _, found in page.tags if any(name.startswith("on") for name in found) or "style" in found]
        sources = [found["src"] for tag, found in page.tags if tag == "img"]
        assert all(one.startswith("data:image/") or (path.parent / one).is_file() for one in sources)
        for link in page.links:
            place, _, anchor = link.partition("#")
            target = path if not place else (path.parent / place).resolve()
            assert target.is_file() and written.resolve() in target.parents
            assert not anchor or anchor in Parsed(target.read_text()).ids
    assert "alert(1)" in (written / "index.html").read_text()


def test_the_most_trusted_number_comes_first(written):
    text = (written / "index.html").read_text()
    order = [int(one) for one in re.findall(r'<article class="card" id="f(\d+)"', text)]
    assert order[:3] == [17, 0, 4] and set(order[3:]) == {9, 12}  # AUC, then score; those not explained at the end
    assert re.findall(r'<option value="(\w+)"', text) == ["auc", "score", "localisation", "frequency"]
    page = (written / "features" / "17.html").read_text()
    assert 'href="0.html" rel="next"' in page and 'rel="prev"' not in page


def test_numbers_stand_beside_their_controls(written, explanations):
    words = " ".join(" ".join(Parsed((written / "index.html").read_text()).text).split())
    less = explanations.minus("dictionary", "untrained", "auc").value
    assert f"less untrained 7 +{less:.2f}" in words
    assert "AUC is above that of untrained; it was not held against random directions." in words
    assert "score is not above that of untrained: it does not show that a feature was learnt." in words
    assert "localisation: too few units to tell it from that of untrained." in words
    assert "not explained: fires on too few" in words
    words = " ".join(" ".join(Parsed((written / "features" / "17.html").read_text()).text).split())
    assert "score 0.80 on 2 where it fires, 1 others shuffled 0.45" in words and "localisation 0.70" in words
    assert "a red star" in words and "random direction" in words


def test_inputs_that_explained_or_tested_say_so(written, made):
    text = (written / "features" / "17.html").read_text()
    shown = [one.input for band in made[1].bands[2] for one in band.examples]
    uses = re.findall(r"<span>input (\d+)</span>.*?</figcaption>", text)
    assert [int(one) for one in uses] == shown
    for index in shown:
        part = next(one for one in text.split("<figcaption>")[1:] if f"input {index}<" in one).split("</figcaption>")[0]
        expected = "explained it" if index == 0 else "tested it" if index in (1, 2, 3) else ""
        assert re.findall(r'class="use">([^<]*)<', part) == ([expected] if expected else [])


def test_a_strip_shows_its_pictures_in_their_places(written):
    text = (written / "features" / "17.html").read_text()
    for row, colours in enumerate((["red", "blue"], ["blue", "red"])):
        for column, colour in enumerate(colours):
            name = f"strips/17_{row}_{column}.png"
            assert f'src="../{name}"' in text
            assert Image.open(written / name).convert("RGB").getpixel((3, 3)) == ImageColor.getrgb(colour)
    assert "strips" not in (written / "features" / "0.html").read_text()


def test_without_explanations_there_are_pages_still(made, tmp_path):
    from vit_lens.report import write_feature_pages

    text = write_feature_pages(*made, tmp_path / "pages").read_text()
    assert text.count('class="card"') == 5 and "Explanations, beside" not in text
    assert re.findall(r'<option value="(\w+)"', text) == ["frequency"]


def test_what_does_not_belong_is_refused(made, explanations, tmp_path):
    from vit_lens.errors import DictionaryError, OutputError
    from vit_lens.report import FeatureStrip, write_feature_pages

    _, examples = made
    red = Image.new("RGB", (8, 8))
    with pytest.raises(DictionaryError, match="the examples are of another dictionary"):
        write_feature_pages(of(n=N, k=3, seed=5), examples, tmp_path / "a")
    with pytest.raises(DictionaryError, match="the explanations are of 20 images and the examples of 19 inputs"):
        write_feature_pages(*made, tmp_path / "a", explanations=replace(explanations, n_images=20))
    with pytest.raises(DictionaryError, match="a strip of f5, which is not among the examples"):
        write_feature_pages(*made, tmp_path / "a", strips={5: FeatureStrip("", (), {})})
    with pytest.raises(DictionaryError, match="the strip of f4 has 2 columns, and 1 pictures in its row 'random'"):
        write_feature_pages(*made, tmp_path / "a", strips={4: FeatureStrip("", ("0", "1"), {"random": [red]})})
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_feature_pages(*made, tmp_path / "file" / "pages")


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="looking at the page needs chromium and chromedriver on the PATH")
def test_the_index_is_searched_and_sorted(written, tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", f"--user-data-dir={tmp_path}", "--window-size=400,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get((written / "index.html").as_uri())

        def numbers():
            script = "return [...document.querySelectorAll('.card')].filter(e => e.offsetParent).map(e => e.id)"
            return [int(one[1:]) for one in driver.execute_script(script)]

        def change(selector, value):
            script = """const e = document.querySelector(arguments[0]); e.value = arguments[1];
                e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input'));"""
            driver.execute_script(script, selector, value)

        assert numbers()[:3] == [17, 0, 4] and len(numbers()) == 5
        change("#order", "score")
        assert numbers()[:3] == [4, 17, 0]
        change("#order", "auc")
        assert numbers()[:3] == [17, 0, 4]
        change("#search", "RED star")
        assert numbers() == [17] and driver.find_element("id", "count").text == "1 of 5 features"
        change("#search", "4")
        assert numbers() == [4]
        change("#search", "nothing of the kind")
        assert numbers() == []
        change("#search", "")
        driver.find_element("id", "steered").click()
        assert numbers() == [17]
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert driver.execute_script(wide)
        driver.get((written / "features" / "17.html").as_uri())
        assert driver.execute_script(wide)
        seen = "return [...document.images].every(e => e.complete && e.naturalWidth > 0)"
        assert driver.execute_script(seen) and driver.get_log("browser") == []
    finally:
        driver.quit()


def test_a_number_is_good_where_it_is_above_both():
    from vit_lens.report.feature_pages import _verdict

    both = {"untrained": 0.1, "random directions": 0.01}
    assert _verdict("AUC", both) == (True, "AUC is above that of untrained and of random directions.")
    words = "AUC is not above that of random directions: it does not show that a feature was learnt."
    assert _verdict("AUC", both | {"random directions": -0.01}) == (False, words)


def test_images_that_explained_and_tested_say_both():
    from vit_lens.report.feature_pages import _told

    found = _told(said(unit=1, text="", explained_on=(0, 1)))
    assert found.seen == {0: "explained it", 1: "explained and tested it", 2: "tested it", 3: "tested it"}
