"""A small service: it takes text files, finds out about each what there is to find out, and lets a page follow that.

    uvicorn --app-dir examples/fastapi_app app:app --timeout-graceful-shutdown 5

Then open http://127.0.0.1:8000. The tasks are in `texts.py`, the page is `page.html`. It is for one user: where there are more, the
endpoints of a job have to see whose it is.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from uuid import UUID

import anyio
from fastapi import Depends, FastAPI, HTTPException, UploadFile
from fastapi.responses import FileResponse, PlainTextResponse
from texts import Summary, summarize

from daglite import Outcome, current_session, stream_tasks, task
from daglite.asgi import DagliteMiddleware, EventStream, StreamResponse
from daglite.sessions import Session

MAX_FILES = 50
MAX_SIZE = 2_000_000  # bytes of a file
MAX_JOBS = 100  # of which the results are kept

app = FastAPI(title="Texts")
app.add_middleware(DagliteMiddleware, name="texts", cache_store=".cache/texts")


class Job:
    """Files that came together, and what was found out about them so far."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []  # JSON, of one file each
        self.is_done = False
        self._changed = anyio.Event()

    def add(self, outcome: Outcome[Summary], names: list[str]) -> None:
        """One file more is done."""
        name = names[outcome.index]
        found = outcome.value if outcome.error is None else {"name": name, "error": str(outcome.error.__cause__)}
        self.lines.append(json.dumps(found).encode() + b"\n")
        self._tell()

    def finish(self) -> None:
        """There are no more."""
        self.is_done = True
        self._tell()

    async def until_changed(self) -> None:
        """Wait until there is more, or all."""
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


jobs: dict[UUID, Job] = {}


@task
async def summarize_all(job: Job, names: list[str], contents: list[bytes]) -> None:
    """The work on a job, in the background: a file that is no text is its own failure, and not that of the others."""
    try:
        async with stream_tasks(summarize, names, contents, limit=4, errors="collect") as outcomes:
            async for outcome in outcomes:
                job.add(outcome, names)
    finally:
        job.finish()


@task
async def results(job: Job) -> AsyncIterator[bytes]:
    """The results of a job as they come, from its first."""
    for index in range(MAX_FILES):
        while index >= len(job.lines):
            if job.is_done:
                return
            await job.until_changed()
        yield job.lines[index]


def session_here() -> Session:
    """The session of the app, which the middleware makes current in every request."""
    found = current_session()
    assert found is not None
    return found


@task(wrap_errors=False)  # so that FastAPI sees its own error
async def job_of(id: UUID) -> Job:
    """The job that a path names."""
    if id not in jobs:
        raise HTTPException(404, "there is no such job; the results of the last 100 are kept")
    return jobs[id]


@app.get("/")
async def page() -> FileResponse:
    """The page."""
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/jobs", status_code=202)
async def start(files: list[UploadFile], session: Annotated[Session, Depends(session_here)]) -> dict[str, UUID]:
    """Take some files, begin to work on them, and answer at once."""
    if len(files) > MAX_FILES:
        raise HTTPException(413, f"no more than {MAX_FILES} files at once, not {len(files)}")
    names = [file.filename or "unnamed" for file in files]
    contents = [await file.read(MAX_SIZE + 1) for file in files]
    for name, content in zip(names, contents, strict=True):
        if len(content) > MAX_SIZE:
            raise HTTPException(413, f"{name} is larger than {MAX_SIZE:,} bytes")
    job = Job()
    id = session.start_soon(summarize_all, job, names, contents).id
    jobs[id] = job
    while len(jobs) > MAX_JOBS:
        del jobs[next(iter(jobs))]
    return {"id": id}


@app.get("/jobs/{id}/results")
async def stream_results(job: Annotated[Job, Depends(job_of)]) -> StreamResponse:
    """The results, one JSON object a line, each when it is there."""
    return StreamResponse(results(job), media_type="application/jsonl")


@app.get("/jobs/{id}/events", dependencies=[Depends(job_of)])
async def follow(id: UUID) -> EventStream:
    """What happens to a job, for `EventSource`."""
    return EventStream(under=id)


@app.get("/tree")
async def tree(session: Annotated[Session, Depends(session_here)]) -> PlainTextResponse:
    """What runs at this moment, in all requests and in the background."""
    return PlainTextResponse(f"{session.tree()}\n")
