"""Losses that learn from a teacher's rows, from the student's logits or fused with its LM head.

>>> import torch
>>> rows = TeacherRows(ids=torch.tensor([[2, 0], [1, -1]]), logprobs=torch.tensor([[-0.5, -1.5], [-0.1, 0.0]]),
...                    labels=torch.tensor([2, 3]), label_logprob=torch.tensor([-0.5, -4.0]))
>>> slim = make_loss("slim")
>>> hidden, head = torch.ones(2, 3, requires_grad=True), torch.eye(4, 3, requires_grad=True)
>>> slim(hidden @ head.T, rows)                 # from logits
tensor(2.3364, grad_fn=<_FromLogitsBackward>)
>>> slim.fused(hidden, head, rows).backward()   # the same without logits
>>> head.grad.shape
torch.Size([4, 3])
"""

from __future__ import annotations

from logitstore.loss.base import Loss
from logitstore.loss.baselines import CrossEntropy, FullKL
from logitstore.loss.decoupled import DecoupledTopK
from logitstore.loss.divergences import JensenShannon, ReverseKL, TotalVariation
from logitstore.loss.forward import ForwardKL, SampledKL
from logitstore.loss.mixture import Mixture
from logitstore.loss.registry import LOSSES, loss_options, make_loss
from logitstore.loss.rows import TeacherRows
from logitstore.loss.slim import Slim

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "DecoupledTopK",
    "ForwardKL",
    "FullKL",
    "JensenShannon",
    "Loss",
    "Mixture",
    "ReverseKL",
    "SampledKL",
    "Slim",
    "TeacherRows",
    "TotalVariation",
    "loss_options",
    "make_loss",
]
