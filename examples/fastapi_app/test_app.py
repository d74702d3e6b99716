"""The tests of the service, on both event loops."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from app import MAX_FILES, MAX_SIZE, app
from starlette.testclient import TestClient
from texts import count_words, guess_language

from daglite.events import CacheHit, CacheMissed
from daglite.testing import EventRecorder

ENGLISH = "It is the truth, and the whole of the truth."


@pytest.fixture(params=["asyncio", "trio"])
def client(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.chdir(tmp_path)  # where the cache will be
    with TestClient(app, backend=request.param) as client:
        yield client


def start(client: TestClient, **texts: str | bytes) -> str:
    files = [("files", (name, text, "text/plain")) for name, text in texts.items()]
    response = client.post("/jobs", files=files)
    assert response.status_code == 202
    id: str = response.json()["id"]
    return id


def results(client: TestClient, id: str) -> dict[str, Any]:
    """Those of a job, by file."""
    response = client.get(f"/jobs/{id}/results")
    assert response.headers["content-type"] == "application/jsonl"
    return {found.pop("name"): found for found in map(json.loads, response.text.splitlines())}


def test_words_are_counted_and_the_language_is_guessed() -> None:
    assert count_words("To be, or not to be").most_common(2) == [("to", 2), ("be", 2)]
    assert (guess_language(ENGLISH), guess_language("Das ist nicht die Welt"), guess_language("")) == (
        "English",
        "German",
        None,
    )


def test_files_are_summarized(client: TestClient) -> None:
    found = results(client, start(client, a=ENGLISH, b="das ist das"))
    assert found["a"] == {"words": 10, "most_common": [["the", 3], ["truth", 2], ["it", 1], ["is", 1], ["and", 1]]} | {
        "language": "English"
    }
    assert found["b"]["words"] == 3


def test_a_file_that_is_no_text_is_its_own_failure(client: TestClient) -> None:
    found = results(client, start(client, good="a b", bad=b"\xff\xfe\x00"))
    assert found["good"]["words"] == 2
    assert "can't decode byte 0xff" in found["bad"]["error"]


def test_the_same_text_is_counted_once(recorded_events: EventRecorder, client: TestClient) -> None:
    text = f"{ENGLISH} {uuid4()}"
    assert results(client, start(client, a=text))["a"] == results(client, start(client, b=text))["b"]
    (missed,) = recorded_events.of(CacheMissed)
    (hit,) = recorded_events.of(CacheHit)
    assert missed.key == hit.key


def test_a_job_that_has_ended_has_no_more_events_and_its_results_stay(client: TestClient) -> None:
    id = start(client, a=ENGLISH)
    assert results(client, id) == results(client, id)
    assert client.get(f"/jobs/{id}/events").status_code == 204


def test_what_is_too_much_is_refused(client: TestClient) -> None:
    many = [("files", (f"{number}", "a", "text/plain")) for number in range(MAX_FILES + 1)]
    response = client.post("/jobs", files=many)
    assert (response.status_code, response.json()["detail"]) == (413, "no more than 50 files at once, not 51")
    response = client.post("/jobs", files=[("files", ("large", b"a" * (MAX_SIZE + 1), "text/plain"))])
    assert (response.status_code, response.json()["detail"]) == (413, "large is larger than 2,000,000 bytes")
    assert client.post("/jobs", content=b"no form").status_code == 422


@pytest.mark.parametrize("what", ["results", "events"])
def test_a_job_that_is_none_is_not_found(client: TestClient, what: str) -> None:
    response = client.get(f"/jobs/00000000-0000-0000-0000-000000000000/{what}")
    assert response.status_code == 404
    assert client.get(f"/jobs/no-id/{what}").status_code == 422


def test_the_page_and_the_tree_are_there(client: TestClient) -> None:
    assert "<title>Texts</title>" in client.get("/").text
    assert client.get("/tree").text.startswith("session 'texts': no call runs")
