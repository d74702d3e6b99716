"""One side of `peers.py`, in its own environment: does the work that it is told to on its standard input.

python benchmarks/worker.py SIDE                    for each line, a kind of work, prints seconds of each way as JSON
python benchmarks/worker.py SIDE memory WAY         does it once, and prints by how many bytes the process has grown
"""

import contextlib
import importlib
import json
import resource
import sys

from sides._work import Work

GIGABYTES = 3  # a process may have


def peak() -> int:
    """Bytes that the process has had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def present() -> int:
    """Bytes that it has in memory now; where nobody tells, at most."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak()


def main(side: str, *alone: str) -> None:
    work: Work = importlib.import_module(f"sides.{side}").WORK
    if alone:
        kind, way = alone
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 1024**3, GIGABYTES * 1024**3))
        before = present()
        work[kind][way]()
        print(max(peak() - before, resource.getpagesize()))
        return
    print(json.dumps({kind: list(ways) for kind, ways in work.items()}), flush=True)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            done = {name: way() for name, way in work[line.strip()].items()}
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
