"""Tasks with retries and timeouts under structured concurrency, on asyncio and Trio."""

from ._context import current_task
from ._metadata import TaskMetadata
from .tasks import AsyncTask, SyncTask, task

__all__ = ["task", "current_task", "TaskMetadata", "AsyncTask", "SyncTask"]

for _public in (current_task, TaskMetadata):
    _public.__module__ = "daglite"
del _public
