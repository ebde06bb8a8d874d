"""What a student is evaluated on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import logitstore
from logitstore.errors import InvalidArgumentError
from logitstore.stream import BatchStream, Collate
from logitstore.train.decoding import OnDevice, where_decoded
from logitstore.train.evaluate import Evaluation
from logitstore.train.fit import check_tokenizer
from logitstore.train.text import TextBatches

if TYPE_CHECKING:
    from contextlib import ExitStack

    from logitstore.reader import Store
    from logitstore.train.config import TrainConfig

__all__ = ["held_out_data"]


def held_out_data(
    config: TrainConfig, store: Store, tokenizer: Any, arguments: Any, opened: ExitStack
) -> dict[str, Evaluation]:
    """Return what a configuration says to evaluate on, by name; stores are closed with ``opened``.

    Raises
    ------
    InvalidArgumentError
        If there is no such text, or a store does not fit the tokenizer or the store to learn from.
    """
    found = {}
    sizes = {"seq_len": config.seq_len, "batch_size": config.batch_size}
    if config.eval_text is not None:
        ranks = {"num_replicas": arguments.world_size, "rank": arguments.process_index}
        text = TextBatches(config.eval_text, tokenizer, **sizes, **ranks)
        found["text"] = Evaluation(text)
    if config.eval_store is not None:
        held_out = opened.enter_context(logitstore.open(config.eval_store, order="stored"))
        if held_out.manifest.tokenizer.get("digest") != store.manifest.tokenizer.get("digest"):
            check_tokenizer(tokenizer, held_out, ignore_mismatch=config.ignore_tokenizer_mismatch)
        if held_out.vocab_size > store.vocab_size:
            raise InvalidArgumentError(
                f"ids must be below {store.vocab_size}, as in the store to learn from; found {held_out.vocab_size} ids",
                path=held_out.path,
            )
        collate = Collate(config.seq_len, values="logprob", fields=("ids", "values", "label_logprob"))
        stream = BatchStream(
            held_out, config.batch_size, collate=collate, shuffle=False,
            decode=where_decoded(config.decode, arguments.device),
            pin_memory=arguments.device.type == "cuda",
        )  # fmt: skip
        draws_only = held_out.manifest.selection.keys() <= {"samples", "seed"}
        found["store"] = Evaluation(OnDevice(stream, arguments.device), keeps_best=not draws_only)
    return found
