"""Planning: what a store would cost and keep, before a teacher runs."""

from logitstore.audit.planning.line import PlanLine
from logitstore.audit.planning.plan import Plan, plan

__all__ = ["Plan", "PlanLine", "plan"]
