"""A stream as the source of a WebDataset pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import webdataset as wds
from torch.utils.data import DataLoader

from tests.stream.epochs import fingerprint, fingerprints

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_webdataset_pipeline(make: Any, workers: int) -> None:
    stream = make()
    pipeline = wds.DataPipeline(stream, wds.map(_with_length))
    batches = list(DataLoader(pipeline, batch_size=None, num_workers=workers))
    assert [fingerprint(batch, without=("cursor", "length", "__key__")) for batch in batches] == fingerprints(make())
    assert all(batch["length"] == len(batch["tokens"]) for batch in batches)
    resumed = make()
    resumed.load_state_dict(stream.state_dict(batches[3]))
    assert fingerprints(resumed) == fingerprints(list(make())[4:])


def _with_length(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "length": len(batch["tokens"])}
