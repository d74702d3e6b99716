"""The clock of this process, for durations, ages and what there is no event loop for: `testing.VirtualClock` replaces it."""

from time import perf_counter as monotonic

__all__ = ["monotonic"]
