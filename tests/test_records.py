"""Records: what is written reads back to the same bits, and nothing damaged, foreign or half-written passes."""

import json
import math
import resource
import shutil

import numpy as np
import pandas as pd
import pytest
import record_factory as factory
import torch

SMALL = {"n_layers": 2, "n_heads": 3}


@pytest.fixture
def small(tmp_path):
    return factory.build(tmp_path / "sweep", **SMALL)


def _writer(path, table, **changes):
    from vit_lens.records import RecordWriter

    return RecordWriter(path, factory.manifest(len(table), ("cup.png",), **SMALL, **changes), table)


def _files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_record_reads_back_what_was_written(small):
    written = factory.rows(("cup.png",), **SMALL)
    assert len(small.table) == len(written)
    for row, expected in zip(small.table.to_dict("records"), written, strict=True):
        for name, value in expected.items():
            missing = pd.isna(row[name]) or row[name] == ""
            assert missing if value is None else row[name] == value, (name, row[name], value)
    for name, value in factory.embeddings(len(written), 1).items():
        assert torch.equal(small.embeddings[name], value)
    assert np.array_equal(np.asarray(small.picture(4)), factory.picture(4))
    assert np.array_equal(np.asarray(small.input(0)), factory.picture(1000))
    assert small.complete


def test_types_of_the_table(small):
    types = {name: str(dtype) for name, dtype in small.table.dtypes.items()}
    assert types["row"] == "int64"
    assert types["head"] == "Int64"
    assert types["alpha"] == "float64"
    assert types["site"] == "string"
    assert small.table["head"].isna().any()
    assert not small.table["anchor"].isna().any()


@pytest.mark.parametrize("name", ["NA", "", "nan", factory.HOSTILE, 'a,b"c', "line\r\nbreak", " naïve ☃ "])
def test_texts_survive_the_table(name):
    from vit_lens.records.schema import csv_to_table, table_to_csv, to_table

    table = to_table([{"row": 0, "image": 0, "image_name": name, "label": name}])
    back = csv_to_table(table_to_csv(table), "here")
    assert list(back["image_name"]) == [name]
    assert list(back["label"]) == [name]


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-320, -0.0, 123456789.123456789, math.inf, math.nextafter(1, 2)])
def test_floats_survive_the_table_to_the_bit(value):
    from vit_lens.records.schema import csv_to_table, table_to_csv, to_table

    back = csv_to_table(table_to_csv(to_table([{"row": 0, "image": 0, "cos_input": value}])), "here")
    assert np.float64(back["cos_input"][0]).tobytes() == np.float64(value).tobytes()
    assert math.isnan(back["faithfulness"][0])


def test_a_name_that_is_not_unicode_is_made_readable():
    from vit_lens.records.schema import table_to_csv, to_table

    assert b"caf\\udce9.png" in table_to_csv(to_table([{"row": 0, "image": 0, "image_name": "caf\udce9.png"}]))


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (-1, "cut short"),
        (-4, "fields"),
        (-60, "fields"),
        (200, "fields|truncated"),
        (0, "does not name the columns"),
    ],
)
def test_a_truncated_table_is_refused(small, keep, says):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = small.path / "table.csv"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RecordError, match=says):
        Record.load(small.path)


def test_a_table_that_lost_whole_lines_is_refused(small):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = small.path / "table.csv"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(RecordError, match="32 rows, the manifest says 34"):
        Record.load(small.path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no record.json"),
        (b"{", "not readable JSON"),
        (b"[]", "not a JSON object"),
        (b'{"format": 2}', "format 2"),
    ],
)
def test_a_damaged_manifest_is_refused(small, content, says):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = small.path / "record.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(RecordError, match=says):
        Record.load(small.path)


def test_a_manifest_without_a_key_is_refused(small):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    manifest = json.loads((small.path / "record.json").read_text())
    del manifest["seeds"]
    (small.path / "record.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match="lacks seeds"):
        Record.load(small.path)


def test_a_record_cannot_point_outside_itself(small):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = small.path / "table.csv"
    file.write_bytes(file.read_bytes().replace(b"pictures/000002.png", b"../../000002.png"))
    with pytest.raises(RecordError, match="row 2 names the picture"):
        Record.load(small.path)


@pytest.mark.parametrize("keep", [0, 9, 400])
def test_truncated_embeddings_are_refused(small, keep):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = small.path / "embeddings.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RecordError, match=r"embeddings\.safetensors cannot be read"):
        Record.load(small.path)


def test_only_whole_pictures_count_as_finished(tmp_path):
    table = factory.rows(("cup.png",), **SMALL)
    writer = _writer(tmp_path / "r", table)
    assert writer.finished_rows() == frozenset()
    for row in (0, 3, 4, 5):
        writer.write_picture(row, factory.picture(row))
    pictures = tmp_path / "r" / "pictures"
    whole = (pictures / "000003.png").read_bytes()
    (pictures / "000003.png").write_bytes(whole[:-5])
    (pictures / "000004.png").write_bytes(b"")
    (pictures / "000005.png").write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    assert writer.finished_rows() == {0}


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path):
    table = factory.rows(("cup.png",), **SMALL)
    undisturbed = factory.build(tmp_path / "whole", **SMALL)
    first = _writer(tmp_path / "r", table)
    first.write_input(0, factory.picture(1000))
    for row in range(7):
        first.write_picture(row, factory.picture(row))
    first.write_embeddings(factory.embeddings(len(table), 1))
    leftover = tmp_path / "r" / "pictures" / ".vit_lens-0123.tmp"
    leftover.write_bytes(b"half a picture")
    again = _writer(tmp_path / "r", table)
    assert again.resumed
    assert not leftover.exists()
    assert again.finished_rows() == set(range(7))
    assert torch.equal(again.embeddings["lens"], factory.embeddings(len(table), 1)["lens"])
    for row in range(7, len(table)):
        again.write_picture(row, factory.picture(row))
    again.finish()
    assert _files(tmp_path / "r") == _files(undisturbed.path)


def test_numbers_of_an_earlier_run_are_kept(tmp_path):
    table = factory.rows(("cup.png",), **SMALL)
    bare = factory.rows(("cup.png",), **SMALL, numbers=False)
    _writer(tmp_path / "r", bare).write_table(table)
    again = _writer(tmp_path / "r", bare)
    assert list(again.table["cos_input"]) == [row["cos_input"] for row in table]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seeds": {"decoder": [1], "control": 1}}, r"seeds.decoder\[0\] is 0 on disk, 1 now"),
        ({"encoder_id": "hf/other"}, 'model.encoder_id is "vit_lens/mini" on disk, "hf/other" now'),
        ({"decoder": False}, "decoder is "),
        ({"shard": [0, 2]}, r"shard is null on disk, \[0, 2\] now"),
    ],
)
def test_the_directory_of_another_sweep_is_refused(small, change, says):
    from vit_lens.errors import RecordError

    before = _files(small.path)
    with pytest.raises(RecordError, match=says):
        _writer(small.path, factory.rows(("cup.png",), **SMALL), **change)
    assert _files(small.path) == before


def test_the_directory_of_a_sweep_of_other_sites_is_refused(small):
    from vit_lens.errors import RecordError

    table = factory.rows(("cup.png",), **SMALL)
    table[5]["site"] = "L9H9"
    with pytest.raises(RecordError, match="row 5 has site 'L0H1' on disk, 'L9H9' now"):
        _writer(small.path, table)


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path):
    from vit_lens.errors import RecordError

    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RecordError, match="not empty and holds no record"):
        _writer(tmp_path, factory.rows(("cup.png",), **SMALL))
    assert _files(tmp_path) == {"thesis.tex": b"mine"}


def test_a_record_with_missing_pictures_cannot_be_finished(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    record = factory.build(tmp_path / "r", stop_after=3, **SMALL)
    writer = _writer(tmp_path / "r", factory.rows(("cup.png",), **SMALL))
    with pytest.raises(RecordError, match=f"{len(record.table) - 3} of {len(record.table)} pictures are missing"):
        writer.finish()
    assert not Record.load(tmp_path / "r").complete


def test_a_sweep_without_a_decoder_needs_no_pictures(tmp_path):
    from vit_lens.records import Record

    table = factory.rows(("cup.png",), **SMALL, numbers=False)
    writer = _writer(tmp_path / "r", table, decoder=False)
    writer.write_embeddings(factory.embeddings(len(table), 1))
    writer.finish(["no decoder"])
    record = Record.load(tmp_path / "r")
    assert record.complete
    assert record.manifest["notes"] == ["no decoder"]


def test_an_unwritable_place_is_an_output_error(tmp_path):
    from vit_lens.errors import OutputError

    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create the directory"):
        _writer(tmp_path / "file" / "r", factory.rows(("cup.png",), **SMALL))


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    from vit_lens.errors import OutputError

    table = factory.rows(("cup.png",), **SMALL)
    writer = _writer(tmp_path / "r", table)
    writer.write_picture(0, factory.picture(0))
    before = _files(tmp_path / "r")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the kernel refuses byte 101 of any file
    try:
        for write in (
            lambda: writer.write_picture(0, factory.picture(9)),
            lambda: writer.write_picture(1, factory.picture(1)),
            lambda: writer.write_table(factory.rows(("cup.png",), **SMALL, numbers=False)),
            lambda: writer.write_embeddings(factory.embeddings(len(table), 1)),
        ):
            with pytest.raises(OutputError, match="cannot write"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _files(tmp_path / "r") == before


def test_a_record_is_frozen(small):
    with pytest.raises(AttributeError):
        small.manifest = {}


def test_missing_rows_and_pictures_are_named(tmp_path):
    from vit_lens.errors import RecordError

    record = factory.build(tmp_path / "r", stop_after=2, **SMALL)
    with pytest.raises(RecordError, match="no row 99"):
        record.picture(99)
    with pytest.raises(RecordError, match=r"000005\.png does not exist; the sweep is unfinished"):
        record.picture(5)


@pytest.mark.parametrize("bad", [{"row": 1, "image": 0}, {"image": 0}, {"row": 0, "image": 0, "colour": 1}])
def test_tables_that_are_not_tables_are_refused(bad):
    from vit_lens.errors import RecordError
    from vit_lens.records.schema import to_table

    with pytest.raises(RecordError):
        to_table([bad])


def test_a_value_of_the_wrong_type_is_refused():
    from vit_lens.errors import RecordError
    from vit_lens.records.schema import to_table

    with pytest.raises(RecordError, match="column 'layer' holds a value that is not int"):
        to_table([{"row": 0, "image": 0, "layer": "third"}])


def _shards(tmp_path, n=3, n_images=4):
    """Write what shard=(i, n) leaves: the images of index i, i+n, ... under their global index."""
    from vit_lens.records import Record, RecordWriter

    names = [f"{i}.png" for i in range(n_images)]
    whole = factory.rows(names, **SMALL)
    per_image = len(whole) // n_images
    paths = []
    for part in range(n):
        mine = list(range(part, n_images, n))
        table = [dict(row) for row in whole if row["image"] in mine]
        manifest = factory.manifest(len(table), names, **SMALL, shard=[part, n])
        manifest["images"] = [manifest["images"][i] for i in mine]
        sources = [row["row"] for row in table]
        for row, entry in enumerate(table):
            entry.update(row=row, picture=f"pictures/{row:06d}.png")
        writer = RecordWriter(tmp_path / f"s{part}", manifest, table)
        everything = factory.embeddings(len(whole), n_images)
        for i in mine:
            writer.write_input(i, factory.picture(1000 + i))
        for row, source in enumerate(sources):
            writer.write_picture(row, factory.picture(source))
        picks = {"lens": sources, "reencoded": sources, "clean": mine, "negative": [0]}
        writer.write_embeddings({name: everything[name][pick] for name, pick in picks.items()})
        writer.finish()
        paths.append(Record.load(tmp_path / f"s{part}").path)
    assert per_image * n_images == len(whole)
    return paths, names


def test_merged_shards_equal_the_undivided_sweep(tmp_path):
    from vit_lens.records import merge

    paths, names = _shards(tmp_path)
    merged = merge([paths[2], paths[0], paths[1]], tmp_path / "merged")
    whole = factory.build(tmp_path / "whole", names=names, **SMALL)
    ours, theirs = _files(merged.path), _files(whole.path)
    assert json.loads(ours.pop("record.json")) == {
        **json.loads(theirs.pop("record.json")),
        "command": "\n".join(["vit-lens sweep cup.png"] * 3),
    }
    assert ours == theirs


def test_missing_shards_are_named(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths, _ = _shards(tmp_path)
    with pytest.raises(RecordError, match="shards missing: 0 of 3, 2 of 3"):
        merge([paths[1]], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_shard_given_twice_is_named(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths, _ = _shards(tmp_path)
    copy = shutil.copytree(paths[1], tmp_path / "copy")
    with pytest.raises(RecordError, match=r"shard 1 was given twice: .*s1 and .*copy"):
        merge([*paths, copy], tmp_path / "merged")


def test_overlapping_shards_are_named(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths, _ = _shards(tmp_path)
    shutil.rmtree(paths[1])
    shutil.copytree(paths[0], paths[1])
    manifest = json.loads((paths[1] / "record.json").read_text())
    (paths[1] / "record.json").write_text(json.dumps({**manifest, "shard": [1, 3]}))
    with pytest.raises(RecordError, match=r"s0 and .*s1 overlap: both hold L0\.resid_pre of image 0"):
        merge(paths, tmp_path / "merged")


def test_shards_of_different_sweeps_are_refused(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths, _ = _shards(tmp_path)
    manifest = json.loads((paths[2] / "record.json").read_text())
    manifest["decoder"]["settings"]["steps"] = 25
    (paths[2] / "record.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match=r"decoder\.settings\.steps is 10 in .*s0, 25 in .*s2"):
        merge(paths, tmp_path / "merged")


def test_unfinished_records_and_whole_records_are_not_merged(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    whole = factory.build(tmp_path / "whole", **SMALL)
    with pytest.raises(RecordError, match="is not a shard"):
        merge([whole.path], tmp_path / "merged")
    with pytest.raises(RecordError, match="no shards"):
        merge([], tmp_path / "merged")
    part = factory.build(tmp_path / "part", stop_after=1, changes={"shard": [0, 1]}, **SMALL)
    with pytest.raises(RecordError, match="is unfinished"):
        merge([part.path], tmp_path / "merged")


def test_a_notebook_shows_a_record_without_trusting_its_names(tmp_path):
    record = factory.build(tmp_path / "r", names=(factory.HOSTILE, "plain.png"), **SMALL)
    shown = record._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "http" not in shown
    best = record.table[(record.table["image"] == 0) & (record.table["kind"] == "site")]["cos_input"].idxmax()
    assert f"{record.table['site'][best]} {record.table['cos_input'][best]:.2f}" in shown
    assert shown.count("data:image/jpeg;base64,") == 2 * (1 + 8)


def test_a_notebook_shows_an_unfinished_record(tmp_path):
    record = factory.build(tmp_path / "r", stop_after=0, numbers=False, **SMALL)
    assert "unfinished" in record._repr_html_()
    assert "(no picture)" in record._repr_html_()


def test_lens_labels_say_the_settings():
    from vit_lens.records import lens_label

    assert lens_label("diffusion", math.nan, math.nan, "") == "Diffusion Lens"
    assert lens_label("dsl", 5.0, None, "mean") == "DSL, mean-anchored, alpha 5"
    assert lens_label("dsl", math.nan, 0.25, "clean") == "DSL, clean-anchored, share 0.25"


def test_cosine_is_plain_and_undefined_for_zero():
    from vit_lens.metrics import cosine

    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    expected = [float(x @ y / (x.square().sum().sqrt() * y.square().sum().sqrt())) for x, y in zip(a, b, strict=True)]
    assert torch.allclose(cosine(a, b), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    assert cosine(a, 3 * a).max() <= 1
    assert torch.isnan(cosine(torch.zeros(1, 7), a[:1])).all()


def test_every_number_has_a_meaning():
    from vit_lens.metrics import NUMBERS
    from vit_lens.records import COLUMNS

    floats = {name for name, kind in COLUMNS.items() if kind == "float"}
    assert set(NUMBERS) == floats - {"alpha", "share"}


def _with_everything(path):
    n_rows = len(factory.rows(("cup.png",), **SMALL))
    manifest = {"readouts": {"k": 4, "texts": {}, "gallery": {}, "live": True}}
    return factory.build(
        path, read=factory.beside(n_rows), alive=factory.live(2, 3), changes=manifest, **SMALL
    )  # fmt: skip


def test_captions_neighbours_and_live_numbers_read_back(tmp_path):
    record = _with_everything(tmp_path / "r")
    read, alive = factory.beside(len(record.table)), factory.live(2, 3)
    for name in ("captions", "logit_scale", "logit_bias", "groups", "names", "means"):
        assert getattr(record.readouts, name) == getattr(read, name)
    assert torch.equal(record.readouts.texts, read.texts)
    for what in ("by_caption", "by_image"):
        for form, found in getattr(read, what).items():
            kept = getattr(record.readouts, what)[form]
            assert torch.equal(kept.index, found.index) and torch.equal(kept.cosine, found.cosine)
    assert record.live.labels == alive.labels and record.live.images == (0,)
    assert torch.equal(record.live.embed(0, {"L1H2": 3}), alive.embed(0, {"L1H2": 3}))
    assert np.array_equal(np.asarray(record.neighbour(7)), factory.picture(2007))


def test_a_record_from_before_captions_has_none(small):
    assert "readouts" not in small.manifest
    assert small.readouts is None and small.live is None


@pytest.mark.parametrize("name", ["readouts", "live"])
@pytest.mark.parametrize("keep", [None, 0, 7, 400])
def test_lost_and_truncated_files_beside_the_table_are_refused(tmp_path, name, keep):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = _with_everything(tmp_path / "r").path / f"{name}.safetensors"
    data = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(data[:keep])
    record = Record.load(tmp_path / "r")
    with pytest.raises(RecordError, match=f"has lost its {name}" if keep is None else "cannot be read"):
        getattr(record, name)


def test_captions_of_another_table_are_refused(tmp_path):
    from vit_lens.errors import RecordError

    record = factory.build(tmp_path / "r", read=factory.beside(5), **SMALL)
    with pytest.raises(RecordError, match=f"has 5 rows, the table {len(record.table)}"):
        record.readouts  # noqa: B018


@pytest.mark.parametrize("lost", [("drawn", "same_as"), ("cos_lens_control", "leak", "drawn", "same_as")])
def test_a_record_of_an_earlier_version_loads_with_what_it_lacks_empty(tmp_path, lost):
    import csv

    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    record = factory.build(tmp_path / "r", n_layers=2, n_heads=2)
    file = record.path / "table.csv"
    lines = list(csv.reader(file.read_text().splitlines()))
    later = [lines[0].index(name) for name in lost]

    def rewrite(drop):
        with file.open("w", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([v for i, v in enumerate(r) if i not in drop] for r in lines)

    rewrite(later)
    old = Record.load(record.path)
    assert set(old.table["drawn"]) == {""}
    assert old.table[[name for name in lost if name != "drawn"]].isna().all(axis=None)
    assert record.table["leak"].notna().any()
    assert old.table.drop(columns=[*lost]).equals(record.table.drop(columns=[*lost]))
    assert np.array_equal(np.asarray(old.picture(4)), factory.picture(4))
    for some in (later[:1], later[1:], [lines[0].index("cos_lens_control"), lines[0].index("leak")][: len(lost) - 1]):
        rewrite(some)  # a part of what a version added, or the earlier without the later, is no version of the format
        with pytest.raises(RecordError, match="does not name the columns"):
            Record.load(record.path)


def test_the_table_says_which_picture_is_the_best(tmp_path):
    from vit_lens.records import RecordWriter

    record = factory.build(tmp_path / "r", n_full=5, **SMALL)
    writer = RecordWriter(tmp_path / "r", record.manifest, record.table)
    for row, drawn in ((3, "coarse"), (9, "full")):  # the other pass's picture, which the table does not name
        writer.write_picture(row, factory.picture(700 + row), drawn)
    for row in (3, 9):
        assert np.array_equal(np.asarray(record.picture(row)), factory.picture(row))
    assert writer.finished_rows("full") == {0, 1, 2, 3, 4, 9}
    assert writer.finished_rows("coarse") == {3, *range(5, len(record.table))}


@pytest.mark.parametrize(
    ("cell", "other", "says"),
    [
        (b"pictures/coarse/000009.png,coarse", b"pictures/000009.png,coarse", "row 9 names the picture"),
        (b"pictures/000002.png,full", b"pictures/coarse/000002.png,full", "row 2 names the picture"),
        (b"pictures/000002.png,full", b"pictures/000002.png,fine", "row 2 is drawn 'fine'"),
        (b"coarse,32\n", b"coarse,34\n", "shares the picture of row 34, the last is 33"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path, cell, other, says):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = factory.build(tmp_path / "r", n_full=5, **SMALL).path / "table.csv"
    data = file.read_bytes()
    assert data.count(cell) == 1
    file.write_bytes(data.replace(cell, other))
    with pytest.raises(RecordError, match=says):
        Record.load(tmp_path / "r")


def test_changes_of_the_batch_plan_do_not_make_another_sweep(tmp_path):
    table = factory.rows(("cup.png",), **SMALL)
    first = _writer(tmp_path / "r", table)
    change = {"row": 4, "pass": "full", "batch_size": 8, "why": "out of memory"}
    first.add_change(change)
    first.add_change(change | {"row": 9, "batch_size": 4})
    again = _writer(tmp_path / "r", table)
    assert again.resumed and again.manifest["batch_plan"]["changes"] == [change, change | {"row": 9, "batch_size": 4}]


def test_a_budget_in_words(tmp_path):
    from vit_lens.records import budget_words

    assert budget_words(factory.build(tmp_path / "plain", **SMALL)) == ""
    words = budget_words(factory.build(tmp_path / "part", n_full=5, **SMALL))
    assert words.startswith("Drawn to a budget of 60s and then 200 pictures. 5 of 34 pictures are refined (10 steps, ")
    for part in (
        "guidance 1.5), 29 are coarse (3 steps, no guidance)",
        "1 shares the picture",
        "cosine at least 0.9999",
    ):
        assert part in words
    assert words.endswith("or without the budget to refine all.")
    words = budget_words(factory.build(tmp_path / "all", n_full=34, **SMALL))
    assert "34 of 34 pictures are refined (10 steps, guidance 1.5), which is all." in words and "again" not in words
    record = factory.build(tmp_path / "few", n_full=0, **SMALL)
    record.table.loc[3:, ["drawn", "picture"]] = ""
    assert "0 of 34 pictures are refined (10 steps, guidance 1.5), 3 are coarse (3 steps, no guidance), 31 not" in (
        budget_words(record)
    )


def test_a_faster_compression_keeps_the_picture(tmp_path):
    import io

    import PIL.Image

    from vit_lens.records.pictures import encode_png

    picture = factory.picture(8)
    for level in (0, 1, 9):
        kept = PIL.Image.open(io.BytesIO(encode_png(picture, level)))
        assert np.array_equal(np.asarray(kept), picture)


def test_over_seeds_averages_pictures_and_keeps_the_first(tmp_path):
    from vit_lens.records import over_seeds

    table = factory.build(tmp_path / "r", names=("a", "b"), n_layers=2, n_heads=2, seeds=(4, 0, 9)).table
    found = over_seeds(table)
    assert len(found) == len(table) / 3 and set(found["seed"]) == {4} and set(found["n_seeds"]) == {3}
    for row in found.to_dict("records"):
        same = table[
            (table["image"] == row["image"]) & (table["site"] == row["site"]) & (table["lens"] == row["lens"])
            & (table["kind"] == row["kind"])
        ]  # fmt: skip
        assert len(same) == 3 and row["row"] == same["row"].iloc[0]
        for name in ("faithfulness", "cos_input"):
            assert row[name] == pytest.approx(np.mean(same[name].tolist()))
        assert (row["faithfulness_low"], row["faithfulness_high"]) == (
            same["faithfulness"].min(),
            same["faithfulness"].max(),
        )
        assert row["norm_h"] == same["norm_h"].iloc[0]


def test_over_seeds_counts_the_seeds_that_were_drawn(tmp_path):
    from vit_lens.records import over_seeds

    table = factory.build(tmp_path / "r", n_layers=1, n_heads=2, seeds=(0, 1)).table
    table.loc[table["seed"] == 1, ["faithfulness", "cos_input"]] = float("nan")
    found = over_seeds(table)
    assert set(found["n_seeds"]) == {1}
    assert found["faithfulness"].tolist() == table.loc[table["seed"] == 0, "faithfulness"].tolist()
    assert over_seeds(table.head(0)).empty
