"""A crawler, as a plain program of Trio, and a small site that it serves to itself.

    python examples/trio_crawler.py
    python examples/trio_crawler.py --pages 500 --limit 20 --seconds 3

It needs `pip install 'daglite[trio]' httpx`. The program is Trio's own: `trio.run`, a nursery for the server, a memory channel for
the addresses that are still to be fetched, and `trio.move_on_after` for the time that it may take. What daglite adds is in `fetch`,
which is tried again when the site is busy, has a timeout and a rate, and in `crawl`, in which so many of them run at once.

Of the pages of the site some are busy when they are first asked for, one is gone, and one never answers.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import httpx
import trio

from daglite import Backoff, Rate, session, stream_tasks, task
from daglite.events import TaskRetrying
from daglite.exceptions import TaskError
from daglite.sessions import Subscription

# The crawler.


class Busy(Exception):
    """The site asks to be left alone for a moment."""


@dataclass
class Page:
    """What was found at an address."""

    url: str
    links: list[str]


@dataclass
class Found:
    """What the crawler has come to."""

    pages: list[Page] = field(default_factory=list)
    failures: list[TaskError] = field(default_factory=list)
    retries: int = 0
    is_complete: bool = False

    async def count_retries(self, events: Subscription) -> None:
        async for event in events:
            self.retries += isinstance(event, TaskRetrying)


@task(
    name="fetch {url}",
    retries=3,
    retry_on=Busy,
    retry_delay=Backoff(initial=0.02),
    timeout=2,
    rate=Rate(1000, per=1, burst=50),
)
async def fetch(client: httpx.AsyncClient, url: str) -> Page:
    """Fetch a page, and find the links in it."""
    response = await client.get(url)
    if response.status_code == 503:
        raise Busy(url)
    response.raise_for_status()
    return Page(url, [str(response.url.join(link)) for link in re.findall(r'href="([^"]+)"', response.text)])


async def crawl(start: str, limit: int, seconds: float = math.inf) -> Found:
    """Fetch a page and all that can be reached from it, for so many seconds."""
    found, known = Found(), {start}
    add, frontier = trio.open_memory_channel[str](math.inf)
    add.send_nowait(start)
    with trio.move_on_after(seconds):
        async with session(name="crawler") as s, httpx.AsyncClient(timeout=None) as client:
            s.watch(found.count_retries)
            async with stream_tasks(fetch.partial(client), frontier, limit=limit, errors="collect") as outcomes:
                done = 0
                async for outcome in outcomes:
                    done += 1
                    if outcome.value is not None:
                        found.pages.append(outcome.value)
                        for link in outcome.value.links:
                            if link not in known:
                                known.add(link)
                                add.send_nowait(link)
                    elif isinstance(outcome.error, TaskError):
                        found.failures.append(outcome.error)
                    if done == len(known):
                        add.close()  # nothing is under way that could find more
            found.is_complete = True
    return found


# The site: a tree of pages.


class Site:
    """Pages with links to others.

    Args:
        pages: How many there are.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.asked: Counter[int] = Counter()

    async def answer(self, stream: trio.SocketStream) -> None:
        """Answer one request."""
        with trio.CancelScope() as scope:
            async with stream, trio.open_nursery() as nursery:
                request = await self._read(stream)
                nursery.start_soon(self._until_gone, stream, scope)
                if match := re.match(rb"GET /(\d+) ", request):
                    status, text = await self._page(int(match[1]))
                    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
                    await stream.send_all(head.encode() + text.encode())
                nursery.cancel_scope.cancel()

    async def _read(self, stream: trio.SocketStream) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            part = await stream.receive_some()
            if not part:
                break
            request += part
        return request

    async def _until_gone(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        """Give up the answer when nobody waits for it any more."""
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        scope.cancel()

    async def _page(self, number: int) -> tuple[str, str]:
        self.asked[number] += 1
        if number >= self.pages:
            return "404 Not Found", "There is no such page."
        if number == 5:
            await trio.sleep_forever()
        if number % 7 == 3 and self.asked[number] == 1:
            return "503 Service Unavailable", "In a moment."
        return "200 OK", "".join(f'<a href="/{link}">Page {link}</a>\n' for link in self._links(number))

    def _links(self, number: int) -> Iterator[int]:
        yield 0  # the way home
        for link in (2 * number + 1, 2 * number + 2):
            if link < self.pages:
                yield link
        if number == 1:
            yield self.pages  # which is gone


async def serve_and_crawl(pages: int, limit: int, seconds: float) -> Found:
    """Serve the site, crawl it, and stop."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, Site(pages).answer, 0, host="127.0.0.1")
        [listener, *_] = await nursery.start(serve)
        _, port = listener.socket.getsockname()
        found = await crawl(f"http://127.0.0.1:{port}/0", limit, seconds)
        nursery.cancel_scope.cancel()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Crawl a small site, which this program serves itself.")
    parser.add_argument("--pages", type=int, default=100, help="how many pages the site has (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=10, help="pages at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="for how long (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.pages < 1 or arguments.limit < 1 or not arguments.seconds > 0:
        parser.error("at least one page, one at once, and some time")
    found = trio.run(serve_and_crawl, arguments.pages, arguments.limit, arguments.seconds)
    print(f"{len(found.pages)} pages, {found.retries} retries, {len(found.failures)} failures")
    for error in sorted(map(str, found.failures)):
        print(f"  {error.splitlines()[0]}")
    if not found.is_complete:
        print(f"Not all of them: {arguments.seconds:g} s were over.")


if __name__ == "__main__":
    main()
