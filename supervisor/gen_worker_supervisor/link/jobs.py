"""The jobs that come over the link: each is run once, answered once, and told of on its way.

What a pair of request and attempt means is the ledger's to say; which device and models, the fleet's. Nothing here
knows of gRPC.
"""

import os
import time
from collections.abc import Callable
from typing import Protocol

from gen_worker.outputs import safe_ref
from gen_worker.wire.fetching import Destination, Uploaded, UploadFailed
from gen_worker.wire.messages import REQUEST_ID_CHARS, TENANT_CHARS, Event, Producing
from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    INLINE_ASSET_BYTES,
    INLINE_RESULT_BYTES,
    CancelJob,
    JobAccepted,
    JobMetrics,
    JobProgress,
    JobResult,
    JobStatus,
    OutputMode,
    RunJob,
    WorkerFrame,
)
from gen_worker.wire.survey import only_spoken_with
from gen_worker_supervisor.core.bodies import InlinePayload, Output, OutputBody
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.outcomes import ended_outcome
from gen_worker_supervisor.core.state import Device, Function, Job, Outcome, drained_away, takes
from gen_worker_supervisor.files.uploads import Uploads
from gen_worker_supervisor.link.answers import STATUS, metrics, safe_message
from gen_worker_supervisor.link.events import Events
from gen_worker_supervisor.link.ledger import Coming, Held, Ledger
from gen_worker_supervisor.link.renewals import Renewals
from gen_worker_supervisor.logs.redaction import redacted
from gen_worker_supervisor.supervisor import Supervisor

MESSAGE_LIMIT = 48 << 20  # what a message may carry of an output, so that all of it stays below the wire's limit
LINK = "orchestrator"


class Functions(Protocol):
    """Says which function a `RunJob` means."""

    def function_for(self, run: RunJob, name: str) -> Function | str:
        """Return the function with the models that the request names; a text: why there is none."""
        ...


class Timer(Protocol):
    """Something that will be called."""

    def cancel(self) -> None:
        """Have it not called."""
        ...


_COMPUTE = ("accelerator", "gpu_count", "vram_gb")  # of what the orchestrator says, what an author knows by name


class LinkJob:
    """The orchestrator as the client of one attempt."""

    link = LINK

    def __init__(self, jobs: "LinkJobs", held: Held, concurrency: int) -> None:
        self.held = held
        self.concurrency = concurrency
        self.job: Job | None = None
        self.refusal = ""  # why the job is ended, where that is not its own doing
        self._jobs = jobs
        self.upload = 0  # the number under which its output is being stored
        self.overdue: Timer | None = None  # ends that at the job's deadline
        self.overruled: tuple[JobStatus, str] | None = None  # how it ended while that went on
        self.events = Events()
        self._seq = 0

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """Take the job's one answer."""
        self._jobs.ended(self, job, outcome, body)

    def item(self, job: Job, body: OutputBody, content_type: str) -> None:
        """Pass a stream item on; the next ones come as this one leaves."""
        if isinstance(body, Output) and body.length > MESSAGE_LIMIT:
            self.refusal = f"an item of the stream has {body.length} bytes, the limit is {MESSAGE_LIMIT}"
            body.release()
            self._jobs.supervisor.end(job, Reason.CANCEL)
            return
        piece = bytes(body.view()) if isinstance(body, Output) else body
        _release(body)
        self._jobs.send(self._progress(piece, content_type))

    def event(self, job: Job, event: Event) -> None:
        """Pass progress or a log line on, unless there are too many of them."""
        self._tell(self.events.offer(event, time.monotonic()))

    def tick(self, now: float) -> None:
        """Tell of the progress that was held back, if it is time."""
        self._tell(self.events.due(now))

    def tell_the_rest(self) -> None:
        """Tell of the progress that was held back: the result comes next."""
        self._tell(self.events.rest())

    def _tell(self, value: bytes | None) -> None:
        if value is not None and not self.held.silent:
            self._jobs.send(self._progress(value, EVENT_TYPE))

    def rerun(self, job: Job) -> None:
        """It goes to another child: it had not begun, so there is nothing to forget."""

    def _progress(self, body: bytes, content_type: str) -> JobProgress:
        self._seq += 1
        run = self.held.run
        return JobProgress(
            request_id=run.request_id, attempt=run.attempt, seq=self._seq, body=body, content_type=content_type
        )


class LinkJobs:
    """All jobs of the link, from their `RunJob` to their result's way out."""

    def __init__(
        self,
        supervisor: Supervisor,
        uploads: Uploads,
        functions: Functions,
        send: Callable[[WorkerFrame], None],
        *,
        later: Callable[[float, Callable[[], None]], Timer],
        max_concurrency: int = 0,
    ) -> None:
        """Send with `send`; `later` has something called after so many seconds."""
        self.supervisor = supervisor
        self.send = send
        self._later = later
        self.ledger = Ledger()
        self.file_base_url = ""
        self.gates: dict[str, str] = {}  # why functions are not available here, by name
        self._uploads = uploads
        self._functions = functions
        self._max_concurrency = max_concurrency
        self._clients: dict[tuple[str, int], LinkJob] = {}
        self.connected = False
        self.renewals: Renewals | None = None  # of jobs that outlive their tokens
        self.on_settled: Callable[[], None] | None = None  # called once nothing is held and every result was written

    # --- what the orchestrator wants ---

    def run(self, run: RunJob) -> None:
        """Run a job, unless it runs already or has been answered; then say that again."""
        match self.ledger.coming(run.request_id, run.attempt):
            case Coming.HELD:
                self._accepted(run)
            case Coming.ENDED:
                self._answer_again(run)
            case Coming.STALE:
                return
            case Coming.NEW:
                self._begin(run)
            case Coming.FENCES:
                self._fence(run)

    def cancel(self, order: CancelJob) -> None:
        """End an attempt that is held; any other is ignored."""
        held = self.ledger.find(order.request_id, order.attempt)
        if held is None:
            return
        client = self._clients.get((order.request_id, order.attempt))
        if client is None:  # it waits for an earlier attempt to end
            self.ledger.leave(held)
            self._ship(_result(held.run, JobStatus.CANCELED, "canceled"))
        else:
            self._stop(client, JobStatus.CANCELED, "canceled")

    def give_up(self) -> None:
        """There is no more time: what is still being stored is given back."""
        for client in list(self._clients.values()):
            if client.upload:
                self._stop(client, JobStatus.RETRYABLE, "worker draining")

    def tick(self) -> None:
        """Tell of progress that was held back; have tokens renewed that run out."""
        now = time.monotonic()
        if self.renewals is not None:
            self.renewals.look(client.job for client in self._clients.values() if client.job is not None)
        for client in self._clients.values():
            if client.events.waiting:
                client.tick(now)

    def _stop(self, client: LinkJob, status: JobStatus, text: str) -> None:
        """End an attempt, wherever it is: as canceled while it runs, with this while its output is being stored."""
        if client.upload:
            client.overruled = client.overruled or (status, text)
            self._uploads.abort(client.upload)
        elif client.job is not None and not client.job.ended:
            self.supervisor.end(client.job, Reason.CANCEL)

    def _begin(self, run: RunJob) -> None:
        refused = self._refusal(run)
        if not isinstance(refused, JobResult) and 0 < self._max_concurrency <= self.ledger.count:
            refused = _result(run, JobStatus.RETRYABLE, "worker busy")
        if isinstance(refused, JobResult):
            self._ship(refused)
            return
        held = self.ledger.accept(run, time.monotonic())
        self._accepted(run)
        self._submit(held, refused)

    def _fence(self, run: RunJob) -> None:
        """A later attempt has come: the earlier one ends without a word, then this one begins."""
        earlier = self.ledger.held[run.request_id]
        passed_over = self.ledger.waiting.get(run.request_id)
        if passed_over is not None:
            self.ledger.leave(passed_over)
        self.ledger.fence(run, time.monotonic())
        self._accepted(run)
        client = self._clients.get((run.request_id, earlier.run.attempt))
        if client is not None:
            self._stop(client, JobStatus.CANCELED, "canceled")

    def _refusal(self, run: RunJob) -> JobResult | Function:
        """Return the function to run, or the result of a job that is not accepted."""
        if self.supervisor.fleet.draining:
            return _result(run, JobStatus.RETRYABLE, "worker draining")
        if len(run.request_id) > REQUEST_ID_CHARS:
            text = f"a request id of {len(run.request_id)} characters, the limit is {REQUEST_ID_CHARS}"
            return _result(run, JobStatus.INVALID, text)
        try:
            _output_ref(run)
        except ValueError as error:
            return _result(run, JobStatus.INVALID, f"a request id that can name no file: {error}")
        name = self.supervisor.routable(run.function_name)
        if name is None:
            there = ", ".join(f"`{each}`" for each in sorted(self.supervisor.fleet.functions))
            return _result(run, JobStatus.INVALID, f"no function `{run.function_name[:100]}`; there are: {there}")
        if self.supervisor.fleet.functions[name].own.realtime:
            return _result(run, JobStatus.INVALID, only_spoken_with(name))
        if name in self.gates:
            return _result(run, JobStatus.RETRYABLE, f"function unavailable: {self.gates[name]}")
        function = self._functions.function_for(run, name)
        if isinstance(function, str):
            return _result(run, JobStatus.INVALID, function)
        chosen = self._on_device(run, function)
        drained = drained_away(self.supervisor.fleet, chosen) if isinstance(chosen, Function) else ""
        return _result(run, JobStatus.RETRYABLE, f"function unavailable: {drained}") if drained else chosen

    def _on_device(self, run: RunJob, function: Function) -> JobResult | Function:
        """Bind a function to the device that the orchestrator chose; one that needs no GPU may have its own place."""
        if run.compute is None or run.compute.accelerator != "cuda":
            return function
        devices = [device for device in self.supervisor.fleet.devices if device.takes_gpu_functions]
        chosen = next((device for device in devices if run.compute.gpu_index in map(_index, device.gpus)), None)
        if chosen is None:
            count = sum(device.gpu_count for device in devices)
            text = f"no GPU {run.compute.gpu_index} on this worker, which has {count}"
            return _result(run, JobStatus.RETRYABLE, text)
        if chosen.lost:
            return _result(run, JobStatus.RETRYABLE, f"function unavailable: {chosen.loss}")
        needed = max(run.compute.gpu_count, function.surveyed.gpu_count)
        if chosen.gpu_count < needed and function.surveyed.gpu:
            text = f"GPU {run.compute.gpu_index} of this worker is `{chosen.name}`, no group of {needed} GPUs"
            return _result(run, JobStatus.RETRYABLE, text)
        apart = function.gpus not in (0, chosen.gpu_count)  # a group is not for what smaller devices can run
        return function if apart or not takes(chosen, function) else self.supervisor.fleet.on_device(function, chosen)

    def _submit(self, held: Held, function: Function) -> None:
        run = held.run
        client = LinkJob(self, held, concurrency=len(self.supervisor.fleet.jobs))
        self._clients[run.request_id, run.attempt] = client
        waited_s = time.monotonic() - held.accepted
        client.job = self.supervisor.submit(
            client,
            request_id=run.request_id,
            function=function,
            payload=InlinePayload(run.input_payload),
            encoding="msgpack",
            attempt=run.attempt,
            stream=function.surveyed.streams,
            events=True,
            remote=True,
            timeout_s=max(0.0, run.timeout_ms / 1000 - waited_s) if run.timeout_ms > 0 else None,
            reruns=False,
            destination=self._destination(run),
            inline_file_bytes=INLINE_ASSET_BYTES if run.output_mode is OutputMode.INLINE else 0,
            wire=True,
            tenant=run.tenant[:TENANT_CHARS],
            traceparent=run.traceparent,
            producing=_producing(run) if function.surveyed.produces else None,
        )

    def _destination(self, run: RunJob) -> Destination:
        return Destination(self.file_base_url, run.capability_token, run.request_id, run.attempt, run.tenant)

    # --- what became of it ---

    def ended(self, client: LinkJob, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """A job has its outcome: ship its result, after its output was stored where that is too long to be sent."""
        run = client.held.run
        took = metrics(job, outcome, time.monotonic(), client.concurrency)
        if client.held.silent:
            _release(body)
            self._leave(client)
        elif client.refusal:
            _release(body)
            self._finish(client, _result(run, JobStatus.FATAL, client.refusal, took))
        elif outcome.kind is not None or job.stream:
            _release(body)
            text = safe_message(outcome, self.supervisor.log.hide_cut)
            self._finish(client, _result(run, STATUS[outcome.state], text, took))
        else:
            self._deliver(client, job, body, took)

    def _deliver(self, client: LinkJob, job: Job, body: OutputBody, took: JobMetrics | None) -> None:
        """Send an output in its result, or store it and send where it is."""
        run = client.held.run
        length = body.length if isinstance(body, Output) else len(body)
        limit = INLINE_RESULT_BYTES if self.file_base_url else MESSAGE_LIMIT
        if not isinstance(body, Output) or length <= limit:
            inline = bytes(body.view()) if isinstance(body, Output) else body
            _release(body)
            self._finish(client, _result(run, JobStatus.OK, "", took, inline=inline))
            return
        if not self.file_base_url:
            body.release()
            text = f"an output of {length} bytes needs a store, and the orchestrator has named none"
            self._finish(client, _result(run, JobStatus.FATAL, text, took))
            return
        if job.ending is not None:  # somebody wants it ended: its output is not stored any more
            body.release()
            ended = ended_outcome(job, None)
            self._finish(client, _result(run, STATUS[ended.state], safe_message(ended, str), took))
            return

        def stored(report: Uploaded | UploadFailed) -> None:
            body.release()
            client.upload = 0
            if client.overdue is not None:
                client.overdue.cancel()
            if client.held.silent:
                self._leave(client)
            elif client.overruled is not None:
                self._finish(client, _result(run, *client.overruled, took))
            elif isinstance(report, Uploaded):
                self._finish(client, _result(run, JobStatus.OK, "", took, blob_ref=report.stored.ref))
            else:
                text = redacted(f"output upload failed: {report.message}")
                self._finish(client, _result(run, JobStatus.RETRYABLE, text, took))

        to, fd = job.destination or self._destination(run), os.dup(body.fd)
        client.upload = self._uploads.upload(to, _output_ref(run), fd, length, "application/msgpack", stored)
        if run.timeout_ms > 0:
            left_s = client.held.accepted + run.timeout_ms / 1000 - time.monotonic()
            client.overdue = self._later(max(0.0, left_s), lambda: self._overdue(client))

    def _overdue(self, client: LinkJob) -> None:
        if client.upload:
            self._stop(client, JobStatus.FATAL, "deadline exceeded")

    def _finish(self, client: LinkJob, result: JobResult) -> None:
        client.tell_the_rest()
        self._ship(result)  # first: nobody may believe in between that nothing is left to be said
        self._leave(client)

    def _leave(self, client: LinkJob) -> None:
        """An attempt is over: the one that waited for it begins."""
        run = client.held.run
        self._clients.pop((run.request_id, run.attempt), None)
        following = self.ledger.leave(client.held)
        if following is None:
            self._note_settled()
            return
        refused = self._refusal(following.run)
        if isinstance(refused, JobResult):
            self.ledger.leave(following)
            self._ship(refused)
        else:
            self._submit(following, refused)

    def _ship(self, result: JobResult) -> None:
        self.ledger.end(result)
        if self.connected:
            self.send(result)

    # --- the link ---

    def acknowledged(self) -> None:
        """A connection is up: what may not have arrived over the one before is sent again."""
        self.connected = True
        for result in list(self.ledger.unshipped(time.monotonic())):
            self.send(result)

    def left(self, frame: WorkerFrame, *, written: bool) -> None:
        """A message has left for the orchestrator, or was dropped."""
        if isinstance(frame, JobResult):
            if written:
                self.ledger.written(frame, time.monotonic())
                self._note_settled()
        elif isinstance(frame, JobProgress) and frame.content_type != EVENT_TYPE:
            client = self._clients.get((frame.request_id, frame.attempt))
            if client is not None and client.job is not None:
                self.supervisor.more(client.job, 1)

    @property
    def settled(self) -> bool:
        """Whether nothing is held and every result was written to a live stream."""
        return not self._clients and not self.ledger.waiting and self.ledger.all_shipped()

    def _note_settled(self) -> None:
        if self.on_settled is not None and self.settled:
            self.on_settled()

    def _accepted(self, run: RunJob) -> None:
        self.send(JobAccepted(request_id=run.request_id, attempt=run.attempt))

    def _answer_again(self, run: RunJob) -> None:
        result = self.ledger.result(run.request_id, run.attempt)
        if result is None:
            text = "it was answered before, with an output that is not remembered any more"
            result = _result(run, JobStatus.RETRYABLE, text)
        self.send(result)


def _producing(run: RunJob) -> Producing:
    """Return what the context of a producer is given of its job."""
    compute = run.compute
    known = {} if compute is None else {name: getattr(compute, name) for name in _COMPUTE}
    return Producing(compute=known, job_id=run.request_id)


def _index(device: Device) -> int:
    """Return the number by which an orchestrator names a device; a CPU slot stands for the GPU of its number."""
    return device.index if device.index is not None else int(device.name.rpartition(":")[2])


def _output_ref(run: RunJob) -> str:
    """Return under which name a long output is stored; raise ValueError where that is none, or another request's."""
    name = f"results/{run.request_id}.msgpack"
    if safe_ref(name) != name:
        raise ValueError(f"`{name}` would be stored as `{safe_ref(name)}`")
    return name


def _release(body: OutputBody) -> None:
    if isinstance(body, Output):
        body.release()


def _result(
    run: RunJob,
    status: JobStatus,
    text: str,
    took: JobMetrics | None = None,
    *,
    inline: bytes | None = None,
    blob_ref: str | None = None,
) -> JobResult:
    return JobResult(
        request_id=run.request_id,
        attempt=run.attempt,
        status=status,
        inline=inline,
        blob_ref=blob_ref,
        safe_message=text,
        metrics=took,
    )
