"""Every reader reads the stores in tar shards to the same bits, and refuses the broken copies that it can notice."""

from __future__ import annotations

import gc
import json
import tarfile
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import pytest

import logitstore
from logitstore import layout
from logitstore.container.document import DocumentFile
from logitstore.container.tar_index import IndexRecord
from logitstore.errors import CorruptDataError, LogitStoreError
from tests.spec.vectors import (
    ERRORS,
    check_decoder_reads,
    check_package_reads,
    expected_bits,
    printed,
    spoiled_copy,
    store_vector_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

    from tests.spec.vectors import StoreVector

NAMES = ["plain", "drawn", "nothing"]


@pytest.fixture(params=NAMES)
def tar_vector(spec: Path, request: pytest.FixtureRequest) -> StoreVector:
    return store_vector_of(spec, f"{request.param}.wds")


def test_package_reads(tar_vector: StoreVector) -> None:
    check_package_reads(tar_vector)


def test_standard_library_reads_by_index(decoder: ModuleType, tar_vector: StoreVector) -> None:
    path, about = tar_vector
    store = decoder.open_store(path)
    assert isinstance(store, decoder.TarStore)
    check_decoder_reads(store, about, slice(3, 15))


def _check_samples(samples: Iterable[tuple[dict[str, Any], Any]], about: dict[str, Any]) -> None:
    """Compare documents, and readers of their arrays as bits, with what the vector says."""
    first = 0
    numbers = []
    for number, (line, bits) in enumerate(samples):
        expected = about["documents"][number]
        assert line == {**expected, "first_row": first}
        for name, array in about["arrays"].items():
            np.testing.assert_array_equal(bits(name), expected_bits(array, name)[first : first + expected["rows"]])
        first += expected["rows"]
        numbers.append(number)
    assert len(numbers) == len(about["documents"])


def test_standard_library_reads_tars(decoder: ModuleType, tar_vector: StoreVector) -> None:
    path, about = tar_vector
    _check_samples(((line, file.bits) for line, file in decoder.TarStore(path).tars()), about)


def _decoded(data: bytes) -> Callable[[str], NDArray[Any]]:
    file = DocumentFile(lambda start, stop: memoryview(data)[start:stop], len(data))
    out = file.empty(file.header.rows)
    file.decode(0, file.header.rows, out)
    return lambda name: out[name].view(f"<u{out[name].itemsize}")


def _line(data: bytes, document: int) -> dict[str, Any]:
    line = json.loads(data)
    assert line.pop("document") == document
    return dict(line)


def test_plain_tar_reads(tar_vector: StoreVector) -> None:
    path, about = tar_vector
    contents: list[bytes] = []
    for file in sorted(path.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                document, suffix = divmod(len(contents), 2)
                assert member.name == f"{document:010d}.{('json', 'lgt')[suffix]}"
                assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
                content = tar.extractfile(member)
                assert content is not None
                contents.append(content.read())
    lines = [_line(data, number) for number, data in enumerate(contents[::2])]
    _check_samples(zip(lines, map(_decoded, contents[1::2]), strict=True), about)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["plain", "drawn"])
def test_webdataset_reads(spec: Path, name: str) -> None:
    import webdataset

    folder, about = store_vector_of(spec, f"{name}.wds")
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    gc.collect()  # webdataset leaves its files to the garbage collector: let it complain here and not in another test
    assert [int(sample["__key__"]) for sample in samples] == list(range(len(about["documents"])))
    lines = [_line(sample["json"], number) for number, sample in enumerate(samples)]
    _check_samples(zip(lines, (_decoded(sample["lgt"]) for sample in samples), strict=True), about)


def test_index_and_members_agree(tar_vector: StoreVector) -> None:
    path, about = tar_vector
    index = (path / "documents.idx").read_bytes()
    lines = (path / "documents.jsonl").read_bytes()
    end = 0
    for number in range(len(about["documents"])):
        size = layout.INDEX_RECORD_BYTES
        record = IndexRecord.unpack(index[number * size : (number + 1) * size])
        tar = (path / f"shard-{record.shard:06d}.tar").read_bytes()
        said = tar[record.json_offset : record.json_offset + record.json_size]
        data = tar[record.offset : record.offset + record.size]
        assert (google_crc32c.value(said), google_crc32c.value(data)) == (record.json_crc, record.crc)
        line = json.loads(lines[record.line_offset : record.line_offset + record.line_size])
        assert json.loads(said) == {**line, "document": number, "first_row": record.first_row}
        assert said.isascii()
        assert record.line_offset == end
        end += record.line_size
    assert end == len(lines)


def test_vectors_cover_what_they_should(spec: Path) -> None:
    stores = spec / "vectors" / "stores"
    tables = {name: (stores / f"{name}.wds" / "shards.jsonl").read_text().splitlines() for name in NAMES}
    documents = {name: [json.loads(line)["documents"] for line in lines] for name, lines in tables.items()}
    assert max(documents["plain"]) > 1 < len(documents["plain"])
    assert documents["nothing"] == []
    drawn = json.loads((stores / "drawn.wds" / "manifest.json").read_text())
    assert json.loads(tables["drawn"][0])["files"]["tar"]["bytes"] > drawn["shard_bytes"]


@pytest.mark.parametrize("name", NAMES)
def test_command_prints_json(spec: Path, name: str) -> None:
    path, about = store_vector_of(spec, f"{name}.wds")
    lines = printed(spec, path)
    assert [line["key"] for line in lines if "document" in line] == [line["key"] for line in about["documents"]]
    rows = [line for line in lines if "row" in line]
    assert len(rows) == len(about.get("arrays", {}).get("tokens", {"elements": []})["elements"])
    sequential = printed(spec, path, "--sequential")
    assert [line for line in sequential if "row" in line] == rows
    assert [line for line in sequential if "row" not in line] == [line for line in lines if "row" not in line]
    if rows:
        assert printed(spec, path, "--rows", "3:5") == rows[3:5]


@pytest.fixture
def spoiled(spec: Path, tmp_path: Path, broken_tar_store: dict[str, Any]) -> Path:
    path, _ = store_vector_of(spec, f"{broken_tar_store['store']}.wds")
    return spoiled_copy(path, tmp_path / "store.wds", broken_tar_store["edits"])


def _read_all(path: Path, verify: Any) -> None:
    with logitstore.open(path, verify=verify) as store:
        for _ in store:
            pass


def test_package_refuses(broken_tar_store: dict[str, Any], spoiled: Path) -> None:
    if broken_tar_store["noticed_by"] == "tars":
        with pytest.raises(CorruptDataError):  # by the digests
            _read_all(spoiled, "full")
        return
    error = ERRORS[broken_tar_store["error"]]
    with pytest.raises(error) as caught:
        _read_all(spoiled, "lazy")
    assert type(caught.value) is error
    assert caught.value.path is not None


@pytest.mark.parametrize("verify", ["none", "full"])
def test_package_crashes_never(broken_tar_store: dict[str, Any], spoiled: Path, verify: str) -> None:
    try:
        _read_all(spoiled, verify)
    except LogitStoreError:
        return
    assert verify == "none"


def _by_index(decoder: ModuleType, path: Path) -> None:
    store = decoder.open_store(path)
    for number in range(store.manifest["documents"]):
        store.document(number)
    for name in store.row_arrays:
        store.read(name)


def _by_tars(decoder: ModuleType, path: Path) -> None:
    store = decoder.open_store(path)
    for _, file in store.tars():
        for name in store.row_arrays:
            store.read_array(file, name)


@pytest.mark.parametrize("way", ["index", "tars"])
def test_standard_library_refuses(
    decoder: ModuleType, broken_tar_store: dict[str, Any], spoiled: Path, way: str
) -> None:
    read = _by_index if way == "index" else _by_tars
    if broken_tar_store["noticed_by"] not in (way, "both"):
        try:
            read(decoder, spoiled)
        except decoder.FormatError:
            assert broken_tar_store["name"] == "t12_exchanged"  # the index finds another document
        return
    with pytest.raises(decoder.FormatError) as caught:
        read(decoder, spoiled)
    assert (caught.value.rule, caught.value.kind) == (broken_tar_store["rule"], broken_tar_store["error"])
