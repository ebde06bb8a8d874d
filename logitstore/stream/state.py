"""What a stream says of itself in a checkpoint: plain JSON that fits one epoch of one store and no other.

The state of a DataLoader worker, as torchdata's StatefulDataLoader collects it, has one entry more: ``worker``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from logitstore.errors import InvalidArgumentError, UnsupportedVersionError
from logitstore.stream.plan import Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    State = dict[str, Any]

__all__ = ["VERSION", "check_state", "place_of", "state_at", "stream_state"]

VERSION: Final = 1
_CHANGING = {"epoch", "cursor", "place"}


def state_at(settings: State, epoch: int, place: Place) -> State:
    """Return the state of a stream of these settings at a place.

    Examples
    --------
    >>> state_at({"seed": 0}, 2, Place(12, 3, 17))
    {'version': 1, 'seed': 0, 'epoch': 2, 'cursor': 12, 'place': [3, 17]}
    """
    return {
        "version": VERSION, **settings, "epoch": epoch, "cursor": place.batches, "place": [place.window, place.sequence]
    }  # fmt: skip


def place_of(state: State) -> Place:
    """Return the place of a state that has been checked."""
    return Place(state["cursor"], *state["place"])


def check_state(state: Mapping[str, Any], settings: State) -> State:
    """Return the state if it is one of a stream of these settings.

    Raises
    ------
    InvalidArgumentError
        It is not one, it is of another store, or it was made with other settings; each is named with both values.
    UnsupportedVersionError
        It was made by a newer version.
    """
    version = state.get("version")
    if type(version) is int and version > VERSION:
        raise UnsupportedVersionError(f"the state has version {version}, this logitstore knows up to {VERSION}")
    if version != VERSION:
        raise InvalidArgumentError(f"the version of a state is {VERSION}, found {version!r}: no state of a stream")
    expected = {"version", *settings, *_CHANGING}
    if missing := sorted(expected - set(state)):
        raise InvalidArgumentError(f"the state lacks {', '.join(missing)}")
    if unknown := sorted(set(state) - expected - {"worker"}):
        raise InvalidArgumentError(f"the state has {', '.join(unknown)}, which mean nothing here")
    if differing := _differences(state["store"], settings["store"]):
        raise InvalidArgumentError(f"the state is of another store: {differing}")
    if differing := _differences(state, settings):
        raise InvalidArgumentError(f"the state was made with other settings: {differing}")
    for name, numbers in (("epoch", [state["epoch"]]), ("cursor", [state["cursor"]]), ("place", state["place"])):
        if not (isinstance(numbers, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in numbers)):
            raise InvalidArgumentError(f"the state's {name} is of whole numbers, found {state[name]!r}")
    if len(state["place"]) != 2:
        raise InvalidArgumentError(f"the state's place is a window and a sequence, found {state['place']!r}")
    return dict(state)


def _differences(found: Any, expected: State) -> str:
    if not isinstance(found, dict):
        return f"found {found!r}"
    return ", ".join(
        f"{name} is {found.get(name)!r} there and {value!r} here"
        for name, value in expected.items()
        if found.get(name) != value
    )


def stream_state(state: Any) -> tuple[State, int]:
    """Find the stream's state in what a loader calls its own.

    Parameters
    ----------
    state
        A stream's state, or all of a StatefulDataLoader's, of any number of workers.

    Returns
    -------
    tuple
        The state, and how many batches this rank has taken since.

    Raises
    ------
    InvalidArgumentError
        There is none in it.
    """
    if not isinstance(state, dict):
        raise InvalidArgumentError(f"a state is a dict, found {type(state).__name__}")
    if "_snapshot" in state:
        workers = state["_snapshot"].get("_worker_snapshots", {}).values()
        found = [worker.get("dataset_state") for worker in workers]
        if not found or any(not isinstance(item, dict) or "worker" not in item for item in found):
            raise InvalidArgumentError("the loader's state has no state of a stream in it")
        # Workers take turns, so the one that got furthest has seen what all of them together have taken.
        furthest = max(found, key=lambda item: int(item["cursor"]))
        return _without_worker(furthest), int(state.get("_steps_since_snapshot", 0))
    if "_num_yielded" in state:
        if not isinstance(state.get("dataset_state"), dict):
            raise InvalidArgumentError("the loader's state has no state of a stream in it")
        return dict(state["dataset_state"]), 0
    if "worker" in state:
        raise InvalidArgumentError("this is the state of a single worker; load the whole of loader.state_dict()")
    return state, 0


def _without_worker(state: State) -> State:
    return {name: value for name, value in state.items() if name != "worker"}
