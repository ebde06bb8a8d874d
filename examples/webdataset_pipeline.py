"""A WebDataset pipeline over tar shards.

    python examples/webdataset_pipeline.py teacher.wds STUDENT --steps 1000 --workers 4

Shards are what ranks and workers share, so have a few for each (``logitstore build --shard-size``). `BatchStream` reads
the same tars, splits documents evenly and can resume; this is for pipelines that have stages of their own.
"""

import itertools
from operator import itemgetter

import torch
import webdataset as wds
from step import command_line, distillation_loss, load_student, to_device
from torch.utils.data import DataLoader

import logitstore.wds
from logitstore.loss import make_loss
from logitstore.stream import Collate


def pipeline(store, batch_size, collate):
    """Return a dataset of batches of so many documents."""
    urls = logitstore.wds.urls(store)
    return (
        wds.WebDataset(urls, shardshuffle=100, nodesplitter=wds.split_by_node)
        .compose(logitstore.wds.whole_shards(store))  # before anything shuffles: a shard cut short is an error
        .shuffle(1000)  # before decoding, while documents are small
        .decode(logitstore.wds.Handler(order="stored"))
        .map(itemgetter("lgt"))
        .batched(batch_size, collation_fn=collate)
    )


def main(arguments=None):
    """Train, and return the loss of each step."""
    args = command_line(__doc__).parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Packs what the documents of a batch hold, in as many sequences as that takes.
    dataset = pipeline(args.store, args.batch_size, Collate(seq_len=args.seq_len, pack=True, values="logprob"))
    loader = DataLoader(dataset, batch_size=None, num_workers=args.workers)
    student = load_student(args.student, fresh=args.fresh).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr)
    loss = make_loss(args.loss)
    with logitstore.open(args.store) as store:
        vocab_size = store.vocab_size
    losses = []
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, batch in enumerate(itertools.islice(epochs, args.steps)):
        value = distillation_loss(student, to_device(batch, device), loss, vocab_size)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
        print(f"step {step + 1}: {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
