"""Segment rollout (section 3.1) without an engine: the scheduler and the two pools. Imports no torch."""

from ulorl.rollout.pools import ExperiencePool, OpenGroup, UnfinishedPool
from ulorl.rollout.scheduler import Scheduler

__all__ = ["ExperiencePool", "OpenGroup", "Scheduler", "UnfinishedPool"]
