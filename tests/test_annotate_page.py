"""The page that people answer on: it tells nothing of where pictures come from, and a browser fills it in."""

import io
import json
import re
import time
from base64 import b64decode

import annotate_factory as factory
import numpy as np
import pytest
from PIL import Image
from test_report import CHROMIUM, DRIVER, FLAGS, needs_browser

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return factory.swept(tmp_path_factory.mktemp("annotate") / "r", controls=True)


@pytest.fixture(scope="module")
def written(record, tmp_path_factory):
    """The page of two questions, one of them hostile, with its sheet."""
    from vit_lens.studies.annotate import make_sheet, write_annotation_page

    folder = tmp_path_factory.mktemp("page")
    lines = [
        ["prompt", "question", "text"],
        ["", "shown", "Is it {prompt}?"],
        [factory.PROMPTS[0], 'odd,"', factory.HOSTILE],
    ]
    sheet = make_sheet([record], questions=factory.write(folder / "q.csv", lines), seed=2)
    return sheet, write_annotation_page(sheet, [record], folder / "page.html")


def asked_by(page):
    return json.loads(re.search(r'<script type="application/json" id="asked">(.*?)</script>', page.read_text())[1])


def test_the_page_is_blind(record, written):
    """Everything on it is a picture, a question, or a name that says nothing; the order is the seed's."""
    from vit_lens.studies.annotate import Sheet, make_sheet

    sheet, page = written
    asked, text = asked_by(page), page.read_text()
    assert set(asked) == {"page", "pictures", "items", "tasks"}
    assert asked["items"] == [item.item for item in sheet.items] and asked["page"] == sheet.page
    assert asked["tasks"] == [
        [place, question.question, question.text]
        for place, item in enumerate(sheet.items) for question in sheet.by_prompt[item.prompt].values()
    ]  # fmt: skip
    bare = text.replace(json.dumps(asked["pictures"]), "")
    for word in ("resid", "L0", "L2", "Diffusion Lens", "random", str(record.path), *record.readings):
        assert word not in bare, word
    for word in ("layer", "site", "seed", "control"):
        assert word not in bare.split("<body>")[1], word
    rows = [item.row for item in sheet.items]
    assert rows != sorted(rows) and rows != [item.row for item in make_sheet([record], seed=7).items]
    assert Sheet.load(page.with_suffix(".key.json")).items == sheet.items


def test_the_page_would_be_the_same_if_the_key_said_otherwise(record, written, tmp_path):
    from dataclasses import replace

    from vit_lens.studies.annotate import write_annotation_page

    sheet, page = written
    other = [replace(item, site="L9H9", layer=9, lens="another", control="", seed=9) for item in sheet.items]
    again = write_annotation_page(replace(sheet, items=tuple(other), seed=9), [record], tmp_path / "p.html")
    assert again.read_bytes() == page.read_bytes()


def test_pictures_are_whole_and_say_nothing_beside_their_pixels(record, written):
    sheet, page = written
    for item, uri in zip(sheet.items, asked_by(page)["pictures"], strict=True):
        shown = Image.open(io.BytesIO(b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert shown.info == {} and (np.asarray(shown) == np.asarray(record.picture(item.row))).all()


def test_what_came_from_outside_is_text_under_a_policy(written):
    text = written[1].read_text()
    assert factory.HOSTILE not in text and "alert(1)" in text
    assert len(re.findall(r"<script", text)) == 2 and "onerror=" not in text.replace(
        "\\u003cimg src=x onerror=alert(1)", ""
    )
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in text and "https:" not in text
    assert not re.search(r"<[^>]+ style=", text)


def test_large_pictures_are_shrunk_and_a_page_has_a_bound(record, written, tmp_path, monkeypatch):
    from vit_lens.errors import OutputError
    from vit_lens.studies.annotate import page as module
    from vit_lens.studies.annotate import write_annotation_page

    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 900, 3), dtype=np.uint8))
    uri = module._uri(large)
    assert uri.startswith("data:image/jpeg") and Image.open(io.BytesIO(b64decode(uri.split(",")[1]))).size == (640, 569)
    monkeypatch.setattr(module, "MOST_BYTES", 3000)
    with pytest.raises(OutputError, match=r"of 8 pictures fill a page, which holds 0 MB: give --n \d or less"):
        write_annotation_page(written[0], [record], tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


# ---- in a browser


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def begin(browser, page, name):
    from selenium.webdriver.common.keys import Keys

    browser.get("about:blank")
    browser.get(page.as_uri())
    browser.find_element("id", "name").send_keys(name + Keys.ENTER)


def press(browser, *keys):
    for key in keys:
        browser.find_element("tag name", "body").send_keys(key)


def shown(browser):
    def part(name):
        return browser.find_element("id", name)

    return part("count").text, part("question").text, part("picture").get_attribute("src")


def downloaded(browser, folder, name):
    browser.execute_script("[...document.querySelectorAll('.save')].find(e => e.offsetParent).click()")
    for _ in range(100):
        if (file := folder / name).is_file():
            return file
        time.sleep(0.1)
    raise AssertionError(f"{name} was not downloaded; there are {list(folder.glob('*'))}")


@needs_browser
def test_the_page_is_filled_in_by_the_keyboard(record, written, browser, vit_lens, tmp_path):
    """With a slip that is undone, a window that is closed in between, and a name that a spreadsheet would calculate."""
    from selenium.webdriver.common.keys import Keys

    sheet, page = written
    asked, n = asked_by(page), len(sheet.tasks)
    keys, words = ["ynu"[place % 3] for place in range(n)], {"y": "yes", "n": "no", "u": "unsure"}
    begin(browser, page, '=Ada, "A."')
    for place, key in enumerate(keys[:5]):
        picture, _, text = asked["tasks"][place]
        assert shown(browser) == (f"{place + 1} of {n}", " ".join(text.split()), asked["pictures"][picture])
        press(browser, key)
    press(browser, "n", Keys.ARROW_LEFT)
    pressed = browser.find_elements("css selector", '[data-answer][aria-pressed="true"]')
    assert [one.get_attribute("data-answer") for one in pressed] == ["no"]
    press(browser, Keys.BACKSPACE, "x", Keys.ARROW_RIGHT, keys[5])
    assert shown(browser)[0] == f"7 of {n}"
    begin(browser, page, '=Ada, "A."')
    assert shown(browser)[0] == f"7 of {n}" and "6 answered" in browser.find_element("id", "said").text
    press(browser, Keys.ARROW_RIGHT)  # nothing is skipped
    assert shown(browser)[0] == f"7 of {n}"
    part = downloaded(browser, tmp_path / "downloads", "answers-_Ada_A_.csv")
    assert len(part.read_text().splitlines()) == 7
    part.unlink()
    press(browser, *keys[6:])
    assert (
        browser.find_element("id", "done").is_displayed() and "cannot tell" in browser.find_element("id", "sums").text
    )
    ada = downloaded(browser, tmp_path / "downloads", "answers-_Ada_A_.csv")
    begin(browser, page, "Bob")  # answers are kept by name
    assert shown(browser)[0] == f"1 of {n}"
    for place, key in enumerate(keys):
        answer = "yes" if place == 4 else words[key]
        browser.execute_script(f"document.querySelector('[data-answer={answer}]').click()")
    bob = downloaded(browser, tmp_path / "downloads", "answers-Bob.csv")
    assert browser.get_log("browser") == []

    status, told, err = vit_lens(
        "annotate", "read", ada, bob, "--key", page.with_suffix(".key.json"), "--out", tmp_path / "found"
    )
    assert status == 0, err
    from test_annotate import slow_kappa

    from vit_lens.studies.annotate import read_answers

    found = read_answers([ada, bob], sheet).answers
    own = [(one.item, one.question, one.answer) for one in found if one.annotator == '=Ada, "A."']
    assert own == [(item.item, one.question, words[key]) for (item, one), key in zip(sheet.tasks, keys, strict=True)]
    counts = np.array([[2 * (key == letter) for letter in "ynu"] for key in keys])
    counts[4] = [1, 1, 0]
    kappa = re.search(r"kappa, every question, .*, yes, no, cannot tell: ([-+.\d]+)", told)[1]
    assert float(kappa) == pytest.approx(slow_kappa(counts), abs=0.005)


@needs_browser
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_its_window(written, browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    begin(browser, written[1], "Ada")
    over = "return document.documentElement.scroll{0} - document.documentElement.client{0}"
    assert browser.execute_script(over.format("Width")) <= 0 and browser.execute_script(over.format("Height")) <= 0
    picture = browser.find_element("id", "picture")
    assert picture.size["width"] >= 350 and picture.value_of_css_property("image-rendering") == "pixelated"
    assert len(browser.find_elements("css selector", ".answers button")) == 3
    press(browser, "y", "y")
    assert browser.find_element("id", "back").is_displayed()
