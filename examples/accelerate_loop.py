"""Accelerate with gradient accumulation.

    python examples/accelerate_loop.py teacher.zarr STUDENT --steps 1000 --accumulate 4
    accelerate launch examples/accelerate_loop.py teacher.zarr STUDENT --steps 1000 --accumulate 4

To stop and resume, see pytorch_loop.py: stream.state_dict(batch) is the same on all ranks.
"""

import itertools

import torch
from accelerate import Accelerator
from step import command_line, distillation_loss, endless, load_student, to_device

from logitstore.loss import make_loss
from logitstore.stream import BatchStream, Collate


def main(arguments=None):
    """Train, and return the loss of each step."""
    parser = command_line(__doc__)
    parser.add_argument("--accumulate", type=int, default=2, help="batches of a step")
    args = parser.parse_args(arguments)

    accelerator = Accelerator(gradient_accumulation_steps=args.accumulate)
    collate = Collate(seq_len=args.seq_len, pack=True, values="logprob")
    stream = BatchStream(args.store, args.batch_size, collate=collate)  # Accelerator has set up the ranks
    student = load_student(args.student, fresh=args.fresh).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr)
    # Not the batches: the stream deals them to ranks by itself, and Accelerate would do so once more.
    student, optimizer = accelerator.prepare(student, optimizer)
    loss = make_loss(args.loss)
    batches = endless(stream, args.workers)
    losses = []
    for step in range(args.steps):
        accumulated = [to_device(batch, accelerator.device) for batch in itertools.islice(batches, args.accumulate)]
        # Batches have more and fewer targets: a mean of their means would weigh some rows more than others.
        targets = accelerator.reduce(sum(batch["mask"].sum() for batch in accumulated)).clamp(min=1)
        total = 0.0
        for batch in accumulated:
            with accelerator.accumulate(student):
                summed = distillation_loss(student, batch, loss, stream.store.vocab_size, reduction="sum")
                # Divided by --accumulate in backward, and by the number of ranks when they average gradients.
                accelerator.backward(summed / targets * args.accumulate * accelerator.num_processes)
                optimizer.step()
                optimizer.zero_grad()
            total += summed.detach()
        losses.append((accelerator.reduce(total) / targets).item())
        accelerator.print(f"step {step + 1}: {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
