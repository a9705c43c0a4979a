"""Verdicts: profiles say what is run and where limits are, `judge` holds results to them, `saved` reads results."""

from wanconv.verdict.judging import AMPLE, EXIT_CODES, Answer, Check, Outcome, Results, Verdict, coarsest, judge
from wanconv.verdict.profile import PROBES, Profile, load_profile, profiles

__all__ = [
    "AMPLE",
    "EXIT_CODES",
    "PROBES",
    "Answer",
    "Check",
    "Outcome",
    "Profile",
    "Results",
    "Verdict",
    "coarsest",
    "judge",
    "load_profile",
    "profiles",
]
