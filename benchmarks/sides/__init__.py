"""The same work, written for each library: what `worker.py` runs in that library's own environment.

Each module has `WORK`: for each kind of work the ways to do it, as functions that return seconds for one unit of it.
"""
