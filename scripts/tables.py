"""Write the tables of the documentation that are made of the code: those of a task's options and of the events.

python scripts/tables.py          writes them into the pages; a test fails where they are not what the code says
"""

import inspect
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from daglite import Rate, events, task

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


async def coroutine_function() -> None: ...


def plain_function() -> None: ...


async def async_generator_function() -> AsyncIterator[int]:
    yield 1


def generator_function() -> Iterator[int]:
    yield 1


KINDS: dict[Callable[..., Any], str] = {
    coroutine_function: "`AsyncTask`",
    plain_function: "`SyncTask`",
    async_generator_function: "`AsyncTaskStream`",
    generator_function: "`SyncTaskStream`",
}
SOME_VALUE = {  # of an option, other than its default
    "name": "other",
    "description": "other",
    "retries": 1,
    "retry_on": OSError,
    "retry_delay": 1.0,
    "timeout": 1.0,
    "total_timeout": 1.0,
    "item_timeout": 1.0,
    "pump": True,
    "limit": 1,
    "rate": Rate(1, per=1),
    "cache": True,
    "cache_store": "folder",
    "cache_ttl": 1.0,
    "cache_hash": lambda func, inputs: "",
    "version": 1,
    "dataset_store": "folder",
    "dataset_format": "json",
    "backend": "thread",
    "wrap_errors": False,
}


def options_table() -> list[str]:
    """A line for each option: its default, which kinds of task take it, and what it is."""
    described = arguments_of(task)
    lines = [
        "| option | default | of | it is |",
        "|---|---|---|---|",
    ]
    for parameter in inspect.signature(task).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            name, default = parameter.name, parameter.default
            shown = default.__name__ if isinstance(default, type) else repr(default)
            kinds = [kind for function, kind in KINDS.items() if takes(function, name)]
            of = "all kinds" if len(kinds) == len(KINDS) else ", ".join(kinds)
            lines.append(f"| `{name}` | `{shown}` | {of} | {first_of(described[name])} |")
    return lines


def takes(function: Callable[..., Any], option: str) -> bool:
    """Whether a task of such a function can have the option."""
    made = task(function)
    # Each of these needs the first, whose placeholders depend on the kind of task.
    dataset = {"dataset": "{iter_index}.json" if made.is_generator else "{name}.json"}
    given: dict[str, Any] = {**dataset} if option.startswith("dataset") else {}
    if option != "dataset":
        given[option] = SOME_VALUE[option]
    try:
        made.with_options(**given)
    except ValueError:
        return False
    return True


def events_table() -> list[str]:
    """A line for each event: when there is one, and what it has to say besides what all of its kind have."""
    lines = ["| event | when | it has |", "|---|---|---|"]
    in_order = [name for name in vars(events) if name in events.__all__]
    for name in in_order:
        event = getattr(events, name)
        (base,) = event.__bases__
        common = {field.name for field in fields(base)} if base is not object else set()
        own = [
            f"`{field.name}`" if field.default is MISSING else f"`{field.name}={field.default!r}`"
            for field in fields(event)
            if field.name not in common
        ]
        inherits = [] if base is object else [f"what `{base.__name__}` has"]
        when = first_of(" ".join(paragraph(event).split()))
        lines.append(f"| [`{name}`][daglite.events.{name}] | {when} | {', '.join(inherits + own)} |")
    return lines


def paragraph(thing: Any) -> str:
    """The first paragraph of the docstring."""
    return inspect.getdoc(thing).split("\n\n")[0]  # type: ignore[union-attr]


def arguments_of(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument, in one line."""
    text = (inspect.getdoc(function) or "").split("\nArgs:\n")[1].split("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    return {name: " ".join(description.split()) for name, description in found}


def first_of(text: str) -> str:
    """What a text says first, for a cell of a table."""
    return re.split(r"; |\.(?: |$)", text)[0].replace("|", "\\|")


TABLES = {"options": ("tasks.md", options_table), "events": ("events.md", events_table)}


def with_table(text: str, name: str, lines: list[str]) -> str:
    """A page in which what is between the marks of a table is the table."""
    begin, end = f"<!-- {name}: made by scripts/tables.py -->", f"<!-- end of {name} -->"
    before, marked, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (marked and closed):
        raise ValueError(f"there is no place for the table {name!r}: {begin} {end}")
    return "\n".join([before + begin, "", *lines, "", end + after])


def main() -> int:
    for name, (page, table) in TABLES.items():
        path = REFERENCE / page
        path.write_text(with_table(path.read_text(), name, table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
