"""A `datasets.IterableDataset` of documents, for code that expects one.

    python examples/datasets_iterable.py teacher.zarr STUDENT --steps 1000 --workers 4

Ranges of documents are its shards: it divides them among DataLoader workers, and among ranks by
``datasets.distributed.split_dataset_by_node``. `BatchStream` does that by document, packs and is faster.
"""

from functools import partial

import datasets
import torch
from step import command_line, distillation_loss, load_student, to_device
from torch.utils.data import DataLoader

import logitstore
from logitstore.loss import make_loss
from logitstore.stream import Collate


def documents(path, ranges):
    """Yield the documents of some ranges, in the stored order of entries, which is faster."""
    with logitstore.open(path, order="stored") as store:
        for start, stop in ranges:
            for index in range(start, stop):
                yield {"document": store[index]}


def dataset_of(path, documents_per_shard=64):
    """Return a store as a dataset. Its examples stay Python objects, without a detour over Arrow."""
    with logitstore.open(path) as store:
        starts = range(0, len(store), documents_per_shard)
        ranges = [(start, min(start + documents_per_shard, len(store))) for start in starts]
    return datasets.IterableDataset.from_generator(documents, gen_kwargs={"path": path, "ranges": ranges})


def collated(collate, examples):
    """Return the batch of some examples."""
    return collate([example["document"] for example in examples])


def main(arguments=None):
    """Train, and return the loss of each step."""
    args = command_line(__doc__).parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    collate = Collate(seq_len=args.seq_len, values="logprob")  # padded; longer documents become several sequences
    dataset = dataset_of(args.store).shuffle(seed=0, buffer_size=256)
    loader = DataLoader(dataset, args.batch_size, num_workers=args.workers, collate_fn=partial(collated, collate))
    student = load_student(args.student, fresh=args.fresh).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr)
    loss = make_loss(args.loss)
    with logitstore.open(args.store) as store:
        vocab_size = store.vocab_size
    losses = []
    epoch = 0
    while len(losses) < args.steps:
        dataset.set_epoch(epoch)  # another order
        for batch in loader:
            value = distillation_loss(student, to_device(batch, device), loss, vocab_size)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
            print(f"epoch {epoch}, step {len(losses)}: {losses[-1]:.4f}")
            if len(losses) == args.steps:
                break
        epoch += 1
    return losses


if __name__ == "__main__":
    main()
