"""Time and peak memory of losses: from logits, in place, and fused with the LM head.

python benchmarks/loss_memory.py --rows 4096 --vocab 128256 --hidden 256

Each contender runs in a process of its own: hidden states and head in, gradients of both out. The peak is what the
process held at most beyond what it held before (hidden states, head, teacher's rows), so it includes the two gradients.
On a CPU, seconds are the process's own.

Liger's losses are measured where `pip install liger-kernel` has been called and they run: its cross-entropy is a kernel
for a GPU, its chunked distillation losses run anywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from harness import show, use_one_core, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitstore.loss import TeacherRows

FORMS = ("logits", "in place", "fused")
TORCH, LIGER = "torch cross_entropy", "liger fused linear cross_entropy"
LIGER_JSD = "liger fused linear jsd, live teacher"


@click.command(help=__doc__.splitlines()[0])
@click.option("--rows", default=2048, show_default=True)
@click.option("--vocab", default=128_256, show_default=True)
@click.option("--hidden", default=256, show_default=True)
@click.option("--kept", default=128, show_default=True, help="Ids kept per row.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--loss", "losses", multiple=True, default=("cross_entropy", "slim", "forward_kl"), show_default=True)
@click.option("--match", default="", help="Only contenders whose names contain this.")
@click.option("--rounds", default=1, show_default=True, help="Calls to take the fastest of; memory is the first one's.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the table here as well.")
@click.option("--only", hidden=True, help="Measure this contender in this process, and print it as JSON.")
def main(only: str | None, json_path: Path | None, losses: tuple[str, ...], match: str, **sizes: Any) -> None:
    use_one_core()
    if only is not None:
        print(json.dumps(measure(only, **sizes)))
        return
    contenders = [TORCH, *(f"{loss}, {form}" for loss in losses for form in FORMS), LIGER, LIGER_JSD]
    measured = {name: in_a_process(name, sizes) for name in contenders if match in name}
    base = next(found for found in measured.values() if "skipped" not in found)
    table = [
        {
            "loss and form": name,
            "peak, MiB": found["bytes"] / 2**20,
            "peak, of the first": found["bytes"] / base["bytes"],
            "seconds": found["seconds"],
            "time, of the first": found["seconds"] / base["seconds"],
        }
        for name, found in measured.items()
        if "skipped" not in found
    ]
    show(", ".join(f"{name} {value}" for name, value in sizes.items()), table)
    for name, found in measured.items():
        if "skipped" in found:
            print(f"{name}: left out, {found['skipped']}")
    write_json(json_path, {"loss_memory": table})


def in_a_process(name: str, sizes: dict[str, Any]) -> dict[str, Any]:
    options = [text for option, value in sizes.items() for text in (f"--{option}", str(value))]
    done = subprocess.run(
        [sys.executable, __file__, "--only", name, *options], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        return {"skipped": f"its process ended with status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    name: str, *, rows: int, vocab: int, hidden: int, kept: int, dtype: str, device: str, rounds: int
) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    states = torch.randn(rows, hidden).to(device, getattr(torch, dtype)).requires_grad_()
    head = (torch.randn(vocab, hidden) * 0.05).to(device, getattr(torch, dtype)).requires_grad_()
    teacher = random_rows(rows, vocab, kept).to(device)
    try:
        call = contender(name, device)
        # Threads, kernels and the libraries' own buffers come with the first call of all.
        call(states[:1], head[:64], random_rows(1, 64, 4).to(device)).backward()
    except (ImportError, RuntimeError) as error:
        return {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    # One thread on one core: the processor's time does not see what else the machine is doing.
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds, peaks = [], []
    for _ in range(rounds):
        states.grad = head.grad = None
        before = start_of_peak(device)
        start = clock()
        call(states, head, teacher).backward()
        peaks.append(end_of_peak(device) - before)
        seconds.append(clock() - start)
    return {"bytes": peaks[0], "seconds": min(seconds)}


def contender(name: str, device: str) -> Callable[[Tensor, Tensor, TeacherRows], Tensor]:
    import torch

    from logitstore.loss import make_loss

    if name == TORCH:
        return lambda states, head, teacher: torch.nn.functional.cross_entropy(states @ head.T, teacher.labels)
    if name == LIGER:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        liger = LigerFusedLinearCrossEntropyLoss()
        return lambda states, head, teacher: liger(head, states, teacher.labels)
    if name == LIGER_JSD:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[import-not-found]

        # Cross-entropy and divergence from a teacher of the student's size, whose logits it makes as well.
        jsd = LigerFusedLinearJSDLoss(compiled=torch.device(device).type != "cpu")
        return lambda states, head, teacher: jsd(states, head, states.detach(), head.detach(), teacher.labels)
    loss_name, form = name.split(", ")
    loss = make_loss(loss_name)
    if form == "fused":
        return loss.fused
    return lambda states, head, teacher: loss(states @ head.T, teacher, inplace=form == "in place")


def random_rows(rows: int, vocab: int, kept: int) -> TeacherRows:
    """Rows of distinct ids that together hold nine tenths of the probability."""
    import torch

    from logitstore.loss import TeacherRows

    gaps = torch.randint(1, max(2, vocab // kept), (rows, kept))
    logprobs = torch.randn(rows, kept).mul_(3).log_softmax(1) + torch.tensor(0.9).log()
    return TeacherRows(
        ids=(gaps.cumsum(1) - 1).int(),
        logprobs=logprobs.half(),
        lse=torch.full((rows,), 20.0),
        labels=torch.randint(0, vocab, (rows,)),
        label_logprob=torch.full((rows,), -2.0),
        counts=torch.ones(rows, kept, dtype=torch.uint8),
    )


def start_of_peak(device: str) -> int:
    """Forget earlier peaks, and return the bytes in use."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Not ru_maxrss: it cannot be reset, and starts from what the parent process held.
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def end_of_peak(device: str) -> int:
    """Wait for what was started, and return the most bytes in use since `start_of_peak`."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
