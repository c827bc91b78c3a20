"""Faults that hostile use found in records, and more of their kinds: a record knows what it wrote, and what it lost."""

import copy
import os
import shutil
import struct
import zlib

import pytest
import record_factory as factory
import tiny_sweep

SMALL = dict(n_layers=2, n_heads=3)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A complete sweep with pictures, captions and a gallery; ``again`` does the same in a directory of choice."""
    import vit_lens as vl

    folder = tmp_path_factory.mktemp("swept")
    model, paths = tiny_sweep.tower(), tiny_sweep.pictures(folder)
    gallery = vl.readers.Gallery.from_folder(model, folder)

    def again(out, decoder=None, images=paths[:2], **changes):
        given = dict(lens="diffusion", sites=["L0H1", "L1.mlp"], gallery=gallery, live=True, batch_size=2)
        return vl.sweep(
            model, decoder or tiny_sweep.quick_decoder(), images, out=out, **tiny_sweep.options(**given | changes)
        )

    again(folder / "whole")
    again.whole = folder / "whole"
    return again


@pytest.fixture
def copied(swept, tmp_path):
    return shutil.copytree(swept.whole, tmp_path / "r")


def _files(path):
    return {name: data for name, data in tiny_sweep.contents(path).items() if name != ".vit_lens.lock"}


# ---- R1: a record knows what it wrote ------------------------------------------------------------------------------

LOST = [
    "table.csv", "pictures/000001.png", "inputs/0001.png", "embeddings/lens/000000.safetensors",
    "embeddings/clean/000000.safetensors", "embeddings/reencoded/000000.safetensors", "readouts.safetensors",
    "live.safetensors", "gallery/000001.png", "files.csv",
]  # fmt: skip


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_made_anew_to_the_bit(swept, copied, name, unfinished):
    from vit_lens import Record

    if unfinished:
        factory.unlist(copied)
    (copied / name).unlink(missing_ok=True)
    if name != "table.csv":
        assert not Record.load(copied).complete
    swept(copied)
    assert Record.load(copied).complete and _files(copied) == _files(swept.whole)


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize("name", [name for name in LOST if name != "files.csv"])
def test_what_was_changed_is_noticed_and_made_anew(swept, copied, name, unfinished):
    """One bit, so that sizes stay; reading says so, and the same sweep repairs it."""
    from vit_lens import Record
    from vit_lens.errors import RecordError

    if unfinished:
        factory.edit_manifest(copied, complete=False, files=None)
    data = bytearray((copied / name).read_bytes())
    data[-3] ^= 1
    (copied / name).write_bytes(bytes(data))
    with pytest.raises(RecordError, match=r"is not what the record wrote.*run the same sweep again"):
        record = Record.load(copied)
        record.picture(1), record.input(1), record.readouts, record.live, record.neighbour(1)
        [record.conditions[kind] for kind in record.conditions]
    swept(copied)
    assert _files(copied) == _files(swept.whole)


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_picture_that_took_the_place_of_another_is_drawn_anew(swept, copied, unfinished):
    if unfinished:
        factory.edit_manifest(copied, complete=False, files=None)
    shutil.copy(copied / "pictures/000000.png", copied / "pictures/000001.png")
    swept(copied)
    assert _files(copied) == _files(swept.whole)


def test_a_complete_record_is_left_as_it_is(swept, copied):
    decoder = tiny_sweep.quick_decoder()
    times = {file: file.stat().st_mtime_ns for file in copied.rglob("*.*") if file.name != ".vit_lens.lock"}
    swept(copied, decoder)
    assert not decoder.calls and {file: file.stat().st_mtime_ns for file in times} == times


def test_only_what_is_lost_is_drawn_again(swept, copied):
    decoder = tiny_sweep.quick_decoder()
    (copied / "pictures/000003.png").unlink()
    swept(copied, decoder)
    assert len(decoder.calls) == 1


def test_numbers_that_the_conditions_do_not_bear_out_are_made_anew(swept, copied):
    """Of an unfinished record whose list of files was lost: rows of another file, or shuffled ones."""
    from safetensors.torch import load_file

    from vit_lens.files import save_tensors

    factory.unlist(copied)
    for name in ("lens", "reencoded"):
        file = copied / f"embeddings/{name}/000000.safetensors"
        save_tensors({"pooled": load_file(file)["pooled"].flip(0)}, file)
    swept(copied)
    assert _files(copied) == _files(swept.whole)


def test_a_merge_refuses_what_is_lost_and_repairs_its_own(tmp_path):
    from vit_lens import Record
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    parts = [
        factory.build_part(tmp_path / f"{i}", [cut], i, 2, names=("cup.png",), **SMALL)
        for i, cut in enumerate(((0, 20), (20, 34)))
    ]
    merge(parts, tmp_path / "whole")
    before = _files(tmp_path / "whole")
    (tmp_path / "whole/pictures/000002.png").unlink()
    (tmp_path / "whole/table.csv").write_bytes(b"")
    merge(parts, tmp_path / "whole")
    assert _files(tmp_path / "whole") == before and Record.load(tmp_path / "whole").complete
    (parts[1] / "pictures/000003.png").unlink()
    with pytest.raises(RecordError, match=r"1 is unfinished; run its sweep again"):
        merge(parts, tmp_path / "again")


# ---- R2: whoever writes a record holds it --------------------------------------------------------------------------


def test_a_second_writer_is_refused_before_it_clears_anything(swept, copied, tmp_path):
    from vit_lens.errors import OutputError
    from vit_lens.files import exclusive

    (copied / "pictures/000001.png").unlink()
    leftover = copied / "pictures/.vit_lens-of-the-first.tmp"
    leftover.write_bytes(b"half")
    with exclusive(copied), pytest.raises(OutputError, match="another process is writing"):
        swept(copied)
    assert leftover.exists()


def test_a_merge_holds_its_directory(tmp_path):
    from vit_lens.errors import OutputError
    from vit_lens.files import exclusive
    from vit_lens.records import merge

    parts = [factory.build_part(tmp_path / "0", [(0, 34)], 0, 1, names=("cup.png",), **SMALL)]
    (tmp_path / "whole").mkdir()
    with exclusive(tmp_path / "whole"), pytest.raises(OutputError, match="another process is writing"):
        merge(parts, tmp_path / "whole")


def test_somebody_elses_folder_stays_as_it_is(swept, tmp_path):
    from vit_lens.errors import RecordError

    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RecordError, match=r"is not empty and holds no record \(thesis\.tex\)"):
        swept(tmp_path)
    assert tiny_sweep.contents(tmp_path) == {"thesis.tex": b"mine"}


# ---- R3: what a killed writer left is its own ----------------------------------------------------------------------


@pytest.mark.parametrize("left", [[".vit_lens-0.tmp"], [".vit_lens.lock"], [".vit_lens-0.tmp", "table.csv"]])
def test_a_sweep_that_was_killed_in_its_first_write_goes_on(swept, tmp_path, left, monkeypatch):
    out = tmp_path / "r"
    out.mkdir()
    for name in left:
        (out / name).write_bytes(b"")
    if "table.csv" in left:
        from vit_lens.records import writer

        write = writer.write_atomic
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def killed(path, data):
                if path.name == "record.json":
                    raise KeyboardInterrupt
                write(path, data)

            (out / "table.csv").unlink()
            patch.setattr(writer, "write_atomic", killed)
            swept(out)
        assert (out / "table.csv").exists() and not (out / "record.json").exists()
    swept(out)
    assert _files(out) == _files(swept.whole)


def test_a_table_of_somebody_else_is_not_ones_own(swept, tmp_path):
    from vit_lens.errors import RecordError

    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match=r"holds no record \(table\.csv\)"):
        swept(tmp_path)
    assert (tmp_path / "table.csv").read_text() == "a,b\n1,2\n"


# ---- R6, R7: damaged and hostile records go through one door -------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"notes": "one"}, "manifest.notes is .*expected a list"),
        ({"inputs": [{"index": 0}]}, r"manifest.inputs\[0\].name is null, expected a text"),
        ({"inputs": [{"index": True, "name": "a"}]}, r"inputs\[0\].index is true, expected a whole number"),
        ({"inputs": [{"index": -1, "name": "a"}]}, r"inputs\[0\].index is -1, expected a whole number from 0"),
        ({"complete": 1}, "manifest.complete is 1, expected bool"),
        ({"decoder": {"decoder_id": 3, "words": ""}}, "decoder.decoder_id is 3, expected a text"),
        ({"decoder": []}, "manifest.decoder is .*expected an object"),
        ({"seeds": {"decoder": 0}}, "seeds.decoder is 0"),
        ({"threads": 0}, "manifest.threads is 0"),
        ({"columns": None}, "manifest.columns is null"),
        ({"batch_plan": {"n_rows": 34.0}}, r"batch_plan.n_rows is 34\.0, expected a whole number"),
        ({"batch_plan": {"n_rows": 34, "batch_size": 0}}, "batch_plan.batch_size is 0, expected a whole number from 1"),
        ({"batch_plan": {"n_rows": 34, "changes": [{}]}}, r"changes\[0\].row is null"),
        ({"batch_plan": {"n_rows": 34, "budget": {"same_above": "x", "coarse": None}}}, "same_above is "),
        ({"conditions": {"shapes": {"lens": {"pooled": [10**12]}}, "rows_per_part": 1}}, r"pooled\[0\] is 10000"),
        ({"conditions": {"shapes": {"../../x": {"pooled": [7]}}, "rows_per_part": 1}}, r"conditions '\.\./\.\./x'"),
        ({"shard": {"index": 0, "of": 10**9, "n_rows": 34, "rows": [[0, 34]]}}, r"shard.of is 1000000000"),
        ({"files": "files.csv"}, "manifest.files is"),
        ({"readings": [3]}, r"readings\[0\] is 3, expected an object"),
    ],
)
def test_manifests_of_another_form_are_refused(tmp_path, change, said):
    from vit_lens import Record
    from vit_lens.errors import RecordError

    factory.build(tmp_path / "r", **SMALL)
    factory.edit_manifest(tmp_path / "r", **change)
    with pytest.raises(RecordError, match=said):
        Record.load(tmp_path / "r")


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"format": 2, "n": 1e999}', '{"format": NaN}', '{"a": 1, "a": 2}', ""]
)
def test_manifests_that_are_no_plain_json_are_refused(tmp_path, text):
    from vit_lens import Record
    from vit_lens.errors import RecordError

    (tmp_path / "record.json").write_text(text)
    with pytest.raises(RecordError, match="cannot be read as JSON"):
        Record.load(tmp_path)


def _bomb(width, height):
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 9000), (12_000, 12_000), (60_000, 60_000), (1, 2**30)])
def test_pictures_of_too_many_pixels_are_refused(tmp_path, size):
    from vit_lens import write_report
    from vit_lens.errors import RecordError
    from vit_lens.records import is_whole_png

    record = factory.without_list(factory.build(tmp_path / "r", stop_after=3, **SMALL))
    (tmp_path / "r/pictures/000001.png").write_bytes(_bomb(*size))
    with pytest.raises(RecordError, match=r"000001\.png is damaged"):
        record.picture(1)
    assert not is_whole_png(tmp_path / "r/pictures/000001.png")
    write_report(record)
    assert "(no picture)" in record._repr_html_() or record._repr_html_()


def test_a_pipe_in_place_of_a_picture_does_not_hang(tmp_path):
    from vit_lens.errors import RecordError
    from vit_lens.records import is_whole_png

    record = factory.build(tmp_path / "r", stop_after=3, **SMALL)
    (tmp_path / "r/pictures/000001.png").unlink()
    os.mkfifo(tmp_path / "r/pictures/000001.png")
    with pytest.raises(RecordError, match="is no plain file"):
        record.picture(1)
    assert not is_whole_png(tmp_path / "r/pictures/000001.png")


def test_numbers_of_rows_that_no_table_has_do_not_hang(tmp_path):
    from vit_lens import Record
    from vit_lens.errors import RecordError
    from vit_lens.records import merge

    factory.build(tmp_path / "r", **SMALL)
    factory.edit_manifest(tmp_path / "r", batch_plan={"n_rows": 10**9 - 1})
    with pytest.raises(RecordError, match="has 34 rows, the manifest says 999999999"):
        Record.load(tmp_path / "r")
    part = factory.build_part(tmp_path / "0", [(0, 34)], 0, 1, names=("cup.png",), **SMALL)
    for rows in ([[0, 10**9 - 1]], [[0, 10**9 - 1], [10**9 - 1, 34]], [[0]], [[0, 34, 1]], []):
        factory.edit_manifest(part, shard={"index": 0, "of": 1, "n_rows": 34, "rows": rows})
        with pytest.raises(RecordError, match="does not say which of the whole's rows its 34 rows are"):
            merge([part], tmp_path / "whole")


# ---- R12: links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["pictures/000001.png", "pictures"])
def test_links_that_lead_out_of_a_record_are_not_followed(tmp_path, link):
    from vit_lens.errors import RecordError

    record = factory.build(tmp_path / "r", stop_after=3, **SMALL)
    place = tmp_path / "r" / link
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="leads out of the record"):
        record.picture(1)


def test_a_record_behind_a_link_is_read(tmp_path):
    from vit_lens import Record

    factory.build(tmp_path / "r", **SMALL)
    (tmp_path / "link").symlink_to(tmp_path / "r")
    assert Record.load(tmp_path / "link").picture(1).size == (64, 64)


# ---- R7: what stands beside a record fits it -----------------------------------------------------------------------


def _captions_short(read):
    return {"captions": read.captions[:-1]}


def _no_such_caption(read):
    one = read.by_caption["raw"]
    return {"by_caption": {"raw": type(one)(one.index + 99, one.cosine)}}


def _no_such_picture(read):
    return {"names": {0: "near.png"}}


def _no_such_member(read):
    return {"groups": {"captions": [0, 77]}}


def _cosines_of_others(read):
    broken = copy.copy(read.by_image["raw"])
    vars(broken)["cosine"] = broken.cosine[:, :2]
    return {"by_image": {"raw": broken}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_captions_short, "4 captions, and not as many embeddings"),
        (_no_such_caption, "answered by number 99"),
        (_no_such_picture, "answered by number 3, which is not there"),
        (_no_such_member, "a group names caption 77, of 5"),
        (_cosines_of_others, "rows, the table 34|cannot be read"),
        (lambda read: {"groups": {"captions": ["0"]}}, "cannot be read|a group names"),
        (lambda read: {"logit_scale": "7"}, "logit_scale is '7'"),
    ],
)
def test_read_outs_that_do_not_fit_are_refused(tmp_path, change, said):
    from dataclasses import replace

    from vit_lens.errors import RecordError
    from vit_lens.records.answers import readouts_bytes

    read = factory.beside(34)
    record = factory.without_list(factory.build(tmp_path / "r", stop_after=3, read=read, **SMALL))
    changed = replace(read)
    vars(changed).update(change(read))
    (tmp_path / "r/readouts.safetensors").write_bytes(readouts_bytes(changed))
    with pytest.raises(RecordError, match=said):
        record.readouts  # noqa: B018


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": ("start",)}, "images and parts"),
        ({"images": (0, 1)}, "images and parts"),
        (
            {"labels": ("start", "L0H0", "L0H1", "L0H2", "L0.b_O", "L0.mlp", "L1H0", "L1H1", "L1H2", "L1.b_O", "x")},
            "cannot|x",
        ),
        ({"recomputed": 1}, "recomputed is 1"),
        ({"constant": None}, "constant is missing"),
        ({"embedding": factory.embeddings(1, 1)["lens"][:, :3]}, "image d_embed"),
    ],
)
def test_live_numbers_that_do_not_fit_are_refused(tmp_path, change, said):
    from vit_lens.errors import RecordError
    from vit_lens.records.live import live_bytes_of

    alive = factory.live(2, 3)
    record = factory.without_list(factory.build(tmp_path / "r", stop_after=3, alive=alive, **SMALL))
    vars(alive).update(change)
    (tmp_path / "r/live.safetensors").write_bytes(live_bytes_of(alive))
    with pytest.raises(RecordError, match=said):
        record.live  # noqa: B018


# ---- R12: what is written outlasts a power cut; a folder that takes no lock is told --------------------------------


def test_the_folder_of_a_new_file_is_synced(tmp_path, monkeypatch):
    import stat

    from vit_lens.files import write_atomic

    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)), sync(fd))[1])
    write_atomic(tmp_path / "a", b"")
    assert synced == [False, True]


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), PermissionError(13, "Permission denied")])
def test_a_folder_that_takes_no_lock_is_an_output_error(tmp_path, monkeypatch, error):
    from vit_lens import files
    from vit_lens.errors import OutputError

    def refused(*_, **__):
        raise error

    monkeypatch.setattr(files.FileLock, "acquire", refused)
    with pytest.raises(OutputError, match=f"{error.strerror}; choose another --out"), files.exclusive(tmp_path):
        pass


@pytest.mark.parametrize(
    "lines",
    ["table.csv,x,y,text/csv\n", f"{'x' * 300},1,y,z\n", '"a\0b",1,y,z\n', "../../etc/passwd,1,y,z\n", "a,b\n", ""],
)
def test_a_list_of_files_that_is_none_makes_an_unfinished_record(tmp_path, lines):
    import hashlib

    from vit_lens import Record
    from vit_lens.errors import RecordError

    factory.build(tmp_path / "r", **SMALL)
    data = f"path,size,sha256,media_type\n{lines}".encode()
    (tmp_path / "r/files.csv").write_bytes(data)
    factory.edit_manifest(tmp_path / "r", files={"n": 1, "sha256": hashlib.sha256(data).hexdigest()})
    try:
        assert not Record.load(tmp_path / "r").complete
    except RecordError as error:
        assert "is not what the record wrote" in str(error)


def test_a_picture_that_is_a_link_to_itself_is_told(tmp_path):
    from vit_lens.errors import RecordError

    record = factory.build(tmp_path / "r", stop_after=3, **SMALL)
    place = tmp_path / "r" / "pictures" / "000001.png"
    place.unlink()
    place.symlink_to(place)
    with pytest.raises(RecordError, match=r"000001\.png cannot be read"):
        record.picture(1)
