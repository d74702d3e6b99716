"""Tasks with retries, timeouts and fan-out under structured concurrency, on asyncio and Trio."""

from ._context import current_task, report
from ._datasets import aload_dataset, asave_dataset, load_dataset, save_dataset
from ._dump import dump_on_signal
from ._metadata import TaskMetadata
from ._retry import Backoff
from ._slots import check_cancelled, remaining
from .composers import Outcome, gather_tasks, map_tasks, partition, race_tasks, stream_tasks
from .limits import Limit, Rate
from .sessions import current_session, session
from .tasks import AsyncTask, AsyncTaskStream, SyncTask, SyncTaskStream, task
from .workflows import workflow

__all__ = [
    "task",
    "session",
    "workflow",
    "gather_tasks",
    "stream_tasks",
    "map_tasks",
    "race_tasks",
    "Outcome",
    "partition",
    "Backoff",
    "Limit",
    "Rate",
    "save_dataset",
    "load_dataset",
    "asave_dataset",
    "aload_dataset",
    "current_task",
    "current_session",
    "report",
    "remaining",
    "check_cancelled",
    "dump_on_signal",
    "TaskMetadata",
    "AsyncTask",
    "SyncTask",
    "AsyncTaskStream",
    "SyncTaskStream",
]

for _public in (
    Backoff,
    aload_dataset,
    asave_dataset,
    check_cancelled,
    current_task,
    dump_on_signal,
    load_dataset,
    remaining,
    report,
    save_dataset,
    TaskMetadata,
):
    _public.__module__ = "daglite"
del _public
