"""The container: what is written comes back, whatever else is read is refused, and nothing large is made before."""

import math
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from imgtok import tokenfile
from imgtok.payload import bits_of, entropy_code, entropy_decode, pack, unpack
from imgtok.tokenfile import TokenFile, from_bytes, to_bytes
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout

from .fuzz import outcomes

LAYOUTS = {
    "grid": (GridLayout(5, 7), ()),
    "pairs": (GridLayout(3, 3), (2,)),
    "one in a row": (SequenceLayout(6), (1,)),
    "sequence": (SequenceLayout(300), ()),
    "scales": (ScaleLayout(((1, 1), (2, 3), (2, 3), (4, 6))), ()),
    "scales of pairs": (ScaleLayout(((1, 1), (2, 2))), (3,)),
}
each_layout = pytest.mark.parametrize("name", LAYOUTS)
MIB = 1 << 20


def drawn(layout, index_shape=(), codebook_size=300, count=None, seed=0) -> TokenFile:
    """A file of random tokens that favour some codes."""
    dice = torch.Generator().manual_seed(seed)
    shape = (layout.num_tokens if count is None else count, *index_shape)
    tokens = (torch.rand(shape, generator=dice) ** 6 * codebook_size).long()
    return TokenFile(
        tokenizer="0123456789abcdef",
        size=(37, 200),
        layout=layout,
        index_shape=index_shape,
        codebook_size=codebook_size,
        tokens=tokens,
    )


class Table:
    """Predicts a token by the one before; what it is told turns the table."""

    identity, tokenizer, condition = "89abcdef", "0123456789abcdef", (3, 200)

    def __init__(self, codebook_size: int, seed: int = 0) -> None:
        dice = np.random.default_rng(seed)
        self.weights = np.exp(dice.uniform(0, 16, (codebook_size, codebook_size))).astype(np.int64) + 1

    def check(self, layout, index_shape, codebook_size) -> None:
        if index_shape or codebook_size != len(self.weights):
            raise ValueError("tokens that this table does not predict")

    def laws(self, condition):
        if condition != self.condition:
            raise ValueError(f"the table is not told {condition}")
        return lambda before: self.weights[before] if len(before) else self.weights[:1]


def same(one: TokenFile, other: TokenFile) -> bool:
    fields = ("tokenizer", "size", "layout", "index_shape", "codebook_size")
    return all(getattr(one, f) == getattr(other, f) for f in fields) and torch.equal(one.tokens, other.tokens)


@each_layout
@pytest.mark.parametrize("coding", ["packed", "coded", "auto"])
@pytest.mark.parametrize("codebook_size", [1, 2, 5, 256, 4096, 1 << 20])
def test_what_is_written_comes_back(name, coding, codebook_size):
    file = drawn(*LAYOUTS[name], codebook_size=codebook_size)
    assert same(from_bytes(to_bytes(file, coding)), file)
    assert len(to_bytes(file)) == min(len(to_bytes(file, "packed")), len(to_bytes(file, "coded")))


@each_layout
@pytest.mark.parametrize("coding", ["packed", "coded"])
def test_the_first_tokens_alone_come_back_as_so_many(name, coding):
    layout, index_shape = LAYOUTS[name]
    for count in range(1, min(layout.num_tokens, 12)):
        file = drawn(layout, index_shape, codebook_size=2, count=count)
        assert same(from_bytes(to_bytes(file, coding)), file)


@each_layout
def test_a_packed_file_that_is_cut_holds_the_whole_tokens_that_are_left(name):
    file = drawn(*LAYOUTS[name])
    data, per_token = to_bytes(file, "packed"), math.prod(file.index_shape)
    start = len(data) - math.ceil(file.tokens.numel() * 9 / 8)
    for end in range(len(data)):
        left = (end - start) * 8 // (9 * per_token)
        if left < 1:
            with pytest.raises(ValueError, match=r"ends within its header|0 tokens"):
                from_bytes(data[:end])
        else:
            assert torch.equal(from_bytes(data[:end]).tokens, file.tokens[:left])


def test_a_coded_file_that_is_cut_or_grows_is_refused():
    data = to_bytes(drawn(GridLayout(30, 30)), "coded")
    for other in (data[:-1], data[:-4], data[:-200], data + b"\0"):
        with pytest.raises(ValueError, match="cut or damaged"):
            from_bytes(other)
    with pytest.raises(ValueError, match="bytes of tokens, but there can be"):
        from_bytes(to_bytes(drawn(GridLayout(3, 3)), "packed") + b"\0")


@pytest.mark.parametrize("bits", [1, 3, 8, 13, 20])
def test_packing_is_bit_by_bit_highest_first(bits):
    values = torch.randint(1 << bits, (41,), generator=torch.Generator().manual_seed(0)).numpy()
    digits = "".join(format(int(value), f"0{bits}b") for value in values)
    packed = pack(values, bits)
    assert "".join(format(byte, "08b") for byte in packed) == digits.ljust(8 * len(packed), "0")
    assert len(packed) == math.ceil(41 * bits / 8)
    assert (unpack(packed, bits)[:41] == values).all()


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (4096, 12), (4097, 13)])
def test_bits_of_an_index(size, bits):
    assert bits_of(size) == bits


def test_coding_comes_close_to_the_entropy():
    """Powers of 2 in place of counts lose at most log2(1.5) bits a value; here, and with the table, below 0.1."""
    values = drawn(GridLayout(200, 200), codebook_size=64).tokens.numpy()
    shares = torch.bincount(torch.from_numpy(values)).double() / len(values)
    entropy = float(torch.special.entr(shares).sum()) / math.log(2)
    bits = 8 * len(entropy_code(values, 64)) / len(values)
    assert entropy < bits < entropy + 0.1 < 6


def test_coding_of_values_that_are_all_alike():
    for value, size in ((0, 2), (6, 7), (3, 1 << 20)):
        values = torch.full((1000,), value).numpy()
        data = entropy_code(values, size)
        assert len(data) < 80
        assert (entropy_decode(data, 1000, size) == values).all()


def test_a_file_begins_as_documented():
    data = to_bytes(drawn(ScaleLayout(((1, 1), (2, 3))), (2,), codebook_size=300, count=6), "packed")
    assert data[:6] == b"IMTK\x01\x02"
    assert data[6:14].hex() == "0123456789abcdef"
    assert list(data[14:27]) == [200, 1, 37, 172, 2, 2, 1, 2, 1, 1, 2, 3, *data[26:27]]
    assert len(data) == 26 + math.ceil(6 * 2 * 9 / 8)


def numbers(*values: int) -> bytes:
    return b"".join(map(tokenfile.number_bytes, values))


def crafted(kind: int, *values: int, payload: bytes = b"\0" * 8) -> bytes:
    return b"IMTK\x01" + bytes([kind]) + bytes(8) + numbers(*values) + payload


@pytest.mark.parametrize(
    ("part", "data"),
    [
        ("no token file", b"\x89PNG\r\n\x1a\n" + bytes(40)),
        ("ends within its header", b""),
        ("ends within its header", b"IMTK\x01\x00" + bytes(7)),
        ("version 2", b"IMTK\x02" + bytes(40)),
        ("layout 3 is unknown", crafted(3, 8, 8, 2, 0, 0, 2, 2)),
        ("layout 12 is unknown", crafted(12, 8, 8, 2, 0, 0, 2, 2)),
        ("layout 16 is unknown", crafted(16, 8, 8, 2, 0, 0, 2, 2)),
        ("generator 00000000; decode with it", crafted(8, 8, 8, 2, 0, 0, 2, 2)),
        ("at most 64", crafted(8, 8, 8, 2, 0, 0, 2, 2, payload=bytes(4) + b"\x41")),
        ("token files hold 1 to 4,194,304 pixels", crafted(0, 1 << 20, 1 << 20, 2, 0, 0, 2, 2)),
        ("token files hold 1 to 4,194,304 pixels", crafted(0, 0, 8, 2, 0, 0, 2, 2)),
        ("token files hold 1 to 1,048,576", crafted(0, 8, 8, 2, 0, 0, 1 << 27, 1 << 27)),
        ("token files hold 1 to 1,048,576", crafted(0, 8, 8, 2, 0, 0, 0, 2)),
        ("token files hold 1 to 1,048,576", crafted(1, 8, 8, 2, 64, 0, 1 << 20)),
        ("token files hold 1 to 64 a token", crafted(1, 8, 8, 2, 65, 0, 4)),
        ("no tokens that are vectors", crafted(1, 8, 8, 0, 0, 0, 4)),
        ("a codebook of 1,048,577 codes", crafted(1, 8, 8, (1 << 20) + 1, 0, 0, 4)),
        ("token files hold at most 64", crafted(2, 8, 8, 2, 0, 0, 1 << 27)),
        ("none smaller than before", crafted(2, 8, 8, 2, 0, 0, 2, 2, 2, 1, 1)),
        ("one or more maps", crafted(2, 8, 8, 2, 0, 0, 0)),
        ("5 tokens are left off, but there are 4", crafted(1, 8, 8, 2, 0, 5, 4)),
        ("0 tokens of a picture that has 4", crafted(1, 8, 8, 2, 0, 4, 4, payload=b"")),
        ("token 7 is not among the 5 codes", crafted(1, 8, 8, 5, 0, 0, 4, payload=b"\xff")),
        ("too large", crafted(1, 8, 8, 2, 0, 0, payload=b"\xff\xff\xff\xff\x01")),
        ("its length or its number of levels", crafted(5, 8, 8, 5, 0, 0, 4, 0, payload=b"")),
        ("its length or its number of levels", crafted(5, 8, 8, 5, 0, 0, 4, 8, payload=b"\xff" * 8)),
        ("its histogram is not one of 5 codes", crafted(5, 8, 8, 5, 0, 0, 4, 7, payload=b"\2" + bytes(6))),
        ("its histogram is not one of 5 codes", crafted(5, 8, 8, 5, 0, 0, 4, 7, payload=b"\2\5" + bytes(5))),
        ("more than 4,194,304 bytes", bytes((1 << 22) + 1)),
    ],
)
def test_what_is_no_token_file_is_refused(part, data):
    with pytest.raises(ValueError, match=part):
        from_bytes(data)


@pytest.mark.parametrize(
    "largest",
    [
        crafted(1, 8, 8, 1 << 20, 0, 0, 1 << 20, payload=bytes(20 << 17)),
        to_bytes(drawn(SequenceLayout(1 << 20), codebook_size=1 << 20), "coded"),
        to_bytes(drawn(SequenceLayout(1 << 14), (64,), codebook_size=1 << 20), "coded"),
    ],
    ids=["packed", "coded", "many a token"],
)
def test_the_largest_files_stay_below_the_stated_memory(largest):
    tracemalloc.start()
    try:
        assert from_bytes(largest).tokens.numel() == 1 << 20
        assert tracemalloc.get_traced_memory()[1] < 128 * MIB
    finally:
        tracemalloc.stop()


def test_files_on_disk_are_named_in_errors(tmp_path):
    file = drawn(GridLayout(3, 3))
    assert tokenfile.save(file, tmp_path / "a.imtk") == (tmp_path / "a.imtk").stat().st_size
    assert same(tokenfile.load(tmp_path / "a.imtk"), file)
    (tmp_path / "b.imtk").write_bytes(b"IMTX" + bytes(30))
    with pytest.raises(ValueError, match=r"b\.imtk: no token file"):
        tokenfile.load(tmp_path / "b.imtk")


def test_without_the_range_coder_files_are_packed(monkeypatch):
    file = drawn(GridLayout(60, 60))
    coded = to_bytes(file, "coded")
    assert len(coded) < len(to_bytes(file, "packed"))
    monkeypatch.setattr(tokenfile, "find_spec", lambda name: None)
    assert to_bytes(file) == to_bytes(file, "packed")
    monkeypatch.setitem(sys.modules, "constriction", None)
    for act in (lambda: to_bytes(file, "coded"), lambda: from_bytes(coded)):
        with pytest.raises(ImportError, match="pip install"):
            act()


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused_within_the_memory(count):
    written = [to_bytes(drawn(*given, seed=1), coding) for given in LAYOUTS.values() for coding in ("packed", "coded")]
    tracemalloc.start()
    try:
        found = outcomes(count, from_bytes, written)
        assert tracemalloc.get_traced_memory()[1] < 128 * MIB
    finally:
        tracemalloc.stop()
    assert min(found.values()) > count / 10


PREDICTED = {"grid": GridLayout(5, 7), "sequence": SequenceLayout(50), "scales": LAYOUTS["scales"][0]}


@pytest.mark.parametrize("layout", PREDICTED.values(), ids=PREDICTED)
def test_predicted_tokens_come_back_and_so_do_the_first_of_them(layout):
    table = Table(40)
    for count in (1, 7, layout.num_tokens):
        file = drawn(layout, codebook_size=40, count=count)
        assert same(from_bytes(to_bytes(file, "predicted", table), table), file)
        assert len(to_bytes(file, "auto", table)) == min(
            len(to_bytes(file, coding, table)) for coding in ("packed", "coded", "predicted")
        )


def test_a_predicted_payload_begins_as_documented():
    data = to_bytes(drawn(SequenceLayout(50), codebook_size=40), "predicted", Table(40))
    assert data[:6] == b"IMTK\x01\x09"
    assert list(data[14:21]) == [200, 1, 37, 40, 0, 0, 50]
    assert data[21:25].hex() == "89abcdef"
    assert list(data[25:30]) == [2, 3, 200, 1, len(data) - 30]


def test_predicted_tokens_under_other_laws_or_of_other_bytes_are_refused():
    file = drawn(SequenceLayout(50), codebook_size=40)
    data = to_bytes(file, "predicted", Table(40))
    with pytest.raises(ValueError, match="do not agree with their checksum"):
        from_bytes(data, Table(40, seed=1))
    with pytest.raises(ValueError, match="the file is damaged"):
        from_bytes(data + b"\1", Table(40))
    for at in range(30, len(data)):
        changed = data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]
        if at < len(data) - 4:
            with pytest.raises(ValueError, match="do not agree with their checksum"):
                from_bytes(changed, Table(40))
        else:  # the coder may end with bits that decide nothing
            assert came_back_or_refused(changed, file)


def came_back_or_refused(data: bytes, file: TokenFile) -> bool:
    try:
        return same(from_bytes(data, Table(40)), file)
    except ValueError:
        return True


@pytest.mark.parametrize("count", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_files_of_predicted_tokens_are_right_or_refused_within_the_memory(count):
    table, wrong = Table(40), 0
    files = [drawn(layout, codebook_size=40, seed=1) for layout in PREDICTED.values()]

    def read(data: bytes) -> None:
        nonlocal wrong
        found = from_bytes(data, table)
        wrong += not any(torch.equal(found.tokens, file.tokens[: len(found.tokens)]) for file in files)

    tracemalloc.start()
    try:
        found = outcomes(count, read, [to_bytes(file, "predicted", table) for file in files])
        assert tracemalloc.get_traced_memory()[1] < 128 * MIB
    finally:
        tracemalloc.stop()
    assert min(found.values()) > count / 20
    assert wrong <= 2 + count / 10_000  # checksums of 16 bits in files that were cut
