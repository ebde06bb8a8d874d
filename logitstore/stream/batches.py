"""`BatchStream`: the batches of an epoch, for one rank, made where they are asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import torch
from torch.utils.data import IterableDataset, get_worker_info

from logitstore.errors import InvalidArgumentError
from logitstore.stream.ahead import SideStream, started_ahead
from logitstore.stream.assemble import Assembler
from logitstore.stream.collate import Collate
from logitstore.stream.device_batch import OnDevice, decoded, moved
from logitstore.stream.documents import opened
from logitstore.stream.epochs import Epochs
from logitstore.stream.handover import Arena, Pool
from logitstore.stream.iteration import Iteration
from logitstore.stream.plan import Place, Plan
from logitstore.stream.share import Share, world
from logitstore.stream.shared import Shared
from logitstore.stream.state import check_state, place_of, state_at, stream_state
from logitstore.stream.tensors import InMemory, InPinnedMemory
from logitstore.stream.wanted import Wanted

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from logitstore.reader import Store
    from logitstore.stream.tensors import Memory

    Batch = dict[str, Tensor]

__all__ = ["BatchStream"]


class BatchStream(IterableDataset["Batch"]):
    """An iterable dataset that yields whole batches: ``DataLoader(stream, batch_size=None, num_workers=n)``.

    An epoch is one sequence of batches, a pure function of the settings, the seed and the epoch. Ranks, and workers
    within a rank, take turns at it, so together they give every document exactly once, whatever their number.
    All ranks yield the same number of batches: where the epoch has none left for some rank, that rank gets a blank one,
    of one sequence with a single row that is padding but for ``attention_mask``. A loss that divides by
    ``mask.sum().clamp(min=1)`` needs no other care.

    A batch is a dict as `Collate` describes, with two entries more:

    ======= ============ ==============================================================================================
    cursor  (4,) int64   what is left of the epoch when all ranks have had this step's batch: batches consumed by all
                         ranks, window, sequence in the window; and the epoch. For `state_dict`.
    skipped () int64     pieces of documents in this batch that were left blank, with ``on_corrupt="skip"``
    ======= ============ ==============================================================================================

    Parameters
    ----------
    store_or_path
        A store, which is used as it is, or where there is one.
    batch_size
        Sequences of a batch. The last batch of an epoch may have fewer.
    collate
        How a batch is laid out.
    shuffle, seed
        Whether, and in which order, documents are shuffled: blocks of about a shard first, then within a window.
    window
        Consecutive positions of the epoch that are shuffled, and packed, among themselves. More mixes better; fewer
        read less far apart.
    drop_last
        Leave out a last batch that is short, and batches at the end that do not suffice for all ranks.
    num_replicas, rank
        By default those of ``torch.distributed`` if it is initialised, else of ``WORLD_SIZE`` and ``RANK``.
    on_corrupt
        ``"raise"``, or ``"skip"``: leave what cannot be read blank, count it and warn. Where documents begin must be
        known in any case.
    prefetch, threads
        How many batches are made ahead, in each process, by how many threads. ``prefetch=0`` starts none.
    pin_memory
        Make batches in pinned memory, outside of workers; for those, ask the DataLoader.
    decode
        ``"host"``: where batches are made. ``"device"``: ids, values and counts stay coded, and `to_device` decodes
        them where the training is, so that what crosses over is compressed. Of ``ids``, say, a batch then has the
        tensors ``ids_words`` and ``ids_table`` (rows of the ``exact`` codec, see `logitstore.codec.BitRows`) or
        ``ids_group_words``, ``_table``, ``_counts`` and ``_books`` (of the ``compact`` codec, see
        `logitstore.codec.GroupRows`), or both. Checksums, row tables and codebooks are checked where batches are made
        in either case; bits of a row that break a rule in spite of a sound checksum are found by `to_device`, which
        raises whatever ``on_corrupt`` says.
    verify, storage_options
        As for `logitstore.open`, if a path is given.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> stream = BatchStream("teacher.zarr", 8, collate=Collate(seq_len=2048, pack=True))    # doctest: +SKIP
    >>> for epoch in range(stream.epoch, 3):                                                 # doctest: +SKIP
    ...     stream.set_epoch(epoch)
    ...     for batch in DataLoader(stream, batch_size=None, num_workers=2):
    ...         ...
    ...         checkpoint["data"] = stream.state_dict(batch)   # later: stream.load_state_dict(checkpoint["data"])
    """

    def __init__(
        self,
        store_or_path: Store | str | os.PathLike[str],
        batch_size: int,
        *,
        collate: Collate = Collate(),  # noqa: B008 - it is frozen
        shuffle: bool = True,
        seed: int = 0,
        window: int = 1024,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
        on_corrupt: Literal["raise", "skip"] = "raise",
        prefetch: int = 2,
        threads: int = 1,
        pin_memory: bool = False,
        decode: Literal["host", "device"] = "host",
        verify: Literal["none", "lazy", "full"] = "lazy",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1), ("window", window, 1), ("threads", threads, 1), ("prefetch", prefetch, 0),
            ("seed", seed, 0),
        ):  # fmt: skip
            if type(value) is not int or not least <= value < 1 << 63:
                raise InvalidArgumentError(f"{name} is a whole number from {least} on, found {value!r}")
        if on_corrupt not in ("raise", "skip"):
            raise InvalidArgumentError(f"on_corrupt is 'raise' or 'skip', found {on_corrupt!r}")
        if decode not in ("host", "device"):
            raise InvalidArgumentError(f"decode is 'host' or 'device', found {decode!r}")
        self.store = opened(store_or_path, verify=verify, order="stored", storage_options=storage_options)
        self.batch_size = batch_size
        self.collate = collate
        self._drop_last = drop_last
        self._skip_corrupt = on_corrupt == "skip"
        self._prefetch = prefetch
        self._threads = threads
        self._pin_memory = pin_memory
        self._coded = decode == "device"
        self._world: tuple[int | None, int | None] = (num_replicas, rank)
        self._epochs = Epochs(self.store, batch_size, collate, shuffle, seed, window)
        self._shared = Shared()
        self._progress: Iteration | None = None
        self._resumed: Iteration | None = None
        self._plan: tuple[int, Plan] | None = None
        self._name = uuid4().hex
        self._pool: Pool | None = None
        world(*self._world)
        self._assembler()  # a field that the store lacks is an error now, not in a worker

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_plan": None, "_pool": None, "_progress": None, "_resumed": None}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            state["_world"] = world(*self._world)  # a spawned worker is in no process group
        return state

    @property
    def decodes_on_device(self) -> bool:
        """Whether batches come coded, for `to_device` or `on_device`."""
        return self._coded

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return self._shared.epoch

    @property
    def skipped(self) -> int:
        """Pieces of documents that were left blank since the stream was made, in batches of all workers of this rank.

        Counts batches that a DataLoader has in hand; ``batch["skipped"]`` is exact.
        """
        return self._shared.skipped

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch. Another one begins at its beginning; the same one still begins where a state said."""
        if type(epoch) is not int or not 0 <= epoch < 1 << 63:
            raise InvalidArgumentError(f"an epoch is a whole number from 0 on, found {epoch!r}")
        if epoch != self.epoch:
            self._begin(epoch, Place())

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch.

        With a ``seq_len``, the first call reads where all documents begin. With ``pack``, epochs differ by a few.
        """
        return self._share().batches(self._plan_of(self.epoch), drop_last=self._drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches, or in a worker that worker's, from where the epoch begins."""
        info = get_worker_info()
        share = self._share(0 if info is None else info.id, 1 if info is None else info.num_workers)
        progress, self._resumed = self._resumed, None
        if progress is None:
            start = self._shared.start
            progress = Iteration(share, self.epoch, start, start)
        elif progress.share != replace(share, rank=0):
            raise InvalidArgumentError(
                f"the loader's state is of another number of ranks or workers: worker {progress.share.worker} of "
                f"{progress.share.workers} of {progress.share.replicas} ranks there, worker {share.worker} of "
                f"{share.workers} of {share.replicas} ranks here; stream.load_state_dict(loader.state_dict()) takes it"
            )
        progress.share = share
        self._progress = progress
        self._shared.in_workers = info is not None
        return progress.batches(
            self._plan_of(progress.epoch),
            self._assembler(None if info is None else info.id),
            drop_last=self._drop_last,
            prefetch=self._prefetch,
            threads=self._threads,
            on_skip=partial(self._shared.skip, worker=None if info is None else info.id),
        )

    def to_device(self, batch: Batch, device: torch.device | str) -> Batch:
        """Return a batch of this stream on a device, decoded if it is not yet.

        ``cursor``, ``skipped`` and ``max_seqlen`` stay on the host, which asks for them. On a GPU with Triton (the
        extra ``gpu``) kernels decode, on the current stream, and this waits for them; otherwise the CPU decodes.

        Raises
        ------
        CorruptDataError
            The bits of a row break a rule.

        Examples
        --------
        >>> stream = BatchStream("teacher.zarr", 8, decode="device")                            # doctest: +SKIP
        >>> for batch in DataLoader(stream, batch_size=None, num_workers=2, pin_memory=True):   # doctest: +SKIP
        ...     batch = stream.to_device(batch, "cuda")
        """
        queued = self._queued(batch, torch.device(device))
        queued.check()
        return queued.batch

    def on_device(self, batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
        """Yield batches of this stream on a device, as `to_device` gives them.

        On a GPU each is copied, and decoded, on a CUDA stream of its own while the one before is used, from pinned
        memory, into which batches that are not in it are copied first; the stream that is current when a batch is asked
        for waits for it. One batch more than without lies on the device, and one that is not used yet is asked for
        ahead: resume with ``state_dict(batch)``. On a CPU nothing is made ahead.

        Parameters
        ----------
        batches
            This stream, or a DataLoader over it.
        device
            Where to.

        Raises
        ------
        CorruptDataError
            The bits of a row break a rule, in the place of its batch.

        Examples
        --------
        >>> stream = BatchStream("teacher.zarr", 8, decode="device", pin_memory=True)           # doctest: +SKIP
        >>> for batch in stream.on_device(stream, "cuda"):                                      # doctest: +SKIP
        ...     ...
        """
        device = torch.device(device)
        if device.type != "cuda":
            return (self.to_device(batch, device) for batch in batches)
        side = SideStream(device, partial(self._queued, device=device))
        return started_ahead(batches, side.start, side.finish)

    def _queued(self, batch: Batch, device: torch.device) -> OnDevice:
        if not self._coded:
            return OnDevice(moved(batch, device), lambda: None)
        return decoded(batch, device, self.store, Wanted.of(self.store, self.collate))

    def state_dict(self, batch: Batch | None = None) -> dict[str, Any]:
        """Return where the epoch stands, as plain JSON.

        Parameters
        ----------
        batch
            The last batch that was used. May be left out where batches are made in this process; what a DataLoader's
            workers make is often not used yet, and only the batch can tell.

        Raises
        ------
        InvalidArgumentError
            There is no telling without the batch, or it is not one of a stream.
        """
        info = get_worker_info()
        if batch is not None:
            cursor = batch.get("cursor")
            if not isinstance(cursor, torch.Tensor) or cursor.shape != (4,):
                raise InvalidArgumentError("the batch has a cursor of four numbers, as the stream made it")
            *place, epoch = cursor.tolist()
            return state_at(self._epochs.settings(), epoch, Place(*place))
        if info is None and self._shared.in_workers:
            raise InvalidArgumentError(
                "batches are made in DataLoader workers, ahead of their use: call state_dict(batch) with the last "
                "batch that was used"
            )
        progress = self._progress
        if progress is None:
            return state_at(self._epochs.settings(), self.epoch, self._shared.start)
        state = state_at(self._epochs.settings(), progress.epoch, progress.reached)
        if info is not None:
            state["worker"] = progress.worker_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a state was taken: the next iteration yields what was left of its epoch.

        Ranks, workers, threads and ``drop_last`` may have changed.

        Parameters
        ----------
        state
            A stream's state, or all of the state of a torchdata StatefulDataLoader over one.

        Raises
        ------
        InvalidArgumentError
            The state is of another store, or was made with other settings.
        UnsupportedVersionError
            It was made by a newer version.
        """
        info = get_worker_info()
        worker = state.get("worker") if info is not None and isinstance(state, dict) else None
        found, steps = (state, 0) if worker is not None else stream_state(state)
        found = check_state(found, self._epochs.settings())
        epoch, place = found["epoch"], place_of(found)
        plan = self._plan_of(epoch)
        if not plan.has(place):
            raise InvalidArgumentError(f"the state's place {found['place']} is none of this epoch")
        if worker is None:
            replicas = self._share().replicas
            self._begin(epoch, plan.advance(place, steps * replicas)[0])
            return
        resumed = Iteration.resumed(worker, epoch, place)
        self._begin(epoch, resumed.start)
        self._resumed = resumed

    def _begin(self, epoch: int, start: Place) -> None:
        self._shared.begin(epoch, start)
        self._shared.in_workers = False
        self._progress = self._resumed = None

    def _share(self, worker: int = 0, workers: int = 1) -> Share:
        return Share(*world(*self._world), workers, worker)

    def _plan_of(self, epoch: int) -> Plan:
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self._epochs.plan(epoch)
        return self._plan[1]

    def _assembler(self, worker: int | None = None) -> Assembler:
        return Assembler(
            self.store, self.collate, self._memory(worker), skip_corrupt=self._skip_corrupt, coded=self._coded
        )

    def _memory(self, worker: int | None) -> Callable[[], Memory]:
        """Return what returns the memory of a batch: pinned if that is possible, shared in a DataLoader worker."""
        if worker is None:
            return InPinnedMemory if self._pin_memory and torch.cuda.is_available() else InMemory
        if self._pool is None:
            self._pool = Pool(self._name, worker)
        return partial(Arena, self._pool)
