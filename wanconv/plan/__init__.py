"""Plan, then execute: what a conversion will do, decided and explained before a byte is read."""

from wanconv.plan.build import Output, Plan, Step, plan
from wanconv.plan.tables import by_component, by_rule, conversion_memory

__all__ = ["Output", "Plan", "Step", "by_component", "by_rule", "conversion_memory", "plan"]
