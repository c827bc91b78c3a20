"""What is done to a file: each mutation says with two numbers where and with what.

An edit takes the bytes of a file and returns others; a move takes its path.
"""

import io
import json
import os
import struct
import zlib
from pathlib import Path

N = 1 << 16  # the two numbers lie below this
FOLDER = "mutant"  # what is damaged lies in a folder of this name
# As they stand in the file, since JSON cannot write all of them.
VALUES = (
    "null", "-1", "0", "1", "0.5", "1e999", "-1e999", "NaN", "1000000000", "1" + "0" * 400, '""', "[]", "{}", "true",
    '"x"', '"../../x"', '"/dev/zero"', '"\\ud800"', '"=1+1"', "[" * 200_000, '{"a":' * 200_000, "[1, 2]", '["x"]',
    '{"x": 1}', '"' + "x" * 100_000 + '"',
)  # fmt: skip
CELLS = (
    "", "=cmd|' /C calc'!A0", "+1", "nan", "inf", "1e999", "-1", "0", "1", "1000000000", "9" * 400, "0.5", "x", "a,b",
    "../../x.png", "x" * 100_000, '"', "é", "\0", " 1", "1_000", "٣", "True", "<script>",
)  # fmt: skip
STRANGERS = (
    b"<!doctype html><title>404</title>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", b"GIF89a\1\0\1\0\0\0\0;", b"PK\3\4", b"\x80\x04\x95.",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-16-le", "utf-8-sig", "utf-32", "utf-7", "cp037")
NUMBERS = (float("nan"), float("inf"), 3e38, -1.0)
RETYPED = {"F32": "I32", "F16": "BF16", "I32": "F32", "I64": "F64"}


def mutate(folder: Path, mutant) -> None:
    """Do to a file of a folder what a mutant says: its name, the mutation, two numbers."""
    name, how, a, b = mutant
    path = folder / name
    if how in MOVES:
        MOVES[how](path, a, b)
    else:
        path.write_bytes(EDITS[how](path.read_bytes(), a, b))


def mutations_of(suffix: str) -> list[str]:
    """Name what can be done to a file: what its kind allows as often as what every file suffers."""
    every = [*MOVES, "replace", *(one.__name__ for one in _EVERY)]
    own = [one.__name__ for one in _OF.get(suffix, ())]
    return every + own * (len(every) // len(own) if own else 0)


def _place(a, b, length):
    """Return a place below a length, as even as two numbers make it."""
    return ((a * N + b) * length) >> 32


# ---- every file: edits, then moves


def flip(data, a, b):
    at = _place(a, b, len(data))
    return data[:at] + bytes(byte ^ 1 << b % 8 for byte in data[at : at + 1]) + data[at + 1 :]


def zeros(data, a, b):
    at = _place(a, b, len(data))
    return data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :]


def truncate(data, a, b):
    return data[: _place(a, b, len(data))]


def append(data, a, b):
    return data + (b"\n", b"\0", b"x" * 50, data)[a % 4]


def noise(data, a, b):
    return (struct.pack("<HH", a, b) * 300)[: a % 1200]


def stranger(data, a, b):
    return (b"", *STRANGERS)[a % (1 + len(STRANGERS))]


def swap(path, a, b):
    """Take the content of another file there, of the same kind mostly, and give it its own, mostly."""
    others = sorted(one for one in path.parents[0].iterdir() if one.is_file() and one != path) or [path]
    alike = [one for one in others if one.suffix == path.suffix]
    other = (alike or others)[b % len(alike or others)] if a % 4 else others[b % len(others)]
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    if a % 2:
        other.write_bytes(mine)


def replace(path, a, b):
    """Put there a link (to its content, another file, itself, a device, nothing), a folder, a FIFO, or nothing."""
    outside = next(one for one in path.parents if one.name == FOLDER).parents[0] / path.name
    other = next((one for one in sorted(path.parents[0].iterdir()) if one != path), path)
    path.rename(outside)
    links = (outside, other, path, "/dev/zero", "gone")
    if (how := a % 8) < len(links):
        path.symlink_to(links[how])
    elif how > len(links):
        (os.mkfifo, os.mkdir)[how % 2](path)


# ---- JSON


def json_value(data, a, b):
    """Replace, remove, add, rename or double one value, or the whole."""
    said, raw, how = json.loads(data), VALUES[b % len(VALUES)], b % 11
    places = _places(said, [])
    if not places or a % 23 == 0:
        return raw.encode()
    holder, key = places[a % len(places)]
    if how == 0:
        del holder[key]
    elif how == 1:
        holder[key] = _nearby(holder[key])
    elif how == 2 and isinstance(holder, list):
        holder.append(holder[key])
    elif how == 2:
        holder[f"{key}_"] = holder.pop(key)
    elif how == 3 and isinstance(holder, dict):
        holder["unheard_of"] = holder[key]
    elif how == 4 and isinstance(holder, dict):  # twice; the last one counts
        old, new = f"{json.dumps(key)}: ", f"{json.dumps(key)}: {json.dumps(_nearby(holder[key]))}, "
        return json.dumps(said).replace(old, new + old, 1).encode()
    else:
        holder[key] = "\0here"
        return json.dumps(said).replace(json.dumps("\0here"), raw, 1).encode(errors="replace")
    return json.dumps(said).encode()


def _places(value, found):
    """List every place of a value as (container, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        _places(inner, found)
    return found


def _nearby(value):
    """Return another value of the same type."""
    if value is None or isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return dict(list(value.items())[1:])
    return value * 2 + 1 if isinstance(value, (int, float)) else value[::-1] if value[::-1] != value else value[1:]


# ---- safetensors


def _opened(data):
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, bytearray(data[8 + length :]), sorted(name for name in header if name != "__metadata__")


def _closed(header: bytes, body):
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + bytes(body)


def tensor_header(data, a, b):
    """Rename, reshape, retype, drop, alias or exchange tensors, point outside, or keep one alone."""
    header, body, names = _opened(data)
    name, other, how = names[a % len(names)], names[(a + 1) % len(names)], b % 8
    said = header[name]
    shape = said["shape"]
    if how == 0:
        header[f"{name}x"] = header.pop(name)
    elif how == 1:
        said["shape"] = ([10**12], shape[::-1], [1, *shape], [*shape, 1], [0, *shape])[b // 8 % 5]
    elif how == 2:
        said["dtype"] = RETYPED.get(said["dtype"], "U8")
    elif how == 3:
        del header[name]
    elif how == 4:
        header[f"{name}x"] = said
    elif how == 5:
        header[name], header[other] = header[other], said
    elif how == 6:
        said["data_offsets"] = [said["data_offsets"][0], 10**15]
    else:
        start, stop = said["data_offsets"]
        header = {"__metadata__": header.get("__metadata__", {}), name: said | {"data_offsets": [0, stop - start]}}
        body = body[start:stop]
    return _closed(json.dumps(header).encode(), body)


def tensor_values(data, a, b):
    """Write nan, infinity, a huge or an ordinary number over four bytes, or change bits that bfloat16 has not."""
    header, body, _ = _opened(data)
    at = _place(a, b, len(body) // 4) * 4
    if b % 5 < len(NUMBERS):
        body[at : at + 4] = struct.pack("<f", NUMBERS[b % 5])
    else:
        body[at] ^= 1 << b % 8
    return _closed(json.dumps(header).encode(), body)


def tensor_words(data, a, b):
    """Change the words beside the tensors, or JSON in them, or the header as JSON."""
    header, body, _ = _opened(data)
    words = header.get("__metadata__")
    if not words or b % 5 == 0:
        return _closed(json_value(json.dumps(header).encode(), a, b // 5), body)
    name = sorted(words)[a % len(words)]
    if words[name][:1] in ("{", "["):
        words[name] = json_value(words[name].encode(), a // len(words), b // 5).decode(errors="replace")
    else:
        words[name] = CELLS[b // 5 % len(CELLS)]
    return _closed(json.dumps(header).encode(), body)


def tensor_length(data, a, b):
    return struct.pack("<Q", (0, 1, 1 << 62, len(data), 10**8)[a % 5]) + data[8:]


# ---- CSV and text


def cell(data, a, b):
    lines = [line.split(",") for line in data.decode().split("\n")]
    row = lines[a % len(lines)]
    row[b // len(CELLS) % len(row)] = CELLS[b % len(CELLS)]
    return "\n".join(map(",".join, lines)).encode("latin-1" if b // 64 % 4 == 0 else "utf-8", errors="replace")


def rows(data, a, b):
    """Double, drop or exchange a row, or double or drop a column."""
    lines = data.decode().split("\n")
    row, other, how = a % len(lines), b // 5 % len(lines), b % 5
    if how == 0:
        lines.insert(row, lines[row])
    elif how == 1:
        del lines[row]
    elif how == 2:
        lines[row], lines[other] = lines[other], lines[row]
    else:
        cut = [line.split(",") for line in lines]
        at = a % len(cut[0])
        lines = [",".join(one[:at] + one[at : at + 1] * 2 * (how == 3) + one[at + 1 :]) for one in cut]
    return "\n".join(lines).encode()


def encoding(data, a, b):
    """Save it in another encoding, with a byte order mark, or with other ends of lines."""
    text = data.decode(errors="replace")
    ended = text.replace("\n", ("\r\n", "\r", "\x0b", "\u2028")[b % 4]) if a % 2 else text
    return ended.encode(ENCODINGS[a // 2 % len(ENCODINGS)] if b // 4 % 2 else "utf-8", errors="replace")


# ---- pictures


def size_said(data, a, b):
    """Let a PNG say another size, with the right check sum."""
    data = bytearray(data)
    struct.pack_into(">I", data, 16 + 4 * (a % 2), (0, 1, 30, 100_000, 2**31 - 1)[b % 5])
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


def repainted(data, a, b):
    """Save other pixels, or the same in another mode or kind of file, turned by EXIF, or much narrower."""
    from PIL import Image

    picture, how, exif, saved = Image.open(io.BytesIO(data)).convert("RGB"), a % 6, Image.Exif(), io.BytesIO()
    if how == 0:
        picture.putpixel((b % picture.width, a % picture.height), (b % 256, 0, 0))
    elif how == 1:
        picture = picture.convert(("L", "P", "LA", "RGBA", "I;16", "1")[b % 6])
    elif how == 2:
        picture = picture.resize((1, 100_000))
    elif how == 3:
        exif[274] = (3, 99, 0)[b % 3]
    picture.save(saved, ("JPEG", "GIF")[how - 4] if how > 3 else "PNG", exif=exif.tobytes())
    return saved.getvalue()


_EVERY = (flip, zeros, truncate, append, noise, stranger)
_OF = {
    ".json": (json_value, encoding), ".csv": (cell, rows, encoding), ".txt": (cell, rows, encoding),
    ".png": (size_said, repainted), ".safetensors": (tensor_header, tensor_values, tensor_words, tensor_length),
}  # fmt: skip
EDITS = {one.__name__: one for one in (*_EVERY, *(one for some in _OF.values() for one in some))}
MOVES = {"swap": swap, "replace": replace}
