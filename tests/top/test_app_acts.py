"""What keys of `gen-worker top` do to a supervisor, and that they ask before they do it."""

import asyncio
import signal
import threading
from pathlib import Path

import pytest
from textual import events

from gen_worker.client import JobError
from tests.served import Server, serving, until
from tests.top.looking import Looking, looking

pytestmark = pytest.mark.process
CPU_1 = ("home", "down")  # to the second device


def running(server: Server, *jobs: str) -> bool:
    """Whether these jobs run."""
    return all((job := server.job(name)) is not None and job.status == "running" for name in jobs)


async def on_the_jobs_of_two_devices(server: Server, look: Looking) -> None:
    await look.press(*CPU_1)
    await look.until(lambda: look.top.home.board.selected_job is not None, "a selected job")
    selected = look.top.home.board.selected_job
    assert selected is not None
    other = "first" if selected.id == "second" else "second"

    await look.press("k")
    await look.sees(f"Stop job {selected.id}", "cancel:", "kill:", "Other devices go on.")
    await look.press("k", "x", "escape")
    await look.sees("Devices 2", gone="Stop a job")
    assert running(server, "first", "second")

    await look.pilot.click("#keys", offset=(2, 0))
    await look.sees(f"Stop job {selected.id}")
    await look.pilot.click("_Way:last-of-type")
    await look.sees("Devices 2", gone="Stop a job")
    assert running(server, "first", "second")

    await look.press("k", "K")
    await look.sees(f"{selected.id} was killed")
    assert running(server, other)
    assert server.devices()["cpu:1"].restarts == 1

    await look.press("home", "r")
    await look.sees("Restart the child of cpu:0?", f"{other} may finish first", "now:")
    await look.press("escape", "d")
    await look.sees("Drain cpu:0?", other)
    await look.press("d")
    await look.until(lambda: server.devices()["cpu:0"].drained, "a drained device")
    await look.press("k", "c")
    await look.sees(f"{other} is canceled", "cpu:0 is drained: nothing runs there", "0 run")
    await look.press("d")
    await look.sees("cpu:0 takes jobs again")
    assert not server.devices()["cpu:0"].drained


def test_a_key_asks_first_and_does_what_was_answered_to_what_was_selected(tmp_path: Path) -> None:
    async def look(server: Server) -> None:
        async with looking(server.control, tmp_path / "run") as seen:
            await on_the_jobs_of_two_devices(server, seen)

    with serving(tmp_path, module="hanging", devices="cpu:2") as server:
        jobs = [server.client.submit("wait-on-the-loop", request_id=name) for name in ("first", "second")]
        until(lambda: running(server, "first", "second"))
        asyncio.run(look(server))
        for job in jobs:
            with pytest.raises(JobError, match=r"cancel|kill"):
                job.result(5.0)


def test_what_is_looked_at_is_looked_at_only(tmp_path: Path) -> None:
    async def look(server: Server) -> None:
        async with looking(server.control, tmp_path / "run", readonly=True) as seen:
            assert "Stop job" not in seen.screen()
            await seen.press("k", "K", "r", "r", "d")
            await seen.press("question_mark")
            assert "restart its child" not in await seen.sees("these keys")
            await seen.pilot.resize_terminal(50, 9)
            await seen.press("end")
            await seen.sees("age of the last heartbeat", gone="these keys")  # what does not fit scrolls
            await seen.pilot.resize_terminal(120, 40)
            await seen.press("escape", "l")
            await seen.sees("Log of cpu:0", "ready after")
            await seen.press("slash", "z", "z", "enter")
            await seen.sees("Log of cpu:0", gone="ready after")
            await seen.press("escape", "escape", "e")
            await seen.sees("no post-mortem is kept of a child of cpu:0")
            await seen.press("enter")
            await seen.sees("EVENTS", "child")
            await seen.press("escape", "slash", "z", "z", "enter")
            await seen.sees("/zz", gone="idle")
            await seen.press("escape")
            await seen.sees("idle")

    with serving(tmp_path, module="hanging", devices="cpu:1") as server:
        pids = server.pids()
        asyncio.run(look(server))
        assert server.pids() == pids
        assert not server.devices()["cpu:0"].drained


def test_a_frozen_picture_stays_and_one_without_its_supervisor_says_so_until_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEN_WORKER_RUN_DIR", str(tmp_path / "run"))

    async def look(server: Server) -> None:
        async with looking(server.socket, tmp_path / "run") as seen:
            await seen.press("space")
            await seen.sees("frozen")
            before = seen.top.home.board.selected_device
            server.client.call("work-in-steps", {})
            assert seen.top.home.board.selected_device is before
            await seen.press("space")
            await seen.sees("1 done", gone="frozen")
            seen.top.post_message(events.AppBlur())
            await seen.sees("paused: no focus")
            seen.top.post_message(events.AppFocus())
            await seen.sees("1 done", gone="paused")

            server.signal(signal.SIGSTOP)
            await seen.press("s")
            await seen.sees("asking its child")
            await seen.press("escape", "l")  # the answer finds nobody who waits for it
            await seen.sees("Log of cpu:0", "no line so far")
            await seen.press("escape")
            server.signal(signal.SIGCONT)
            await seen.until(lambda: not any(each.name == "gen-worker-errand" for each in threading.enumerate()))
            await seen.sees("1 done")

            server.process.kill()
            server.process.wait()
            await seen.sees("not reachable", "1 done")
            await seen.press("d")
            await seen.sees("no supervisor answers")
            server.sidecar.unlink()
            server.client.close()
            with serving(tmp_path, module="hanging", devices="cpu:2"):
                await seen.sees("another supervisor answers now", "Devices 2", gone="not reachable")

    with serving(tmp_path, module="hanging", devices="cpu:1") as server:
        asyncio.run(look(server))
