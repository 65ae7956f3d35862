"""Segment rollout (section 3.1) without an engine: the scheduler, its schedules and the two pools. Imports no torch."""

from ulorl.rollout.pools import ExperiencePool, OpenGroup, UnfinishedPool
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule

__all__ = [
    "ExperiencePool",
    "OpenGroup",
    "OversubscribeSchedule",
    "RefillSchedule",
    "Schedule",
    "Scheduler",
    "SegmentSchedule",
    "UnfinishedPool",
]
