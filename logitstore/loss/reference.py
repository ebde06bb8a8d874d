"""The losses in plain NumPy, float64, one row at a time over all of the vocabulary: what the others must return.

Slow, and easy to check by eye. A loss is written in the student's log-probabilities s = log softmax(z / T), all V of
them, as if each could be moved alone, with u = dL/ds. The softmax then gives dL/dz = (u - q sum u) / T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitstore.loss.rows import TeacherRows

    Floats = NDArray[np.float64]

__all__ = ["Row", "reference_loss"]

_TAIL_FLOOR = 1e-4


@dataclass(frozen=True)
class Row:
    """One row of the teacher; what is not given is None or NaN. ``S`` ``(m,)`` the kept ids, without unused slots."""

    S: NDArray[np.int64]
    logprobs: Floats
    counts: Floats
    lse: float
    lse_T: float
    label: int
    label_logprob: float
    full_logits: Floats
    temperature: float

    @property
    def log_p(self) -> Floats:
        """Log-probabilities of the kept ids over the whole vocabulary, at the temperature."""
        if self.temperature == 1:
            return self.logprobs
        return (self.logprobs + self.lse) / self.temperature - self.lse_T

    def tail(self, V: int) -> float:
        """Mass outside the kept ids."""
        return 0.0 if len(self.S) == V else max(0.0, 1.0 - float(np.exp(self.log_p).sum()))


def reference_loss(
    name: str, logits: Floats, rows: TeacherRows, ce_weight: float = 0.0, **options: Any
) -> tuple[Floats, Floats]:
    """Compute a loss of `LOSSES` row by row.

    Parameters
    ----------
    name, ce_weight, options
        As in `make_loss`.
    logits
        ``(R, V)`` the student's logits.
    rows
        ``R`` rows in host memory.

    Returns
    -------
    tuple
        ``(R,)`` losses, and ``(R, V)`` gradients of each by its logits; 0 in rows that do not count.
    """
    R, V = logits.shape
    values, gradients = np.zeros(R), np.zeros((R, V))
    T = options.pop("temperature", 1.0)
    loss, needs = _LOSSES[name]
    for r in range(R):
        row = _row(rows, r, T)
        needed = needs | ({"label"} if ce_weight else set())
        if options.get("outside") == "residual":
            needed = needed | {"label"}
        if not (rows.mask is None or rows.mask[r]) or not _holds(row, needed):
            continue
        s = _log_softmax(logits[r] / T)
        # Logarithms of 0 meet each other; `_times` drops them where there is no mass.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value, u = loss(row, s, **options)
        values[r] = (1 - ce_weight) * T**2 * value
        gradients[r] = (1 - ce_weight) * T * (u - np.exp(s) * u.sum())
        if ce_weight:
            s = _log_softmax(logits[r])
            value, u = cross_entropy(row, s)
            values[r] += ce_weight * value
            gradients[r] += ce_weight * (u - np.exp(s) * u.sum())
    return values, gradients


def cross_entropy(row: Row, s: Floats) -> tuple[float, Floats]:
    """- s_y."""
    return _cross_entropy(_one_hot(row.label, len(s)), s)


def full_kl(row: Row, s: Floats) -> tuple[float, Floats]:
    """Sum over all v of p log(p / q)."""
    return _divergence(np.exp(_log_softmax(row.full_logits / row.temperature)), s)


def forward_kl(row: Row, s: Floats, outside: str = "tail") -> tuple[float, Floats]:
    """Sum over S of p log(p / q), and something for the mass outside."""
    V, p = len(s), np.exp(row.log_p)
    if outside == "renorm":
        # p / a at any temperature, and without the log-sum-exp at it.
        return _divergence(_spread(row.S, np.exp(_log_softmax(row.logprobs / row.temperature)), V), s)
    if outside == "submass":
        return _divergence(_spread(row.S, p, V), s)
    if outside == "residual":
        return _divergence(_spread(row.S, p, V) + row.tail(V) * _one_hot(row.label, V), s)
    log_p, log_q = _buckets(row, s)
    P = np.exp(log_p)
    return float(_times(P, log_p - log_q).sum()), _from_buckets(row, s, -P)


def sampled_kl(row: Row, s: Floats) -> tuple[float, Floats]:
    """Sum of (c/N) log((c/N) / q)."""
    return _divergence(_spread(row.S, row.counts / row.counts.sum(), len(s)), s)


def slim(row: Row, s: Floats, weight: str = "text", support: str = "renorm") -> tuple[float, Floats]:
    """Cross-entropy on the label, and w times cross-entropy on the kept set."""
    V = len(s)
    target = _spread(row.S, np.exp(row.log_p), V)
    if support == "renorm":
        target /= target.sum()
    if support == "zero_logit":
        filled = np.exp(_log_softmax(_spread(row.S, row.log_p + row.lse, V)))
        target = _spread(row.S, filled[row.S], V)
    log_ratio = row.label_logprob - s[row.label]
    w = 1 - np.exp(-np.exp(log_ratio if weight == "text" else -log_ratio))
    label, by_label = cross_entropy(row, s)
    kept, by_kept = _cross_entropy(target, s)
    return label + w * kept, by_label + w * by_kept


def reverse_kl(row: Row, s: Floats) -> tuple[float, Floats]:
    """Sum over S and the bucket of q log(q / p)."""
    log_p, log_q = _buckets(row, s)
    log_p[-1] = max(log_p[-1], np.log(_TAIL_FLOOR))
    Q = np.exp(log_q)
    return float(_times(Q, log_q - log_p).sum()), _from_buckets(row, s, _times(Q, log_q - log_p + 1))


def jensen_shannon(row: Row, s: Floats, beta: float = 0.5) -> tuple[float, Floats]:
    """Beta KL(p, m) + (1 - beta) KL(q, m) over S and the bucket."""
    log_p, log_q = _buckets(row, s)
    P, Q = np.exp(log_p), np.exp(log_q)
    log_m = np.logaddexp(np.log(beta) + log_p, np.log(1 - beta) + log_q)
    value = beta * _times(P, log_p - log_m).sum() + (1 - beta) * _times(Q, log_q - log_m).sum()
    M = np.exp(log_m)
    share = np.divide(1 - beta, M, out=np.zeros_like(M), where=M > 0)
    # By Q, term by term: the teacher's half, then the factor q and the mixture of the student's half.
    by_Q = -beta * P * share + (1 - beta) * (np.where(Q > 0, log_q - log_m, 0) + 1 - Q * share)
    return float(value), _from_buckets(row, s, Q * by_Q)


def total_variation(row: Row, s: Floats) -> tuple[float, Floats]:
    """Half the sum over S and the bucket of abs(p - q)."""
    log_p, log_q = _buckets(row, s)
    P, Q = np.exp(log_p), np.exp(log_q)
    return float(np.abs(P - Q).sum() / 2), _from_buckets(row, s, Q * np.sign(Q - P) / 2)


def decoupled(row: Row, s: Floats, tau: float = 1.0) -> tuple[float, Floats]:
    """KL(Bern a, Bern b) + a tau^2 KL of the distributions within S at tau."""
    tail, a = row.tail(len(s)), 1 - row.tail(len(s))
    log_q = _buckets(row, s)[1]
    log_b, log_rest = _log_sum_exp(s[row.S]), log_q[-1]
    p, q = _log_softmax(row.logprobs / tau), _log_softmax(s[row.S] / tau)
    value = _xlogx(a) - a * log_b + _xlogx(tail) - float(_times(tail, log_rest))
    value += a * tau**2 * float(_times(np.exp(p), p - q).sum())
    by_kept = -a * np.exp(s[row.S] - log_b) + a * tau * (np.exp(q) - np.exp(p))
    return value, _from_buckets(row, s, np.append(by_kept, -tail))


def _cross_entropy(target: Floats, s: Floats) -> tuple[float, Floats]:
    return -float(_times(target, s).sum()), -target


def _divergence(target: Floats, s: Floats) -> tuple[float, Floats]:
    value, u = _cross_entropy(target, s)
    return value + sum(_xlogx(t) for t in target), u


def _buckets(row: Row, s: Floats) -> tuple[Floats, Floats]:
    """Return log p and log q over S and one bucket behind it, each ``(m + 1,)``."""
    return np.append(row.log_p, np.log(row.tail(len(s)))), np.append(s[row.S], _log_sum_exp(np.delete(s, row.S)))


def _from_buckets(row: Row, s: Floats, u: Floats) -> Floats:
    """Return dL/ds of all tokens: within the bucket, each has its share of the student's mass there."""
    outside = np.delete(np.arange(len(s)), row.S)
    spread = _spread(row.S, u[:-1], len(s))
    if len(outside):
        spread[outside] = u[-1] * np.exp(s[outside] - _log_sum_exp(s[outside]))
    return spread


def _spread(ids: NDArray[np.int64], values: Floats, V: int) -> Floats:
    dense = np.zeros(V)
    dense[ids] = values
    return dense


def _one_hot(label: int, V: int) -> Floats:
    return _spread(np.array([label]), np.ones(1), V)


def _times(mass: Floats | float, log: Floats) -> Floats:
    """Return the product, where 0 times infinity is 0."""
    return np.where(np.equal(mass, 0), 0.0, mass * log)


def _xlogx(x: float) -> float:
    return 0.0 if x == 0 else float(x * np.log(x))


def _log_sum_exp(x: Floats) -> float:
    if not len(x) or x.max() == -np.inf:
        return -np.inf
    return float(x.max() + np.log(np.exp(x - x.max()).sum()))


def _log_softmax(x: Floats) -> Floats:
    return np.asarray((x - x.max()) - _log_sum_exp(x - x.max()))


def _row(rows: TeacherRows, r: int, temperature: float) -> Row:
    given = {name: np.asarray(tensor[r]) for name, tensor in rows.given().items()}
    ids = given.get("ids", np.zeros(0, np.int64)).astype(np.int64)
    used = ids >= 0

    def entries(name: str) -> Floats:
        return given[name].astype(np.float64)[used] if name in given else np.full(used.sum(), np.nan)

    return Row(
        S=ids[used],
        logprobs=entries("logprobs"),
        counts=entries("counts"),
        lse=float(given.get("lse", np.nan)),
        lse_T=float(given.get("lse_T", np.nan)),
        label=int(given.get("labels", -1)),
        label_logprob=float(given.get("label_logprob", np.nan)),
        full_logits=given.get("full_logits", np.zeros(0)).astype(np.float64),
        temperature=temperature,
    )


def _holds(row: Row, needs: set[str]) -> bool:
    held = {
        "entries": len(row.S) > 0,
        "draws": bool(np.nansum(row.counts) > 0),
        "label": row.label >= 0,
        "label_logprob": not np.isnan(row.label_logprob),
        "lse": not np.isnan(row.lse),
        "lse_T": not np.isnan(row.lse_T),
    }
    return all(held[need] for need in needs)


_LOSSES: dict[str, tuple[Callable[..., tuple[float, Floats]], set[str]]] = {
    "cross_entropy": (cross_entropy, {"label"}),
    "decoupled": (decoupled, {"entries"}),
    "forward_kl": (forward_kl, {"entries"}),
    "full_kl": (full_kl, set()),
    "jensen_shannon": (jensen_shannon, {"entries"}),
    "reverse_kl": (reverse_kl, {"entries"}),
    "sampled_kl": (sampled_kl, {"entries", "draws"}),
    "slim": (slim, {"entries", "label", "label_logprob"}),
    "total_variation": (total_variation, {"entries"}),
}
"""Each loss, and what a row must hold to count."""
