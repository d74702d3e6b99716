"""What type checkers refuse in the code of users. Each comment must suppress something: mypy and pyright fail otherwise."""

from starlette.applications import Starlette

from daglite import Backoff, gather_tasks, load_dataset, race_tasks, save_dataset, session, stream_tasks, task, workflow
from daglite.asgi import DagliteMiddleware, EventStream, StreamResponse

from .test_inference import count, fetch, fetch_again, lines, load, publish, rows


def test_wrong_uses_are_errors() -> None:
    # Never run: some would wait for ever.
    async def never() -> None:
        load(3)  # type: ignore[arg-type]
        load()  # type: ignore[call-arg]
        await fetch(url="x", retry=1)  # type: ignore[call-arg]
        await load("x")  # type: ignore[misc]
        await load.to_thread(3)  # type: ignore[arg-type]
        await load.run_on("thread")  # type: ignore[call-arg]
        fetch_again.from_thread(3)  # type: ignore[arg-type]
        fetch.to_thread("x")  # type: ignore[attr-defined]
        load.from_thread("x")  # type: ignore[attr-defined]
        rows.to_thread("x")  # type: ignore[attr-defined]
        lines.from_thread("x")  # type: ignore[attr-defined]
        for _ in rows("x"):  # type: ignore[attr-defined]
            pass
        async for _ in lines("x"):  # type: ignore[attr-defined]
            pass
        task(3)  # type: ignore[call-overload]
        task(retries="3")  # type: ignore[call-overload]
        task(retry=3)  # type: ignore[call-overload]
        task(retry_delay="1")  # type: ignore[call-overload]
        task(retry_on="OSError")  # type: ignore[call-overload]
        task(timeout="1")  # type: ignore[call-overload]
        load.with_options(limit="3")  # type: ignore[arg-type]
        load.with_options(rate=3)  # type: ignore[arg-type]
        load.with_options(caching=True)  # type: ignore[call-arg]
        load.with_options(cache=3)  # type: ignore[arg-type]
        load.with_options(cache_ttl="3")  # type: ignore[arg-type]
        load.with_options(dataset=3)  # type: ignore[arg-type]
        save_dataset("a.json", 1, "json")  # type: ignore[call-arg]
        load_dataset("a.json", "dict")  # type: ignore[call-overload]
        load.invalidate(3)  # type: ignore[arg-type]
        load.retries = 3  # type: ignore[misc]
        load.call(3)  # type: ignore[arg-type]
        await gather_tasks(load.call("x"), load)  # type: ignore[call-overload]
        await gather_tasks(load, ["x"], limt=3)  # type: ignore[call-overload]
        await gather_tasks(load, ["x"], errors="log")  # type: ignore[call-overload]
        await gather_tasks(load, 3)  # type: ignore[call-overload]
        stream_tasks(load.call("x"))  # type: ignore[call-overload]
        stream_tasks(load, ["x"], limit="3")  # type: ignore[call-overload]
        await race_tasks(load)  # type: ignore[call-overload]
        Backoff(jitter="x")  # type: ignore[arg-type]
        session(plugins=3)  # type: ignore[arg-type]
        session(grace="5")  # type: ignore[arg-type]
        workflow(grace="5")  # type: ignore[call-overload]
        workflow(retries=3)  # type: ignore[call-overload]
        publish.run(3)  # type: ignore[call-overload]
        publish.run("x", event_loop="curio")  # type: ignore[call-overload]
        await publish(3)  # type: ignore[arg-type]
        count(path=3)  # type: ignore[arg-type]
        await count("x")  # type: ignore[misc]
        count.name = "x"
        app = Starlette()
        app.add_middleware(DagliteMiddleware, retries=3)  # type: ignore[call-arg]
        app.add_middleware(DagliteMiddleware, grace="5")  # type: ignore[arg-type]
        app.add_middleware(DagliteMiddleware, grace=5, shutdown_timeout=3)
        StreamResponse(lines("x"))  # type: ignore[arg-type]
        StreamResponse(rows)  # type: ignore[arg-type]
        EventStream(under="x")  # type: ignore[arg-type]
        async with session() as s:
            s.start_soon(fetch_again, 3)  # type: ignore[call-overload]
            s.start_soon(fetch_again)  # type: ignore[call-overload]
            s.watch(fetch_again)  # type: ignore[arg-type]

    assert callable(never)
