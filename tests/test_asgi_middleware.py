"""`DagliteMiddleware` under a server in this process."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import daglite.asgi
from daglite import current_session, session, task
from daglite.asgi import DagliteMiddleware
from daglite.exceptions import SessionError
from daglite.plugins import hook_impl
from daglite.sessions import Session
from daglite.testing import VirtualClock

from .asgi_server import Life, Request, serving


async def respond(send: Any, body: bytes = b"ok") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class App:
    """An app that notes what happens to it, and answers with what a function of the test returns."""

    def __init__(self, endpoint: Callable[[], Any] | None = None) -> None:
        self.endpoint = endpoint
        self.journal: list[Any] = []
        self.at_startup: Callable[[], Any] | None = None
        self.at_shutdown: Callable[[], Any] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        if self.endpoint is not None:
            self.journal.append(await self.endpoint())
        await respond(send)

    async def live(self, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        self.journal.append("started")
        if self.at_startup is not None:
            await self.at_startup()
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.journal.append("stopping")
        if self.at_shutdown is not None:
            await self.at_shutdown()
        await send({"type": "lifespan.shutdown.complete"})


async def which_session() -> Session | None:
    await checkpoint()
    return current_session()


def here() -> Session:
    found = current_session()
    assert found is not None
    return found


async def test_the_session_of_the_app_is_current_in_its_requests_and_its_lifespan() -> None:
    app = App(which_session)
    seen: list[Any] = []

    async def at_startup() -> None:
        seen.append(await which_session())

    app.at_startup = app.at_shutdown = at_startup
    wrapped = DagliteMiddleware(app, name="web", grace=1)
    async with serving(wrapped) as life:
        assert current_session() is None
        assert (await Request().run(wrapped)).is_complete
        await Request().run(wrapped)
    _, first, second, _ = app.journal
    assert isinstance(first, Session)
    assert first is second is seen[0] is seen[1]
    assert (first.name, first.settings.grace, first.settings.on_background_error) == ("web", 1, "log")
    assert life.said == ["startup.complete", "shutdown.complete"]


async def test_an_app_may_be_started_again() -> None:
    app = App(which_session)
    wrapped = DagliteMiddleware(app)
    for _ in range(2):
        async with serving(wrapped):
            await Request().run(wrapped)
    _, first, _, _, second, _ = app.journal
    assert first is not second


async def test_requests_run_side_by_side() -> None:
    entered: list[Session] = []
    all_here = anyio.Event()

    async def endpoint() -> None:
        entered.append(here())
        if len(entered) == 10:
            all_here.set()
        await all_here.wait()

    wrapped = DagliteMiddleware(App(endpoint))
    async with serving(wrapped), anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(Request().run, wrapped)
    assert len(set(entered)) == 1


async def test_a_websocket_has_it_too() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            seen.append(current_session())
        else:
            await App().live(receive, send)

    wrapped = DagliteMiddleware(app)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None: ...

    async with serving(wrapped):
        await wrapped({"type": "websocket", "path": "/"}, receive, send)
    assert isinstance(seen[0], Session)


async def test_what_a_request_starts_outlives_it_and_its_streams_do_not() -> None:
    journal: list[str] = []
    go_on = anyio.Event()

    @task
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await checkpoint()
            journal.append("stream closed")

    @task
    async def report() -> None:
        await go_on.wait()
        journal.append("reported")

    async def endpoint() -> None:
        here().start_soon(report)
        async for _ in numbers():
            break

    wrapped = DagliteMiddleware(App(endpoint))
    async with serving(wrapped):
        await Request().run(wrapped)
        journal.append("answered")
        go_on.set()
    assert journal == ["stream closed", "answered", "reported"]


async def test_a_background_call_reads_from_a_stream_of_its_own_and_starts_others() -> None:
    journal: list[Any] = []

    @task
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    @task
    async def total() -> None:
        await checkpoint()
        journal.append(sum([number async for number in numbers()]))
        here().start_soon(other)

    @task
    async def other() -> None:
        journal.append("other")

    async def endpoint() -> None:
        here().start_soon(total)

    wrapped = DagliteMiddleware(App(endpoint))
    async with serving(wrapped):
        await Request().run(wrapped)
        journal.append("answered")
    assert sorted(journal, key=str) == [3, "answered", "other"]


@pytest.mark.parametrize("pump", [False, True])
@pytest.mark.parametrize("waits", [False, True])
async def test_a_stream_of_a_request_that_a_background_call_reads_is_cut_off_with_an_error(
    pump: bool, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    journal: list[Any] = []
    taken, go_on = anyio.Event(), anyio.Event()

    @task(pump=pump)
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            if waits:
                await go_on.wait()
            yield 2
            yield 3
        finally:
            journal.append("closed")

    @task
    async def read(stream: Any) -> None:
        try:
            async for number in stream:
                journal.append(number)
                taken.set()
                if not waits:
                    await go_on.wait()
        except SessionError as exc:
            journal.append(exc)

    async def endpoint() -> None:
        stream = numbers()
        await anext(stream)
        here().start_soon(read, stream)
        if not waits:
            await taken.wait()
        else:
            await anyio.wait_all_tasks_blocked()

    wrapped = DagliteMiddleware(App(endpoint))
    async with serving(wrapped):
        await Request().run(wrapped)
        go_on.set()
    *rest, error = journal
    assert rest == ([2, "closed"] if not waits or not pump else ["closed"])
    assert "opened in a request" in str(error)
    assert "open the stream itself" in str(error)
    assert not caplog.text


async def test_a_stream_in_a_thread_is_cut_off_too() -> None:
    journal: list[Any] = []
    go_on = threading.Event()

    @task
    def numbers() -> Iterator[int]:
        try:
            yield 1
            assert go_on.wait(30)
            yield 2
            yield 3
        finally:
            journal.append("closed")

    @task
    async def read(stream: Any) -> None:
        try:
            async for number in stream:
                journal.append(number)
        except SessionError as exc:
            journal.append(type(exc))

    async def endpoint() -> None:
        stream = numbers.to_thread()
        await anext(stream)
        here().start_soon(read, stream)
        await anyio.wait_all_tasks_blocked()

    wrapped = DagliteMiddleware(App(endpoint))
    async with serving(wrapped):
        await Request().run(wrapped)
        go_on.set()
    assert journal == [2, "closed", SessionError]


async def test_a_background_call_that_fails_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def send_mail() -> None:
        raise ConnectionError("no mail today")

    async def endpoint() -> None:
        here().start_soon(send_mail)

    wrapped = DagliteMiddleware(App(endpoint))
    async with serving(wrapped) as life:
        await Request().run(wrapped)
        assert (await Request().run(wrapped)).status == 200
    assert caplog.text.count("the background call of task 'send_mail' failed") == 2
    assert life.said[-1] == "shutdown.complete"


async def test_a_request_leaves_nothing_to_the_collector() -> None:
    class Connection:
        """What servers have for a request: it has the scope, which so must not have it."""

        def __init__(self) -> None:
            self.scope = {"type": "http", "method": "GET", "headers": []}

        async def receive(self) -> Any: ...

        async def send(self, message: Any) -> None: ...

    wrapped = DagliteMiddleware(App())
    async with serving(wrapped):
        gc.disable()
        try:
            connection = Connection()
            await wrapped(connection.scope, connection.receive, connection.send)
            seen = weakref.ref(connection)
            del connection
            assert seen() is None
        finally:
            gc.enable()


async def test_an_error_of_the_app_is_the_requests_own() -> None:
    async def endpoint() -> None:
        raise LookupError("no such page")

    wrapped = DagliteMiddleware(App(endpoint))
    async with serving(wrapped):
        with pytest.raises(LookupError, match="no such page"):
            await Request().run(wrapped)
        with pytest.raises(LookupError, match="no such page"):
            await Request().run(wrapped)


# The end.


async def test_background_calls_are_joined_before_the_apps_lifespan_ends() -> None:
    app = App()
    go_on, began = anyio.Event(), anyio.Event()

    @task
    async def use_the_pool() -> None:
        began.set()
        await go_on.wait()
        app.journal.append("used")

    async def endpoint() -> None:
        here().start_soon(use_the_pool)

    app.endpoint = endpoint
    wrapped = DagliteMiddleware(app)
    async with anyio.create_task_group() as group:
        life = Life(wrapped)
        group.start_soon(life.run)
        await life.start()
        await Request().run(wrapped)
        await began.wait()
        life.stop()
        await anyio.wait_all_tasks_blocked()
        assert life.said == ["startup.complete"]
        go_on.set()
    assert app.journal == ["started", None, "used", "stopping"]
    assert life.said == ["startup.complete", "shutdown.complete"]


async def test_background_calls_that_take_too_long_are_cancelled_and_named(
    virtual_clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    @task(name="report of {year}")
    async def report(year: int, seconds: float) -> None:
        try:
            await anyio.sleep(seconds)
            app.journal.append(f"{year} reported at {virtual_clock.time()}")
        except anyio.get_cancelled_exc_class():
            app.journal.append(f"{year} cancelled at {virtual_clock.time()}")
            raise

    async def endpoint() -> None:
        here().start_soon(report, 2025, 3)
        here().start_soon(report, 2026, 100)
        await checkpoint()

    app.endpoint = endpoint
    wrapped = DagliteMiddleware(app)
    async with serving(wrapped) as life:
        await Request().run(wrapped)
    assert app.journal == ["started", None, "2025 reported at 3.0", "2026 cancelled at 20.0", "stopping"]
    assert "cancels what has not ended in time: 'report of 2026'" in caplog.text
    assert life.said == ["startup.complete", "shutdown.complete"]


async def test_what_the_lifespan_starts_at_its_end_has_what_is_left_of_the_time(
    virtual_clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    @task
    async def wait(seconds: float) -> None:
        await anyio.sleep(seconds)

    async def endpoint() -> None:
        here().start_soon(wait, 3)

    async def at_shutdown() -> None:
        app.journal.append(virtual_clock.time())
        here().start_soon(wait, 100)

    app.endpoint, app.at_shutdown = endpoint, at_shutdown
    wrapped = DagliteMiddleware(app, shutdown_timeout=5)
    async with serving(wrapped) as life:
        await Request().run(wrapped)
    assert app.journal == ["started", None, "stopping", 3.0]
    assert virtual_clock.time() == 5.0
    assert "cancels what has not ended in time: 'wait'" in caplog.text
    assert life.said == ["startup.complete", "shutdown.complete"]


async def test_a_request_while_the_session_ends_is_refused() -> None:
    began, go_on = anyio.Event(), anyio.Event()

    @task
    async def service() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            began.set()
            with anyio.CancelScope(shield=True):
                await go_on.wait()

    app = App()

    async def at_startup() -> None:
        here().start_service(service)

    app.at_startup = at_startup
    wrapped = DagliteMiddleware(app)
    async with anyio.create_task_group() as group:
        life = Life(wrapped)
        group.start_soon(life.run)
        await life.start()
        await anyio.wait_all_tasks_blocked()
        life.stop()
        await began.wait()
        with pytest.raises(SessionError, match="after it has begun to end"):
            await Request().run(wrapped)
        go_on.set()


async def test_leaving_waits_for_requests_that_are_open(caplog: pytest.LogCaptureFixture) -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    async def endpoint() -> str:
        entered.set()
        await go_on.wait()
        return "finished"

    app = App(endpoint)
    wrapped = DagliteMiddleware(app)
    async with anyio.create_task_group() as group:
        life = Life(wrapped)
        group.start_soon(life.run)
        await life.start()
        group.start_soon(Request().run, wrapped)
        await entered.wait()
        life.stop()
        await anyio.wait_all_tasks_blocked()
        assert life.said == ["startup.complete"]
        go_on.set()
    assert app.journal == ["started", "stopping", "finished"]
    assert not caplog.text


# What is wrong at the start.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"retries": 3},
            "TypeError: DagliteMiddleware has no option 'retries'; it takes shutdown_timeout, name, grace",
        ),
        (
            {"event_loop": "trio"},
            "TypeError: DagliteMiddleware does not take event_loop=: it is the server that chooses",
        ),
        ({"on_background_error": "raise"}, 'does not take on_background_error=: it is always "log" here'),
        ({"grace": -1}, "ValueError: session: grace must be at least 0, not -1"),
        ({"plugins": "otel"}, "TypeError: session: plugins must be a list of plugins, not 'otel'"),
        ({"shutdown_timeout": "20"}, "TypeError: DagliteMiddleware: shutdown_timeout must be a number, not '20'"),
        ({"shutdown_timeout": float("inf")}, "ValueError: DagliteMiddleware: shutdown_timeout must be finite, not inf"),
    ],
)
async def test_wrong_options_keep_the_app_from_starting(options: Any, message: str) -> None:
    app = App()
    life = Life(DagliteMiddleware(app, **options))
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        await life.start()
    assert life.said == ["startup.failed"]
    assert message in life.sent[0]["message"]
    assert life.error is None
    assert app.journal == []


async def test_a_plugin_that_is_none_keeps_the_app_from_starting() -> None:
    class Misspelt:
        @hook_impl
        def before_node_exceute(self, metadata: Any) -> None: ...

    life = Life(DagliteMiddleware(App(), plugins=[Misspelt()]))
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        await life.start()
    assert life.said == ["startup.failed"]
    assert "before_node_exceute" in life.sent[0]["message"]


async def test_a_second_middleware_of_an_app_keeps_it_from_starting() -> None:
    app = App()
    life = Life(DagliteMiddleware(DagliteMiddleware(app)))
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        await life.start()
    assert life.said == ["startup.failed"]
    assert "has a DagliteMiddleware already" in life.sent[0]["message"]
    assert app.journal == []


async def test_an_app_that_fails_to_start_ends_what_it_has_begun() -> None:
    app = App()
    began = anyio.Event()

    @task
    async def poll() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            app.journal.append("cancelled")

    async def at_startup() -> None:
        here().start_soon(poll)
        await began.wait()
        raise ConnectionError("no database")

    app.at_startup = at_startup

    async def like_starlette(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except ConnectionError as exc:
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            app.journal.append("told")
            raise

    life = Life(DagliteMiddleware(like_starlette))
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        await life.start()
    assert [(message["type"], message["message"]) for message in life.sent] == [
        ("lifespan.startup.failed", "no database")
    ]
    assert isinstance(life.error, ConnectionError)
    assert app.journal == ["started", "told", "cancelled"]


async def test_an_app_that_says_that_it_failed_and_returns_ends_what_it_has_begun() -> None:
    journal: list[str] = []

    @task
    async def poll() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            journal.append("cancelled")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        here().start_soon(poll)
        await anyio.wait_all_tasks_blocked()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    life = Life(DagliteMiddleware(app))
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        await life.start()
    assert (life.said, life.error, journal) == (["startup.failed"], None, ["cancelled"])


async def test_an_app_that_fails_to_stop_says_so() -> None:
    app = App()

    async def at_shutdown() -> None:
        raise OSError("the pool does not close")

    app.at_shutdown = at_shutdown
    life = Life(DagliteMiddleware(app))
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        await life.start()
        life.stop()
    assert life.said == ["startup.complete", "shutdown.failed"]
    assert "the pool does not close" in life.sent[1]["message"]
    assert isinstance(life.error, OSError)


async def test_a_session_that_fails_on_leaving_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = Session.__aexit__

    async def fail(self: Session, *exc_info: Any) -> Any:
        await leave(self, *exc_info)
        raise OSError("a store does not close")

    monkeypatch.setattr(Session, "__aexit__", fail)
    life = Life(DagliteMiddleware(App()))
    async with anyio.create_task_group() as group:
        group.start_soon(life.run)
        await life.start()
        life.stop()
    assert life.said == ["startup.complete", "shutdown.failed"]
    assert "a store does not close" in life.sent[1]["message"]
    assert life.error is None


async def test_an_app_without_a_lifespan_has_a_session_all_the_same() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(f"can only handle HTTP, not {scope['type']}")
        seen.append(current_session())
        await respond(send)

    wrapped = DagliteMiddleware(app)
    async with serving(wrapped) as life:
        await Request().run(wrapped)
        await Request().run(wrapped)
    assert isinstance(seen[0], Session)
    assert seen[0] is seen[1]
    assert life.said == ["startup.complete", "shutdown.complete"]


async def test_an_app_that_does_not_wait_for_its_end_has_a_session_all_the_same() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(current_session())
            await respond(send)
        else:
            await send({"type": "lifespan.startup.complete"})

    wrapped = DagliteMiddleware(app)
    async with serving(wrapped) as life:
        await anyio.wait_all_tasks_blocked()
        await Request().run(wrapped)
    assert isinstance(seen[0], Session)
    assert life.said == ["startup.complete", "shutdown.complete"]


def test_without_starlette_there_is_the_middleware_and_an_error_that_says_what_to_install() -> None:
    program = """
import sys
sys.modules["starlette"] = None
import daglite.asgi
daglite.asgi.DagliteMiddleware
try:
    daglite.asgi.StreamResponse
except ImportError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == "daglite.asgi.StreamResponse needs Starlette: pip install 'daglite[asgi]'\n"
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        daglite.asgi.Nothing


# Without lifespan, and in other apps.


async def test_without_lifespan_a_request_has_a_session_that_waits_for_its_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App()

    @task
    async def report() -> None:
        await checkpoint()
        app.journal.append("reported")

    async def endpoint() -> Session:
        here().start_soon(report)
        return here()

    app.endpoint = endpoint
    wrapped = DagliteMiddleware(app, name="web")
    await Request().run(wrapped)
    await Request().run(wrapped)
    first, told, second, told_again = app.journal
    assert first is not second
    assert first.name == "web"
    assert told == told_again == "reported"
    assert caplog.text.count("nobody runs the lifespan of the app") == 1


async def test_without_lifespan_wrong_options_are_errors_of_the_requests() -> None:
    wrong: Any = {"retries": 3}
    with pytest.raises(TypeError, match="has no option 'retries'"):
        await Request().run(DagliteMiddleware(App(), **wrong))


async def test_in_a_mounted_app_the_middleware_does_nothing() -> None:
    mounted = App(which_session)
    wrapped_mounted = DagliteMiddleware(mounted, name="inner", shutdown_timeout=-1)  # which nobody looks at

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await App().live(receive, send)
        else:
            await wrapped_mounted(dict(scope, path="/"), receive, send)

    wrapped = DagliteMiddleware(outer, name="outer")
    async with serving(wrapped):
        await Request().run(wrapped)
    assert mounted.journal[0].name == "outer"


async def test_a_session_around_the_server_is_the_outer_one() -> None:
    app = App(which_session)
    wrapped = DagliteMiddleware(app)
    async with session(grace=3, on_background_error="raise") as outer:
        async with serving(wrapped):
            await Request().run(wrapped)
    inner = app.journal[1]
    assert inner is not outer
    assert inner.settings.grace == 3
    assert inner.settings.on_background_error == "log"
