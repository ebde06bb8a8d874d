"""Bits per kept entry: whole stores by field, and the same rows in other formats.

    python benchmarks/size.py STORES

STORES is what make_rows.py wrote. Stores are counted as the bytes of all their files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import click
from harness import show, write_json
from make_rows import SELECTIONS, VARIANTS, store_name
from peers import Blosc2, Parquet, Pcodec, Raw, Zarr
from zarr.codecs import BloscCodec

import logitstore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peers import Columns, Peer

RAW = "raw uint32 + fp16"
TIGHT = (("ids", "DELTA_BINARY_PACKED"), ("values", "BYTE_STREAM_SPLIT"))
PEERS: tuple[tuple[str, tuple[Peer, ...]], ...] = (
    (RAW, (Raw(),)),
    ("Parquet + zstd 3", (Parquet("default encodings"), Parquet("delta ids, byte-split values", TIGHT))),
    (
        "Blosc2, zstd 5",
        (
            Blosc2("shuffle", (blosc2.Filter.SHUFFLE,)),
            Blosc2("bitshuffle", (blosc2.Filter.BITSHUFFLE,)),
            Blosc2("shuffle + bytedelta", (blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA)),
        ),
    ),
    (
        "Zarr, Blosc with zstd 5",
        tuple(
            Zarr(shuffle, BloscCodec(cname="zstd", clevel=5, shuffle=shuffle)) for shuffle in ("shuffle", "bitshuffle")
        ),
    ),
    ("pcodec 8", (Pcodec(),)),
    ("pcodec 8 with our id gaps", (Pcodec(gaps=True),)),
)


def bits_by_field(path: Path) -> dict[str, Any]:
    """Return bits per entry of a store's fields, of everything else in its folder, and of all of it."""
    store = logitstore.open(path)
    files = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    fields = {field.name: store.manifest.bytes_by_field[field.name] for field in store.manifest.row_fields}
    values = fields.pop("logprobs" if store.manifest.values == "logprob" else "logits")
    sizes = {"ids": fields.pop("ids"), "values": values, **fields}
    sizes |= {"documents, metadata": files - sum(sizes.values()), "all": files}
    bits = {name: 8 * size / store.manifest.entries for name, size in sizes.items()}
    return {"store": path.stem, "rows": store.manifest.rows, "K": store.k_max, **bits}


def columns_of(path: Path, order: str) -> Columns:
    rows = logitstore.open(path, order=order).rows[:]
    return {name: getattr(rows, name) for name in ("ids", "values", "tokens", "lse", "label_logprob", "mask")}


def smallest(variants: Sequence[Peer], columns: Columns) -> float:
    """Return the fewest bytes in which one of the variants keeps the columns."""
    return min(peer.size(peer.encode(columns)) for peer in variants)


def compare(path: Path) -> list[dict[str, Any]]:
    """Return bits per entry of every peer, each with its best variant and the better order of entries in a row."""
    store = logitstore.open(path)
    scale = 8 / store.manifest.entries
    whole = bits_by_field(path)
    ours = {"ids": whole["ids"], "values": whole["values"], "rest": whole["all"] - whole["ids"] - whole["values"]}
    found: dict[str, list[tuple[dict[str, float], str]]] = {}
    for order, title in (("stored", "by id"), ("logit", "by logit")):
        columns = columns_of(path, order)
        groups = {"ids": ["ids"], "values": ["values"], "rest": [name for name in columns if name not in ours]}
        for name, variants in PEERS:
            bits = {
                group: scale * smallest(variants, {member: columns[member] for member in members})
                for group, members in groups.items()
            }
            found.setdefault(name, []).append((bits, title))
    packed = {"ids": float((store.vocab_size - 1).bit_length()), "values": 16.0, "rest": found[RAW][0][0]["rest"]}
    table = [("logitstore", ours, "any"), ("packed ids + fp16", packed, "any")]
    table += [(name, *min(orders, key=lambda item: sum(item[0].values()))) for name, orders in found.items()]
    total = sum(ours.values())
    return [
        {"format": name, "order": order, **bits, "all": sum(bits.values()), "× ours": sum(bits.values()) / total}
        for name, bits, order in table
    ]


@click.command(help=__doc__.splitlines()[0])
@click.argument("stores", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(stores: Path, json_path: Path | None) -> None:
    names = [store_name(selection, *variant) for selection in SELECTIONS for variant in VARIANTS]
    tables = {"bits per entry, whole stores": [bits_by_field(stores / name) for name in names]}
    for selection in SELECTIONS:
        name = store_name(selection, *VARIANTS[0])
        tables[f"bits per entry, the rows of {name}"] = compare(stores / name)
    for title, rows in tables.items():
        show(title, rows)
    write_json(json_path, tables)


if __name__ == "__main__":
    main()
