"""A plain PyTorch loop over packed batches that goes on exactly where it was stopped.

    python examples/pytorch_loop.py teacher.zarr STUDENT --steps 1000 --checkpoint run.pt

The same command again continues from run.pt, with the very batch that would have come next.
"""

from pathlib import Path

import torch
from step import command_line, distillation_loss, load_student, to_device
from torch.utils.data import DataLoader

from logitstore.loss import make_loss
from logitstore.stream import BatchStream, Collate


def main(arguments=None):
    """Train, and return the loss of each step."""
    parser = command_line(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--save-every", type=int, default=100, help="steps from one checkpoint to the next")
    args = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    collate = Collate(seq_len=args.seq_len, pack=True, values="logprob")
    stream = BatchStream(args.store, args.batch_size, collate=collate)
    loader = DataLoader(stream, batch_size=None, num_workers=args.workers)
    student = load_student(args.student, fresh=args.fresh).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr)
    loss = make_loss(args.loss)
    step, losses = 0, []
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, map_location=device)
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        stream.load_state_dict(saved["stream"])
        step = saved["step"]

    while step < args.steps:
        for batch in loader:
            value = distillation_loss(student, to_device(batch, device), loss, stream.store.vocab_size)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            losses.append(value.item())
            print(f"epoch {stream.epoch}, step {step}: {losses[-1]:.4f}")
            if step % args.save_every == 0 or step == args.steps:
                # Workers read ahead: only the batch knows how far training has come.
                saved = {"step": step, "stream": stream.state_dict(batch)}
                saved |= {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
                partial = args.checkpoint.with_suffix(".partial")
                torch.save(saved, partial)
                partial.replace(args.checkpoint)
            if step == args.steps:
                break
        else:
            stream.set_epoch(stream.epoch + 1)  # another order
    return losses


if __name__ == "__main__":
    main()
