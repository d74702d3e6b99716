"""Names with placeholders: `name="load {table}"`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from string import Formatter
from typing import Any

__all__ = ["placeholders", "render"]


def placeholders(template: str, available: Collection[str], where: str) -> frozenset[str]:
    """The names that a template uses.

    Args:
        template: Text with plain `{name}` placeholders; `{{` and `}}` stand for braces.
        available: The names that may be used.
        where: Whose template it is, to begin an error message with.

    Returns:
        The names, each of them one of `available`.

    Raises:
        ValueError: A placeholder is malformed, more than a plain name, or not available.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as exc:
        raise ValueError(f"{where} {template!r} is not a template: {exc}") from None
    used = set()
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if not field.isidentifier() or spec or conversion:
            raise ValueError(
                f"{where} {template!r} holds a placeholder that is not a plain name; write it as "
                f"{{name}}, without attribute, index, conversion or format"
            )
        if field not in available:
            raise ValueError(
                f"{where} {template!r} has an unknown placeholder {{{field}}}; available are {_listed(available)}"
            )
        used.add(field)
    return frozenset(used)


def render(template: str, values: dict[str, Any]) -> str:
    """Fill a template that `placeholders` has checked."""
    return Formatter().vformat(template, (), values)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names) or "none"
