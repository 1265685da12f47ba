"""A fault of the supervisor's own, or of a link's, costs what it befalls and nothing else."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gen_worker.wire.survey import Survey
from gen_worker_supervisor.core.bodies import InlinePayload, OutputBody
from gen_worker_supervisor.core.happenings import Died, EndAsked
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import JobState, Phase
from gen_worker_supervisor.core.state import Child, Device, Fleet, Job, Outcome
from gen_worker_supervisor.files.saving import Saver
from gen_worker_supervisor.logs.log import Log, Look
from gen_worker_supervisor.processes.reaper import Reaper
from gen_worker_supervisor.sockets.poller import Poller
from gen_worker_supervisor.supervisor import Supervisor
from tests.pure.host import KILLED, Caller, function

pytestmark = pytest.mark.process


class Broken(Caller):
    """A client whose link has a fault."""

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        raise ZeroDivisionError("a link's fault")


class Sound(Caller):
    """A client that remembers its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[JobState] = []

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        self.answers.append(outcome.state)


class Stage:
    """A supervisor whose one device has no process, and what it logs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.log = folder / "log"

    def play(self, story: Callable[[Supervisor], None]) -> str:
        """Tell a story; return what was logged."""
        asyncio.run(self._play(story))
        return self.log.read_text()

    async def _play(self, story: Callable[[Supervisor], None]) -> None:
        loop = asyncio.get_running_loop()
        poller, reaper = Poller(loop), Reaper(loop)
        out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        saver = Saver(loop, self._folder / "outputs", 0)
        fleet = Fleet({"f": function()}, [Device("cpu:0", "cpu")])
        log = Log(Look(), out)
        survey = Survey("m", [], [], msgspec.Raw(b"{}"), [])
        made = Supervisor(fleet, survey, loop=loop, poller=poller, reaper=reaper, log=log, saver=saver, environment={})
        try:
            story(made)
            await asyncio.sleep(0)
        finally:
            made.close()
            saver.close()
            reaper.close()
            poller.close()
            log.close()
            os.close(out)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def submit(made: Supervisor, client: Caller) -> Job:
    return made.submit(
        client, request_id="", function=made.fleet.functions["f"], payload=InlinePayload(b"{}"), encoding="json"
    )


@pytest.mark.promise(9)
def test_a_fault_in_one_clients_link_keeps_no_other_client_from_its_answer(stage: Stage) -> None:
    sound = Sound()

    def story(made: Supervisor) -> None:
        jobs = [submit(made, client) for client in (Broken(), sound)]
        made.handle(*(EndAsked(job, Reason.CANCEL) for job in jobs))

    logged = stage.play(story)
    assert sound.answers == [JobState.CANCELED]
    assert "answer failed, which is a fault of gen-worker: ZeroDivisionError: a link's fault" in logged
    assert "test_own_faults.py" in logged


@pytest.mark.promise(9)
def test_what_cannot_have_happened_keeps_nothing_from_being_done_that_did(stage: Stage) -> None:
    sound = Sound()

    def story(made: Supervisor) -> None:
        job = submit(made, sound)
        dead = Child(made.fleet.devices[0], 1, 0.0, Phase.BACKOFF)
        made.handle(Died(dead, KILLED), EndAsked(job, Reason.CANCEL))

    logged = stage.play(story)
    assert sound.answers == [JobState.CANCELED]
    assert "died failed, which is a fault of gen-worker: ImpossibleStepError" in logged
