"""What is to be kept of a child's death: its name, and the jobs as they were before they are judged.

Pure: what is written of it, and where, is the business of `postmortems`.
"""

import time
import zlib

from gen_worker.postmortem import Held
from gen_worker_supervisor.core.actions import Bury
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import JobState
from gen_worker_supervisor.core.state import Child, Death, Fleet, Job

MOST_JOBS = 100  # of those that were with a child
LINE_CHARS = 1000  # of what it printed


def name_of(fleet: Fleet, child: Child, now: float) -> str:
    """Return what the record of a child that dies now is called; "" where none is kept: its end was wanted, too.

    Names sort by time, those of one device to some milliseconds, and those of several supervisors differ.
    """
    if fleet.epoch is None or (child.ending is not None and child.ending.reason in (Reason.DRAIN, Reason.RESTART)):
        return ""
    when = time.strftime("%Y%m%d-%H%M%S", time.gmtime(fleet.epoch + now))
    device = "".join(letter for letter in child.device.name.lower() if letter.isascii() and letter.isalnum())
    moment = int((fleet.epoch + now) % 1 * 256)
    mark = zlib.crc32(f"{child.pid} {child.generation} {now!r}".encode()) & 0xFF
    return f"{when}-{device[:32] or 'device'}-{moment:02x}{mark:02x}"


class Burial:
    """One child's death on its way into a post-mortem: made before its jobs are judged, ended after that."""

    def __init__(self, fleet: Fleet, child: Child, death: Death, now: float) -> None:
        """Name the post-mortem, which the child keeps: it dies once."""
        self._child = child
        self._death = death
        self._first = not child.postmortem
        child.postmortem = child.postmortem or name_of(fleet, child, now)
        kept = list(child.leased.values()) if self._first and child.postmortem else []
        self._left_out = max(0, len(kept) - MOST_JOBS)
        self._jobs = [(job, _held(job, now)) for job in kept[:MOST_JOBS]]
        names = {job.number: job.request_id for job in kept}
        self._printed = [(names.get(number), line[:LINE_CHARS]) for number, line in death.printed]
        self._phase = child.phase.value

    def end(self) -> list[Bury]:
        """Return what is to be kept, now that it is known what becomes of the jobs."""
        if not (self._first and self._child.postmortem):
            return []
        for job, held in self._jobs:
            held.became = job.state.value
        jobs = [held for _, held in self._jobs]
        return [Bury(self._child, self._death, jobs, self._printed, self._left_out, self._phase)]


def _held(job: Job, now: float) -> Held:
    ending = job.ending
    suspect = job.state in (JobState.STARTED, JobState.EMITTED)
    return Held(
        job.request_id,
        job.function.name,
        job.state.value,
        link=job.client.link,
        attempt=job.attempt,
        tenant=job.tenant,
        ran_s=None if job.started is None else round(max(0.0, now - job.started), 3),
        payload=job.payload.digest().hex() if suspect else None,
        payload_bytes=job.payload.length,
        ended_for=None if ending is None else str(ending.reason),
        rungs=[] if ending is None else list(ending.climbed),
    )
