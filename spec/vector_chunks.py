"""The chunks of ``vectors/``: what an encoder writes, what only a hand would write, and what breaks each rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from craft import Row, craft, reseal

from logitstore.codec import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["invalid_chunks", "valid_chunks"]

NO_ID = 0xFFFFFFFF


@dataclass
class Vector:
    """A chunk and what ``NAME.json`` says about it."""

    name: str
    chunk: bytes
    about: dict[str, Any] = field(default_factory=dict)


def _encoded(name: str, kind: Any, array: NDArray[Any], vocab_size: int = 0, why: str = "") -> Vector:
    chunk = encode(array, kind, vocab_size=vocab_size)
    unsigned = array.view(f"u{array.dtype.itemsize}")
    about = {"description": why, "kind": kind, "type": array.dtype.name, "shape": list(array.shape)}
    return Vector(name, chunk, {**about, "vocab_size": vocab_size, "elements": unsigned.tolist()})


def _rows(rows: Sequence[Sequence[int]], slots: int) -> NDArray[np.uint32]:
    return np.array([[*row, *[NO_ID] * (slots - len(row))] for row in rows], np.uint32).reshape(len(rows), slots)


def _random_ids(seed: int, rows: int, slots: int, vocab_size: int, *, ragged: bool) -> NDArray[np.uint32]:
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, slots + 1, rows) if ragged else [slots] * rows
    return _rows([sorted(generator.choice(vocab_size, n, replace=False).tolist()) for n in counts], slots)


def valid_chunks() -> Iterator[Vector]:  # noqa: PLR0915 - a list, one vector after the other
    """Chunks that every decoder reads."""
    example = _rows([[2, 3, 9, 300], [5, 40], []], 4)
    yield _encoded("ids_worked_example", "ids", example, 512, "FORMAT.md section 14")
    yield _encoded("ids_no_rows", "ids", _rows([], 3), 10, "no rows at all")
    yield _encoded("ids_empty_rows", "ids", _rows([[], [], []], 5), 10, "rows without entries")
    yield _encoded("ids_one_slot", "ids", _rows([[0], [], [7], [9]], 1), 10, "one slot")
    yield _encoded("ids_whole_vocabulary", "ids", _rows([range(70)] * 2, 70), 70, "K = V: rows of length 0")
    big = _rows([[151_643, (1 << 31) - 1], [0, 1], [(1 << 31) - 2]], 2)
    yield _encoded("ids_largest_vocabulary", "ids", big, 1 << 31, "ids that need 18 and 31 bits")
    spread = _rows([range(40), [1 << 29, 1 << 30, (1 << 30) + (1 << 29)], [0, 1, 2, 1 << 20]], 40)
    yield _encoded("ids_parameter_base", "ids", spread, 1 << 31, "parameters further apart than 15: a parameter_base")
    yield _encoded("ids_ragged", "ids", _random_ids(1, 9, 40, 997, ragged=True), 997, "all lengths, blocks of 16")
    yield _encoded("ids_blocks_of_32", "ids", _random_ids(2, 2, 300, 3000, ragged=False), 3000, "300 entries a row")
    yield _encoded("ids_blocks_of_64", "ids", _random_ids(3, 1, 1100, 5000, ragged=False), 5000, "1,100 entries a row")

    generator = np.random.default_rng(4)
    falling = -np.abs(generator.normal(4, 2, (6, 70))).astype(np.float16)
    yield _encoded("values_float16", "values", falling, why="log-probabilities")
    ragged = falling.copy()
    for row, count in enumerate((0, 1, 16, 17, 69, 70)):
        ragged[row, count:] = -np.inf
    yield _encoded("values_float16_ragged", "values", ragged, why="rows of all lengths")
    bits = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0xFE00, 0xFFFF, 0x3C00]
    yield _encoded("values_float16_special", "values", np.array([bits], np.uint16).view(np.float16), why="zeros, "
                   "subnormals, infinities, NaNs; an infinity that is not at the end is an element")  # fmt: skip
    bfloat16 = (generator.normal(0, 8, (4, 20)).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    yield _encoded("values_float16_bfloat16", "values", bfloat16.astype(np.float16), why="logits in bfloat16: shift 3")
    mixed = np.tile(bfloat16, (5, 2)).astype(np.float16)
    mixed[3, 7] = 3e-5  # a subnormal float16: a bfloat16 that small keeps none of its zeros
    mixed[11, 12:] = -np.inf
    yield _encoded(
        "values_float16_shifts", "values", mixed, why="logits in bfloat16 of which one is tiny: a column of shifts"
    )
    equal = np.repeat(np.array([[-1.5], [-2], [-np.inf]], np.float16), 20, 1)
    yield _encoded("values_float16_equal", "values", equal, why="equal values: rows of length 0")
    draws = generator.poisson(0.7, (5, 24)).astype(np.uint8)
    draws[2] = 0
    yield _encoded("values_uint8", "values", draws, why="draws per id")

    for size in (0, 1, 255, 256, 257):
        yield _encoded(
            f"flat_uint8_{size}", "flat", (np.arange(size) % 7 == 0).astype(np.uint8), why=f"{size} elements"
        )
    tokens = generator.integers(0, 50_257, 600).astype(np.uint32)
    yield _encoded("flat_uint32", "flat", tokens, why="token ids")
    full = np.array([0, NO_ID, 1 << 31, 5], np.uint32)
    yield _encoded("flat_uint32_full_range", "flat", full, why="32-bit residuals")
    words = [0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC01234, 0x7F800001, NO_ID, 0x3F800000, 0x7F7FFFFF]
    floats = np.array(words, np.uint32).view(np.float32)
    yield _encoded("flat_float32_special", "flat", floats, why="zeros, subnormal, infinities, NaNs with payloads")
    lse = generator.normal(12, 3, 300).astype(np.float32)
    lse[100:] = np.nan
    yield _encoded("flat_float32_two_axes", "flat", lse.reshape(150, 2), why="two columns, laid out row by row")

    wide = [Row([5, 0, 90], [3]), Row([], ()), Row([0] * 20, [0, 2]), Row([0, 1], [9])]
    about = {"kind": "ids", "type": "uint32", "shape": [4, 20], "vocab_size": 100}
    elements = _rows([[5, 6, 97], [], range(20), [0, 2]], 20).tolist()
    yield Vector("ids_other_choices", craft("ids", "uint32", 20, wide, bound=100, widen=3), {
        "by_hand": True, "description": "wider columns, other parameters, zeros spelled out",
        **about, "elements": elements,
    })  # fmt: skip
    about = {"kind": "ids", "type": "uint32", "shape": [1, 4], "vocab_size": 80_000}
    for zeros in (65_535, 65_536):
        yield Vector(f"ids_{zeros}_zeros", craft("ids", "uint32", 4, [Row([0, zeros, 0], [0])], bound=80_000), {
            "by_hand": True, "description": "a long quotient", **about, "elements": [[0, zeros + 1, zeros + 2, NO_ID]],
        })  # fmt: skip
    yield Vector("values_uint8_shift", craft("values", "uint8", 3, [Row([0, 3, 1], [1])], shift=2, bases=[60]), {
        "by_hand": True, "description": "a shift of integers", "kind": "values", "type": "uint8", "shape": [1, 3],
        "vocab_size": 0, "elements": [[240, 252, 244]],
    })  # fmt: skip
    yield Vector("values_float16_shift_15", craft("values", "float16", 3, [Row([1, 0], [0])], shift=15, bases=[0]), {
        "by_hand": True, "description": "only the sign is left", "kind": "values", "type": "float16", "shape": [1, 3],
        "vocab_size": 0, "elements": [[0x0000, 0x8000, 0xFC00]],
    })  # fmt: skip


def _shift_of_a_row(shift: int) -> bytes:
    rows = [Row([0, 1, 0], [0]), Row([1, 0, 1], [0])]
    return craft("values", "float16", 3, rows, shift=14, bases=[0, 0], shifts=[14, shift])


def _broken(name: str, rule: str, error: str, chunk: bytes, why: str, kind: str = "ids", **expected: Any) -> Vector:
    types = {"ids": "uint32", "values": "float16", "flat": "float32"}
    shapes = {"ids": [3, 4], "values": [2, 3], "flat": [300]}
    about = {"description": why, "rule": rule, "error": error, "kind": kind, "type": types[kind]}
    about |= {"shape": shapes[kind], "vocab_size": 512 if kind == "ids" else 0}
    return Vector(f"{rule.lower()}_{name}", chunk, about | expected)


def invalid_chunks() -> Iterator[Vector]:
    """Chunks that every decoder refuses; each breaks the rule it is named after and, if possible, no other."""
    ids = encode(_rows([[2, 3, 9, 300], [5, 40], []], 4), "ids", vocab_size=512)
    values = encode(np.array([[-1.5, -2.25, -0.5], [-0.25, -1.25, -np.inf]], np.float16), "values")
    flat = encode(np.linspace(3, 9, 300).astype(np.float32), "flat")
    yield _broken("no_bytes", "C1", "truncated", b"", "nothing")
    yield _broken("51_bytes", "C1", "truncated", ids[:51], "one byte less than a header and a checksum")
    yield _broken("other_magic", "C2", "corrupt", reseal(ids, magic=b"LGY1"), "another file's magic")
    yield _broken("newer", "C3", "unsupported", reseal(ids, magic=b"LGX2"), "the next version")
    of_kind = {"ids": ids, "values": values, "flat": flat}
    headers: list[tuple[str, str, str, dict[str, int]]] = [
        ("C4", "kind_0", "ids", {"kind": 0}), ("C4", "kind_4", "ids", {"kind": 4}),
        ("C5", "ids_of_float16", "ids", {"type": 2}), ("C5", "values_of_float32", "values", {"type": 4}),
        ("C5", "flat_of_float16", "flat", {"type": 2}), ("C5", "type_0", "values", {"type": 0}),
        ("C6", "block_log2_3", "ids", {"block_log2": 3}), ("C6", "block_log2_7", "ids", {"block_log2": 7}),
        ("C7", "parameter_base_32", "ids", {"parameter_base": 32}), ("C8", "shifts_6", "ids", {"shifts_width": 6}),
        ("C9", "counts_width_33", "values", {"counts_width": 33}), ("C9", "lengths", "ids", {"lengths_width": 255}),
        ("C9", "bases_width_33", "values", {"bases_width": 33}),
        ("C10", "rows", "ids", {"rows": (1 << 30) + 1, "counts_width": 0, "lengths_width": 0}),
        ("C10", "no_slots", "ids", {"slots": 0}), ("C10", "slots_2_31", "ids", {"slots": 1 << 31}),
        ("C11", "no_bound", "ids", {"bound": 0}), ("C11", "bound", "ids", {"bound": (1 << 31) + 1}),
        ("C11", "bound_of_values", "values", {"bound": 512}), ("C12", "shift_of_ids", "ids", {"shift": 1}),
        ("C12", "bases_minimum_of_ids", "ids", {"bases_minimum": 1}),
        ("C12", "bases_width_of_ids", "ids", {"bases_width": 1}), ("C13", "shift_16", "values", {"shift": 16}),
        ("C13", "shift_32", "flat", {"shift": 32}), ("C14", "slots_255", "flat", {"slots": 255}),
        ("C14", "counts", "flat", {"counts_minimum": 255}), ("C14", "counts_width", "flat", {"counts_width": 1}),
        ("C14", "groups", "flat", {"rows": 3}), ("C15", "no_payload", "ids", {"payload_words": 1}),
        ("C15", "payload_2_27", "ids", {"payload_words": 1 << 27}),
    ]  # fmt: skip
    for rule, name, kind, header in headers:
        yield _broken(name, rule, "corrupt", reseal(of_kind[kind], **header), f"header says {header}", kind)
    yield _broken("one_byte_short", "C16", "truncated", ids[:-1], "the last byte is missing")
    yield _broken(
        "many_rows", "C16", "truncated", reseal(ids, rows=1 << 30), "a header that asks for much", shape=[1 << 30, 4]
    )
    yield _broken("shift_of_a_row_16", "C13", "corrupt", _shift_of_a_row(16), "a row has no bit left", "values")
    yield _broken("one_byte_more", "C17", "corrupt", ids + b"\0", "a byte too many")
    yield _broken("payload_bit", "C18", "corrupt", ids[:57] + bytes([ids[57] ^ 1]) + ids[58:], "a flipped bit")
    yield _broken("checksum", "C18", "corrupt", ids[:-1] + bytes([ids[-1] ^ 128]), "a flipped bit of the checksum")
    others: dict[str, dict[str, Any]] = {
        "kind": {"kind": "values", "type": "float16", "vocab_size": 0}, "rows": {"shape": [4, 4]},
        "slots": {"shape": [3, 5]}, "bound": {"vocab_size": 511},
    }  # fmt: skip
    for name, other in others.items():
        yield _broken(f"other_{name}", "C19", "corrupt", ids, "a sound chunk where another one was expected", **other)
    yield _broken("other_type", "C19", "corrupt", values, "float16, uint8 was expected", "values", type="uint8")
    yield _broken("other_elements", "C19", "corrupt", flat, "300 elements, 301 were expected", "flat", shape=[301])

    def ids_of(*rows: Row, **options: Any) -> bytes:
        return craft("ids", "uint32", 4, [*rows, *[Row([])] * (3 - len(rows))], bound=512, **options)

    crafted = {
        ("C20", "count"): (ids_of(Row([0] * 5)), "5 entries in 4 slots"),
        ("C21", "entries"): (ids_of(Row([0] * 3), entries=4), "the header says 4 entries, the rows have 3"),
        ("C22", "long_payload"): (ids_of(Row([1], [0]), Row([], tail="0" * 31, cut=31), lengths_minimum=11), "lengths"),
        ("C23", "no_room_for_parameter"): (ids_of(Row([0], [0], cut=1)), "4 bits for a parameter and an entry"),
        ("C23", "no_room_for_remainders"): (ids_of(Row([1, 2, 3], [9], cut=3)), "no room for quotients"),
        ("C24", "parameter_32"): (ids_of(Row([0], [32], tail="1" * 40), parameter_base=20), "20 + 12"),
        ("C25", "too_few"): (ids_of(Row([1, 2], [0], cut=1)), "the last one bit is missing"),
        ("C25", "too_many"): (ids_of(Row([1, 2], [0], tail="1")), "a one bit too many"),
        ("C25", "trailing_zero"): (ids_of(Row([1, 2], [0], tail="0")), "a zero bit behind the last one bit"),
        ("C25", "bits_without_entries"): (ids_of(Row([], tail="00000")), "a length for a row without entries"),
        ("C25", "many_ones"): (ids_of(Row([1], [0], tail="1" * 200)), "200 one bits too many"),
        ("C25", "long_too_few"): (ids_of(Row([1, 2, 70_000], [0], cut=1)), "as above, in a row of many zeros"),
        ("C25", "long_too_many"): (ids_of(Row([70_000, 2], [0], tail="1")), "as above, in a row of many zeros"),
        ("C25", "long_trailing_zero"): (ids_of(Row([70_000, 2], [0], tail="0")), "as above, in a row of many zeros"),
        ("C26", "id_is_bound"): (ids_of(Row([3, 508], [5])), "id 512 in a vocabulary of 512"),
        ("C26", "residual_of_40_bits"): (ids_of(Row([300 << 31], [31]), parameter_base=16), "40 bits"),
        ("C26", "sum_of_2_32"): (ids_of(Row([(1 << 32) - 1, 7], [31]), parameter_base=16), "a wrap to 7"),
    }  # fmt: skip
    for (rule, name), (chunk, why) in crafted.items():
        yield _broken(name, rule, "corrupt", chunk, why)

    def values_of(base: int, residual: int, type_: str = "float16", **options: Any) -> bytes:
        parameter = max(0, residual.bit_length() - 1)
        rows = [Row([0, residual], [parameter]), Row([])]
        options = {"bases": [base, 0], "parameter_base": max(0, parameter - 15), **options}
        return craft("values", type_, 3, rows, **options)

    keys = {
        "key": values_of(0xFFF0, 0x10), "base": values_of(0x10000, 0), "shifted_key": values_of(0x1FFF, 1, shift=3),
        "base_of_33_bits": values_of((1 << 32) + 5, 2, bases=[(1 << 32) + 5, 1 << 31], bases_minimum=1 << 31),
        "sum_of_2_32": values_of(0xFFFFFFFF, 6),
    }  # fmt: skip
    for name, chunk in keys.items():
        yield _broken(name, "C27", "corrupt", chunk, "a key that does not fit", "values")
    small = values_of(200, 56, "uint8")
    yield _broken("key_of_uint8", "C27", "corrupt", small, "200 + 56 in a uint8", "values", type="uint8")
    wide = craft("flat", "uint32", 256, [Row([0, 9], [3])], bases=[0xFFFFFFFA])
    yield _broken(
        "key_of_uint32", "C27", "corrupt", wide, "a uint32 that would wrap to 3", "flat", type="uint32", shape=[2]
    )
