import dataclasses
import io
import json
import os
import re
import struct
import threading
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xycodec.errors import BitstreamError
from xycodec.io.xyc import CodecFile

FIELDS = {
    "model": "xy-mini",
    "codebook_size": 1024,
    "sample_rate": 16000,
    "output_sample_rate": 24000,
    "hop_length": 1280,
}


def make(n_q=8, frames=25, codebook_size=1024, seed=0, **fields):
    codes = np.random.default_rng(seed).integers(0, codebook_size, (n_q, frames), np.uint16, endpoint=False)
    fields = {**FIELDS, "codebook_size": codebook_size, "num_samples": frames * 1280, **fields}
    return CodecFile(codes, **fields)


def assemble(header, body, magic=b"XYC1"):
    """Build a file with a right header length and checksum around any header (a dict or bytes) and body."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = magic + struct.pack("<I", len(raw)) + raw + body
    return data + struct.pack("<I", zlib.crc32(data))


def parts(data):
    """Return the header (a dict) and the body of a valid file."""
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    return json.loads(data[8:end]), data[end:-4]


def refusal(data, name="clip.xyc"):
    """Return the message with which `data` is refused."""
    with pytest.raises(BitstreamError) as error:
        CodecFile.from_bytes(data, name)
    message = str(error.value)
    assert "\n" not in message
    assert name in message
    assert len(message) < 250
    return message


# the format


def test_the_layout_byte_by_byte():
    codes = np.array([[1, 2, 3], [4, 5, 6]], np.uint16)
    data = CodecFile(codes, **{**FIELDS, "codebook_size": 10, "model": "zwölf"}, num_samples=2561).to_bytes()
    header = (
        '{"codebook_size":10,"frames":3,"hop_length":1280,"model":"zwölf","n_q":2,"num_samples":2561,'
        '"output_sample_rate":24000,"sample_rate":16000}'
    ).encode()
    start = b"XYC1" + len(header).to_bytes(4, "little") + header + bytes([0x14, 0x25, 0x36])
    assert data == start + zlib.crc32(start).to_bytes(4, "little")


def test_bits_cross_bytes_and_zeros_fill_the_last():
    codes = np.array([[0b101], [0b011], [0b110]], np.uint16)
    data = CodecFile(codes, **{**FIELDS, "codebook_size": 5 + 2}, num_samples=1).to_bytes()
    assert parts(data)[1] == bytes([0b10101111, 0b00000000])


@pytest.mark.parametrize("codebook_size", [2, 3, 4, 7, 255, 256, 257, 1000, 1024, 4096, 65535, 65536])
@pytest.mark.parametrize(("n_q", "frames"), [(1, 0), (1, 1), (1, 13), (3, 7), (8, 8), (64, 3), (64, 0)])
def test_round_trip(codebook_size, n_q, frames):
    file = make(n_q, frames, codebook_size)
    data = file.to_bytes()
    again = CodecFile.from_bytes(data)
    assert again == file
    assert again.to_bytes() == data
    assert file.num_bytes == len(data)
    bits = (codebook_size - 1).bit_length()
    assert len(parts(data)[1]) == -(-n_q * frames * bits // 8)


@pytest.mark.parametrize("n_q", [1, 3, 8, 64])
@pytest.mark.parametrize("codebook_size", [2, 1000, 65536])
def test_chunks_join_without_a_seam(n_q, codebook_size):
    frames = 2 * 65536 // n_q + 13
    file = make(n_q, frames, codebook_size)
    data = file.to_bytes()
    bits = (codebook_size - 1).bit_length()
    text = "".join(f"{code:0{bits}b}" for code in file.codes.T.reshape(-1).tolist())
    size = -(-len(text) // 8)
    assert parts(data)[1] == int(text.ljust(8 * size, "0"), 2).to_bytes(size, "big")
    assert CodecFile.from_bytes(data) == file


def test_derived_values():
    file = make(num_samples=24 * 1280 + 1)
    assert (file.n_q, file.frames) == (8, 25)
    assert file.bitrate == 1000.0
    assert file.duration == (24 * 1280 + 1) / 16000
    assert make(n_q=3, codebook_size=1000).bitrate == 375.0


def test_equality():
    file = make()
    assert file == make()
    assert file != make(seed=1)
    assert file != make(model="other")
    assert file != make(num_samples=25 * 1280 - 1)
    assert file != make(frames=24)
    assert file != "file"


def test_codes_cannot_change():
    codes = np.zeros((2, 3), np.uint16)
    file = CodecFile(codes, **FIELDS, num_samples=3840)
    codes[:] = 5
    for held in (file, CodecFile.from_bytes(file.to_bytes())):
        assert not held.codes.any()
        assert held.codes.shape == (2, 3)
        with pytest.raises(ValueError, match="read-only"):
            held.codes[0, 0] = 1
    view = codes.view()
    view.flags.writeable = False
    file = CodecFile(view, **FIELDS, num_samples=3840)
    codes[:] = 7
    assert (file.codes == 5).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        file.model = "other"


def test_codes_in_any_memory_order():
    file = make()
    for codes in (np.asfortranarray(file.codes), np.repeat(file.codes, 2, axis=1)[:, ::2]):
        assert CodecFile(codes, **FIELDS, num_samples=file.num_samples).to_bytes() == file.to_bytes()


# the width of a search


def test_a_width_is_in_the_header_where_it_is_more_than_one():
    greedy, found = make(), make(search=16)
    assert "search" not in parts(greedy.to_bytes())[0]
    assert parts(found.to_bytes())[0] == parts(greedy.to_bytes())[0] | {"search": 16}
    again = CodecFile.from_bytes(found.to_bytes())
    assert (again.search, CodecFile.from_bytes(greedy.to_bytes()).search) == (16, 1)
    assert again == found != greedy
    assert again.to_bytes() == found.to_bytes()
    assert found.num_bytes == len(found.to_bytes())


@pytest.mark.parametrize(("search", "says"), [(0, "1 to 65536"), (1 << 17, "1 to 65536"), (True, "bool"), ("4", "str")])
def test_a_width_that_is_none_is_refused(search, says):
    with pytest.raises(BitstreamError, match=f"search .*{says}"):
        make(search=search)
    header, body = parts(make().to_bytes())
    assert says in refusal(assemble(header | {"search": search}, body))


def test_a_width_that_is_there_twice_is_refused():
    header, body = parts(make(search=4).to_bytes())
    raw = json.dumps(header).replace('"search": 4', '"search": 4, "search": 4').encode()
    assert "once each" in refusal(assemble(raw, body))


# bad values


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1, 2]], "not list"),
        (np.zeros((2, 2)), "float64"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((2, 2), ">u2"), "uint16 array"),
        (np.zeros(2, np.uint16), r"\(2,\)"),
        (np.zeros((1, 2, 2), np.uint16), r"\(1, 2, 2\)"),
        (np.zeros((0, 2), np.uint16), "n_q"),
        (np.zeros((65, 2), np.uint16), "n_q"),
        (np.zeros((2, 3), np.uint16), "frames is 3"),
        (np.full((2, 2), 1024, np.uint16), "code 1024 .* codebook_size is 1024"),
    ],
)
def test_codes_that_cannot_be_stored(codes, message):
    with pytest.raises(BitstreamError, match=message):
        CodecFile(codes, **FIELDS, num_samples=2560)


BAD_FIELDS = [
    ("codebook_size", 1),
    ("codebook_size", 65537),
    ("codebook_size", True),
    ("codebook_size", 1024.0),
    ("codebook_size", "1024"),
    ("codebook_size", None),
    ("sample_rate", 0),
    ("sample_rate", True),
    ("sample_rate", -16000),
    ("sample_rate", 10**7),
    ("output_sample_rate", 0),
    ("output_sample_rate", False),
    ("hop_length", 0),
    ("hop_length", 10**7),
    ("hop_length", 640),
    ("num_samples", -1),
    ("num_samples", 0),
    ("num_samples", 24 * 1280),
    ("num_samples", 25 * 1280 + 1),
    ("num_samples", 2**63),
    ("num_samples", 10**1000),
    ("num_samples", float("nan")),
    ("num_samples", float("inf")),
    ("model", ""),
    ("model", 5),
    ("model", None),
    ("model", []),
    ("model", {}),
    ("model", "two\nlines"),
    ("model", "\x1b[2J"),
    ("model", "\ud800"),
    ("model", "x" * 1025),
]


@pytest.mark.parametrize(("key", "value"), BAD_FIELDS)
def test_fields_that_cannot_be_stored_or_read(key, value):
    header, body = parts(make().to_bytes())
    header[key] = value
    about = "frames" if key == "hop_length" and value == 640 else key
    assert about in refusal(assemble(header, body))
    with pytest.raises(BitstreamError, match=about):
        make(**{key: value}) if key != "codebook_size" else dataclasses.replace(make(), codebook_size=value)


def test_numpy_integers_are_refused_as_fields():
    with pytest.raises(BitstreamError, match="num_samples must be an integer, not int64"):
        make(num_samples=np.int64(25 * 1280))


def test_the_longest_model_name_fits():
    file = make(model='"' * 512 + "\U0001f5e3" * 512)
    assert CodecFile.from_bytes(file.to_bytes()) == file


# bad files


def test_every_cut_is_refused():
    data = make(frames=3).to_bytes()
    for length in range(len(data)):
        refusal(data[:length])


def test_every_flipped_bit_is_refused():
    data = make(frames=3).to_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        refusal(bytes(changed))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .xyc file"),
        (b"XYC", "not a .xyc file"),
        (b"RIFF\x24\0\0\0WAVE", "not a .xyc file"),
        (b"XYC2", "version '2' .*: upgrade"),
        (b"XYC\0\0\0\0\0", "version .*: upgrade"),
        (b"XYC\xff\0\0\0\0", "version .*: upgrade"),
        (b"XYC1\0\0", "cut off after 6 bytes"),
        (b"XYC1\xff\xff\xff\xff{}", "4294967295 bytes, over 65536"),
        (b"XYC1\1\0\1\0" + b" " * 65537, "65537 bytes, over 65536"),
        (b"XYC1\0\0\1\0{}", "cut off in its header"),
        (assemble(b"", b""), "not JSON"),
        (assemble(b"\xff\xfe{\0}\0", b""), "not JSON"),
        (assemble(b"\xef\xbb\xbf{}", b""), "not JSON"),
        (assemble(b"{} {}", b""), "not JSON"),
        (assemble(b"[" * 65536, b""), "not JSON"),
        (assemble(b'{"model":' * 7000, b""), "not JSON"),
        (assemble(b'{"frames":' + b"9" * 60000 + b"}", b""), "not JSON|does not hold"),
        (assemble([], b""), "does not hold"),
        (assemble({}, b""), "does not hold"),
        (assemble(b"5", b""), "does not hold"),
        (assemble(b"null", b""), "does not hold"),
        (assemble([["model", "x"]], b""), "does not hold"),
    ],
)
def test_what_is_not_a_codec_file(data, message):
    assert re.search(message, refusal(data))


@pytest.mark.parametrize("key", ["model", "n_q", "frames", "num_samples", "output_sample_rate"])
def test_missing_unknown_and_repeated_keys(key):
    header, body = parts(make().to_bytes())
    missing = {name: value for name, value in header.items() if name != key}
    unknown = {**header, key + "s": header[key]}
    renamed = {**missing, key + "s": header[key]}
    repeated = json.dumps(header)[:-1].encode() + f',"{key}":{json.dumps(header[key])}}}'.encode()
    for wrong in (missing, unknown, renamed, repeated):
        assert "does not hold" in refusal(assemble(wrong, body))


def test_a_body_that_does_not_match_the_header():
    header, body = parts(make().to_bytes())
    assert "cut off" in refusal(assemble(header, body[:-1]))
    assert "cut off" in refusal(assemble(header, b""))
    assert "longer" in refusal(assemble(header, body + b"\0"))
    assert "longer" in refusal(make().to_bytes() + b"\0")
    assert "longer" in refusal(2 * make().to_bytes())
    assert "frames is 26" in refusal(assemble({**header, "frames": 26}, body))
    assert "n_q is out of range" in refusal(assemble({**header, "n_q": 65}, body))
    assert "n_q must be an integer" in refusal(assemble({**header, "n_q": [8]}, body))


def test_codes_out_of_range():
    header, body = parts(make(codebook_size=1000).to_bytes())
    assert "code 1023 is out of range" in refusal(assemble(header, b"\xff" * len(body)))


def test_fill_bits_that_are_not_zero():
    header, body = parts(make(n_q=1, frames=3).to_bytes())  # 30 bits
    assert CodecFile.from_bytes(assemble(header, body)) == make(n_q=1, frames=3)
    for bit in (1, 2):
        assert "not zero" in refusal(assemble(header, body[:-1] + bytes([body[-1] | bit])))


def test_a_wrong_checksum():
    data = make().to_bytes()
    assert "checksum" in refusal(data[:-1] + bytes([data[-1] ^ 1]))


def test_any_json_spelling_of_the_header_is_read():
    header, body = parts(make().to_bytes())
    for raw in (json.dumps(header, indent=2), json.dumps(dict(reversed(header.items())))):
        assert CodecFile.from_bytes(assemble(raw.encode(), body)) == make()


@pytest.mark.parametrize("frames", [2**60, 2**62, 10**9])
@pytest.mark.parametrize("source", ["bytes", "file", "pipe"])
def test_a_header_that_promises_too_much_allocates_nothing(tmp_path, monkeypatch, frames, source):
    header, body = parts(make().to_bytes())
    data = assemble({**header, "frames": frames, "hop_length": 1, "num_samples": frames}, body)
    (tmp_path / "a.xyc").write_bytes(data)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    read = {
        "bytes": lambda: CodecFile.from_bytes(data),
        "file": lambda: CodecFile.read(tmp_path / "a.xyc"),
        "pipe": lambda: CodecFile.read("-"),
    }[source]
    tracemalloc.start()
    with pytest.raises(BitstreamError, match="cut off"):
        read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    promised = frames * 8 * 10 // 8  # bytes of eight layers of ten bits
    assert peak < promised / 10_000


def test_temporary_memory_does_not_grow_with_the_clip(tmp_path):
    def overhead(frames):
        file = make(frames=frames)
        tracemalloc.start()
        file.write(tmp_path / "a.xyc")
        writing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        CodecFile.read(tmp_path / "a.xyc")
        reading = tracemalloc.get_traced_memory()[1] - before - file.codes.nbytes
        tracemalloc.stop()
        return max(writing, reading)

    assert overhead(45_000 * 10) < 1.1 * overhead(45_000)  # ten hours and one


# files, pipes and streams


def test_write_and_read(tmp_path):
    file = make()
    for path in (tmp_path / "a.xyc", f"{tmp_path}/b"):
        file.write(path)
        assert CodecFile.read(path) == file
    assert sorted(os.listdir(tmp_path)) == ["a.xyc", "b"]


class Pipe(io.RawIOBase):
    """A stream that cannot seek, delivering a few bytes at a time."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.data.readinto(memoryview(buffer)[:11])


def test_stdout_and_stdin(monkeypatch):
    file, out = make(frames=30_000), io.BytesIO()
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=io.BufferedWriter(out)))
    file.write("-")
    assert out.getvalue() == file.to_bytes()

    def piped(data):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BufferedReader(Pipe(data), 16)))
        return CodecFile.read("-")

    assert piped(out.getvalue()) == file
    with pytest.raises(BitstreamError, match="stdin is cut off"):
        piped(out.getvalue()[:-1])
    with pytest.raises(BitstreamError, match="stdin is longer"):
        piped(out.getvalue() + b"\0")
    with pytest.raises(BitstreamError, match=r"stdin is not a \.xyc file"):
        piped(b"")


def test_a_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[make().to_bytes()])
    writer.start()
    assert CodecFile.read(tmp_path / "pipe") == make()
    writer.join()


def test_a_large_file_of_another_kind_is_not_read(tmp_path):
    path = tmp_path / "a.xyc"
    for start in (b"RIFF", b"XYC1\xff\xff\0\0", make().to_bytes()):
        size = 10**10
        with open(path, "wb") as file:
            file.write(start)
            file.truncate(size)  # sparse
        tracemalloc.start()
        with pytest.raises(BitstreamError, match=r"a\.xyc"):
            CodecFile.read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size / 10_000


@pytest.mark.parametrize(
    ("name", "message"),
    [("no.xyc", "No such file"), ("", "directory"), ("a\0", "null"), ("x" * 300, "too long")],
)
def test_what_cannot_be_opened(tmp_path, name, message):
    with pytest.raises(BitstreamError, match=message) as error:
        CodecFile.read(f"{tmp_path}/{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/a.xyc", "create it"), ("", "is a folder"), ("a\0", "null"), ("x" * 300, "too long")],
)
def test_what_cannot_be_written(tmp_path, name, message):
    with pytest.raises(BitstreamError, match=message) as error:
        make().write(f"{tmp_path}/{name}")
    assert "\n" not in str(error.value)
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.xyc"
    make().write(path)
    monkeypatch.setattr("xycodec.io.xyc._pack", full)
    with pytest.raises(BitstreamError, match=r"a\.xyc' cannot be written \(No space left on device\)"):
        make(seed=1).write(path)
    assert CodecFile.read(path) == make()
    assert os.listdir(tmp_path) == ["a.xyc"]


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.xyc"
    make().write(path)
    size = path.stat().st_size
    os.truncate(path, size - 20)
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: SimpleNamespace(st_mode=real(fd).st_mode, st_size=size))
    with pytest.raises(BitstreamError, match="became shorter"):
        CodecFile.read(path)


# fuzzing: 10,000 mutations of valid files


SEEDS = [
    make(),
    make(n_q=1, frames=0),
    make(n_q=1, frames=1, codebook_size=2, num_samples=1),
    make(n_q=3, frames=7, codebook_size=1000, model="ä" * 40),
    make(n_q=64, frames=5, codebook_size=65536),
]
DATA = [file.to_bytes() for file in SEEDS]
seeds = st.integers(0, len(SEEDS) - 1)
positions = st.integers(0, 1 << 16)

edits = st.one_of(
    st.tuples(st.just("flip"), positions, st.integers(0, 7)),
    st.tuples(st.just("set"), positions, st.integers(0, 255)),
    st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("delete"), positions, st.integers(1, 40)),
    st.tuples(st.just("truncate"), positions, st.none()),
    st.tuples(st.just("splice"), positions, st.tuples(seeds, positions)),
)


def apply(data, edit):
    kind, position, argument = edit
    at = position % (len(data) + 1)
    before, after = data[:at], data[at:]
    if kind == "insert":
        return before + argument + after
    if kind == "delete":
        return before + after[argument:]
    if kind == "truncate":
        return before
    if kind == "splice":
        other = DATA[argument[0]]
        return before + other[argument[1] % (len(other) + 1) :]
    changed = after[:1] and bytes([after[0] ^ 1 << argument if kind == "flip" else argument])
    return before + changed + after[1:]


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(seeds, st.lists(edits, min_size=1, max_size=4))
def test_fuzz_bytes(seed, changes):
    data = DATA[seed]
    for change in changes:
        data = apply(data, change)
    try:
        read = CodecFile.from_bytes(data)
    except BitstreamError as error:
        outcome = "\n" not in str(error)
    else:
        outcome = data in DATA and read == SEEDS[DATA.index(data)]
    assert outcome


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(seeds, st.lists(edits, min_size=1, max_size=3), st.booleans())
def test_fuzz_header_bytes_with_a_right_checksum(seed, changes, magic):
    """Edits of the header's bytes, and of the body's, under a right header length and checksum."""
    data = DATA[seed]
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    header, body = data[8:end], data[end:-4]
    for change in changes:
        if magic:
            header = apply(header, change)
        else:
            body = apply(body, change)
    consistent_or_refused(assemble(header, body))


plausible = st.sampled_from([0, 1, 2, 3, 7, 8, 25, 64, 65, 1000, 1024, 1280, 2561, 65536, 65537]) | st.integers()
hostile = st.sampled_from([None, True, 8.0, "8", [8], {"n_q": 8}, 1e400, 2**60, 2**63, -1, 10**400, "\0", ""])
keys = st.sampled_from(sorted(parts(DATA[0])[0]))
changed_keys = st.lists(st.tuples(keys, plausible | plausible | hostile), min_size=1, max_size=4)
other_keys = st.lists(st.tuples(st.text(max_size=9), plausible), max_size=1)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(seeds, changed_keys, other_keys, st.booleans())
def test_fuzz_header_values_with_a_right_checksum(seed, changes, others, fit):
    """Other values of the header, half of them with a frame count and a body that fit."""
    header, body = parts(DATA[seed])
    header.update(changes)
    sizes = [header[key] for key in ("num_samples", "hop_length", "n_q", "codebook_size")]
    if fit and all(type(size) is int and size > 0 for size in sizes):
        num_samples, hop_length, n_q, codebook_size = sizes
        header["frames"] = -(-num_samples // hop_length)
        body = (20 * body)[: -(-n_q * header["frames"] * (codebook_size - 1).bit_length() // 8)]
    elif not fit:
        header.update(others)
    consistent_or_refused(assemble(header, body))


def consistent_or_refused(data):
    try:
        file = CodecFile.from_bytes(data)
    except BitstreamError as error:
        outcome = "\n" not in str(error)
    else:
        again = CodecFile.from_bytes(file.to_bytes())
        frames = -(-file.num_samples // file.hop_length)
        outcome = again == file and file.codes.shape == (file.n_q, frames)
        outcome &= not file.codes.size or file.codes.max() < file.codebook_size
    assert outcome
