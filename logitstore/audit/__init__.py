"""Looking at stores: what is in them, whether they are sound, what they are (or would be) worth, how fast they are."""

from logitstore.audit.bench import BenchResult, bench
from logitstore.audit.documents import DocumentView, show_document
from logitstore.audit.inspect import summarise
from logitstore.audit.planning import Plan, PlanLine, plan
from logitstore.audit.plot import plot_stats
from logitstore.audit.report import Problem, Report
from logitstore.audit.stats import Stats, collect
from logitstore.audit.verify import verify

__all__ = [
    "BenchResult",
    "DocumentView",
    "Plan",
    "PlanLine",
    "Problem",
    "Report",
    "Stats",
    "bench",
    "collect",
    "plan",
    "plot_stats",
    "show_document",
    "summarise",
    "verify",
]
