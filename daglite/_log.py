"""The logger, which is not imported before something has to be logged, and errors as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

__all__ = ["described", "logger"]


def logger() -> Logger:
    """The logger `daglite`."""
    import logging  # 10 ms, for what seldom happens

    return logging.getLogger("daglite")


def described(error: BaseException) -> str:
    """An error as text: its type and message."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # the user's own __str__
        return type(error).__name__
