from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest
from logitstore_cli.main import main
from logitstore_cli.render import decimal_bytes
from logitstore_cli.sizes import COUNT, SIZE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["logitstore", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as done:
            main()
        captured = capsys.readouterr()
        code = done.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return call


@pytest.fixture
def path(stores: Any, tmp_path: Path) -> Path:
    return stores.make(tmp_path / "s", [20, 13, 40], ragged=True)


@pytest.mark.parametrize("name", ["inspect", "verify", "stats", "bench"])
def test_help_has_an_example_and_names_every_option(run: Any, name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"logitstore {name} teacher.zarr" in out
    for parameter in importlib.import_module(f"logitstore_cli.{name}").command.params:
        if isinstance(parameter, click.Option):
            assert all(option in out for option in parameter.opts)
            assert parameter.help or parameter.name == "help"


def test_inspect(run: Any, path: Path) -> None:
    code, out, _ = run("inspect", path)
    assert code == 0
    assert "73 in 3 shards" in out
    assert "label_logprob" in out
    code, out, _ = run("inspect", path, "--json")
    assert json.loads(out)["rows"] == 73
    code, out, err = run("inspect", path, "--document", 1, "--rows", "2:5", "--top", 2)
    assert code == 0
    assert "document 1" in out
    assert "showing rows 2 to 4 of 13" in err
    document = json.loads(run("inspect", path, "--document", "-1", "--rows", "-1", "--json")[1])
    assert [row["row"] for row in document["rows"]] == [39]
    assert [row["row"] for row in json.loads(run("inspect", path, "--document", 2, "--json")[1])["rows"]] == list(
        range(40)
    )


def test_verify(run: Any, path: Path) -> None:
    code, out, _ = run("verify", path)
    assert code == 0
    assert "sound: 73 rows" in out
    assert json.loads(run("verify", path, "--json")[1]) == {"ok": True, "errors": [], "rows_checked": 73, "notes": []}
    (path / "stranger").touch()
    assert "stranger is not part" in run("verify", path)[2]
    (path / "lse" / "c.1").unlink()
    code, out, _ = run("verify", path)
    assert code == 1
    assert "lse/c.1" in out
    assert "BROKEN" in out
    code, out, _ = run("verify", path, "--json")
    assert code == 1
    content = json.loads(out)
    assert content["ok"] is False
    assert {"file", "shard", "row", "rule", "message"} == set(content["errors"][0])


def test_stats(run: Any, path: Path, tmp_path: Path) -> None:
    code, out, err = run("stats", path, "--plot", tmp_path / "figure.png")
    assert code == 0
    assert "kept probability, mean" in out
    assert "teacher perplexity" in out
    assert "figure.png" in err
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert json.loads(run("stats", path, "--json")[1])["all_rows"]["rows"] == 73


def test_bench_of_a_device_says_what_it_lacks(run: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = run("bench", "--device", "cuda")
    assert (code, out) == (2, "")
    assert "needs a CUDA device" in err
    for arguments in ([], [path, "--device", "cuda"]):
        assert run("bench", *arguments)[0] == 2


def test_bench_of_a_device_prints_figures_beside_bounds_and_goals(run: Any) -> None:
    tiny = ["bench", "--device", "cpu", "--scale", "tiny", "--only", "select", "--only", "decode"]
    code, out, _ = run(*tiny)
    assert code == 0
    for words in ("select, k = 4", "one read of the logits", "torch topk + logsumexp", "at least 10 G entries/s"):
        assert words in out
    assert "No CUDA device" in out
    assert "not measured" in out
    found = json.loads(run(*tiny, "--rows", 2, "--json")[1])
    assert found["sizes"]["rows"] == 2
    assert {"case", "contender", "seconds", "bound", "bound_seconds", "times_bound", "peak_bytes",
            "entries_per_second"} == set(found["figures"][0])  # fmt: skip
    code, out, err = run("bench", "--device", "cpu", "--scale", "tiny", "--only", "everything")
    assert (code, out) == (2, "")
    assert "fused-loss" in err
    assert run("bench", "--device", "cpu")[0] == 2


def test_bench(run: Any, path: Path) -> None:
    code, out, _ = run("bench", path, "--rows", 50)
    assert code == 0
    assert "a random row" in out
    assert json.loads(run("bench", path, "--json")[1])["rows"] == 73


def test_plan(run: Any, stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "p", [90, 40], slots=8)  # too few rows for a codebook to pay
    code, out, err = run("plan", "--store", path, "--tokens", "1.5M", "--budget", "1TB")
    assert code == 0
    assert "1,500,000 tokens, V = 97, budget 1 TB: measured on" in out
    assert "build --teacher DIR_OR_ID --data CORPUS --top-k 8 --out teacher.zarr" in out
    assert "130 of the sample's 130 rows were used" in " ".join(err.split())
    code, out, _ = run("plan", "--store", path, "--top-k", 2, "--budget", "1KB")
    assert (code, "nothing fits" in out) == (0, True)
    content = json.loads(run("plan", "--store", path, "--top-k", 2, "--rows", 60, "--json")[1])
    assert content["rows_trained"] + content["rows_measured"] == 60
    assert [line["fits"] for line in content["lines"]] == [None] * 5


def test_plan_without_a_store(run: Any) -> None:
    code, out, _ = run("plan", "--vocab", 128256, "--tokens", "10e9", "--budget", "5TB")
    assert code == 0
    assert "ESTIMATED" in out
    assert "plan --store sample.zarr --tokens 10000000000" in out
    assert "recommended" not in out
    assert json.loads(run("plan", "--vocab", 128256, "--tokens", "10e9", "--json")[1])["estimated"] is True


def test_plan_says_what_it_cannot(run: Any, path: Path, tmp_path: Path) -> None:
    for arguments in (
        [],
        ["--tokens", 5],
        ["--store", path, "--vocab", 98],
        ["--store", path, "--top-k", 6],
        ["--store", path, "--tokens", "many"],
        ["--store", path, "--tokens", "1e99"],
        ["--store", path, "--budget", "0"],
        ["--store", tmp_path / "nothing"],
    ):
        code, out, err = run("plan", *arguments)
        assert (code, out) == (2, ""), arguments
        assert "Error" in err
    (path / "manifest.json").unlink()
    assert run("plan", "--store", path)[0] == 1


@pytest.mark.parametrize(
    ("kind", "text", "number"),
    [(SIZE, "5TB", 5 * 10**12), (SIZE, "1.5 GiB", 3 << 29), (COUNT, "10e9", 10**10), (COUNT, "128,256", 128_256),
     (COUNT, "2.5B", 25 * 10**8), (COUNT, "1e+3", 1000), (COUNT, "7", 7)],
)  # fmt: skip
def test_numbers_as_people_write_them(kind: Any, text: str, number: int) -> None:
    assert kind.convert(text, None, None) == number


def test_sizes_as_people_read_them() -> None:
    found = [decimal_bytes(size) for size in (7, 999, 999.9, 1500, 463e9, 999.6e9, 5e12, 2e15, 1e19)]
    assert found == ["7 B", "999 B", "1 kB", "1.5 kB", "463 GB", "1 TB", "5 TB", "2 PB", "1e+04 PB"]


@pytest.mark.parametrize("name", ["inspect", "verify", "stats", "bench"])
def test_exit_codes(run: Any, path: Path, tmp_path: Path, name: str) -> None:
    code, out, err = run(name, tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert "does not exist" in err
    assert run(name)[0] == run(name, path, "--no-such-option")[0] == 2
    (path / "manifest.json").unlink()
    code, out, err = run(name, path)
    assert code == 1
    assert "manifest.json" in out + err
    assert "Traceback" not in err


def test_bad_usage(run: Any, path: Path) -> None:
    for arguments in (
        ["inspect", path, "--rows", "1:2"],
        ["inspect", path, "--document", 0, "--rows", "a:b"],
        ["inspect", path, "--document", 0, "--rows", "1:2:3"],
        ["inspect", path, "--document", 99],
        ["inspect", path, "--document", 0, "--tokenizer", path / "nowhere"],
        ["bench", path, "--rows", 0],
        ["verify", path, "--teacher", path / "nowhere"],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err
