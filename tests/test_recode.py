"""From codec to codec: the same rows, or within a bound; and compact stores from container to container."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from logitstore_cli.main import main

import logitstore
import logitstore.wds
from logitstore import InvalidArgumentError, TruncatedDataError
from logitstore.audit import verify
from logitstore.codec.compact import registry
from logitstore.container import codebooks
from logitstore.container.codec_record import CodecRecord
from logitstore.container.manifest import Manifest
from logitstore.convert import convert, recode
from logitstore.stream import BatchStream

pytestmark = pytest.mark.usefixtures("codebooks_always")

LENGTHS = [20, 13, 9, 1, 40, 7, 31, 60]
SETTINGS = {
    "rows_per_shard": 16, "has_counts": True, "temperatures": (2.0,), "selection": {"top_k": 5, "samples": 50},
}  # fmt: skip
SMALL = {"training_rows": 24, "retrain_rows": 64}
LOSSY = CodecRecord.compact(max_kl=1e-3, **SMALL)


@pytest.fixture
def source(stores: Any, tmp_path: Path) -> Path:
    return Path(stores.make(tmp_path / "source", LENGTHS, ragged=True, **SETTINGS))


def rows(path: Path) -> Any:
    with logitstore.open(path) as store:
        return store.rows[:]


@pytest.mark.parametrize("to", ["zarr", "webdataset"])
def test_lossless_there_and_back(source: Path, tmp_path: Path, to: Any) -> None:
    recode(source, tmp_path / "compact", codec=CodecRecord.compact(**SMALL), to=to, shard_bytes=7000)
    recode(tmp_path / "compact", tmp_path / "back", codec=CodecRecord(), to="zarr")
    for path in (tmp_path / "compact", tmp_path / "back"):
        assert verify(path).ok
        for name in ("tokens", "ids", "values", "counts", "lse", "label_logprob", "mask", "lse_T"):
            np.testing.assert_array_equal(getattr(rows(path), name), getattr(rows(source), name))
    # Chunks are those of the source; the store has another name.
    before, after = Manifest.read(source), Manifest.read(tmp_path / "back")
    assert after.bytes_by_field == before.bytes_by_field
    assert after.store_id != before.store_id
    assert after.build["recoded_from"]["name"] == "logitstore.compact"


@pytest.mark.parametrize("codec", [LOSSY, CodecRecord.compact(**SMALL)], ids=["lossy", "lossless"])
def test_containers_there_and_back_give_the_same_bytes(
    stores: Any, source: Path, tmp_path: Path, codec: CodecRecord
) -> None:
    recode(source, tmp_path / "z", codec=codec)
    convert(tmp_path / "z", tmp_path / "t", to="webdataset", shard_bytes=5000)
    convert(tmp_path / "t", tmp_path / "back", to="zarr", workers=3)
    assert verify(tmp_path / "t").ok
    assert stores.digests(tmp_path / "back") == stores.digests(tmp_path / "z")
    assert Manifest.read(tmp_path / "t").codec == Manifest.read(tmp_path / "z").codec


def test_what_was_lost_is_known_later(source: Path, tmp_path: Path) -> None:
    lossy = recode(source, tmp_path / "lossy", codec=LOSSY)
    exact = recode(tmp_path / "lossy", tmp_path / "exact", codec=CodecRecord())
    again = recode(tmp_path / "exact", tmp_path / "again", codec=CodecRecord.compact(**SMALL))
    assert lossy.codec.loss is not None
    for manifest in (exact, again):
        assert manifest.bound == lossy.bound
        assert manifest.build["recoded_from"]["loss"]["kl_mean"] == lossy.codec.loss.kl_mean
    for name in ("lossy", "exact", "again"):
        assert verify(tmp_path / name).ok
        with pytest.raises(InvalidArgumentError, match="quantised already"):
            recode(tmp_path / name, tmp_path / "x", codec=CodecRecord.compact(max_error=0.1))
    assert not (tmp_path / "x").exists()


def test_logits_have_no_kl(stores: Any, tmp_path: Path) -> None:
    source = stores.make(tmp_path / "source", LENGTHS, values="logit")
    with pytest.raises(InvalidArgumentError, match="max_error"):
        recode(source, tmp_path / "out", codec=CodecRecord.compact(max_kl=1e-3))
    found = recode(source, tmp_path / "out", codec=CodecRecord.compact(max_error=0.1, **SMALL))
    assert found.codec.loss is not None
    assert found.codec.loss.kl_mean is None
    assert 0 < found.codec.loss.error_worst <= 0.1
    assert verify(tmp_path / "out").ok


class Stop(Exception):
    pass


def test_interrupted_and_resumed(stores: Any, source: Path, tmp_path: Path) -> None:
    recode(source, tmp_path / "whole", codec=LOSSY)
    for number in (1, 4, 6, 8):
        out, calls = tmp_path / str(number), []

        def stop(done: int, total: int, calls: list[int] = calls, number: int = number) -> None:
            calls.append(done)
            if len(calls) == number:
                raise Stop

        with pytest.raises(Stop):
            recode(source, out, codec=LOSSY, progress=stop)
        with pytest.raises(InvalidArgumentError, match="codec"):
            recode(source, out, codec=CodecRecord.compact(max_kl=2e-3, **SMALL), resume=True)
        recode(source, out, codec=LOSSY, resume=True)
        assert stores.digests(out) == stores.digests(tmp_path / "whole")
    assert recode(source, tmp_path / "1", codec=LOSSY, resume=True).complete


def test_batches_of_a_training_loop(source: Path, tmp_path: Path) -> None:
    recode(source, tmp_path / "compact", codec=CodecRecord.compact(**SMALL))
    exact, compact = (list(BatchStream(path, 2, prefetch=0)) for path in (source, tmp_path / "compact"))
    assert len(exact) == len(compact) > 2
    for one, other in zip(exact, compact, strict=True):
        a, b = one["ids"].sort(dim=-1, stable=True), other["ids"].sort(dim=-1, stable=True)
        assert a.values.equal(b.values)
        assert one["logprobs"].gather(-1, a.indices).equal(other["logprobs"].gather(-1, b.indices))
        assert one["tokens"].equal(other["tokens"])


class TestWebDataset:
    @pytest.fixture
    def tars(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(registry, "_BOOKS", {})
        codebooks.registered_codec.cache_clear()
        recode(source, tmp_path / "t", codec=LOSSY, to="webdataset", shard_bytes=5000)
        return tmp_path / "t"

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_urls_load_the_codebooks(self, tars: Path) -> None:
        samples = list(wds.WebDataset(logitstore.wds.urls(tars), shardshuffle=False).decode())
        with logitstore.open(tars) as store:
            for sample, document in zip(samples, store, strict=True):
                np.testing.assert_array_equal(sample["lgt"].ids, document.ids)
                np.testing.assert_array_equal(sample["lgt"].values, document.values)

    def member(self, tars: Path) -> bytes:
        import tarfile

        with tarfile.open(tars / "shard-000000.tar") as tar:
            file = tar.extractfile("0000000000.lgt")
            assert file is not None
            return file.read()

    def test_without_them(self, tars: Path) -> None:
        with pytest.raises(TruncatedDataError, match=r"is not loaded.*logitstore\.wds\.urls"):
            logitstore.wds.decode_lgt(self.member(tars))

    def test_a_handler_that_knows_the_store_works_in_any_process(self, tars: Path, tmp_path: Path) -> None:
        (tmp_path / "member").write_bytes(self.member(tars))
        code = (
            "import sys, logitstore.wds\n"
            "handler = logitstore.wds.Handler(store=sys.argv[1])\n"
            "print(handler('.lgt', open(sys.argv[2], 'rb').read()).ids.shape)\n"
        )
        command = [sys.executable, "-W", "ignore", "-c", code, str(tars), str(tmp_path / "member")]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "(20, 5)\n"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["logitstore", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_command_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "out"
    options = ["--codec", "compact", "--training-rows", 24, "--retrain-rows", 64]
    assert run(monkeypatch, "recode", source, out, *options, "--max-kl", 1e-3, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["codec"]["name"] == "logitstore.compact"
    assert result["rows"] == sum(LENGTHS)
    assert result["codec"]["loss"]["kl_worst"] <= 1e-3
    assert run(monkeypatch, "inspect", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["codec"] == result["codec"]
    books = sum(file.stat().st_size for file in (out / "codebooks").iterdir())
    assert summary["bytes_by_field"]["codebooks"] == books > 0
    assert run(monkeypatch, "inspect", out) == 0
    assert "generalised KL of a row at most 0.001" in " ".join(capsys.readouterr().out.split())
    assert run(monkeypatch, "stats", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["codec"] == result["codec"]
    assert run(monkeypatch, "stats", out) == 0
    assert "quantised" in capsys.readouterr().out
    assert run(monkeypatch, "verify", out) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--codec", "exact", "--max-kl", "1e-3"], "--max-kl goes with --codec compact"),
        (["--codec", "exact", "--lossless"], "--lossless goes with --codec compact"),
        (["--codec", "compact", "--lossless", "--max-error", "1"], "--lossless keeps every bit"),
        (["--codec", "compact", "--max-kl", "1", "--max-error", "1"], "not by both"),
        (["--codec", "compact", "--retrain-rows", "many"], "is not a number like"),
        ([], "--codec"),
    ],
)
def test_options_that_do_not_go_together(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, options: list[str], message: str
) -> None:
    assert run(monkeypatch, "recode", source, tmp_path / "out", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
