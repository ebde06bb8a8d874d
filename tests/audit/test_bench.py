from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from logitstore import InvalidArgumentError
from logitstore.audit import bench

if TYPE_CHECKING:
    from pathlib import Path


def test_ratios_are_those_of_the_times(stores: Any, tmp_path: Path) -> None:
    result = bench(stores.make(tmp_path / "s", [40, 60, 100]), rows=150)
    json.dumps(result.to_json(), allow_nan=False)
    assert (result.rows, result.entries, result.decoded_bytes) == (150, 750, 150 * 5 * 6)
    seconds, ratios = result.seconds, result.ratios
    assert all(value > 0 for value in seconds.values())
    assert ratios["decode_speed_to_copy"] == seconds["copy"] / seconds["decode"]
    assert ratios["encode_speed_to_copy"] == seconds["copy"] / seconds["encode"]
    assert ratios["decode_speed_to_zarr_zstd"] == seconds["zarr_zstd_decode"] / seconds["decode"]
    for what in ("row", "document"):
        assert ratios[f"{what}_speed_to_zarr"] == seconds[f"{what}_zarr"] / seconds[what]
        assert ratios[f"{what}_speed_to_memmap"] == seconds[f"{what}_memmap"] / seconds[what]
    assert result.entries_per_second == 750 / seconds["decode"]


def test_fewer_rows_than_the_first_document(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", [40, 60], values="logit")
    assert bench(path, rows=3).rows == 3
    assert bench(path).rows == 100


def test_refusals(stores: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no rows"):
        bench(stores.make(tmp_path / "e", []))
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        bench(tmp_path / "e", rows=0)
