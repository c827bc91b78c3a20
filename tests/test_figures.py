"""Figures: what is drawn equals the table, and files are what their names say."""

import dataclasses
import html
import math
import shutil

import pytest
import record_factory as factory

SMALL = {"n_layers": 3, "n_heads": 5}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return factory.build(tmp_path_factory.mktemp("figures") / "r", names=("cup.png", "<b>two</b>.png"), **SMALL)


def _rows(record, **wanted):
    table = record.frame()
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


@pytest.mark.parametrize("value", ["cos_input", "norm_h"])
@pytest.mark.parametrize(("lens", "name"), [(None, "dsl"), ("diffusion", "diffusion")])
def test_the_heat_map_is_the_table(record, value, lens, name):
    from vit_lens.figures import head_map

    heat = head_map(record, input=1, value=value, lens=lens).data[0]
    rows = _rows(record, input=1, lens=name, control="")
    assert list(heat.x) == ["0", "1", "2", "3", "4", "attn", "MLP"]
    assert list(heat.y) == [0, 1, 2]
    for layer in range(3):
        sites = [f"L{layer}H{head}" for head in range(5)] + [f"L{layer}.attn", f"L{layer}.mlp"]
        for site, drawn, named in zip(sites, heat.z[layer], heat.customdata[layer], strict=True):
            assert drawn == rows.loc[rows["site"] == site, value].item()
            assert named == site


def test_signed_numbers_are_coloured_around_zero(record):
    from vit_lens.figures import head_map

    signed, size = head_map(record).data[0], head_map(record, value="norm_h").data[0]
    assert signed.zmin == -signed.zmax
    assert signed.zmid == 0
    assert size.zmin == 0


def test_the_axes_are_titled_with_their_range(record):
    from vit_lens.figures import head_map

    figure = head_map(record)
    assert figure.layout.yaxis.title.text == "layer"
    assert "cosine, -1 to 1" in figure.data[0].colorbar.title.text


def test_the_top_sites_are_the_best_in_order(record):
    from vit_lens.figures import top_sites

    rows = _rows(record, input=0, lens="dsl", control="")
    best = rows.sort_values("faithfulness", ascending=False).head(4)
    figure = top_sites(record, k=4, by="faithfulness")
    captions = [note.text.split("<br>")[0] for note in figure.layout.annotations]
    controls = _rows(record, input=0, control="random").set_index("site")["faithfulness"]
    expected = ["input"]
    for place, (site, value) in enumerate(zip(best["site"], best["faithfulness"], strict=True)):
        expected += ["input"] if place == 3 else []  # a line holds three pairs
        expected += [f"{site}  {value:.2f}", f"random control  {controls[site]:.2f}"]
    assert captions == expected
    assert len(figure.data) == 2 + 2 * 4


def test_a_control_is_drawn_with_its_own_picture(record):
    import base64

    from vit_lens.figures import top_sites
    from vit_lens.records.encoding import encode_png

    sites = _rows(record, input=1, lens="dsl", control="")
    controls = _rows(record, input=1, lens="dsl", control="random").set_index("site")
    best = sites.loc[sites["norm_h"].idxmax()]
    source = top_sites(record, k=1, by="norm_h", input=1).data[2].source
    assert base64.b64decode(source.split(",")[1]) == encode_png(record.picture(controls.loc[best["site"], "row"]))


def test_without_controls_a_line_holds_sites_alone(tmp_path):
    from vit_lens.figures import top_sites

    record = factory.build(tmp_path / "r", controls=False, **SMALL)
    captions = [note.text for note in top_sites(record, k=7).layout.annotations]
    assert [i for i, caption in enumerate(captions) if caption == "input"] == [0, 7]
    assert not any("control" in caption for caption in captions)


def test_attention_pooling_is_the_last_row_of_the_map(tmp_path):
    from vit_lens.figures import head_map, top_sites

    record = factory.build(tmp_path / "r", pool=3, **SMALL)
    figure = head_map(record, value="norm_h")
    heat = figure.data[0]
    assert list(heat.y) == ["0", "1", "2", "pool"] and figure.layout.yaxis.type == "category"
    rows = _rows(record, lens="dsl", control="").set_index("site")
    expected = ["poolH0", "poolH1", "poolH2", "", "", "pool.attn", "pool.mlp"]
    assert list(heat.customdata[3]) == expected
    for site, drawn in zip(expected, heat.z[3], strict=True):
        assert math.isnan(drawn) if not site else drawn == rows.loc[site, "norm_h"]
    assert list(heat.customdata[2])[:2] == ["L2H0", "L2H1"]
    names = [note.text.split("  ")[0] for note in top_sites(record, k=len(rows)).layout.annotations]
    assert "poolH1" in names


def test_a_picture_in_a_figure_is_the_picture_of_its_site(record):
    import base64

    from vit_lens.figures import top_sites
    from vit_lens.records.encoding import encode_png

    rows = _rows(record, input=0, lens="dsl", control="")
    best = int(rows.loc[rows["cos_input"].idxmax(), "row"])
    source = top_sites(record, k=1).data[1].source
    assert base64.b64decode(source.split(",")[1]) == encode_png(record.picture(best))


def test_pictures_that_could_not_be_drawn_say_so(record):
    from vit_lens.figures import top_sites

    weak = record.table["faithfulness"] < 0.6
    rows = _rows(record, input=0, lens="dsl", control="")
    captions = [note.text for note in top_sites(record, k=len(rows)).layout.annotations]
    sites = [caption for caption in captions if "control" not in caption]
    assert sum("could" in caption for caption in sites) == int(weak[rows.index].sum()) > 0


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    return factory.build(tmp_path_factory.mktemp("seeded") / "r", seeds=(2, 0, 7), **SMALL)


def test_several_seeds_are_one_picture_with_mean_and_range(seeded):
    from vit_lens.figures import head_map, residual_strip, top_sites

    table = _rows(seeded, lens="dsl", control="")
    means = table.groupby("site")["faithfulness"].mean()
    figure = top_sites(seeded, k=21, by="faithfulness")
    captions = [note.text for note in figure.layout.annotations if "control" not in note.text and note.text != "input"]
    assert len(captions) == len(means) == 21  # every site once
    for caption in captions:
        lines = caption.split("<br>")
        site = lines[0].split("  ")[0]
        values = table.loc[table["site"] == site, "faithfulness"]
        assert lines[0] == f"{site}  {values.mean():.2f}"
        assert f"drawn {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})" in lines
        assert ("could" in caption) == (values.mean() < 0.6)
    assert "3 noise seeds" in figure.layout.title.text
    heat = head_map(seeded, value="faithfulness").data[0]
    assert heat.z[1][3] == pytest.approx(means["L1H3"])
    assert len(residual_strip(seeded).data) == 1 + 1 + 3  # the input, the start and three layers


def test_the_leak_index_stands_below_its_site_and_large_ones_do_not_rule_the_map(record):
    from vit_lens.figures import head_map, top_sites

    table = _rows(record, input=0, control="").set_index(["lens", "site"])
    leaks = table.loc["dsl", "leak"]
    captions = [note.text for note in top_sites(record, k=21).layout.annotations]
    for caption in captions:
        site = caption.split("  ")[0]
        if site in leaks.index:
            known = not math.isnan(leaks[site])
            assert (f"leak {leaks[site]:.2f}" in caption) if known else ("leak" not in caption)
    heat = head_map(record, value="leak").data[0]
    assert max(v for line in heat.z for v in line if not math.isnan(v)) == 7.5 and heat.zmax == 1.0


def test_a_top_list_without_controls_says_so(record, tmp_path):
    from vit_lens.figures import top_sites

    assert "no control" not in str(top_sites(record, k=3).to_plotly_json()["layout"])
    bare = factory.build(tmp_path / "r", controls=False, **SMALL)
    assert "no control drawn beside these" in top_sites(bare, k=3).layout.title.text
    best = _rows(record, input=0, lens="dsl", control="").nlargest(2, "cos_input")
    gone = _rows(record, control="random", site=best["site"].iloc[0]).index
    some = dataclasses.replace(record, table=record.table.drop(index=gone))
    figure = top_sites(some, k=2)
    captions = [note.text for note in figure.layout.annotations]
    assert captions[2] == "<i>no control drawn</i>" and captions[4].startswith("random control")
    assert "no control" not in figure.layout.title.text


def test_the_residual_strip_walks_through_the_layers(record):
    from vit_lens.figures import residual_strip

    names = [note.text.split("  ")[0] for note in residual_strip(record).layout.annotations]
    assert names == ["input", "L0.resid_pre", "L0.resid_post", "L1.resid_post", "L2.resid_post"]


def test_names_of_files_are_not_markup(record):
    from vit_lens.figures import head_map

    title = head_map(record, input=1).layout.title.text
    assert "<b>" not in title
    assert html.escape("<b>two</b>.png") in title


def test_an_unfinished_record_has_holes_not_zeros(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.figures import head_map, top_sites

    record = factory.build(tmp_path / "r", stop_after=0, numbers=False, **SMALL)
    assert all(math.isnan(v) for line in head_map(record).data[0].z for v in line)
    with pytest.raises(RecordError, match="has 'cos_input' yet"):
        top_sites(record)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"value": "beauty"}, "no number 'beauty'.*cos_input"),
        ({"input": 7}, r"no input 7 in this record; it has \[0, 1\]"),
        ({"lens": "tuned"}, "lens 'tuned' names 0 of the readings"),
    ],
)
def test_what_the_record_lacks_is_named(record, wrong, says):
    from vit_lens.errors import RecordError
    from vit_lens.figures import head_map

    with pytest.raises(RecordError, match=says):
        head_map(record, **wrong)


def test_a_wrong_suffix_names_the_allowed_ones(record, tmp_path):
    from vit_lens.errors import OutputError
    from vit_lens.figures import head_map, save

    with pytest.raises(OutputError, match=r"\.png, \.svg, \.pdf, \.html"):
        save(head_map(record), tmp_path / "map.bmp")
    assert not list(tmp_path.iterdir())


def test_html_carries_plotly_inside(record, tmp_path):
    from vit_lens.figures import residual_strip, save

    page = save(residual_strip(record), tmp_path / "new" / "strip.html").read_text()
    assert '<script src="http' not in page
    assert "L2.resid_post" in page


@pytest.mark.skipif(BROWSER is None, reason="exporting needs a Chromium on the PATH")
@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF")])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_export(record, tmp_path, suffix, start, monkeypatch):
    from vit_lens.figures import head_map, save

    monkeypatch.setenv("BROWSER_PATH", BROWSER)
    assert save(head_map(record), tmp_path / f"map{suffix}").read_bytes().startswith(start)


def test_export_without_a_browser_says_what_to_do(record, tmp_path, monkeypatch):
    from vit_lens.errors import OutputError
    from vit_lens.figures import head_map, save

    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OutputError, match=r"needs a Chrome or Chromium.*BROWSER_PATH.*html"):
        save(head_map(record), tmp_path / "map.png")
    assert not (tmp_path / "map.png").exists()
