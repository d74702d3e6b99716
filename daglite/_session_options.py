"""What is common to all that open a session for somebody else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from ._opening import DatasetStoreLike
    from ._stores import StoreLike
    from .settings import Settings

__all__ = ["CommonOptions"]


class CommonOptions(TypedDict, total=False):
    """Options of `session()`; what is not given is as it is there."""

    name: str
    grace: float
    max_threads: int
    backend: str
    cache_store: StoreLike | None
    dataset_store: DatasetStoreLike | None
    plugins: Iterable[Any]
    settings: Settings
