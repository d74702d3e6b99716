"""The logger, which is not imported before something has to be logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

__all__ = ["logger"]


def logger() -> Logger:
    """The logger `daglite`."""
    import logging  # 10 ms, for what seldom happens

    return logging.getLogger("daglite")
