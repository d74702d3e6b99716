"""Programs that are interrupted from outside, and programs that end while a thread ignores its deadline."""

import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PROLOGUE = r"""
import os, sys, threading, time
import anyio
from daglite import current_session, session, task

loop = sys.argv[1]


def say(word):
    os.write(1, f"{word}\n".encode())  # as a whole, from whatever thread


def is_waiting():
    # Whether the main thread waits, and for more than that something is started.
    frame, names = sys._current_frames()[threading.main_thread().ident], []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names[0] == "wait" and "call" not in names and "begin" not in names


@task
async def hang(word="ready"):
    while not is_waiting():
        await anyio.sleep(0.001)
    say(word)
    try:
        await anyio.sleep_forever()
    finally:
        say("hang cleaned up")
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@contextmanager
def running(program: str, loop: str) -> Iterator["subprocess.Popen[str]"]:
    """A program in a process of its own, which is never left behind."""
    command = [sys.executable, "-X", "faulthandler", "-W", "always", "-c", PROLOGUE + program, loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 40)
    assert ready
    assert process.stdout.readline() == f"{word}\n"


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "waits",
    ["hang.from_thread()", "s.start_soon(hang).result()", "inner()", "nested()", "in_place()"],
)
def test_control_c_in_a_wait_for_the_event_loop_is_one_keyboard_interrupt(waits: str, loop: str) -> None:
    program = f"""
@task(retries=3)
def inner():
    hang.from_thread()


@task
def nested():
    with session():
        hang.from_thread()


@task(timeout=60)
def in_place():
    hang.from_thread()


try:
    with session(event_loop=loop) as s:
        try:
            {waits}
        finally:
            say("body cleaned up")
        say("not reached")
finally:
    say("session left")
"""
    with running(program, loop) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=40)
    assert process.returncode in (-signal.SIGINT, 1, 130)
    assert "not reached" not in out
    words = out.split("\n")
    assert sorted(words[:3]) == ["body cleaned up", "hang cleaned up", "session left"]
    assert words[2] == "session left"
    # One traceback of one exception, with nothing logged or printed beside it.
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("\nKeyboardInterrupt\n")
    assert err.count("Traceback") == 1
    assert not re.search("Error|Warning|Group|During handling|direct cause", err)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_control_c_while_the_session_waits_for_its_calls_cancels_them(loop: str) -> None:
    program = """
try:
    with session(event_loop=loop) as s:
        s.start_soon(hang)
finally:
    say("session left")
"""
    with running(program, loop) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=40)
    assert out == "hang cleaned up\nsession left\n"
    assert err.endswith("\nKeyboardInterrupt\n")
    assert err.count("Traceback") == 1


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_second_control_c_does_not_wait_any_more(loop: str) -> None:
    program = """
@task
async def stubborn():
    while not is_waiting():
        await anyio.sleep(0.001)
    say("ready")
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            say("cancelled")
            await anyio.sleep(1000)


with session(event_loop=loop) as s:
    stubborn.from_thread()
"""
    with running(program, loop) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGINT)
        wait_for(process, "cancelled")
        for _ in range(3):  # one for the call, one for the session
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            if process.poll() is not None:
                break
        _, err = process.communicate(timeout=40)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_program_ends_whose_thread_ignores_its_deadline(loop: str) -> None:
    program = """
@task(timeout=0.2)
def ignore():
    time.sleep(seconds)


seconds = 3600
try:
    ignore()
except TimeoutError as error:
    say(error)
with session(event_loop=loop, grace=0.1) as s:
    try:
        ignore()
    except TimeoutError as error:
        say("in place")
    assert "stuck" in str(s.tree())
say("left")
"""
    with running(program, loop) as process:
        out, err = process.communicate(timeout=40)
    text = "Task 'ignore' failed after 1 attempt with error: no result within its timeout of 0.2 s"
    assert (process.returncode, out) == (0, f"{text}\nin place\nleft\n")
    assert "ResourceWarning: session 'session' has ended while threads of it still run" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_session_ends_whose_worker_thread_ignores_its_deadline(loop: str) -> None:
    program = """

@task(timeout=0.2)
def ignore():
    time.sleep(3600)


with session(event_loop=loop, grace=0.1, on_background_error="log") as s:
    try:
        s.start_soon(ignore).result()
    except TimeoutError:
        say("timeout")
say("left")
os._exit(7)  # on asyncio the interpreter waits for worker threads
"""
    with running(program, loop) as process:
        out, err = process.communicate(timeout=40)
    assert (process.returncode, out) == (7, "timeout\nleft\n")
    assert "ResourceWarning: session 'session' has ended while threads of it still run, past their deadlines" in err
