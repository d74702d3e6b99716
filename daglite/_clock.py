"""The clocks of this process, which `testing.VirtualClock` replaces.

`monotonic` is for durations, ages and what there is no event loop for; `wall` for moments that other processes know of.
"""

from time import perf_counter as monotonic
from time import time as wall

__all__ = ["monotonic", "wall"]
