"""The stores of the compact codec in ``vectors/``, and edits that break rules of FORMAT.md section 12 about them."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from vector_stores import ShardFile, beginning, made_up_rows, write_documents

import logitstore
from logitstore.codec.compact import IdCodec, train_ids, train_values
from logitstore.container.codec_record import CodebookSet, CodecRecord
from logitstore.container.file_record import FileRecord
from logitstore.records import by_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from logitstore.codec.compact import Codebook

__all__ = ["COMPACT_STORES", "broken_compact_stores", "write_compact_store"]

COMPACT_STORES: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int | None, ...]]] = {
    "compact.zarr": (
        {
            "vocab_size": 97, "padded_vocab_size": 128, "slots": 6, "selection": {"top_p": 0.9, "max_k": 6},
            "codec": CodecRecord.compact(training_rows=32, retrain_rows=32),
        },
        (1, 17, 30, 5, 20), (0, 1, None),
    ),
    "quantised.wds": (
        {
            "vocab_size": 300, "padded_vocab_size": 300, "slots": 5, "values": "logit", "has_counts": True,
            "selection": {"top_k": 2, "samples": 3, "seed": 0}, "build": {"rows": "masked"}, "temperatures": (2.0,),
            "container": "webdataset", "shard_bytes": 8192,
            "codec": CodecRecord.compact(max_error=0.25, training_rows=16, retrain_rows=16),
        },
        (9, 1, 24, 11), (0, 1),
    ),
}  # fmt: skip
"""Settings, the documents' lengths, and for each ``retrain_rows`` the seed of their codebooks; None is exact."""


def _codebooks(name: str) -> list[tuple[CodebookSet, dict[str, Codebook]]]:
    settings, _, seeds = COMPACT_STORES[name]
    manifest = beginning(name, settings)
    codec = manifest.codec
    sets = []
    for number, seed in enumerate(seeds):
        books: dict[str, Codebook] = {}
        if seed is not None:
            _, rows = made_up_rows(manifest, 300, 100 + seed)
            books["ids"] = train_ids(rows.ids, vocab_size=manifest.vocab_size, expected_rows=20_000, max_classes=3)
            order = IdCodec(books["ids"], manifest.slots).arrange(rows.ids).order
            values = np.take_along_axis(rows.values, order, axis=1)
            values_name = f"{manifest.values}s"
            books[values_name] = train_values(values, max_kl=codec.max_kl, max_error=codec.max_error)
            if rows.counts is not None:
                books["counts"] = train_values(np.take_along_axis(rows.counts, order, axis=1))
        files = {array: FileRecord.of_bytes(book.blob) for array, book in books.items()}
        sets.append((CodebookSet(number * codec.retrain_rows, files), books))
    return sets


def write_compact_store(path: Path, name: str) -> dict[str, Any]:
    """Write one of `COMPACT_STORES` and return what its JSON file says; entries of a row by ascending id.

    Values are those that are stored: where they are quantised, others than the teacher's.
    """
    settings, lengths, _ = COMPACT_STORES[name]
    about = write_documents(path, name, settings, lengths, _codebooks(name))
    with logitstore.open(path, order="stored") as store:
        rows = by_id(store.rows[:])  # type: ignore[type-var]
    for array, values in ((f"{rows.stores}s", rows.values), ("counts", rows.counts)):
        if array in about["arrays"]:
            bits = values.view(f"u{values.itemsize}").tolist()  # type: ignore[union-attr]
            used = (rows.ids != 0xFFFFFFFF).sum(1)
            about["arrays"][array]["elements"] = [row[:n] for row, n in zip(bits, used, strict=True)]
    return about


def _codec_edits(codec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield objects that break a rule of section 4."""
    sets = codec["codebooks"]
    first, second = sets[0], sets[1]
    lone = {"first_row": 0, "files": {"ids": first["files"]["ids"]}}
    changes: dict[str, dict[str, Any]] = {
        "both_bounds": {"max_kl": 0.01, "max_error": 0.1},
        "negative_bound": {"max_error": -0.5},
        "bound_is_a_string": {"max_kl": "small"},
        "training_rows": {"training_rows": -1},
        "retrain_rows": {"retrain_rows": 1.5},
        "no_set": {"codebooks": []},
        "sets_are_an_object": {"codebooks": {}},
        "first_row": {"codebooks": [{**first, "first_row": 1}, second]},
        "sets_descend": {"codebooks": [first, {**second, "first_row": 0}]},
        "an_array_is_missing": {"codebooks": [lone]},
        "another_array": {"codebooks": [{"first_row": 0, "files": {**first["files"], "lse": first["files"]["ids"]}}]},
        "no_digest": {"codebooks": [{"first_row": 0, "files": {name: {"bytes": 1} for name in first["files"]}}]},
        "loss_is_a_list": {"loss": []},
        "loss_is_negative": {
            "loss": {
                "rows": 1, "entries": 1, "kl_mean": -1.0, "kl_p99": None, "kl_worst": None, "error_mean": 0.0,
                "error_worst": 0.0,
            }
        },
    }  # fmt: skip
    for name, change in changes.items():
        yield name, {**codec, **change}
    for key in ("max_kl", "max_error", "training_rows", "retrain_rows", "codebooks", "loss"):
        yield f"no_{key}", {other: value for other, value in codec.items() if other != key}


def broken_compact_stores(stores: Path) -> Iterator[dict[str, Any]]:
    """Edits of the compact stores that each break one rule; see `vector_stores.broken_stores`."""
    for store in sorted(COMPACT_STORES):
        path = stores / store
        codec = json.loads((path / "manifest.json").read_bytes())["codec"]
        files = codec["codebooks"][0]["files"]
        names = {array: f"codebooks/{file['sha256'][:32]}.lgb" for array, file in files.items()}
        book = (path / names["ids"]).read_bytes()
        edits: list[tuple[str, str, str, list[dict[str, Any]]]] = [
            ("S26", "no_codebook", "truncated", [{"file": names["ids"], "delete": True}]),
            ("S26", "shorter", "truncated", [{"file": names["ids"], "truncate": 40}]),
            ("S27", "longer", "corrupt", [{"file": names["ids"], "append": "00", "times": 1}]),
            ("S27", "flipped_bit", "corrupt", [
                {"file": names["ids"], "offset": 60, "bytes": bytes([book[60] ^ 1]).hex()},
            ]),
            ("S27", "of_another_array", "corrupt", [{"file": "manifest.json", "set": {"codec": {
                **codec, "codebooks": [{"first_row": 0, "files": dict.fromkeys(files, files["ids"])}],
            }}}]),
            ("S5", "version_3", "unsupported", [{"file": "manifest.json", "set": {"codec": {**codec, "version": 3}}}]),
        ]  # fmt: skip
        edits += [
            ("S6", name, "corrupt", [{"file": "manifest.json", "set": {"codec": broken}}])
            for name, broken in _codec_edits(codec)
        ]
        if store.endswith(".zarr"):
            ids = ShardFile(path, "ids/c.0.0")
            chunk = ids.first_chunk[:20] + bytes(16) + ids.first_chunk[36:-4]
            chunk += struct.pack("<I", google_crc32c.value(chunk))
            edits.append(("S28", "another_codebook", "corrupt", ids.chunk(chunk)))
            values = {"codec": {**codec, "max_kl": 0.01}, "values": "logit"}
            edits.append(("S6", "kl_of_logits", "corrupt", [{"file": "manifest.json", "set": values}]))
        for rule, name, error, changes in edits:
            yield {
                "name": f"{rule.lower()}_{store.replace('.', '_')}_{name}", "rule": rule, "error": error,
                "store": store, "edits": changes,
            }  # fmt: skip
