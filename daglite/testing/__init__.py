"""For the tests of programs that use daglite: a clock that jumps, events to look at, faults on order, retries without waits.

Each is a context manager, and with pytest a fixture: `virtual_clock`, `recorded_events`, `faults`, `no_waits`. A fifth,
`no_leaks`, fails a test that leaves something running or open. The fixtures are there when daglite is installed, on asyncio and on
Trio, with anyio's own pytest plugin for async tests.
"""

from ._clock import VirtualClock
from ._faults import Fault, Faults
from ._recorder import EventRecorder
from ._waits import no_waits

__all__ = ["EventRecorder", "Fault", "Faults", "VirtualClock", "no_waits"]

for _public in (EventRecorder, Fault, Faults, VirtualClock, no_waits):
    _public.__module__ = __name__  # where people find them
del _public
