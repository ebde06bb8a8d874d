"""What a build is asked to do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from logitstore.container.codec_record import CodecRecord
from logitstore.container.fields import rows_per_shard_for
from logitstore.container.tar_sink import DEFAULT_SHARD_BYTES
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from logitstore.build.generation import GenerationConfig
    from logitstore.corpus import CorpusConfig
    from logitstore.select import Selection, Values
    from logitstore.teacher import TeacherConfig

__all__ = ["BuildConfig"]

_WINDOW_BYTES = 256 << 20
"""Selected rows held in memory while a window's documents come back into their order."""


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides what a store holds.

    Attributes
    ----------
    teacher, corpus, selection
        Who reads, what, and which entries of each row are kept.
    values
        ``"logprob"`` or ``"logit"``: what is stored of an entry, as float16.
    rows
        ``"all"``, or ``"masked"`` to keep entries only where the mask is 1.
    temperatures
        Further temperatures whose log-sum-exp is kept.
    tokens_per_batch
        Tokens of a forward pass, padding included. Of a teacher that writes: tokens that the cache of a batch may come
        to hold, sequences times the longest prompt with the most new tokens.
    rows_per_chunk
        Rows whose logits exist at the same time.
    rows_per_shard
        A power of two, or None for shards of about 64 MiB.
    container
        ``"zarr"`` or ``"webdataset"``.
    shard_bytes
        With ``webdataset``: bytes up to which a tar is filled.
    codec
        How ids, values and counts are coded: bit for bit with ``exact``; smaller with ``compact``
        (`CodecRecord.compact`), bit for bit or quantised within a bound.
    generation
        The teacher writes: it goes on with the prompts that the corpus then holds. None: it reads. The ``seq_len`` of
        the corpus is then that of prompt and text together, at which the text is cut off.
    """

    teacher: TeacherConfig
    corpus: CorpusConfig
    selection: Selection
    values: Values = "logprob"
    rows: Literal["all", "masked"] = "all"
    temperatures: tuple[float, ...] = ()
    tokens_per_batch: int = 8192
    rows_per_chunk: int = 1024
    rows_per_shard: int | None = None
    container: Literal["zarr", "webdataset"] = "zarr"
    shard_bytes: int = DEFAULT_SHARD_BYTES
    codec: CodecRecord = dataclasses.field(default_factory=CodecRecord)
    generation: GenerationConfig | None = None

    def __post_init__(self) -> None:
        for name in ("tokens_per_batch", "rows_per_chunk", "shard_bytes"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} is at least 1, found {getattr(self, name)}")
        size = self.rows_per_shard
        if size is not None and (not 1 <= size <= 1 << 30 or size & (size - 1)):
            raise InvalidArgumentError(f"rows_per_shard is a power of two up to 2^30, found {size}")
        if self.container not in ("zarr", "webdataset"):
            raise InvalidArgumentError(f"container is 'zarr' or 'webdataset', found {self.container!r}")
        if self.values not in ("logprob", "logit"):
            raise InvalidArgumentError(f"values is 'logprob' or 'logit', found {self.values!r}")
        if self.codec.max_kl is not None and self.values != "logprob":
            raise InvalidArgumentError(
                "max_kl bounds a divergence of probabilities: it needs values='logprob'; logits are bound by max_error"
            )
        if self.rows not in ("all", "masked"):
            raise InvalidArgumentError(f"rows is 'all' or 'masked', found {self.rows!r}")
        for temperature in self.temperatures:
            if not 0 < temperature < math.inf:
                raise InvalidArgumentError(f"a temperature is a finite number above 0, found {temperature}")
        if self.corpus.prompts != (self.generation is not None):
            raise InvalidArgumentError("a corpus of prompts and generation go together; one of them is missing")
        if self.generation is not None and bool(self.corpus.data) == (self.generation.documents is not None):
            raise InvalidArgumentError(
                "generation needs either prompts, in the corpus's data, or a number of documents"
            )

    def with_seq_len_of(self, max_length: int | None) -> BuildConfig:
        """Return the configuration with the corpus cut to what the teacher can read.

        Without a ``seq_len``, documents are cut at the teacher's context or at ``tokens_per_batch``, whichever is less.

        Raises
        ------
        InvalidArgumentError
            ``seq_len`` is longer than the teacher's context.
        """
        asked = self.corpus.seq_len
        if asked is None:
            seq_len = min(self.tokens_per_batch, max_length or self.tokens_per_batch)
            return dataclasses.replace(self, corpus=dataclasses.replace(self.corpus, seq_len=seq_len))
        if max_length is not None and asked > max_length:
            raise InvalidArgumentError(f"seq_len is {asked}, but the teacher's context has {max_length} tokens")
        return self

    def shard_rows(self, slots: int) -> int:
        """Rows of a shard for rows of ``slots`` entries."""
        return self.rows_per_shard or rows_per_shard_for(slots)

    def window_tokens(self, slots: int) -> int:
        """Tokens within which documents may be reordered for batching."""
        held = _WINDOW_BYTES // (6 * slots)
        return max(self.tokens_per_batch, min(32 * self.tokens_per_batch, held))

    def run_settings(self) -> dict[str, Any]:
        """Return, as JSON, how the teacher is run: the part of the configuration the manifest keeps under ``build``."""
        corpus = dataclasses.asdict(self.corpus)
        # Where the input lies is not what it is: its digest stands in the manifest instead.
        del corpus["data"]
        del corpus["prompts"]  # there is a `generation` beside it, or there is not
        return {
            "rows": self.rows,
            "tokens_per_batch": self.tokens_per_batch,
            "rows_per_chunk": self.rows_per_chunk,
            "corpus": {**corpus, "metadata_fields": list(self.corpus.metadata_fields or [])},
        }
