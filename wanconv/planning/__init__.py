"""Plan, then execute: what a conversion will do, decided and explained before a byte is read."""

from wanconv.planning.build import contents, plan
from wanconv.planning.files import Slot, lay_out
from wanconv.planning.findings import dead_of, left_out, roles_of, some, without_match
from wanconv.planning.marks import family_in_words, marks_of, notes_of, release_of, says, unread_mark, unreadable_config
from wanconv.planning.tables import by_component, by_lora, by_rule, conversion_memory
from wanconv.planning.types import Contents, Output, Plan, Step

__all__ = [
    "Contents",
    "Output",
    "Plan",
    "Slot",
    "Step",
    "by_component",
    "by_lora",
    "by_rule",
    "contents",
    "conversion_memory",
    "dead_of",
    "family_in_words",
    "lay_out",
    "left_out",
    "marks_of",
    "notes_of",
    "plan",
    "release_of",
    "roles_of",
    "says",
    "some",
    "unread_mark",
    "unreadable_config",
    "without_match",
]
