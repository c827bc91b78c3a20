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
    found = (p for p in sorted(path.rglob("*")) if p.is_file() and p.name != ".vit_lens.lock")
    return {str(p.relative_to(path)): p.read_bytes() for p in found}


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
    assert types["norm_h"] == "float64"
    assert types["site"] == "string"
    assert small.table["head"].isna().any()
    assert not small.table["drawn"].isna().any()


@pytest.mark.parametrize("name", ["NA", "", "nan", factory.HOSTILE, 'a,b"c', "line\r\nbreak", " naïve ☃ "])
def test_texts_survive_the_table(name):
    from vit_lens.records.schema import csv_to_table, table_to_csv, to_table

    table = to_table([{"row": 0, "input": 0, "input_name": name, "label": name}])
    back = csv_to_table(table_to_csv(table), "here")
    assert list(back["input_name"]) == [name]
    assert list(back["label"]) == [name]


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-320, -0.0, 123456789.123456789, math.inf, math.nextafter(1, 2)])
def test_floats_survive_the_table_to_the_bit(value):
    from vit_lens.records.schema import csv_to_table, table_to_csv, to_table

    back = csv_to_table(table_to_csv(to_table([{"row": 0, "input": 0, "cos_input": value}])), "here")
    assert np.float64(back["cos_input"][0]).tobytes() == np.float64(value).tobytes()
    assert math.isnan(back["faithfulness"][0])


def test_a_name_that_is_not_unicode_is_made_readable():
    from vit_lens.records.schema import table_to_csv, to_table

    assert b"caf\\udce9.png" in table_to_csv(to_table([{"row": 0, "input": 0, "input_name": "caf\udce9.png"}]))


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

    factory.unlist(small.path)
    file = small.path / "table.csv"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RecordError, match=says):
        Record.load(small.path)


def test_a_table_that_lost_whole_lines_is_refused(small):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    factory.unlist(small.path)
    file = small.path / "table.csv"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(RecordError, match="32 rows, the manifest says 34"):
        Record.load(small.path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no record.json"),
        (b"{", "cannot be read as JSON"),
        (b"[]", "holds a JSON list; expected an object"),
        (b'{"format": 3}', "format 3, this version reads formats 1 and 2"),
        (b'{"format": 2}', "lacks model, decoder, readings"),
        (b'{"format": 1}', "lacks model, decoder, lenses"),
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

    factory.unlist(small.path)
    file = small.path / "table.csv"
    file.write_bytes(file.read_bytes().replace(b"pictures/000002.png", b"../../000002.png"))
    with pytest.raises(RecordError, match="row 2 names the picture"):
        Record.load(small.path)


@pytest.mark.parametrize("keep", [0, 9, 400])
@pytest.mark.parametrize("name", ["lens", "reencoded"])
def test_truncated_embeddings_are_refused(small, keep, name):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = small.path / f"embeddings/{name}/000000.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RecordError, match=rf"embeddings/{name}/000000\.safetensors is not what the record wrote"):
        Record.load(small.path).conditions[name]
    factory.unlist(small.path)
    with pytest.raises(RecordError, match=rf"embeddings/{name}/000000\.safetensors cannot be read"):
        Record.load(small.path).conditions[name]


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
    factory.write_embeddings(first, factory.embeddings(len(table), 1))
    leftovers = [tmp_path / "r" / folder / ".vit_lens-0123.tmp" for folder in ("pictures", "embeddings/lens", ".")]
    for leftover in leftovers:
        leftover.write_bytes(b"half a picture")
    again = _writer(tmp_path / "r", table)
    assert again.resumed
    assert not any(leftover.exists() for leftover in leftovers)
    assert again.finished_rows() == set(range(7))
    assert torch.equal(again.conditions["lens"].pooled, factory.embeddings(len(table), 1)["lens"])
    for row in range(7, len(table)):
        again.write_picture(row, factory.picture(row))
    again.finish()
    assert _files(tmp_path / "r") == _files(undisturbed.path)
    assert "files.csv" in _files(undisturbed.path)


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
        ({"shard": {"index": 0, "of": 2, "n_rows": 0, "rows": []}}, r'shard is null on disk, \{"index": 0, "of": 2, '),
        ({"readings": [factory.PLAIN]}, "readings is "),
        ({"readings": [*factory.READINGS, *factory.READINGS]}, "readings is a list of 3 on disk, of 6 now"),
        ({"readings": [factory.PLAIN, *factory.READINGS[:2]]}, r'readings\[0\].id is "dsl-.* on disk, "diffusion-'),
        ({"machine": "cuda"}, 'machine is "cpu" on disk, "cuda" now'),
        ({"columns": {"row": "int"}}, "columns"),
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
    with pytest.raises(RecordError, match=r'rows\[5\].site is "L0H1" on disk, "L9H9" now'):
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
    missing, n = len(record.table) - 3, len(record.table) + 6  # the table, an input, four kinds of conditions
    with pytest.raises(
        RecordError, match=rf"{missing} of {n} files .* are missing .*, the first is pictures/000003\.png"
    ):
        writer.finish()
    assert not Record.load(tmp_path / "r").complete


def test_a_sweep_without_a_decoder_needs_no_pictures(tmp_path):
    from vit_lens.records import Record

    table = factory.rows(("cup.png",), **SMALL, numbers=False)
    writer = _writer(tmp_path / "r", table, decoder=False)
    writer.write_input(0, factory.picture(1000))
    factory.write_embeddings(writer, factory.embeddings(len(table), 1))
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
    from vit_lens.conditions import Condition
    from vit_lens.errors import OutputError

    table = factory.rows(("cup.png",), **SMALL)
    writer = _writer(tmp_path / "r", table)
    writer.write_picture(0, factory.picture(0))
    found = factory.embeddings(len(table), 1)
    factory.write_embeddings(writer, {"lens": found["lens"]})
    before = _files(tmp_path / "r")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the kernel refuses byte 101 of any file
    try:
        for write in (
            lambda: writer.write_picture(0, factory.picture(9)),
            lambda: writer.write_picture(1, factory.picture(1)),
            lambda: writer.write_table(factory.rows(("cup.png",), **SMALL, numbers=False)),
            lambda: writer.write_conditions("lens", Condition(pooled=found["lens"] + 1), range(len(table))),
        ):
            with pytest.raises(OutputError, match="cannot write"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _files(tmp_path / "r") == before


def test_a_record_is_frozen(small):
    with pytest.raises(AttributeError):
        small.manifest = {}


def test_missing_rows_and_pictures_are_named(tmp_path, unchecked):
    from vit_lens.errors import RecordError

    record = factory.build(tmp_path / "r", stop_after=2, **SMALL)
    with pytest.raises(RecordError, match="no row 99"):
        record.picture(99)
    for read in (record.picture, record.input, record.entry, record.neighbour):
        for index in ("a", 1.0, True, -1, None):
            with pytest.raises(RecordError, match="expected a whole number from 0 on"):
                read(index)
    with pytest.raises(RecordError, match=r"000005\.png does not exist; the sweep is unfinished"):
        record.picture(5)


@pytest.mark.parametrize("bad", [{"row": 1, "input": 0}, {"input": 0}, {"row": 0}, {"row": 0, "input": 0, "colour": 1}])
def test_tables_that_are_not_tables_are_refused(bad):
    from vit_lens.errors import RecordError
    from vit_lens.records.schema import to_table

    with pytest.raises(RecordError):
        to_table([bad])


def test_a_value_of_the_wrong_type_is_refused():
    from vit_lens.errors import RecordError
    from vit_lens.records.schema import to_table

    with pytest.raises(RecordError, match="column 'layer' holds a value that is not int"):
        to_table([{"row": 0, "input": 0, "layer": "third"}])


# Rows 34 to 67 are those of the second image; the third part holds none.
CUTS = ([[0, 20], [40, 90]], [[20, 40]], [], [[90, 136]])
NAMES = ("0.png", "1.png", "2.png", "3.png")


def _shards(tmp_path, cuts=CUTS, names=NAMES, changes=(), **options):
    """Write what shard=(i, n) leaves: some rows of the whole, which may be those of a part of an image."""
    changes = dict(changes)
    return [
        factory.build_part(
            tmp_path / f"s{part}", held, part, len(cuts), names=names, changes=changes.get(part), **SMALL, **options
        )
        for part, held in enumerate(cuts)
    ]


def _cuts_shard(path, **changes):
    shard = json.loads((path / "record.json").read_text())["shard"]
    factory.edit_manifest(path, shard={**shard, **changes})


@pytest.mark.parametrize(
    ("names", "cuts"),
    [
        (NAMES, CUTS),
        (NAMES[:2], ([[0, 11]], [[11, 25]], [[25, 68]])),  # the first image lies in three parts
        (NAMES[:2], ([[0, 68]],)),
    ],
)
def test_merged_shards_equal_the_undivided_sweep(tmp_path, names, cuts):
    from vit_lens.records import merge

    n_rows = 34 * len(names)
    beside, alive = factory.beside(n_rows), factory.live(2, 3, images=tuple(range(len(names))))
    said = {"beside": {"k": 4, "texts": {}, "gallery": {}, "live": True}}
    paths = _shards(tmp_path, cuts, names, dict.fromkeys(range(len(cuts)), said), read=beside, alive=alive)
    merged = merge([*paths[2:], *paths[:2]], tmp_path / "merged")
    whole = factory.build(tmp_path / "whole", names=names, read=beside, alive=alive, changes=said, **SMALL)
    ours, theirs = _files(merged.path), _files(whole.path)
    assert json.loads(ours.pop("record.json")) == json.loads(theirs.pop("record.json"))
    assert ours == theirs
    assert {"readouts.safetensors", "live.safetensors", "gallery/000003.png", "files.csv"} <= ours.keys()


def test_commands_and_notes_of_all_parts_are_kept(tmp_path):
    from vit_lens.records import merge

    changes = {part: {"command": f"vit-lens sweep {part % 2}", "notes": [f"note {part % 2}"]} for part in range(4)}
    merged = merge(_shards(tmp_path, changes=changes), tmp_path / "merged")
    assert merged.manifest["command"] == "vit-lens sweep 0\nvit-lens sweep 1"
    assert merged.manifest["notes"] == ["note 0", "note 1"]


def test_an_empty_part_is_whole_and_loads(tmp_path):
    from vit_lens.records import Record

    empty = Record.load(_shards(tmp_path)[2])
    assert empty.complete and empty.table.empty and empty.manifest["inputs"] == []
    assert list(empty.table.columns) == list(empty.manifest["columns"]) and len(empty.conditions) == 0


def test_missing_shards_are_named(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths = _shards(tmp_path)
    with pytest.raises(RecordError, match="shards missing: 0 of 4, 2 of 4"):
        merge([paths[1], paths[3]], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_shard_given_twice_is_named(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths = _shards(tmp_path)
    copy = shutil.copytree(paths[1], tmp_path / "copy")
    with pytest.raises(RecordError, match=r"shard 1 was given twice: .*s1 and .*copy"):
        merge([*paths, copy], tmp_path / "merged")


def test_overlapping_shards_are_refused(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths = _shards(tmp_path)
    shutil.rmtree(paths[1])
    shutil.copytree(paths[0], paths[1])
    _cuts_shard(paths[1], index=1)
    with pytest.raises(RecordError, match="these shards hold 116 different rows of 136: they overlap or leave some"):
        merge(paths, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "rows",
    [
        {1: [[21, 41]]},  # row 20 is nobody's, row 40 is given twice
        {1: [[20, 39], [136, 137]]},  # row 39 is nobody's
        {1: [[20, 39]]},
        {1: [[20, 41]], 0: [[0, 20], [41, 90]]},  # each row once, but not where it lies
    ],
)
def test_shards_that_leave_rows_out_or_claim_those_of_others_are_refused(tmp_path, rows):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths = _shards(tmp_path)
    for part, claimed in rows.items():
        _cuts_shard(paths[part], rows=claimed)
    with pytest.raises(RecordError, match=r"these shards hold \d+ different rows of 136: |does not say which"):
        merge(paths, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_shards_of_different_divisions_are_refused(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths = _shards(tmp_path)
    _cuts_shard(paths[1], of=5)
    with pytest.raises(RecordError, match="shards of different divisions, into 4 and 5 parts of 136 and 136 rows"):
        merge(paths, tmp_path / "merged")


def test_shards_of_different_sweeps_are_refused(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths = _shards(tmp_path)
    decoder = json.loads((paths[2] / "record.json").read_text())["decoder"]
    decoder["settings"]["steps"] = 25
    factory.edit_manifest(paths[2], decoder=decoder)
    with pytest.raises(RecordError, match=r"decoder\.settings\.steps is 10 in .*s0, 25 in .*s2"):
        merge(paths, tmp_path / "merged")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"machine": "cuda"}, 'machine is "cpu" in .*s0, "cuda" in .*s1'),
        ({"versions": {"vit_lens": "0.1.0", "torch": "2.1"}}, 'versions.torch is "2.0" in .*s0, "2.1" in .*s1'),
        ({"batch_plan": {"batch_size": 8, "n_rows": 20, "order": "row"}}, "batch_plan.batch_size is 16 in .*, 8 in "),
    ],
)
def test_shards_of_which_bits_would_differ_are_refused(tmp_path, change, says):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    with pytest.raises(RecordError, match=says):
        merge(_shards(tmp_path, changes={1: change}), tmp_path / "merged")


def test_shards_of_lenses_on_other_means_are_refused(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    paths = _shards(tmp_path)
    other = factory.mean_anchored("cc22dd33")
    factory.build_part(tmp_path / "other", CUTS[1], 1, 4, names=NAMES, steering=(other,), **SMALL)
    with pytest.raises(RecordError, match=r'shards of different sweeps: readings\[0\]\.id is "dsl-.* in .*s0, "dsl-'):
        merge([paths[0], tmp_path / "other", *paths[2:]], tmp_path / "merged")


def test_parts_drawn_with_other_threads_merge_with_a_note(tmp_path):
    from vit_lens.records import merge

    merged = merge(_shards(tmp_path, changes={1: {"threads": 4}, 3: {"threads": 2}}), tmp_path / "merged")
    (note,) = merged.manifest["notes"]
    assert note.startswith("Its parts were drawn with 1 and 2 and 4 threads: numbers and pictures may differ")
    assert merged.complete and merged.manifest["threads"] == [1, 2, 4]
    same = merge(
        _shards(tmp_path / "same", changes={part: {"threads": 4} for part in range(4)}), tmp_path / "same" / "merged"
    )
    assert same.manifest["notes"] == [] and same.manifest["threads"] == 4


def test_unfinished_records_and_whole_records_are_not_merged(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    whole = factory.build(tmp_path / "whole", **SMALL)
    with pytest.raises(RecordError, match="is not a shard"):
        merge([whole.path], tmp_path / "merged")
    with pytest.raises(RecordError, match="no shards"):
        merge([], tmp_path / "merged")
    part = factory.build_part(tmp_path / "part", [[0, 34]], 0, 1, names=("cup.png",), finish=False, **SMALL)
    with pytest.raises(RecordError, match="is unfinished"):
        merge([part], tmp_path / "merged")


def test_a_notebook_shows_a_record_without_trusting_its_names(tmp_path):
    record = factory.build(tmp_path / "r", names=(factory.HOSTILE, "plain.png"), **SMALL)
    shown = record._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "http" not in shown
    frame = record.frame()
    best = frame[(frame["input"] == 0) & (frame["control"] == "")]["cos_input"].idxmax()
    assert f"{record.table['site'][best]} {record.table['cos_input'][best]:.2f}" in shown
    assert shown.count("data:image/jpeg;base64,") == 2 * (1 + 8)


def test_a_notebook_shows_an_unfinished_record(tmp_path):
    record = factory.build(tmp_path / "r", stop_after=0, numbers=False, **SMALL)
    assert "unfinished" in record._repr_html_()
    assert "(no picture)" in record._repr_html_()


def test_readings_are_those_that_lenses_describe():
    from vit_lens.lenses import DiffusionLens, DiffusionSteeringLens
    from vit_lens.lenses.contract import LensDescription
    from vit_lens.records import Reading

    for label, lens in (
        ("Diffusion Lens", DiffusionLens()),
        ("DSL, clean-anchored, alpha 5", DiffusionSteeringLens(alpha=5.0)),
        ("DSL, clean-anchored, share 0.25", DiffusionSteeringLens(share=0.25)),
    ):
        assert lens.describe().label == label
    for said in (factory.STEERING, factory.PLAIN):
        described = LensDescription(
            lens=said["lens"], settings=said["settings"], label=said["label"], words=said["words"]
        )
        assert described.id == said["id"]
        made = Reading.from_dict(said, "here")
        assert made.to_dict() == said and made.controlled("random").to_dict() == factory.control_of(said)
    assert factory.PLAIN["id"] == DiffusionLens().describe().id
    assert factory.STEERING["label"] == "DSL, mean-anchored, alpha 5"


@pytest.mark.parametrize("change", [{"lens": 3}, {"settings": None}, {"more": ""}, {"of": None}])
def test_a_damaged_reading_is_refused(small, change):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    factory.edit_manifest(small.path, readings=[factory.STEERING | change, *factory.READINGS[1:]])
    with pytest.raises(RecordError, match="a reading"):
        Record.load(small.path)


def test_rows_name_readings_and_inputs_of_the_manifest(small):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    inputs = small.manifest["inputs"]
    factory.edit_manifest(small.path, readings=factory.READINGS[:2])
    with pytest.raises(RecordError, match=f"names the reading '{factory.PLAIN['id']}', the manifest knows only"):
        Record.load(small.path)
    factory.edit_manifest(small.path, readings=factory.READINGS, inputs=[inputs[0] | {"index": 4}])
    with pytest.raises(RecordError, match=r"names input 0, the manifest knows only \[4\]"):
        Record.load(small.path)


def test_cosine_is_plain_and_undefined_for_zero():
    from vit_lens.metrics import cosine

    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    expected = [float(x @ y / (x.square().sum().sqrt() * y.square().sum().sqrt())) for x, y in zip(a, b, strict=True)]
    assert torch.allclose(cosine(a, b), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    assert cosine(a, 3 * a).max() <= 1
    assert torch.isnan(cosine(torch.zeros(1, 7), a[:1])).all()


def test_every_number_has_a_meaning():
    from vit_lens.controls import CONTROLS
    from vit_lens.metrics import NUMBERS, control_columns
    from vit_lens.records import COLUMNS

    floats = {name for name, kind in COLUMNS.items() if kind == "float"}
    columns = [control_columns(name) for name in CONTROLS]
    behind_leaks = {"S_lens_clean", *(end for one in columns for end in (one.centred, one.low, one.high))}
    assert not behind_leaks & set(NUMBERS)
    assert set(NUMBERS) | behind_leaks == floats


def _with_everything(path):
    n_rows = len(factory.rows(("cup.png",), **SMALL))
    manifest = {"beside": {"k": 4, "texts": {}, "gallery": {}, "live": True}}
    return factory.build(
        path, read=factory.beside(n_rows), alive=factory.live(2, 3), changes=manifest, **SMALL
    )  # fmt: skip


def test_captions_neighbours_and_live_numbers_read_back(tmp_path):
    from vit_lens.errors import RecordError

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
    for factor in (float("nan"), float("inf")):
        with pytest.raises(RecordError, match=r"the factor of L1H2 is (nan|inf); expected a finite number"):
            record.live.embed(0, {"L1H2": factor})
    assert np.array_equal(np.asarray(record.neighbour(7)), factory.picture(2007))


def test_a_record_from_before_captions_has_none(small):
    assert small.manifest["beside"] is None
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
    with pytest.raises(RecordError, match="does not exist" if keep is None else "is not what the record wrote"):
        getattr(record, name)


def test_captions_of_another_table_are_refused(tmp_path):
    from vit_lens.errors import RecordError

    record = factory.build(tmp_path / "r", read=factory.beside(5), **SMALL)
    with pytest.raises(RecordError, match=f"has 5 rows, the table {len(record.table)}"):
        record.readouts  # noqa: B018


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
    with pytest.raises(RecordError, match=r"table\.csv is not what the record wrote"):
        Record.load(tmp_path / "r")
    (tmp_path / "r/files.csv").unlink()
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

    from vit_lens.records.encoding import encode_png

    picture = factory.picture(8)
    for level in (0, 1, 9):
        kept = PIL.Image.open(io.BytesIO(encode_png(picture, level)))
        assert np.array_equal(np.asarray(kept), picture)


def test_over_seeds_averages_pictures_and_keeps_the_first(tmp_path):
    from vit_lens.records import over_seeds

    record = factory.build(tmp_path / "r", names=("a", "b"), n_layers=2, n_heads=2, seeds=(4, 0, 9))
    table = record.frame()
    found = over_seeds(table)
    assert len(found) == len(table) / 3 and set(found["seed"]) == {4} and set(found["n_seeds"]) == {3}
    for row in found.to_dict("records"):
        same = table[
            (table["input"] == row["input"]) & (table["site"] == row["site"]) & (table["lens"] == row["lens"])
            & (table["control"] == row["control"])
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


# ---- readings that only their settings tell apart -------------------------------------------------------------


def _own_readings():
    """Two lenses of a class of one's own, as a sweep describes them."""
    from vit_lens.conditions import Condition
    from vit_lens.lenses import Lens
    from vit_lens.sweeping.lens_readings import record_reading

    class Mine(Lens):
        """Reads what I like."""

        def __init__(self, taste):
            self.alpha, self.taste = 5.0, taste

        def reads(self, site):
            return True

        def read(self, cache, sites):
            return Condition(pooled=torch.zeros(1, len(sites), factory.D_EMBED))

    return tuple(record_reading(Mine(taste)).to_dict() for taste in ("sweet", "sour"))


def _twins(which):
    if which == "own class":
        return _own_readings()
    return factory.mean_anchored("00aa11bb"), factory.mean_anchored("cc22dd33")


TWINS = ("other means", "own class")
TWO = {"n_layers": 2, "n_heads": 3, "seeds": (4, 0)}


@pytest.fixture(params=TWINS)
def twins(request, tmp_path):
    """Two steering readings of one lens and strength, their record, and its rows as they were written."""
    pair = _twins(request.param)
    assert pair[0]["lens"] == pair[1]["lens"] and pair[0]["settings"]["alpha"] == pair[1]["settings"]["alpha"]
    options = {**TWO, "names": ("a.png", "b.png"), "steering": pair}
    names = options.pop("names")
    return pair, factory.build(tmp_path / "twins", names=names, **options), factory.rows(names, **options)


def _written(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_twins_have_ids_of_their_own(twins):
    pair, record, _ = twins
    controls = [factory.control_of(one) for one in pair]
    assert len(record.readings) == 5 and len({one["id"] for one in (*pair, *controls)}) == 4
    for one, control in zip(pair, controls, strict=True):
        assert record.readings[one["id"]].to_dict() == one
        assert record.readings[control["id"]].of == one["id"]
    frame = record.frame()
    name = "reference" if "reference" in pair[0]["settings"] else "taste"
    for one, control in zip(pair, controls, strict=True):
        rows = frame[frame[name] == one["settings"][name]]
        assert set(rows["reading"]) == {one["id"], control["id"]} and set(rows["lens"]) == {one["lens"]}


def test_over_seeds_keeps_twins_apart(twins):
    from vit_lens.records import over_seeds

    pair, record, rows = twins
    found = over_seeds(record.table)
    assert len(found) == len(rows) / 2 and set(found["n_seeds"]) == {2}
    for one in (*pair, *map(factory.control_of, pair)):
        for row in found[found["reading"] == one["id"]].to_dict("records"):
            same = _written(rows, input=row["input"], site=row["site"], reading=one["id"])
            assert len(same) == 2 and row["row"] == same[0]["row"]
            for name in ("faithfulness", "cos_input"):
                assert row[name] == pytest.approx(np.mean([other[name] for other in same]))


def test_select_keeps_twins_apart(twins):
    from vit_lens.errors import RecordError
    from vit_lens.records import select

    pair, record, rows = twins
    for one in pair:
        expected = [row["row"] for row in _written(rows, input=1, reading=one["id"])]
        assert list(select(record, input=1, lens=one["id"])["row"]) == expected
        control = factory.control_of(one)["id"]
        expected = [row["row"] for row in _written(rows, input=1, reading=control)]
        for name in (one["id"], control):
            assert list(select(record, input=1, lens=name, control="random")["row"]) == expected
    assert set(select(record)["reading"]) == {pair[0]["id"]}
    with pytest.raises(RecordError, match=f"names 2 of the readings in this record.*{pair[0]['id']}.*{pair[1]['id']}"):
        select(record, lens=pair[0]["lens"])
    with pytest.raises(RecordError, match="names 2 of the readings"):
        select(record, lens=pair[0]["lens"], control="random")


def test_select_takes_labels_and_their_beginnings(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import select

    pair = _own_readings()
    assert [one["label"] for one in pair] == ["Mine, alpha 5, taste sweet", "Mine, alpha 5, taste sour"]
    record = factory.build(tmp_path / "r", steering=pair, **SMALL)
    for lens, one in (("Mine, alpha 5, taste sour", pair[1]), ("Mine, alpha 5, taste sw", pair[0])):
        assert set(select(record, lens=lens)["reading"]) == {one["id"]}
    with pytest.raises(RecordError, match="lens 'Mine, alpha' names 2"):
        select(record, lens="Mine, alpha")
    with pytest.raises(RecordError, match="has no placebo controls of type head"):
        select(record, control="placebo", types=("head",))


def test_figures_pair_each_twin_with_its_own_control(twins):
    import base64

    from vit_lens.figures import head_map, top_sites
    from vit_lens.records.encoding import encode_png

    pair, record, rows = twins
    for one in pair:
        heat = head_map(record, input=1, value="norm_h", lens=one["id"]).data[0]
        for layer in range(2):
            for head in range(3):
                own = _written(rows, input=1, site=f"L{layer}H{head}", reading=one["id"])
                assert heat.z[layer][head] == own[0]["norm_h"]
        best = max(_written(rows, input=1, reading=one["id"], seed=4), key=lambda row: row["norm_h"])
        figure = top_sites(record, k=1, by="norm_h", input=1, lens=one["id"])
        control = factory.control_of(one)["id"]
        (control,) = _written(rows, input=1, site=best["site"], reading=control, seed=4)
        for place, row in ((1, best), (2, control)):
            shown = base64.b64decode(figure.data[place].source.split(",")[1])
            assert shown == encode_png(factory.picture(row["row"]))


def test_the_page_has_a_group_for_each_twin(twins):
    from vit_lens.report.data import page_data

    pair, record, rows = twins
    page = page_data(record, "")
    ids = [group["id"] for group in page["groups"]]
    assert ids == list(dict.fromkeys(row["reading"] for row in rows)) and len(ids) == 5
    assert [ids[at] for at in page["rows"]["group"]] == [row["reading"] for row in rows]
    for one in pair:
        (control,) = [group for group in page["groups"] if group["of"] == one["id"]]
        assert control["id"] == factory.control_of(one)["id"] and control["control"] == "random"
        name = "reference" if "reference" in one["settings"] else "taste"
        assert f"{name}: {one['settings'][name]}" in page["groups"][ids.index(one["id"])]["settings"]


@pytest.mark.parametrize("which", TWINS)
def test_merging_keeps_twins_apart(tmp_path, which):
    from vit_lens.records import merge

    options = {**TWO, "names": ("a.png", "b.png"), "steering": _twins(which)}
    seeds = {"seeds": {"decoder": [4, 0], "control": 1}}
    whole = factory.build(tmp_path / "whole", **options)
    n_rows = len(whole.table)
    cuts = ([[0, 21], [50, 51]], [[21, 50], [51, 60]], [[60, n_rows]])
    paths = [
        factory.build_part(tmp_path / f"s{part}", held, part, 3, changes=seeds, **options)
        for part, held in enumerate(cuts)
    ]
    merged = merge(paths, tmp_path / "merged")
    assert list(merged.table["reading"]) == [row["reading"] for row in factory.rows(**options)]
    assert merged.readings == whole.readings and len(merged.readings) == 5
    ours, theirs = _files(merged.path), _files(whole.path)
    del ours["record.json"], theirs["record.json"]
    assert ours == theirs


def test_settings_do_not_cover_columns(tmp_path):
    mine = factory.reading("mine", "Mine", lens="wide", control="none", site="all", taste="sour")
    frame = factory.build(tmp_path / "r", steering=(mine,), **SMALL).frame()
    rows = frame[frame["reading"].str.startswith(mine["id"])]
    assert set(rows["lens"]) == {"mine"} and set(rows["control"]) == {"", "random"} and "L0H0" in set(rows["site"])
    for name, value in (("lens_lens", "wide"), ("lens_control", "none"), ("lens_site", "all"), ("taste", "sour")):
        assert set(rows[name]) == {value}


# ---- conditions in parts ---------------------------------------------------------------------------------------


@pytest.fixture
def parts_of_8(monkeypatch):
    monkeypatch.setattr("vit_lens.records.row_files._MOST_ROWS", 8)


def _bits(condition):
    return {
        name: part if part.dtype == torch.bool else part.view(torch.int32) for name, part in condition.parts().items()
    }


def _same_bits(one, two):
    ours, theirs = _bits(one), _bits(two)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _tokens(n, seed=0):
    """Conditions with tokens, a mask over them and a pooled vector, among them what is easily lost on the way."""
    from vit_lens.conditions import Condition

    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 5, 3, generator=generator)
    tokens[0, 0] = torch.tensor([-0.0, 1e-42, torch.inf])
    tokens[-1, 4, 2] = torch.nan
    mask = torch.rand(n, 5, generator=generator) < 0.6
    return Condition(tokens=tokens, mask=mask, pooled=torch.randn(n, factory.D_EMBED, generator=generator))


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ({"pooled": [7]}, 4096),
        ({"pooled": [1280]}, 4096),
        ({"pooled": [2048]}, 4096),
        ({"pooled": [2049]}, 2048),
        ({"tokens": [77, 1024], "mask": [77], "pooled": [1280]}, 64),
        ({"tokens": [4096, 4096]}, 1),
    ],
)
def test_a_part_is_at_most_32_mib(shapes, rows):
    from vit_lens.records.row_files import rows_per_part

    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    assert rows_per_part(shapes) == rows
    assert rows == 1 or rows * size <= 2**25
    assert rows == 4096 or 2 * rows * size > 2**25


def test_a_write_touches_only_the_parts_of_its_rows(tmp_path, parts_of_8):
    from vit_lens.conditions import Condition

    table = factory.rows(("cup.png",), **SMALL)
    writer = _writer(tmp_path / "r", table)
    found = factory.embeddings(len(table), 1)
    factory.write_embeddings(writer, found)
    folder = tmp_path / "r" / "embeddings"
    assert sorted(p.name for p in (folder / "lens").iterdir()) == [f"{part:06d}.safetensors" for part in range(5)]
    files = sorted(folder.rglob("*.safetensors"))
    before = {file: (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    changed = found["lens"].clone()
    changed[[3, 12, 20]] += 1  # row 12 is not named, so its part stays as it is
    writer.write_conditions("lens", Condition(pooled=changed), [20, 3])
    after = {file: (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    touched = [folder / "lens" / f"{part:06d}.safetensors" for part in (0, 2)]
    assert [file for file in files if before[file] != after[file]] == touched
    assert all(before[file][0] != after[file][0] for file in touched)
    again = _writer(tmp_path / "r", table).conditions["lens"].pooled
    changed[12] -= 1
    assert torch.equal(again[[3, 20]], changed[[3, 20]])
    assert torch.equal(again[12], found["lens"][12])


@pytest.mark.parametrize("most", [1, 8, 4096])
def test_conditions_with_tokens_read_back_to_the_bit(tmp_path, monkeypatch, most):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    monkeypatch.setattr("vit_lens.records.row_files._MOST_ROWS", most)
    table = factory.rows(("cup.png",), **SMALL, numbers=False)
    writer = _writer(tmp_path / "r", table, decoder=False)
    written = {"lens": _tokens(len(table), 1), "clean": _tokens(1, 2), "negative": _tokens(1, 3)}
    writer.write_input(0, factory.picture(1000))
    factory.write_embeddings(writer, written)
    writer.finish()
    record = Record.load(tmp_path / "r")
    assert list(record.conditions) == list(written)
    for name, held in written.items():
        assert _same_bits(record.conditions[name], held)
        assert torch.equal(record.embeddings[name], held.pooled)
    assert len(list((tmp_path / "r/embeddings/lens").iterdir())) == -(-len(table) // most)
    again = _writer(tmp_path / "r", table, decoder=False)
    assert all(_same_bits(again.conditions[name], held) for name, held in written.items())
    with pytest.raises(KeyError, match="no conditions 'other'"):
        record.conditions["other"]
    writer = _writer(tmp_path / "bare", table, decoder=False)
    factory.write_embeddings(
        writer, {"lens": type(written["lens"])(tokens=written["lens"].tokens), "clean": _tokens(1)}
    )
    bare = Record.load(tmp_path / "bare")
    assert list(bare.conditions) == ["lens", "clean"]
    assert list(bare.embeddings) == ["clean"] and len(bare.embeddings) == 1 and "lens" not in bare.embeddings
    with pytest.raises(RecordError, match=r"'lens' of this record is tokens \[5, 3\], not pooled"):
        bare.embeddings["lens"]


def test_conditions_with_tokens_merge_to_the_bit(tmp_path, monkeypatch, parts_of_8):
    from vit_lens.records import merge

    monkeypatch.setattr(
        factory,
        "embeddings",
        lambda n, m: {
            "lens": _tokens(n, 1),
            "reencoded": _tokens(n, 2),
            "clean": _tokens(m, 3),
            "negative": _tokens(1),
        },
    )
    merged = merge(_shards(tmp_path), tmp_path / "merged")
    whole = factory.build(tmp_path / "whole", names=NAMES, **SMALL)
    ours, theirs = _files(merged.path), _files(whole.path)
    del ours["record.json"], theirs["record.json"]
    assert ours == theirs and "embeddings/lens/000016.safetensors" in ours
    assert _same_bits(merged.conditions["lens"], _tokens(136, 1))


@pytest.mark.parametrize("name", ["lens", "reencoded", "clean"])
def test_a_part_that_is_not_there_is_nan_until_the_record_is_complete(tmp_path, parts_of_8, name):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    found = factory.embeddings(34, 1)
    part = 0 if name == "clean" else 2
    gone = slice(0, 1) if name == "clean" else slice(16, 24)
    unfinished = factory.build(tmp_path / "unfinished", stop_after=3, **SMALL)
    (unfinished.path / f"embeddings/{name}/{part:06d}.safetensors").unlink()
    for read in (Record.load(unfinished.path).embeddings[name], _again(unfinished).conditions[name].pooled):
        there = torch.ones(len(read), dtype=torch.bool)
        there[gone] = False
        assert torch.isnan(read[gone]).all()
        assert torch.equal(read[there], found[name][there])
    whole = factory.build(tmp_path / "whole", **SMALL)
    (whole.path / f"embeddings/{name}/{part:06d}.safetensors").unlink()
    record = Record.load(whole.path)
    with pytest.raises(RecordError, match=rf"{name}/{part:06d}\.safetensors does not exist"):
        record.conditions[name]
    assert not record.complete


def _again(record):
    return _writer(record.path, factory.rows(("cup.png",), **SMALL))


def test_a_mask_that_is_not_there_counts_no_token(tmp_path, parts_of_8):
    from vit_lens.records import Record

    table = factory.rows(("cup.png",), **SMALL)
    writer = _writer(tmp_path / "r", table)
    factory.write_embeddings(writer, {"lens": _tokens(len(table))})
    (tmp_path / "r/embeddings/lens/000001.safetensors").unlink()
    read = Record.load(tmp_path / "r").conditions["lens"]
    assert not read.mask[8:16].any() and torch.isnan(read.tokens[8:16]).all()
    assert _same_bits(read[16:], _tokens(len(table))[16:]) and _same_bits(read[:8], _tokens(len(table))[:8])


@pytest.mark.parametrize(
    "tensors",
    [
        {"pooled": torch.zeros(8, 6)},
        {"pooled": torch.zeros(7, factory.D_EMBED)},
        {"tokens": torch.zeros(8, factory.D_EMBED)},
        {"pooled": torch.zeros(8, factory.D_EMBED), "mask": torch.zeros(8, 3, dtype=torch.bool)},
    ],
)
def test_a_part_of_another_shape_is_refused(tmp_path, parts_of_8, tensors):
    from safetensors.torch import save_file

    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    says = r"embeddings/reencoded/000002\.safetensors holds .* the manifest says \{'pooled': \(8, 7\)\}"
    whole = factory.build(tmp_path / "whole", **SMALL)
    save_file(tensors, whole.path / "embeddings/reencoded/000002.safetensors")
    with pytest.raises(RecordError, match=r"reencoded/000002\.safetensors is not what the record wrote"):
        Record.load(whole.path).conditions["reencoded"]
    factory.unlist(whole.path)
    with pytest.raises(RecordError, match=says):
        Record.load(whole.path).conditions["reencoded"]
    unfinished = factory.build(tmp_path / "unfinished", stop_after=3, **SMALL)
    save_file(tensors, unfinished.path / "embeddings/reencoded/000002.safetensors")
    (unfinished.path / "files.csv").unlink()
    record = Record.load(unfinished.path)
    assert torch.equal(record.embeddings["clean"], factory.embeddings(34, 1)["clean"])
    with pytest.raises(RecordError, match=says):
        record.embeddings["reencoded"]
    assert _again(unfinished).conditions["reencoded"].pooled[16:24].isnan().all()  # to be made anew


def test_conditions_of_another_shape_do_not_go_on(tmp_path):
    from vit_lens.errors import RecordError

    record = factory.build(tmp_path / "r", stop_after=3, **SMALL)
    shapes = {name: {"pooled": [factory.D_EMBED]} for name in ("lens", "reencoded", "clean", "negative")}
    writer = _again(record)
    writer.begin_conditions(shapes)
    for wrong in ({**shapes, "lens": {"pooled": [9]}}, {**shapes, "lens": {"pooled": [7], "tokens": [3, 7]}}):
        with pytest.raises(RecordError, match=r"holds another sweep's record: conditions\.lens\.(pooled|tokens)"):
            writer.begin_conditions(wrong)


def test_a_sweep_killed_before_its_folders_were_made_goes_on(tmp_path):
    table = factory.rows(("cup.png",), **SMALL)
    first = _writer(tmp_path / "r", table)
    first.begin_conditions({"lens": {"pooled": [factory.D_EMBED]}})
    shutil.rmtree(tmp_path / "r" / "embeddings")
    factory.write_embeddings(_writer(tmp_path / "r", table), {"lens": factory.embeddings(len(table), 1)["lens"]})
    assert torch.equal(_writer(tmp_path / "r", table).conditions["lens"].pooled, factory.embeddings(34, 1)["lens"])


# ---- columns that a record declares ----------------------------------------------------------------------------


def _scored():
    from vit_lens.records import COLUMNS

    return {"columns": {**COLUMNS, "score": "float"}}


def test_a_declared_column_is_written_and_read(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record
    from vit_lens.report import write_report

    record = factory.build(tmp_path / "r", changes=_scored(), scores=True, **SMALL)
    assert (record.path / "table.csv").read_text().split("\n")[0].endswith(",same_as,score")
    assert str(record.table["score"].dtype) == "float64"
    assert list(record.table["score"]) == [row / 7 for row in range(34)]
    assert write_report(record).is_file()
    with pytest.raises(RecordError, match="unknown table columns score"):
        factory.build(tmp_path / "other", scores=True, **SMALL)
    factory.unlist(record.path)
    lines = (record.path / "table.csv").read_text().split("\n")
    (record.path / "table.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines[:-1]) + "\n")
    with pytest.raises(RecordError, match="does not name the columns"):
        Record.load(record.path)


def test_a_declared_column_is_there_without_values(tmp_path):
    record = factory.build(tmp_path / "r", changes=_scored(), **SMALL)
    assert record.table["score"].isna().all()


def test_a_declared_column_is_merged(tmp_path):
    from vit_lens.records import merge

    merged = merge(_shards(tmp_path, changes=dict.fromkeys(range(4), _scored()), scores=True), tmp_path / "merged")
    whole = factory.build(tmp_path / "whole", names=NAMES, changes=_scored(), scores=True, **SMALL)
    assert list(merged.table["score"]) == [row / 7 for row in range(136)]
    assert merged.table.equals(whole.table)
    assert (merged.path / "table.csv").read_bytes() == (whole.path / "table.csv").read_bytes()


def test_columns_of_another_kind_are_refused(tmp_path):
    from vit_lens.errors import RecordError

    columns = {**_scored()["columns"], "score": "colour"}
    with pytest.raises(RecordError, match="a column is of the kind 'colour', expected one of int, int or empty, float"):
        factory.build(tmp_path / "r", changes={"columns": columns}, **SMALL)


@pytest.mark.parametrize("changes", [{"reading": None}, {"row": "text"}])
def test_columns_that_every_record_has_are_asked_for(small, changes):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = small.path / "record.json"
    manifest = json.loads(file.read_bytes())
    manifest["columns"] = {name: kind for name, kind in (manifest["columns"] | changes).items() if kind}
    file.write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match=f"the columns lack {next(iter(changes))} in the kind that every record has"):
        Record.load(small.path)


# ---- the list of files -----------------------------------------------------------------------------------------


def _listed(record):
    import csv
    import hashlib

    data = (record.path / "files.csv").read_bytes()
    lines = list(csv.DictReader(data.decode().splitlines()))
    assert record.manifest["files"] == {"n": len(lines), "sha256": hashlib.sha256(data).hexdigest()}
    return {line["path"]: (int(line["size"]), line["sha256"], line["media_type"]) for line in lines}


def _on_disk(record):
    import hashlib

    media = {"png": "image/png", "csv": "text/csv", "safetensors": "application/vnd.safetensors"}
    return {
        name: (len(data), hashlib.sha256(data).hexdigest(), media[name.rpartition(".")[2]])
        for name, data in _files(record.path).items()
        if name not in ("record.json", "files.csv")
    }


def test_files_are_listed_with_their_hashes(tmp_path, parts_of_8):
    record = _with_everything(tmp_path / "r")
    listed = _listed(record)
    assert listed == _on_disk(record) and list(listed) == sorted(listed)
    for name in (
        "table.csv", "readouts.safetensors", "live.safetensors", "gallery/000003.png", "inputs/0000.png",
        "pictures/000033.png", "embeddings/lens/000004.safetensors", "embeddings/negative/000000.safetensors",
    ):  # fmt: skip
        assert name in listed


def test_pictures_of_a_first_pass_are_listed_too(tmp_path):
    from vit_lens.records import Record, RecordWriter

    record = factory.build(tmp_path / "r", n_full=34, **SMALL)
    writer = RecordWriter(record.path, record.manifest, record.table)
    writer.write_picture(4, factory.picture(400), "coarse")
    writer.finish()
    record = Record.load(record.path)
    assert _listed(record) == _on_disk(record)
    assert "pictures/coarse/000004.png" in _listed(record)


def test_an_unfinished_record_lists_what_it_has_so_far(tmp_path):
    """A file that was written twice has two lines, and every file is held against them."""
    from vit_lens.errors import RecordError

    record = factory.build(tmp_path / "r", stop_after=3, **SMALL)
    lines = [line.split(",") for line in (record.path / "files.csv").read_text().splitlines()[1:]]
    held = {(name, int(size), sha256, media) for name, size, sha256, media in lines}
    assert record.manifest["files"] is None and len(held) == len(lines)
    assert held >= {(name, *said) for name, said in _on_disk(record).items()}
    shutil.copy(record.path / "pictures/000000.png", record.path / "pictures/000001.png")
    with pytest.raises(RecordError, match=r"000001\.png is not what the record wrote"):
        record.picture(1)
    assert record.picture(0).size


def test_a_manifest_that_was_changed_is_refused(small):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = small.path / "record.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"notes": ["Drawn on a Monday."]}))
    with pytest.raises(RecordError, match=r"record\.json is not what the record wrote \(its content has"):
        Record.load(small.path)
    del said["content"]  # as those have it that were written before there was one
    file.write_text(json.dumps(said))
    assert Record.load(small.path).complete


@pytest.mark.parametrize("stop", [0, 7, 33])
def test_an_interrupted_record_ends_with_the_same_list(tmp_path, stop):
    from vit_lens.records import Record

    whole = factory.build(tmp_path / "whole", **SMALL)
    factory.build(tmp_path / "r", stop_after=stop, **SMALL)
    again = _again(Record.load(tmp_path / "r"))
    for row in range(stop, len(again.table)):
        again.write_picture(row, factory.picture(row))
    again.finish()
    record = Record.load(tmp_path / "r")
    assert _listed(record) == _on_disk(record)
    assert (record.path / "files.csv").read_bytes() == (whole.path / "files.csv").read_bytes()
    assert record.manifest["files"] == whole.manifest["files"]


# ---- records of format 1 ---------------------------------------------------------------------------------------

OLD_COLUMNS = (
    *("row", "image", "image_name", "kind", "control", "site", "site_type", "layer", "head", "lens", "definition"),
    *("alpha", "share", "anchor", "seed", "norm_h", "cos_lens_clean", "cos_lens_control", "leak", "faithfulness"),
    *("cos_input", "label", "picture", "drawn", "same_as"),
)
OLD_PLAIN = {"lens": "diffusion", "definition": "LN(v) @ proj", "alpha": None, "share": None, "anchor": None}
OLD_CLEAN = {"lens": "dsl", "definition": "D1 (reconstruction)", "alpha": None, "share": 0.25, "anchor": "clean"}


def _old_mean(reference=None):
    """Return the mean-anchored DSL as manifests of format 1 hold it, those of before references had content too."""
    said = {"lens": "dsl", "definition": "mean-anchored DSL", "alpha": 5.0, "share": None, "anchor": "mean"}
    return said if reference is None else said | {"reference_n": 500, "reference_content": reference}


OLD_LENSES = (_old_mean("00aa11bb"), OLD_PLAIN)


def _old_rows(names, lenses, seeds, budget):
    residuals = [(f"L{n}.{part}", part, n, None) for n in range(2) for part in ("resid_pre", "resid_post")]
    parts = factory.sites(2, 2)
    plan = []
    for lens in lenses:
        own = residuals + parts if lens["lens"] == "diffusion" else parts
        plan += [(site, lens, "") for site in own]
        plan += [(site, lens, "random") for site in parts if lens["lens"] != "diffusion"]
    rows = []
    for image, name, noise in ((i, name, noise) for i, name in enumerate(names) for noise in seeds):
        for (site, kind, layer, head), lens, control in plan:
            row, steered = len(rows), not control and not kind.startswith("resid")
            rows.append(
                {name: lens[name] for name in ("lens", "definition", "alpha", "share", "anchor")}
                | {"row": row, "image": image, "image_name": name, "kind": "control" if control else "site"}
                | {"control": control, "site": site, "site_type": kind, "layer": layer, "head": head, "seed": noise}
                | {"norm_h": 0.1 + row / 3, "cos_lens_clean": 0.9 - row / 300, "faithfulness": 0.5 + row % 7 / 20}
                | {"cos_input": math.sin(row), "label": f"word {row % 5}", "picture": f"pictures/{row:06d}.png"}
                | ({"cos_lens_control": row / 1000, "leak": row / 77} if steered else {})
                | ({"drawn": "full"} if budget else {})
            )
    return rows


def _old_record(
    path, lenses=OLD_LENSES, *, names=("cup.png",), seeds=(0,), lost=(), **changes
):  # fmt: skip
    """Write a record as versions of format 1 wrote it; returns its directory and its rows."""
    import csv

    import PIL.Image
    from safetensors.torch import save_file

    budget = "budget" in changes.get("batch_plan", {})
    rows = _old_rows(names, lenses, seeds, budget)
    for folder in ("pictures", "inputs"):
        (path / folder).mkdir(parents=True)
    new = factory.manifest(len(rows), names, n_layers=2, n_heads=2)
    decoder = {key: value for key, value in new["decoder"].items() if key not in ("words", "takes")}
    old = {key: new[key] for key in ("model", "versions", "command", "notes", "shard")}
    old |= {"format": 1, "decoder": decoder, "lenses": list(lenses), "complete": True}
    old["images"] = [{"index": i, "name": name, "sha256": f"{i:064x}"} for i, name in enumerate(names)]
    old["seeds"] = {"decoder": list(seeds), "control": 1}
    old["batch_plan"] = {"batch_size": 16, "order": "row", "n_rows": len(rows), **changes.pop("batch_plan", {})}
    (path / "record.json").write_text(json.dumps(old | changes))
    columns = [name for name in OLD_COLUMNS if name not in lost]
    with (path / "table.csv").open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(columns)
        for row in rows:
            cells = (row.get(name) for name in columns)
            lines.writerow(["" if v is None else repr(v) if isinstance(v, float) else str(v) for v in cells])
    save_file(factory.embeddings(len(rows), len(names)), path / "embeddings.safetensors")
    for row in rows:
        PIL.Image.fromarray(factory.picture(row["row"])).save(path / row["picture"])
    for image in range(len(names)):
        PIL.Image.fromarray(factory.picture(1000 + image)).save(path / f"inputs/{image:04d}.png")
    return path, rows


def test_a_record_of_format_1_loads(tmp_path):
    from vit_lens.records import COLUMNS, Record

    path, rows = _old_record(tmp_path / "r", names=("cup.png", "b.png"), seeds=(4, 0))
    record = Record.load(path)
    assert record.complete and record.manifest["format"] == 1 and list(record.table.columns) == list(COLUMNS)
    assert [entry["kind"] for entry in record.manifest["inputs"]] == ["image", "image"]
    assert record.manifest["beside"] is None and record.readouts is None and record.live is None
    frame = record.frame()
    names = {"image": "input", "image_name": "input_name"}
    for found, row in zip(frame.to_dict("records"), rows, strict=True):
        for name, value in row.items():
            if name != "kind":
                seen = found.get(names.get(name, name))
                assert pd.isna(seen) if value is None else seen == value, (name, seen, value)
    labels = {one.lens: one.label for one in record.readings.values()}
    assert labels == {"dsl": "DSL, mean-anchored, alpha 5", "diffusion": "Diffusion Lens"}
    (control,) = [one for one in record.readings.values() if one.control]
    assert record.readings[control.of].settings["reference"] == "00aa11bb" and control.control == "random"
    for name, value in factory.embeddings(len(rows), 2).items():
        assert torch.equal(record.embeddings[name], value) and torch.equal(record.conditions[name].pooled, value)
    assert np.array_equal(np.asarray(record.picture(5)), factory.picture(5))
    assert np.array_equal(np.asarray(record.input(1)), factory.picture(1001))


def test_a_record_of_format_1_is_shown(tmp_path):
    from vit_lens.figures import head_map, residual_strip, top_sites
    from vit_lens.records import Record, budget_words, over_seeds, select
    from vit_lens.report import write_report
    from vit_lens.report.data import page_data

    path, rows = _old_record(tmp_path / "r", names=("cup.png", "b.png"), seeds=(4, 0))
    record = Record.load(path)
    page = page_data(record, "")
    assert [(group["lens"], group["control"]) for group in page["groups"]] == [
        ("dsl", ""), ("dsl", "random"), ("diffusion", ""),
    ]  # fmt: skip
    assert page["groups"][1]["of"] == page["groups"][0]["id"]
    assert "cup.png" in write_report(record).read_text() and budget_words(record) == ""
    own = [row for row in rows if row["lens"] == "dsl" and not row["control"] and row["image"] == 1]
    heat = head_map(record, input=1, value="norm_h").data[0]
    assert heat.z[1][0] == next(row["norm_h"] for row in own if row["site"] == "L1H0")
    assert "random control" in top_sites(record, k=1).layout.annotations[2].text
    assert len(residual_strip(record).data) == 1 + 1 + 2
    assert len(over_seeds(record.table)) == len(rows) / 2
    assert list(select(record, input=1)["row"]) == [row["row"] for row in own]
    assert record._repr_html_().count("data:image/jpeg;base64,") == 2 * (1 + 8)


def test_readings_of_format_1_have_labels_and_ids_of_their_settings(tmp_path):
    from vit_lens.records import Record

    lenses = (OLD_CLEAN, OLD_CLEAN | {"share": 0.5}, _old_mean("00aa11bb"), OLD_PLAIN)
    record = Record.load(_old_record(tmp_path / "r", lenses)[0])
    found = [one for one in record.readings.values() if not one.control]
    assert [one.label for one in found] == [
        "DSL, clean-anchored, share 0.25", "DSL, clean-anchored, share 0.5", "DSL, mean-anchored, alpha 5",
        "Diffusion Lens",
    ]  # fmt: skip
    assert len(record.readings) == 4 + 3
    other = Record.load(_old_record(tmp_path / "other", lenses[1:], names=("other.png",))[0])
    assert [one.id for one in other.readings.values() if not one.control] == [one.id for one in found[1:]]


def test_two_references_in_a_record_of_format_1_are_told_apart_by_order(tmp_path):
    from vit_lens.records import Record, over_seeds, select

    lenses = (_old_mean("00aa11bb"), _old_mean("cc22dd33"), OLD_PLAIN)
    path, rows = _old_record(tmp_path / "r", lenses, names=("cup.png", "b.png"), seeds=(4, 0))
    record = Record.load(path)
    by = {
        one.settings["reference"]: one.id for one in record.readings.values() if one.lens == "dsl" and not one.control
    }
    assert list(by) == ["00aa11bb", "cc22dd33"] and len(record.readings) == 5
    assert len({one.label for one in record.readings.values()}) == 3  # a control has the label of what it controls
    steered = [row for row in rows if row["lens"] == "dsl" and not row["control"]]
    for turn, reference in enumerate(by):
        # Of each image and seed, the eight sites of the first lens and of its control come before those of the second.
        expected = [row["row"] for row in steered if row["row"] % 44 // 16 == turn]
        found = pd.concat([select(record, input=image, lens=by[reference]) for image in (0, 1)])
        assert list(found["row"]) == expected and len(expected) == 2 * 2 * 8
        assert len(over_seeds(found)) == 2 * 8
        control = pd.concat([select(record, input=i, lens=by[reference], control="random") for i in (0, 1)])
        assert list(control["row"]) == [row + 8 for row in expected]


def test_an_unknown_reference_equals_no_other(tmp_path):
    from vit_lens.records import Record

    one = Record.load(_old_record(tmp_path / "one", (_old_mean(), _old_mean(), OLD_PLAIN))[0])
    two = Record.load(_old_record(tmp_path / "two", (_old_mean(), OLD_PLAIN), names=("other.png",))[0])
    known = Record.load(_old_record(tmp_path / "known", (_old_mean("00aa11bb"), OLD_PLAIN))[0])
    ids = [set(record.readings) for record in (one, two, known)]
    assert [len(found) for found in ids] == [5, 3, 3]
    plain = {name for name, reading in two.readings.items() if reading.lens == "diffusion"}
    assert ids[0] & ids[1] == ids[0] & ids[2] == ids[1] & ids[2] == plain and len(plain) == 1
    assert set(Record.load(tmp_path / "one").readings) == ids[0]  # the same record says the same each time


def test_a_record_of_format_1_is_not_gone_on_with(tmp_path):
    from vit_lens.errors import RecordError

    path, _ = _old_record(tmp_path / "r", complete=False)
    before = _files(path)
    with pytest.raises(RecordError, match=r"holds a record of format 1, which loads and reports but is not gone on"):
        _writer(path, factory.rows(("cup.png",), **SMALL))
    assert _files(path) == before


def test_records_of_format_1_are_not_merged(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    path, _ = _old_record(tmp_path / "r", shard=[0, 2])
    new = factory.build_part(tmp_path / "s1", [[34, 68]], 1, 2, names=("a.png", "b.png"), **SMALL)
    for paths in ([path], [path, new], [new, path]):
        with pytest.raises(RecordError, match=r"r is of format 1, which loads and reports but is not merged"):
            merge(paths, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("lost", [("drawn", "same_as"), ("cos_lens_control", "leak", "drawn", "same_as")])
def test_a_record_of_an_earlier_version_loads_with_what_it_lacks_empty(tmp_path, lost):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    whole = Record.load(_old_record(tmp_path / "whole")[0])
    path, _ = _old_record(tmp_path / "r", lost=lost)
    old = Record.load(path)
    assert set(old.table["drawn"]) == {""}
    assert old.table[[name for name in lost if name != "drawn"]].isna().all(axis=None)
    assert whole.table["leak"].notna().any()
    assert old.table.drop(columns=[*lost]).equals(whole.table.drop(columns=[*lost]))
    assert np.array_equal(np.asarray(old.picture(4)), factory.picture(4))
    # A part of what a version added, or the earlier without the later, is no version of the format.
    for some in (lost[:1], lost[1:], ("cos_lens_control", "leak")[: len(lost) - 1]):
        _old_record(tmp_path / "-".join(some), lost=some)
        with pytest.raises(RecordError, match="does not name the columns"):
            Record.load(tmp_path / "-".join(some))


def test_a_budget_of_format_1_in_words(tmp_path):
    from vit_lens.records import Record, budget_words

    plan = {"budget": {"same_above": 0.9999, "coarse": {"steps": 3, "guidance": 1.0, "height": 64}}}
    record = Record.load(_old_record(tmp_path / "r", batch_plan=plan, budgets=["60s"])[0])
    assert "28 of 28 pictures are refined (10 steps, guidance 1.5), which is all." in budget_words(record)
    record.table.loc[3:, "drawn"] = "coarse"
    record.manifest["complete"] = False
    assert "3 of 28 pictures are refined (10 steps, guidance 1.5), 25 are coarse (3 steps, no guidance)" in (
        budget_words(record)
    )
    assert budget_words(record).endswith("sweep into a new directory for the rest.")


def test_what_stood_beside_a_record_of_format_1_is_read(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record
    from vit_lens.records.answers import readouts_bytes

    path, rows = _old_record(tmp_path / "r", readouts={"k": 4, "texts": {}})
    with pytest.raises(RecordError, match=r"is complete but has no readouts\.safetensors"):
        Record.load(path)
    (path / "readouts.safetensors").write_bytes(readouts_bytes(factory.beside(len(rows))))
    assert Record.load(path).readouts.captions == factory.CAPTIONS


@pytest.mark.parametrize(
    ("name", "keep", "says"),
    [
        ("embeddings.safetensors", None, r"is complete but has no embeddings\.safetensors"),
        ("embeddings.safetensors", 400, r"embeddings\.safetensors cannot be read"),
        ("table.csv", None, r"table\.csv does not exist"),
        ("table.csv", -3, "fields|cut short"),
    ],
)
def test_a_damaged_record_of_format_1_is_refused(tmp_path, name, keep, says):
    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    file = _old_record(tmp_path / "r")[0] / name
    data = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(data[:keep])
    with pytest.raises(RecordError, match=says):
        Record.load(tmp_path / "r")


def test_embeddings_of_another_table_of_format_1_are_refused(tmp_path):
    from safetensors.torch import save_file

    from vit_lens.errors import RecordError
    from vit_lens.records import Record

    path, rows = _old_record(tmp_path / "r")
    save_file(factory.embeddings(len(rows) - 1, 1), path / "embeddings.safetensors")
    with pytest.raises(RecordError, match=f"'lens' has {len(rows) - 1} rows, the table {len(rows)}"):
        Record.load(path)


def test_where_manifests_differ_is_said_of_names_with_any_words():
    from vit_lens.records.schema import differing

    said = differing({"name": ["known on disk"]}, {"name": ["snow"]}, "inputs", ("in a", "in b"))
    assert said == 'inputs.name[0] is "known on disk" in a, "snow" in b'
