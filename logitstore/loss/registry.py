from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from logitstore.errors import InvalidArgumentError
from logitstore.loss.baselines import CrossEntropy, FullKL
from logitstore.loss.decoupled import DecoupledTopK
from logitstore.loss.divergences import JensenShannon, ReverseKL, TotalVariation
from logitstore.loss.forward import ForwardKL, SampledKL
from logitstore.loss.mixture import Mixture
from logitstore.loss.slim import Slim

if TYPE_CHECKING:
    from logitstore.loss.base import Loss

__all__ = ["LOSSES", "loss_options", "make_loss"]

LOSSES: Final[dict[str, type[Loss]]] = {
    loss.name: loss
    for loss in (
        CrossEntropy,
        DecoupledTopK,
        ForwardKL,
        FullKL,
        JensenShannon,
        ReverseKL,
        SampledKL,
        Slim,
        TotalVariation,
    )
}
"""All losses that have a name, sorted by it."""


def loss_options(name: str) -> dict[str, str | float]:
    """Return the options of a loss and their defaults.

    Raises
    ------
    InvalidArgumentError
        If there is no loss of that name.

    Examples
    --------
    >>> loss_options("jensen_shannon")
    {'beta': 0.5, 'temperature': 1.0, 'ce_weight': 0.0}
    """
    if name not in LOSSES:
        raise InvalidArgumentError(f"no loss is called {name!r}; there are {', '.join(LOSSES)}")
    # typeshed's `fields` wants an instance or a class known to be a dataclass.
    options: dict[str, Any] = {field.name: field.default for field in fields(LOSSES[name])}  # type: ignore[arg-type]
    # SLIM has its cross-entropy, and cross-entropy is one.
    return options if name in ("cross_entropy", "slim") else {**options, "ce_weight": 0.0}


def make_loss(name: str, **options: Any) -> Loss:
    """Make a loss by its name.

    Parameters
    ----------
    name
        A key of `LOSSES`.
    options
        Fields of its class, and ``ce_weight`` for a mixture with cross-entropy. Numbers may come as text.

    Raises
    ------
    InvalidArgumentError
        If there is no such loss, it has no such option, or a value is out of its range.

    Examples
    --------
    >>> make_loss("slim", support="submass")
    Slim(weight='text', support='submass')
    >>> make_loss("forward_kl", outside="renorm", temperature="2")
    ForwardKL(outside='renorm', temperature=2.0)
    >>> make_loss("sampled_kl", ce_weight=0.1)
    Mixture(loss=SampledKL(), ce_weight=0.1)
    """
    defaults = loss_options(name)
    for option, value in options.items():
        if option not in defaults:
            known = ", ".join(defaults) or "none"
            raise InvalidArgumentError(f"{name} has no option {option!r}; its options: {known}")
        if isinstance(defaults[option], float):
            options[option] = _number(option, value)
    ce_weight = options.pop("ce_weight", 0.0)
    loss = LOSSES[name](**options)
    return Mixture(loss, ce_weight) if ce_weight else loss


def _number(option: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{option} must be a number, not {value!r}") from None
