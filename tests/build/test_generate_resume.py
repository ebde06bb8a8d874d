"""A teacher that writes goes on, after it was stopped, to the same bytes."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from logitstore.build import BuildConfig, build
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("load_once")


@pytest.fixture(params=["zarr", "webdataset"])
def awkward(request: Any, configured: Any, write_corpus: Any, texts: Any) -> BuildConfig:
    """Batches, prompts' samples and shards that all end in different places."""
    data = write_corpus(["", *texts(6, 1, 9, 3, 12, 2)])
    config = configured(
        data, samples_per_prompt=3, tokens_per_batch=130, rows_per_chunk=40, rows_per_shard=64, top_k=3, samples=2,
        temperatures=(2.0,),
    )  # fmt: skip
    return dataclasses.replace(config, container=request.param, shard_bytes=2048)  # type: ignore[no-any-return]


def test_writing_may_be_interrupted_at_any_call(
    awkward: BuildConfig,
    run: Any,
    tmp_path: Path,
    files_of: Any,
    interrupt_at_call: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing here loses power.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    calls: list[Any] = []
    run(awkward, "whole", on_progress=calls.append)
    whole = files_of(tmp_path / "whole")
    assert calls[-1].committed_rows > 0
    going_on = 0
    for last in range(1, len(calls) + 1, 3):
        store = tmp_path / f"store{last}"
        interrupt_at_call(awkward, store, last)
        summary = build(awkward, store, resume=True)
        going_on += summary.new_rows < summary.manifest.rows
        assert files_of(store) == whole, f"interrupted at call {last}"
        shutil.rmtree(store)
    assert going_on > 2


def test_writing_from_no_prompt_goes_on_in_the_middle(configured: Any, run: Any, tmp_path: Path, files_of: Any) -> None:
    config = configured(documents=20, tokens_per_batch=80, rows_per_shard=64)
    run(config, "whole.zarr")

    def interrupt(progress: Any) -> None:
        if progress.committed_rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_progress=interrupt)
    calls: list[Any] = []
    summary = run(config, resume=True, on_progress=calls.append)
    assert summary.new_rows < summary.manifest.rows
    assert calls[-1].tokens == calls[-1].total_tokens == summary.manifest.rows
    assert files_of(tmp_path / "store.zarr") == files_of(tmp_path / "whole.zarr")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"sampling_temperature": 0.5}, "build.generation.temperature was 1.0 and is now 0.5"),
        ({"sampling_top_p": 0.5}, "build.generation.top_p was 1.0 and is now 0.5"),
        ({"sampling_seed": 3}, "build.generation.seed was 0 and is now 3"),
        ({"max_new_tokens": 9}, "build.generation.max_new_tokens was 25 and is now 9"),
        ({"samples_per_prompt": 2}, "build.generation.samples_per_prompt was 1 and is now 2"),
        ({"end_tokens": ("a",)}, "build.generation.end_tokens was"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_resume_names_what_differs(
    changes: dict[str, Any], difference: str, configured: Any, prompts: str, run: Any
) -> None:
    first = run(configured(prompts))
    with pytest.raises(InvalidArgumentError, match=difference):
        run(configured(prompts, **changes), resume=True)
    assert run(configured(prompts, **changes), "other.zarr").manifest.store_id != first.manifest.store_id


def test_a_store_of_given_text_is_not_gone_on_with(configure: Any, configured: Any, prompts: str, run: Any) -> None:
    run(configure(prompts))
    with pytest.raises(InvalidArgumentError, match=r"build.generation.\w+ was None|build.generation was None"):
        run(configured(prompts), resume=True)
