from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from logitstore_cli.main import main

import logitstore
from logitstore import CorruptDataError, InvalidArgumentError
from logitstore.audit import verify
from logitstore.container.manifest import Manifest
from logitstore.convert import convert

LENGTHS = [20, 13, 9, 1, 40, 7, 31]
SETTINGS = {
    "rows_per_shard": 16, "has_counts": True, "temperatures": (0.5, 2.0), "selection": {"top_k": 5, "samples": 50},
}  # fmt: skip


@pytest.fixture(scope="module")
def source(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(stores.make(tmp_path_factory.mktemp("source") / "z", LENGTHS, **SETTINGS))


def test_there_and_back_gives_the_same_bytes(stores: Any, source: Path, tmp_path: Path) -> None:
    for shard_bytes in (1, 9000, 10**9):
        tars, back = tmp_path / f"{shard_bytes}.wds", tmp_path / f"{shard_bytes}.zarr"
        convert(source, tars, to="webdataset", shard_bytes=shard_bytes)
        convert(tars, back, to="zarr", workers=3)
        assert verify(tars).ok
        assert stores.digests(back) == stores.digests(source)
        assert (tars / "documents.jsonl").read_bytes() == (source / "documents.jsonl").read_bytes()


def test_a_converted_store_equals_a_built_one(stores: Any, source: Path, tmp_path: Path) -> None:
    built = stores.make(tmp_path / "built", LENGTHS, **SETTINGS, container="webdataset", shard_bytes=7000)
    convert(source, tmp_path / "converted", to="webdataset", shard_bytes=7000)
    assert stores.digests(tmp_path / "converted") == stores.digests(built)
    resharded = convert(built, tmp_path / "resharded", to="webdataset", shard_bytes=20_000)
    assert 1 < resharded.row_shards < Manifest.read(built).row_shards
    convert(tmp_path / "resharded", tmp_path / "again", to="webdataset", shard_bytes=7000)
    assert stores.digests(tmp_path / "again") == stores.digests(built)


@pytest.mark.parametrize("values", ["logprob", "logit"])
@pytest.mark.parametrize("ragged", [False, True])
def test_every_kind_of_store(stores: Any, tmp_path: Path, values: str, ragged: bool) -> None:
    shape = {"values": values, "build": {"rows": "masked"}, "rows_per_shard": 8}
    source = stores.make(tmp_path / "z", [5, 30], ragged=ragged, **shape)
    convert(source, tmp_path / "t", to="webdataset")
    convert(tmp_path / "t", tmp_path / "back", to="zarr")
    assert stores.digests(tmp_path / "back") == stores.digests(source)


def test_empty_stores(stores: Any, tmp_path: Path) -> None:
    source = stores.make(tmp_path / "z", [])
    assert convert(source, tmp_path / "t", to="webdataset").row_shards == 0
    assert list(logitstore.open(tmp_path / "t")) == []
    assert verify(tmp_path / "t").ok
    convert(tmp_path / "t", tmp_path / "back", to="zarr")
    assert stores.digests(tmp_path / "back") == stores.digests(source)


class Stop(Exception):
    pass


@pytest.mark.parametrize("to", ["webdataset", "zarr"])
def test_interrupted_at_every_document_and_resumed(stores: Any, source: Path, tmp_path: Path, to: Any) -> None:
    whole = tmp_path / "whole"
    options: dict[str, Any] = {"to": to, "shard_bytes": 7000, "workers": 1}
    convert(source, whole, **options)
    for number in range(1, len(LENGTHS) + 1):
        out = tmp_path / str(number)
        calls: list[int] = []

        def interrupt(done: int, total: int, calls: list[int] = calls, number: int = number) -> None:
            assert total == sum(LENGTHS)
            calls.append(done)
            if len(calls) > number:
                raise Stop

        with pytest.raises(Stop):
            convert(source, out, **options, progress=interrupt)
        with pytest.raises(CorruptDataError, match="not finished"):
            logitstore.open(out)
        convert(source, out, **options, resume=True)
        assert stores.digests(out) == stores.digests(whole)
        assert convert(source, out, **options, resume=True) == Manifest.read(out)


def test_what_is_refused(stores: Any, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out, to="webdataset", shard_bytes=7000)
    with pytest.raises(InvalidArgumentError, match="exists"):
        convert(source, out, to="webdataset")
    for options in ({"to": "zarr"}, {"to": "webdataset", "shard_bytes": 8000}):
        with pytest.raises(InvalidArgumentError, match=r"container|shard_bytes"):
            convert(source, out, resume=True, **options)
    other = stores.make(tmp_path / "other", [4], store_id="aa" * 16)
    with pytest.raises(InvalidArgumentError, match="store_id"):
        convert(other, out, to="webdataset", shard_bytes=7000, resume=True)
    with pytest.raises(InvalidArgumentError, match="itself"):
        convert(source, source, to="zarr", overwrite=True)
    assert verify(source).ok
    for wrong in (
        {"to": "parquet"},
        {"to": "zarr", "shard_bytes": 0},
        {"to": "zarr", "resume": True, "overwrite": True},
    ):
        with pytest.raises(InvalidArgumentError):
            convert(source, tmp_path / "never", **wrong)
    assert not (tmp_path / "never").exists()


def test_a_broken_source_stops_with_its_place(stores: Any, source: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    shard = broken / "ids" / "c.2.0"
    content = bytearray(shard.read_bytes())
    content[120] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptDataError) as caught:
        convert(broken, tmp_path / "out", to="webdataset", shard_bytes=1)
    assert Path(str(caught.value.path)) == shard
    assert caught.value.shard == 2
    shutil.copy(source / "ids" / "c.2.0", shard)
    convert(broken, tmp_path / "out", to="webdataset", shard_bytes=1, resume=True)
    convert(source, tmp_path / "whole", to="webdataset", shard_bytes=1)
    assert stores.digests(tmp_path / "out") == stores.digests(tmp_path / "whole")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    monkeypatch.setattr(sys, "argv", ["logitstore", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_command(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "t.wds"
    assert run(monkeypatch, "convert", source, out, "--to", "webdataset", "--shard-size", "7KB", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"] == sum(LENGTHS)
    assert result["shards"] == len(list(out.glob("*.tar"))) > 1
    assert Manifest.read(out).shard_bytes == 7000
    assert run(monkeypatch, "verify", out) == 0
    assert run(monkeypatch, "inspect", out) == 0
    assert run(monkeypatch, "stats", out) == 0
    assert run(monkeypatch, "bench", out) == 0
    assert "zarr, same files" not in capsys.readouterr().out
    assert run(monkeypatch, "convert", source, out, "--to", "webdataset") == 2
    assert run(monkeypatch, "convert", source, out, "--to", "zarr", "--overwrite") == 0
    assert Manifest.read(out).container == "zarr"
    assert run(monkeypatch, "convert", source, tmp_path / "x", "--to", "webdataset", "--shard-size", "big") == 2
    assert run(monkeypatch, "convert", tmp_path / "missing", tmp_path / "x", "--to", "zarr") == 1


def test_manifests_differ_in_the_container_alone(source: Path, tmp_path: Path) -> None:
    converted = convert(source, tmp_path / "t", to="webdataset", shard_bytes=7000)
    before = Manifest.read(source)
    differing = {
        field.name
        for field in dataclasses.fields(Manifest)
        if getattr(converted, field.name) != getattr(before, field.name)
    }
    assert differing == {"container", "shard_bytes", "index_file", "shard_table", "record_bytes", "bytes_by_field"}
