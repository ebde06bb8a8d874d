"""What a run leaves behind beside what `Trainer` saves: where it was in the data, and what it is a run of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from logitstore.container.durable import write_atomically
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from logitstore.loss import Loss
    from logitstore.reader import Store
    from logitstore.train.config import TrainConfig

__all__ = ["RUN_FILE", "STREAM_FILE", "check_out", "last_checkpoint", "read_stream_state", "run_record", "write_json"]

RUN_FILE = "distillation.json"
STREAM_FILE = "stream.json"

_MAY_CHANGE = {
    "store", "out", "student", "student_config", "tokenizer", "ignore_tokenizer_mismatch", "steps", "epochs",
    "workers", "decode", "log_every", "save_every", "eval_every", "keep_checkpoints", "eval_store", "eval_text",
    "report_to", "device", "trust_remote_code",
}  # fmt: skip
"""Settings that a resumed run may have otherwise. The store is compared by its digest, the student by its weights."""


def run_record(config: TrainConfig, store: Store, loss: Loss) -> dict[str, Any]:
    """Return what ``distillation.json`` says of a run: store, loss, settings and versions, as JSON."""
    manifest = store.manifest
    return {
        "store": {
            "path": str(store.path),
            "store_id": manifest.store_id,
            "manifest_sha256": hashlib.sha256(manifest.to_json()).hexdigest(),
            "teacher": manifest.teacher.get("id"),
            "vocab_size": manifest.vocab_size,
            "selection": manifest.selection,
        },
        "loss": {"name": config.loss, "options": config.loss_options, "is": repr(loss)},
        "settings": dataclasses.asdict(config) | {"report_to": list(config.report_to)},
        "versions": {
            "logitstore": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate")},
        },
    }


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a crash leaves the old file or the new one."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def check_out(out: Path, record: dict[str, Any], *, resume: bool) -> None:
    """Look at what lies where a run is to be written.

    Raises
    ------
    InvalidArgumentError
        If there is something and it is not to be resumed, or it is no run, or a run of something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RUN_FILE).is_file():
        raise InvalidArgumentError("the folder of a run is new or empty; this one is neither, and no run", path=out)
    if not resume:
        raise InvalidArgumentError("there is a run already; go on with resume=True (--resume)", path=out)
    before = _read_json(out / RUN_FILE)
    if before["store"]["manifest_sha256"] != record["store"]["manifest_sha256"]:
        raise InvalidArgumentError(
            f"the run was started from another store, {before['store']['path']} ({before['store']['store_id']});"
            f" found {record['store']['path']} ({record['store']['store_id']})",
            path=out,
        )
    differing = [
        f"{name} was {before['settings'].get(name)!r} and is now {value!r}"
        for name, value in record["settings"].items()
        if name not in _MAY_CHANGE and before["settings"].get(name) != value
    ]
    if differing:
        raise InvalidArgumentError(
            f"the run was started with other settings and cannot be resumed with these: {'; '.join(differing)}",
            path=out,
        )


def last_checkpoint(out: Path) -> Path | None:
    """Return the last checkpoint that is whole: one with a stream's state, which is written last."""
    found = {
        int(match[1]): path
        for path in (out.iterdir() if out.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / STREAM_FILE).is_file()
    }
    return found[max(found)] if found else None


def read_stream_state(checkpoint: Path) -> dict[str, Any]:
    """Return the state of the stream at a checkpoint."""
    return _read_json(checkpoint / STREAM_FILE)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptDataError(f"the file is not JSON: {error}", path=path) from None
    return content
