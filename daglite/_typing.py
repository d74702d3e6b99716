"""Words for types that several modules use."""

from typing import Final, TypeVar, final

from typing_extensions import ParamSpec

__all__ = ["NOT_GIVEN", "NotGiven", "P", "R"]

P = ParamSpec("P")
R = TypeVar("R")


@final
class NotGiven:
    """The type of `NOT_GIVEN`: an option that the caller left out, which `None` cannot say."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven()
"""The default of options for which `None` has a meaning of its own."""
