"""What is done with a text, as tasks that know nothing of the web."""

import re
from collections import Counter
from typing import Any, TypedDict

from daglite import gather_tasks, report, task

STOP_WORDS = {
    "English": {"the", "and", "of", "to", "in", "is", "that", "it", "for", "was"},
    "French": {"le", "la", "les", "et", "de", "des", "est", "que", "une", "dans"},
    "German": {"der", "die", "das", "und", "ist", "nicht", "ein", "eine", "zu", "mit"},
}


class Summary(TypedDict):
    """What is found out about a text."""

    name: str
    words: int
    most_common: list[tuple[str, int]]
    language: str | None


@task(cache=True, version=1)
def count_words(text: str) -> Counter[str]:
    """How often each word is in a text: in a worker thread, and once for each text, also after a restart."""
    return Counter(re.findall(r"\w+", text.lower()))


@task
def guess_language(text: str) -> str | None:
    """The language that has most of its commonest words in a text."""
    found = Counter(re.findall(r"\w+", text.lower()))
    scores = {language: sum(found[word] for word in words) for language, words in STOP_WORDS.items()}
    best = max(scores, key=lambda language: scores[language])
    return best if scores[best] else None


@task(name="summary of {name}")
async def summarize(name: str, content: bytes) -> Summary:
    """Find out about a text what there is to find out, side by side."""
    text = content.decode()
    counts, language = await gather_tasks(count_words.call(text), guess_language.call(text))
    summary = Summary(name=name, words=counts.total(), most_common=counts.most_common(5), language=language)
    report("summary", dict[str, Any](summary))
    return summary
