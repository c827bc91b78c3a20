"""The page, opened in headless Chromium: what it shows equals the record, whatever the record's texts try."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import record_factory as factory

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000"),
)
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="looking at the page needs chromium and chromedriver on the PATH"
)
NAMES = ("cup.png", factory.HOSTILE)
HOSTILE_CHANGES = {"notes": ["stopped once", factory.HOSTILE], "command": f"vit-lens sweep {factory.HOSTILE}"}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return factory.build(tmp_path_factory.mktemp("report") / "rec ord", names=NAMES, changes=HOSTILE_CHANGES)


@pytest.fixture(scope="module")
def page(record):
    from vit_lens.report import write_report

    return write_report(record.path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def shown(browser, page):
    browser.get("about:blank")
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def _all(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def _choose(browser, selector, value):
    script = """const e = document.querySelector(arguments[0]); e.value = arguments[1];
        e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input'));"""
    browser.execute_script(script, selector, str(value))


def _text(value):
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{abs(value):.{digits}f}"
    return f"\u2212{text}" if value < 0 and float(text) else text


def _rows(record, **wanted):
    table = record.frame()
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def _loaded(browser, selector):
    script = "const i = document.querySelector(arguments[0]); return i && i.complete ? i.naturalWidth : 0"
    for _ in range(50):
        width = browser.execute_script(script, selector)
        if width:
            return width
        time.sleep(0.1)
    return 0


@needs_browser
def test_clicking_a_cell_shows_its_picture_and_its_numbers(shown, record):
    row = _rows(record, input=0, site="L3H4", lens="dsl", control="").iloc[0]
    shown.find_element("css selector", f'#map button[data-row="{row["row"]}"]').click()
    assert _all(shown, "#detail h3") == ["L3H4"]
    for key in ("cos_input", "cos_lens_clean", "faithfulness", "norm_h"):
        assert _all(shown, f'#detail [data-key="{key}"]') == [_text(row[key])]
    assert "how well the decoder drew the embedding it was asked to draw" in _all(shown, "#detail")[0]
    assert row["label"] in _all(shown, "#detail .label")[0]
    assert _loaded(shown, "#detail img.big") == 64
    link = shown.find_element("css selector", "#detail a:has(img.big)").get_attribute("href")
    assert link.endswith(f"rec%20ord/pictures/{row['row']:06d}.png")


@needs_browser
def test_a_site_stands_beside_its_control(shown, record):
    row = _rows(record, input=0, site="L3H4", lens="dsl", control="").iloc[0]
    control = _rows(record, input=0, site="L3H4", control="random").iloc[0]
    shown.find_element("css selector", f'#map button[data-row="{row["row"]}"]').click()
    assert f"Its control: {_text(control['cos_input'])}." in _all(shown, "#detail .numbers")[0]
    shown.find_element("css selector", "#detail button.small").click()
    assert "random control" in _all(shown, "#detail .reading")[0]
    assert _all(shown, '#detail [data-key="faithfulness"]') == [_text(control["faithfulness"])]


@needs_browser
@pytest.mark.parametrize("weak", [True, False])
def test_pictures_that_could_not_be_drawn_say_so(shown, record, weak):
    rows = _rows(record, input=0, lens="dsl", control="")
    row = int(rows[(rows["faithfulness"] < 0.6) == weak]["row"].iloc[0])
    cell = shown.find_element("css selector", f'#map button[data-row="{row}"]')
    cell.click()
    assert ("could not draw this" in shown.find_element("id", "detail").text) == weak
    assert ("weak" in cell.get_attribute("class").split()) == weak


@needs_browser
def test_several_seeds_share_a_cell_and_its_verdict(browser, tmp_path):
    """The map shows the first seed, the words say mean and range, and the verdict is that of the mean."""
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", n_layers=3, n_heads=4, seeds=(2, 0, 7))
    browser.get(write_report(record.path).as_uri())
    rows = _rows(record, lens="dsl", control="")
    groups = rows.groupby("site")["faithfulness"]
    means, cells = groups.mean(), browser.find_elements("css selector", "#map button.cell")
    assert len(cells) == len(means) == 18 and len(_all(browser, "#strip figure")) == 2 + 3
    seen = set()
    for site in rows["site"].unique():
        row = rows[rows["site"] == site].iloc[0]
        weak, own = bool(means[site] < 0.6), bool(row["faithfulness"] < 0.6)
        if (weak, own) in seen:
            continue
        seen.add((weak, own))
        cell = browser.find_element("css selector", f'#map button[data-row="{row["row"]}"]')
        cell.click()
        assert ("weak" in cell.get_attribute("class").split()) == weak
        low, high = groups.min()[site], groups.max()[site]
        words = f"{_text(means[site])} on average over 3 noise seeds ({_text(low)} to {_text(high)})"
        assert words in _all(browser, "#detail .numbers")[0]
        verdict = browser.find_element("css selector", "#detail .verdict").text
        assert ("could not draw this: faithfulness " + words in verdict) == weak
        assert ("with noise seed 2" in verdict) == (own and not weak)
    assert len(seen) >= 3
    _choose(browser, "#map-number", "faithfulness")
    assert _all(browser, "#map .cell .value")[0] == _text(means["L0H0"])


@needs_browser
def test_what_has_no_control_says_so_beside_what_is_known(browser, tmp_path):
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", n_layers=3, n_heads=4, controls=False)
    browser.get(write_report(record.path).as_uri())
    for site in ("L0H1", "L1H2"):
        row = _rows(record, lens="dsl", site=site).iloc[0]
        browser.find_element("css selector", f'#map button[data-row="{row["row"]}"]').click()
        words = _all(browser, "#detail .undrawn")[0]
        assert words.startswith("No control drawn")
        assert f"at {_text(row['cos_lens_control'])}, the site at {_text(row['cos_lens_clean'])}." in words
        leak = row["leak"]
        assert _all(browser, '#detail [data-key="leak"]') == ["undefined" if leak != leak else _text(leak)]
    strip = _rows(record, site="L1.resid_post").iloc[0]
    browser.find_element("css selector", f'#strip button[data-row="{strip["row"]}"]').click()
    assert _all(browser, "#detail .undrawn") == []
    assert _all(browser, '#detail [data-key="leak"]') == ["\u2013"]


@needs_browser
def test_numbers_that_an_older_record_lacks_are_not_columns(browser, tmp_path):
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", n_layers=2, n_heads=2)
    record.table[["cos_lens_control", "leak"]] = float("nan")
    browser.get(write_report(record).as_uri())
    titles = _all(browser, "#rows th")
    assert "Embedding vs. input" in titles and "Leak index" not in titles and "Control vs. input" not in titles
    assert "null" not in _all(browser, "#detail")[0]


@needs_browser
def test_every_control_stands_beside_its_site_with_what_it_measures(browser, tmp_path):
    import tiny_sweep

    import vit_lens as vl
    from vit_lens.report import write_report

    images = tiny_sweep.pictures(tmp_path)
    kinds = ["random", "other"]
    record = vl.sweep(
        tiny_sweep.tower(), tiny_sweep.decoder(steps=1), images, lens=vl.DiffusionSteeringLens(alpha=3.0),
        sites=["L0H1", "L1.mlp"], controls=vl.Controls(kinds=kinds, draws=6), out=tmp_path / "r",
    )  # fmt: skip
    browser.get(write_report(record).as_uri())
    row = record.frame().query("site == 'L1.mlp' and control == '' and input == 0").iloc[0]
    browser.find_element("css selector", f'#map button[data-row="{row["row"]}"]').click()
    names = _all(browser, "#detail .companions .small span")
    assert "random control" in names and f"other control ({record.entry(0)['other']})" in names
    for key in ("cos_lens_control", "cos_lens_other"):
        assert _all(browser, f'#detail [data-key="{key}"]') == [_text(row[key])]
    assert _all(browser, '#detail [data-key="cos_lens_covariance"]') == []  # nowhere known, so no number
    assert "The control 'covariance' needs 5 other images, and there are 2" in " ".join(
        _all(browser, "#detail .definition")
    )
    assert _all(browser, "#detail .undrawn") == []


@needs_browser
def test_the_map_holds_every_site_once_and_follows_the_reading(shown, record):
    for lens, control in (("dsl", "random"), ("diffusion", ""), ("dsl", "")):
        label = {"dsl": "DSL, mean-anchored, alpha 5", "diffusion": "Diffusion Lens"}[lens]
        label += " \u2013 random control" if control else ""
        names = _all(shown, "#map-lens option")
        _choose(
            shown,
            "#map-lens",
            shown.execute_script(
                "return document.querySelectorAll('#map-lens option')[arguments[0]].value", names.index(label)
            ),
        )
        rows = _rows(record, input=0, lens=lens, control=control)
        expected = set(rows[~rows["site_type"].str.startswith("resid")]["row"])
        found = shown.execute_script("return [...document.querySelectorAll('#map button')].map(b => +b.dataset.row)")
        assert len(found) == len(expected) == 80
        assert set(found) == expected


@needs_browser
def test_the_strip_is_the_diffusion_lens_over_layers(shown, record):
    captions = _all(shown, "#strip figcaption")
    rows = _rows(record, input=0, lens="diffusion", site_type="resid_post").sort_values("layer")
    first = _rows(record, input=0, site="L0.resid_pre").iloc[0]
    expected = ["input", f"start{_text(first['cos_input'])}"]
    expected += [f"L{layer}{_text(v)}" for layer, v in zip(rows["layer"], rows["cos_input"], strict=True)]
    assert captions == expected
    assert _loaded(shown, "#strip .input img") == 64


@needs_browser
@pytest.mark.parametrize("key", ["norm_h", "faithfulness"])
def test_sorting_is_by_the_number_both_ways(shown, record, key):
    rows = _rows(record, input=0, control="")
    for ascending in (False, True):
        shown.execute_script(f"document.querySelector('th button[data-sort={key}]').click()")
        order = rows.sort_values(key, ascending=ascending, kind="stable")["row"]
        found = shown.execute_script("return [...document.querySelectorAll('tr[data-row]')].map(r => +r.dataset.row)")
        assert found == list(order[:100])
        shown_as = shown.execute_script(f"return document.querySelector('th:has([data-sort={key}])').ariaSort")
        assert shown_as == ("ascending" if ascending else "descending")


@needs_browser
def test_filters_select_what_they_say(shown, record):
    rows = _rows(record, input=0, control="")
    total = len(_rows(record, input=0))

    def count():
        return shown.find_element("id", "count").text

    assert count() == f"{len(rows)} of {total} rows"
    _choose(shown, "#f-type", "mlp")
    _choose(shown, "#f-from", 2)
    _choose(shown, "#f-to", 4)
    rows = rows[(rows["site_type"] == "mlp") & rows["layer"].between(2, 4)]
    assert count() == f"{len(rows)} of {total} rows" == f"6 of {total} rows"
    _choose(shown, "#f-text", "l3.mlp")
    assert set(_all(shown, "td .link")) == {"L3.mlp"}
    _choose(shown, "#f-text", "nothing like this")
    assert "Nothing fits" in shown.find_element("id", "rows").text
    shown.execute_script("document.querySelector('#filters [type=reset]').click()")
    time.sleep(0.2)
    _choose(shown, "#f-lens", "controls")
    assert count() == f"80 of {total} rows"
    _choose(shown, "#f-view", "gallery")
    assert len(_all(shown, ".gallery .tile")) == 80


@needs_browser
def test_arrow_keys_move_between_cells(shown, record):
    from selenium.webdriver.common.keys import Keys

    shown.execute_script("document.querySelector('#map button[aria-label^=\"L2H3,\"]').focus()")
    for key, site in (
        (Keys.ARROW_RIGHT, "L2H4"),
        (Keys.ARROW_DOWN, "L3H4"),
        (Keys.ARROW_LEFT, "L3H3"),
        (Keys.ARROW_UP, "L2H3"),
    ):
        shown.switch_to.active_element.send_keys(key)
        assert _all(shown, "#detail h3") == [site]
    stops = shown.execute_script("return document.querySelectorAll('#map button[tabindex=\"0\"]').length")
    assert stops == 1
    assert shown.switch_to.active_element.get_attribute("aria-label").startswith("L2H3,")


@needs_browser
def test_a_link_to_a_site_opens_it(shown, page, record):
    row = _rows(record, input=1, site="L5.mlp", lens="diffusion").iloc[0]
    shown.get("about:blank")
    shown.get(f"{page.as_uri()}#row-{row['row']}")
    assert _all(shown, "#detail h3") == ["L5.mlp"]
    assert _all(shown, '#detail [data-key="norm_h"]') == [_text(row["norm_h"])]


@needs_browser
def test_another_image_shows_its_own_rows(shown, record):
    shown.execute_script("document.querySelectorAll('#images button')[1].click()")
    found = shown.execute_script("return [...document.querySelectorAll('#map button')].map(b => +b.dataset.row)")
    assert set(found) <= set(_rows(record, input=1)["row"])
    assert len(found) == 80
    assert shown.execute_script("return document.querySelector('#strip .input a').href").endswith("inputs/0001.png")


@needs_browser
def test_hostile_texts_are_shown_and_not_run(shown):
    assert shown.execute_script("return window.hacked") is None
    assert shown.execute_script("return document.scripts.length") == 2
    assert _all(shown, "#images button span")[1] == factory.HOSTILE
    assert _all(shown, "#notes li") == ["stopped once", factory.HOSTILE]


@needs_browser
def test_the_page_asks_no_network(shown, page):
    shown.find_element("css selector", "#map button").click()
    assert _loaded(shown, "#detail img.big")
    names = shown.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith(("data:", "file:")) for name in names)
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", page.read_text()) == []


@needs_browser
def test_pictures_have_words_and_controls_have_names(shown):
    missing = shown.execute_script("return [...document.images].filter(i => !i.hasAttribute('alt')).length")
    unnamed = shown.execute_script("""return [...document.querySelectorAll('button, a, select, input')].filter(e =>
        !(e.getAttribute('aria-label') || e.title || e.textContent.trim() || (e.labels && e.labels.length)
          || e.querySelector('img[alt]:not([alt=""])'))).length""")
    assert (missing, unnamed) == (0, 0)


@needs_browser
def test_dark_and_light_follow_the_reader(shown):
    seen = {}
    for scheme in ("light", "dark"):
        shown.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        seen[scheme] = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert sum(map(int, re.findall(r"\d+", seen["light"]))) > 700
    assert sum(map(int, re.findall(r"\d+", seen["dark"]))) < 100


@needs_browser
@pytest.mark.parametrize("width", [1400, 800, 390])
def test_the_page_fits_its_window(shown, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    over = shown.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert over <= 0


@needs_browser
def test_an_unfinished_record_says_so_and_shows_what_is_there(browser, tmp_path):
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", stop_after=100)
    browser.get(write_report(record).as_uri())
    assert f"100 of {len(record.table)} pictures" in browser.find_element("id", "unfinished").text
    for lens in ("dsl", "diffusion"):
        rows = _rows(record, input=0, lens=lens, control="")
        there = rows[(rows["row"] < 100) & ~rows["site_type"].str.startswith("resid")]
        assert 0 < len(there) <= 80
        index = next(i for i, t in enumerate(_all(browser, "#map-lens option")) if t.lower().startswith(lens))
        _choose(
            browser,
            "#map-lens",
            browser.execute_script("return document.querySelectorAll('#map-lens option')[arguments[0]].value", index),
        )
        assert len(browser.find_elements("css selector", "#map button img")) == len(there)


@needs_browser
def test_a_record_within_a_budget_marks_what_is_coarse_and_what_is_shared(browser, tmp_path):
    from vit_lens.records import budget_words
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", n_full=150, n_layers=4, n_heads=5, names=("cup.png", "<b>jug</b>.png"))
    browser.get("about:blank")
    browser.get(write_report(record).as_uri())
    assert browser.find_element("id", "budget").text == budget_words(record)
    assert not browser.find_elements("id", "unfinished")
    assert len(_all(browser, ".legend-coarse")) == len(_all(browser, ".legend-shared")) == 1
    browser.execute_script("document.querySelectorAll('#images button')[1].click()")
    assert len(browser.find_elements("css selector", "#map .cell")) == 28
    rows = _rows(record, input=1, control="")
    seen = set()
    for row in (rows[rows["drawn"] == "full"]["row"].iloc[-1], rows[rows["drawn"] == "coarse"]["row"].iloc[-1]):
        browser.execute_script(f"location.hash = '#row-{row}'; location.reload()")
        coarse = record.table["drawn"][row] == "coarse"
        seen.add(coarse)
        marks = _all(browser, "#detail .marks")
        assert marks == (
            ["Drawn coarsely (3 steps, no guidance), not refined yet; the numbers are those of this picture."] * coarse
        )
        picture = browser.find_element("css selector", "#detail img.big").get_attribute("src")
        assert picture.endswith(f"pictures/{'coarse/' * coarse}{row:06d}.png")
        assert _loaded(browser, "#detail img.big") == 64
        for cell in browser.find_elements("css selector", f'button.cell[data-row="{row}"]'):
            assert ("coarse" in cell.get_attribute("class").split()) == coarse
            assert ("Drawn coarsely" in cell.get_attribute("title")) == coarse
    assert seen == {True, False}
    last = len(record.table) - 1
    browser.execute_script(f"location.hash = '#row-{last}'; location.reload()")
    other = record.table.loc[last - 1]
    (marks,) = _all(browser, "#detail .marks")
    assert f"Shares the picture of {other['site']}, DSL, mean-anchored, alpha 5: the embeddings" in marks
    _choose(browser, "#f-lens", "all")
    browser.execute_script("document.querySelector('th button[data-sort=drawn]').click()")
    browser.execute_script("document.querySelector('#more').click()")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('tr[data-row]')].map(r => r.children[3].textContent)"
    )
    assert set(drawn) == {"full", "coarse", f"coarse, as {other['site']}"}
    assert browser.get_log("browser") == []


@needs_browser
def test_an_ordinary_record_has_no_marks_of_a_budget(shown):
    assert not shown.find_elements(
        "css selector", "#budget, .legend-coarse, .legend-shared, .marks, .cell.coarse, .cell.shared"
    )
    assert "Drawn" not in _all(shown, "#rows th")


@needs_browser
def test_a_record_without_a_decoder_shows_its_numbers(browser, tmp_path):
    from vit_lens.records import Record, RecordWriter
    from vit_lens.report import write_report

    table = [{**row, "faithfulness": None, "cos_input": None, "label": ""} for row in factory.rows(("cup.png",))]
    writer = RecordWriter(tmp_path / "r", factory.manifest(len(table), ("cup.png",), decoder=False), table)
    writer.write_input(0, factory.picture(1000))
    factory.write_embeddings(writer, factory.embeddings(len(table), 1))
    writer.finish()
    browser.get(write_report(Record.load(tmp_path / "r")).as_uri())
    row = next(r for r in table if r["site"] == "L3H4" and r["reading"] == factory.STEERING["id"])
    assert browser.find_element("css selector", f'#map button[data-row="{row["row"]}"] .value').text == _text(
        row["cos_lens_clean"]
    )
    assert not browser.find_elements("css selector", "#map button img")


@needs_browser
def test_a_page_elsewhere_finds_the_pictures(browser, record, tmp_path):
    from vit_lens.report import write_report

    browser.get(write_report(record, tmp_path / "deep" / "page.html").as_uri())
    browser.find_element("css selector", "#map button").click()
    assert _loaded(browser, "#detail img.big") == 64
    assert "/pictures/" in browser.find_element("css selector", "#detail img.big").get_attribute("src")


@needs_browser
def test_816_sites_stay_small_and_open(browser, tmp_path, capsys):
    """Noise of 128 pixels keeps more detail in a thumbnail than any 512-pixel picture would."""
    from vit_lens.report import write_report

    big = {"n_layers": 48, "n_heads": 16, "plain_sites": False, "controls": False}
    record = factory.build(tmp_path / "r", size=128, noise=True, **big)
    assert len(record.table) >= 816 + 96
    page = write_report(record)
    assert page.stat().st_size <= 15_000_000
    browser.get(page.as_uri())
    assert len(browser.find_elements("css selector", "#map button img")) == 48 * 18
    ready = browser.execute_script("return document.documentElement.dataset.ready")
    with capsys.disabled():
        import sys

        sys.stdout.write(f"\n{len(record.table)} rows: {page.stat().st_size / 1e6:.1f} MB, ready after {ready} ms\n")


@pytest.mark.parametrize(("encoder", "shown"), [("vit_lens/mini", False), ("open_clip/ViT-B-32/openai", True)])
def test_real_weights_are_not_claimed(tmp_path, encoder, shown):
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", n_layers=1, n_heads=2, changes={"encoder_id": encoder})
    assert ("real weights: not yet run by this project" in write_report(record).read_text()) == shown


def test_the_data_cannot_leave_its_script_element(page):
    text = page.read_text()
    assert text.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1)
    assert not set("<>&\u2028\u2029") & set(data)
    assert json.loads(data)["images"][1]["name"] == factory.HOSTILE


def test_too_many_pictures_shrink_and_then_link(monkeypatch):
    import numpy as np
    import PIL.Image

    from vit_lens.report import thumbs

    monkeypatch.setattr(thumbs, "BUDGET", 1_000_000)
    rng = np.random.default_rng(0)
    noise = [PIL.Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in range(4)]
    for n_rows in (20, 500, 2000):
        found = thumbs.inline_pictures(lambda row: noise[row % 4], range(n_rows))
        assert len(found) == n_rows
        assert sum(map(len, found.values())) <= thumbs.BUDGET
        assert (found[n_rows - 1] == "") == (n_rows == 2000)


@pytest.mark.parametrize("name", ["page.pdf", "page"])
def test_the_page_is_an_html_file(record, tmp_path, name):
    from vit_lens.errors import OutputError
    from vit_lens.report import write_report

    with pytest.raises(OutputError, match=r"ends in \.html"):
        write_report(record, tmp_path / name)


def test_what_is_not_a_record_is_refused(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.report import write_report

    with pytest.raises(RecordError, match=r"holds no record\.json"):
        write_report(tmp_path)


# ---- captions, nearest images and the live panel


SMALL = {"n_layers": 3, "n_heads": 2}
LABELLED = {"kind": [4, 0], "who": [1, 2, 3]}


def _beside_record(path, *, bias=None, decoder=True, alive=None, groups=None, names=("cup.png", "jug.png")):
    n_rows = len(factory.rows(names, **SMALL))
    changes = None if decoder else {"decoder": None}
    read = factory.beside(n_rows, bias=bias, groups=groups)
    return factory.build(path, names=names, read=read, alive=alive, changes=changes, **SMALL)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    return _beside_record(tmp_path_factory.mktemp("beside") / "r", alive=factory.live(3, 2), groups=LABELLED)


@pytest.fixture
def panel(browser, beside):
    from vit_lens.report import write_report

    browser.get("about:blank")
    browser.get(write_report(beside.path).as_uri())
    yield browser
    assert browser.get_log("browser") == []


def _compared(browser):
    """What the detail panel says: by heading, a list for the site and one for its control."""
    return browser.execute_script("""const out = {}; let title = null;
        for (const e of document.querySelectorAll('#detail .compare > *')) {
          if (e.tagName === 'H4') { title = e.firstChild.textContent.trim(); out[title] = []; }
          if (e.tagName === 'OL') out[title].push([...e.children].map(li => [+li.dataset.index,
            li.className === 'shared', li.lastChild.textContent, li.title || li.firstChild.textContent]));
        } return out;""")


@needs_browser
@pytest.mark.parametrize("kind", ["captions", "images"])
def test_neighbours_and_captions_stand_beside_those_of_the_control(panel, beside, kind):
    row = int(_rows(beside, input=0, site="L1H1", lens="dsl", control="")["row"].item())
    control = int(_rows(beside, input=0, site="L1H1", control="random")["row"].item())
    panel.find_element("css selector", f'#map button[data-row="{row}"]').click()
    shown = _compared(panel)
    assert set(shown) == {f"{what}, {form}" for what in ("Nearest images", "Captions") for form in ("raw", "centred")}
    for form in ("raw", "centred"):
        answers = {at: beside.readouts.of(at)[kind][form] for at in (row, control)}
        names = {at: [a["name" if kind == "images" else "caption"] for a in answers[at]] for at in answers}
        both = set(names[row]) & set(names[control])
        title = f"{'Nearest images' if kind == 'images' else 'Captions'}, {form}"
        for at, listed in zip((row, control), shown[title], strict=True):
            assert [item[2] for item in listed] == [_text(round(a["cosine"], 3)) for a in answers[at]]
            assert [item[1] for item in listed] == [name in both for name in names[at]]
            if kind == "images":
                assert [item[3].split(", cosine")[0] for item in listed] == names[at]
            else:
                assert [factory.CAPTIONS[item[0]] for item in listed] == names[at]
    assert _all(panel, "#detail .compare .side") == ["this site", "random control"]
    assert panel.execute_script("return document.querySelectorAll('#detail .compare img.big').length") == 1
    assert panel.execute_script("return window.hacked") is None


@needs_browser
def test_a_picture_of_the_gallery_is_that_picture(panel, beside):
    """The thumbnail links the copy in the record; what was handed over from memory has a name alone."""
    for index in factory.GALLERY:
        found = panel.execute_script(
            "const e = document.querySelector(`#detail .near li[data-index='${arguments[0]}']`);"
            "return e && [e.querySelector('a')?.getAttribute('href') ?? null, e.title]",
            index,
        )
        if found is not None:
            assert found[1].startswith(f"{factory.GALLERY[index]}, cosine ")
            assert found[0] == (None if index == 9 else f"gallery/{index:06d}.png")
    assert (beside.path / "gallery/000003.png").is_file()


@needs_browser
def test_without_a_decoder_captions_and_neighbours_are_what_there_is(browser, tmp_path):
    from vit_lens.report import write_report

    record = _beside_record(tmp_path / "r", decoder=False)
    browser.get(write_report(record).as_uri())
    assert "Nearest images, captions and numbers for each of" in browser.find_element("css selector", ".lede").text
    row = _rows(record, input=0, site="L2.mlp", lens="dsl", control="").iloc[0]
    cell = browser.find_element("css selector", f'#map button[data-row="{row["row"]}"]')
    cell.click()
    assert len(_compared(browser)) == 4
    assert not browser.find_elements("css selector", "#detail .big")
    assert _all(browser, "#map-mode option") == ["nearest images", "numbers"]
    best = record.readouts.of(int(row["row"]))
    from_memory = best["images"]["centred"][0]["index"] == 9
    assert len(cell.find_elements("css selector", "img")) == (0 if from_memory else 1)
    _choose(browser, "#f-text", best["captions"]["centred"][0]["caption"][:25])
    rows = browser.execute_script("return [...document.querySelectorAll('tr[data-row]')].map(r => +r.dataset.row)")
    assert row["row"] in rows
    assert browser.execute_script("return document.getElementById('live-section').hidden")


def _expected(record, image, factors):
    """The cosine and the probabilities of every group, in Python."""
    import torch

    read, embedding = record.readouts, record.live.embed(image, factors)
    original = record.live.embedding[record.live.images.index(image)].double()
    logits = read.logit_scale * (read.texts.double() @ embedding / embedding.norm()) + (read.logit_bias or 0.0)
    probs = {
        i: p
        for members in read.groups.values()
        for i, p in zip(
            members,
            (logits[members].sigmoid() if read.logit_bias is not None else logits[members].softmax(-1)).tolist(),
            strict=True,
        )
    }
    return float(torch.cosine_similarity(embedding, original, dim=0)), probs


def _live(browser):
    cosine = float(browser.execute_script("return document.getElementById('live-cosine').dataset.value"))
    probs = browser.execute_script("""return Object.fromEntries([...document.querySelectorAll('#live-chances li')].map(
        e => [e.dataset.caption, Number(e.dataset.value)]))""")
    return cosine, {int(key): value for key, value in probs.items()}


def _turn(browser, part, factor):
    browser.execute_script(f"document.querySelector('#live-section [data-part=\"{part}\"]').click()")
    _choose(browser, "#live-number", factor)


def _agree(browser, record, image, factors):
    (cosine, probs), (expected, known) = _live(browser), _expected(record, image, factors)
    assert cosine == pytest.approx(expected, abs=1e-4)
    assert len(probs) >= 4
    assert all(value == pytest.approx(known[caption], abs=1e-4) for caption, value in probs.items())


@needs_browser
@pytest.mark.parametrize("bias", [None, -3.5])
@pytest.mark.parametrize("recomputed", [True, False])
def test_the_live_panel_does_the_sums_of_python(browser, tmp_path, bias, recomputed):
    from vit_lens.report import write_report

    alive = factory.live(3, 2, images=(0, 1), recomputed=recomputed)
    record = _beside_record(tmp_path / "r", bias=bias, alive=alive, groups=LABELLED)
    browser.get("about:blank")
    browser.get(write_report(record).as_uri())
    words = browser.find_element("id", "live-words").text
    assert words.startswith("Direct effect: later layers are held fixed")
    assert ("is recomputed" in words) == recomputed
    _agree(browser, record, 0, {})
    assert _live(browser)[0] == pytest.approx(1.0, abs=1e-6)
    factors = {}
    for part, factor in (("L1H0", 0), ("L2.mlp", -1.5), ("start", 0.25), ("L1.attn", 3), ("L0H1", 12.75)):
        _turn(browser, part, factor)
        factors[part] = factor
        _agree(browser, record, 0, factors)
    browser.execute_script("document.querySelectorAll('#images button')[1].click()")
    _agree(browser, record, 1, factors)
    browser.execute_script("document.getElementById('live-reset').click()")
    _agree(browser, record, 1, {})


@needs_browser
@pytest.mark.parametrize(
    ("part", "sites"),
    [
        ("layer 1", ["L1.attn", "L1.mlp"]),
        ("heads", [f"L{layer}H{head}" for layer in range(3) for head in range(2)]),
        ("attn", [f"L{layer}.attn" for layer in range(3)]),
        ("mlp", [f"L{layer}.mlp" for layer in range(3)]),
    ],
)
def test_groups_of_parts_go_together(panel, beside, part, sites):
    panel.execute_script(f"document.querySelector('#live-section [data-part=\"{part}\"]').click()")
    _agree(panel, beside, 0, dict.fromkeys(sites, 0))
    panel.execute_script("document.querySelector('#live-section [data-factor=\"2\"]').click()")
    _agree(panel, beside, 0, dict.fromkeys(sites, 2))
    assert panel.find_element("id", "live-changed").text == f"{len(sites)} parts changed"
    panel.execute_script(f"document.querySelector('#live-section [data-part=\"{part}\"]').click()")
    panel.execute_script(f"document.querySelector('#live-section [data-part=\"{part}\"]').click()")
    _agree(panel, beside, 0, {})


@needs_browser
def test_the_live_panel_is_usable_by_keyboard(panel, beside):
    from selenium.webdriver.common.keys import Keys

    panel.execute_script("document.querySelector('[data-part=\"L0H0\"]').focus()")
    for key, part in ((Keys.ARROW_RIGHT, "L0H1"), (Keys.ARROW_DOWN, "L1H1"), (Keys.ARROW_RIGHT, "L1.attn")):
        panel.switch_to.active_element.send_keys(key)
        assert panel.switch_to.active_element.get_attribute("data-part") == part
        assert panel.find_element("id", "live-target").text == part
    _agree(panel, beside, 0, {})
    panel.switch_to.active_element.send_keys(Keys.SPACE)
    _agree(panel, beside, 0, {"L1.attn": 0})
    assert panel.switch_to.active_element.get_attribute("aria-label") == "L1.attn: times 0"
    slider = panel.find_element("id", "live-slider")
    slider.send_keys(Keys.ARROW_RIGHT * 4)
    _agree(panel, beside, 0, {"L1.attn": 0.2})
    assert panel.execute_script("return document.querySelectorAll('#live-map [tabindex=\"0\"]').length") == 1


@needs_browser
@pytest.mark.parametrize("width", [1400, 400])
def test_the_panels_fit_their_window(panel, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    panel.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    panel.execute_script("document.querySelector('#map button').click()")
    over = panel.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    inside = panel.execute_script("const d = document.getElementById('detail'); return d.scrollWidth - d.clientWidth")
    panel.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert over <= 0 and inside <= 0


@needs_browser
def test_an_image_without_live_numbers_says_so(panel):
    assert not panel.find_element("id", "live-none").is_displayed()
    panel.execute_script("document.querySelectorAll('#images button')[1].click()")
    assert "carries those of the first 1 image" in " ".join(panel.find_element("id", "live-none").text.split())
    assert not panel.find_element("id", "live-panel").is_displayed()


def test_live_numbers_stay_within_their_budget(tmp_path, monkeypatch):
    from vit_lens.records.live import live_bytes
    from vit_lens.report import data

    record = _beside_record(tmp_path / "r", alive=factory.live(3, 2, images=(0, 1)))
    whole = data.live_data(record)
    one = live_bytes(13, factory.D_EMBED, recomputed=True)
    assert set(whole["images"]) == {"0", "1"}
    spent = sum(map(len, whole["images"]["0"].values()))
    assert one <= spent <= one + 6 * 4  # each of the six arrays is padded
    monkeypatch.setattr(data, "LIVE_BUDGET", 2 * spent - 1)
    assert set(data.live_data(record)["images"]) == {"0"}
    assert data.texts_data(record)["unit"]
    monkeypatch.setattr(data, "LIVE_BUDGET", 40)
    assert not data.texts_data(record)["unit"] and data.texts_data(record)["captions"]


@needs_browser
def test_too_many_captions_leave_the_cosine(browser, beside, tmp_path, monkeypatch):
    import vit_lens.report.data as page
    from vit_lens.report import write_report

    texts = page.texts_data(beside) | {"unit": ""}
    monkeypatch.setattr(page, "texts_data", lambda record: texts)
    browser.get(write_report(beside.path, tmp_path / "page.html").as_uri())
    assert "too many captions" in _all(browser, "#live-chances")[0]
    browser.execute_script("document.querySelector('[data-part=\"L1H0\"]').click()")
    assert _live(browser)[0] == pytest.approx(_expected(beside, 0, {"L1H0": 0})[0], abs=1e-4)


@needs_browser
def test_attention_pooling_is_the_last_row_of_the_map(browser, tmp_path):
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", pool=3, **SMALL)
    browser.get(write_report(record).as_uri())
    assert _all(browser, "#map [role=rowheader]") == ["0", "1", "2", "pool"]
    cells = browser.execute_script("""return [...document.querySelectorAll('#map .line:last-child [role=gridcell]')]
        .map(c => c.querySelector('button')?.getAttribute('aria-label').split(',')[0] ?? null)""")
    assert cells == ["poolH0", "poolH1", "poolH2", "pool.attn", "pool.mlp"]
    row = _rows(record, site="poolH2", lens="dsl", control="").iloc[0]
    browser.find_element("css selector", f'#map button[data-row="{row["row"]}"]').click()
    assert _all(browser, "#detail .site-words") == ["head 2 of the attention pooling"]
    assert _all(browser, '#detail [data-key="norm_h"]') == [_text(row["norm_h"])]
    _choose(browser, "#f-type", "pool_head")
    assert set(_all(browser, "td .link")) == {"poolH0", "poolH1", "poolH2"}


# ---- readings that only their settings tell apart


TWINS = (factory.mean_anchored("00aa11bb"), factory.mean_anchored("cc22dd33"))


@needs_browser
def test_lenses_on_other_means_have_groups_controls_and_pictures_of_their_own(browser, tmp_path):
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", steering=TWINS, **SMALL)
    browser.get("about:blank")
    browser.get(write_report(record).as_uri())
    options = browser.execute_script(
        "return [...document.querySelectorAll('#map-lens option')].map(o => [o.value, o.textContent])"
    )
    assert [text for _, text in options].count("DSL, mean-anchored, alpha 5") == 2 and len(options) == 5
    ids = list(dict.fromkeys(record.table["reading"]))
    for one in TWINS:
        control = factory.control_of(one)["id"]
        _choose(browser, "#map-lens", ids.index(one["id"]))
        cells = browser.execute_script("return [...document.querySelectorAll('#map button')].map(b => +b.dataset.row)")
        assert set(cells) == set(_rows(record, reading=one["id"])["row"]) and len(cells) == 12
        row = _rows(record, reading=one["id"], site="L1H1").iloc[0]
        own = _rows(record, reading=control, site="L1H1").iloc[0]
        browser.find_element("css selector", f'#map button[data-row="{row["row"]}"]').click()
        numbers = _all(browser, "#detail .numbers")[0]
        for name in ("cos_input", "faithfulness", "norm_h"):
            assert f"Its control: {_text(own[name])}." in numbers
        assert f"reference: {one['settings']['reference']}" in _all(browser, "#detail .definition")[-1]
        companions = _all(browser, "#detail .companions .small")
        assert sum("random control" in text for text in companions[:2]) == 1  # the other's control comes after
        assert companions[1] == f"random control{_text(own['cos_input'])}"
        _choose(browser, "#f-lens", ids.index(control))
        shown = browser.execute_script("return [...document.querySelectorAll('tr[data-row]')].map(r => +r.dataset.row)")
        assert set(shown) == set(_rows(record, reading=control)["row"])
    assert browser.get_log("browser") == []


def test_a_part_without_rows_has_a_page(tmp_path):
    from vit_lens.report import write_report

    changes = {"beside": {"k": 4, "texts": {}, "live": True}}
    part = factory.build_part(tmp_path / "r", [], 1, 2, names=NAMES, changes=changes, **SMALL)
    assert "vit_lens report" in write_report(part).read_text()


@pytest.mark.parametrize("harm", ["a flipped byte", "two swapped"])
def test_a_page_says_that_pictures_are_damaged(tmp_path, harm):
    """They are not shown, so their places would look like rows that were never drawn."""
    from vit_lens.records import Record
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r")
    one, two = ((record.path / f"pictures/{row:06d}.png") for row in (3, 4))
    if harm == "two swapped":
        one.rename(tmp_path / "kept")
        two.rename(one)
        (tmp_path / "kept").rename(two)
    else:
        one.write_bytes(one.read_bytes()[:-20] + b"\x00" + one.read_bytes()[-19:])
    lost, n = 2 if harm == "two swapped" else 1, len(record.table)
    page = write_report(Record.load(record.path)).read_text()
    assert re.search(rf"<strong>(Damaged|Unfinished)\.</strong> {n - lost} of {n} pictures are (whole|here)\.", page)
    assert "Run the same command again" in page


def test_the_style_of_prompts_leaves_other_parts_alone():
    """It stands in the page of images, too, whose map has cells of its own."""
    from vit_lens import report

    style = (Path(report.__file__).parent / "prompts.css").read_text()
    heads = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]+\{", "", style))
    assert len(heads) > 15
    assert not [one for head in heads for one in head.split(",") if not one.strip().startswith((".layers", ".sites"))]
