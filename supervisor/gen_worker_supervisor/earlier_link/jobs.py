"""The runs of an earlier orchestrator: each is run once for each time it comes, and its result is never lost."""

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from gen_worker.settings import Secret
from gen_worker.wire.earlier import (
    DeploymentModelConfig,
    InterruptTaskCommand,
    RealtimeOpenCommand,
    Report,
    TaskExecutionRequest,
    TaskExecutionResult,
    WorkerEvent,
)
from gen_worker.wire.fetching import Destination
from gen_worker.wire.messages import REQUEST_ID_CHARS, TENANT_CHARS, EarlierRun, Event
from gen_worker_supervisor.core.bodies import InlinePayload, Output, OutputBody
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.state import Function, Job, Outcome, drained_away
from gen_worker_supervisor.earlier_link.answers import BUSY, error_type, failed, refused
from gen_worker_supervisor.earlier_link.models import EarlierModels
from gen_worker_supervisor.earlier_link.required import Missing, NotRequirableError, Wish, required
from gen_worker_supervisor.earlier_link.results import Results
from gen_worker_supervisor.link.events import Events
from gen_worker_supervisor.supervisor import Supervisor

OUTPUT_BYTES = (
    48 << 20
)  # the longest output, and the longest piece of one, so that all of its message stays below the wire's limit
COMPARED_BYTES = 8 << 20  # the longest input that is compared with another one: this many take 2 to 7 ms of the loop
LINK = "scheduler"
OVERDUE = "deadline exceeded"
RESERVED = ("output.", "request.")  # types of the wire's own, and of the worker's
TRUNCATED = b'{"truncated":true}'


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What runs may take and send; 0: any."""

    concurrency: int = 0
    input_bytes: int = 0
    delta_bytes: int = 0
    delta_events: int = 0


class Files(NamedTuple):
    """Where the files of runs go for which the orchestrator names no place, and what is shown there."""

    base_url: str
    token: Secret


class EarlierJob:
    """The orchestrator as the client of one run."""

    link = LINK

    def __init__(
        self, jobs: "EarlierJobs", run: TaskExecutionRequest, function: Function, earlier: EarlierRun, now: float
    ) -> None:
        self.run = run
        self.function = function
        self.earlier = earlier
        self.deadline = now + run.timeout_ms / 1000 if run.timeout_ms > 0 else None
        self.job: Job | None = None  # once the models that the run requires are here
        self.wish: Wish | None = None
        self.events = Events()
        self.deltas = 0
        self._jobs = jobs

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """Take the job's one answer."""
        self._jobs.ended(self, job, outcome, body)

    def item(self, job: Job, body: OutputBody, content_type: str) -> None:
        """Send a piece of the output; one that is too long is said to be there, those after the last are not sent."""
        limits = self._jobs.limits
        self.deltas += 1
        if limits.delta_events and self.deltas > limits.delta_events:
            release(body)
            self._jobs.supervisor.more(job, 1)
            return
        length = body.length if isinstance(body, Output) else len(body)
        truncated = length > sendable(limits.delta_bytes)
        payload = TRUNCATED if truncated else bytes(body.view()) if isinstance(body, Output) else body
        release(body)
        self._tell("output.delta", payload)

    def event(self, job: Job, event: Event) -> None:
        """Pass progress or a log line on, unless there are too many of them."""
        self.told(self.events.offer(event, time.monotonic()))

    def told(self, value: bytes | None) -> None:
        """Send what came of an event, if anything."""
        if value is not None:
            event = msgspec.json.decode(value, type=_Told)
            own = msgspec.json.decode(event.value, type=_Own)
            if own.type and not own.type.startswith(RESERVED):
                self._tell(own.type, bytes(own.payload))
            else:
                self._tell(f"job.{event.event}", bytes(event.value))

    def rerun(self, job: Job) -> None:
        """It goes to another child: it had not begun, so there is nothing to forget."""

    def _tell(self, kind: str, payload: bytes) -> None:
        self._jobs.send(WorkerEvent(run_id=self.run.run_id, event_type=kind, payload_json=payload))


class _Told(msgspec.Struct):
    event: str
    value: msgspec.Raw


class _Own(msgspec.Struct):
    """An event of a type that a function of the earlier API has chosen; no type: one that everybody knows."""

    type: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")


class EarlierJobs:
    """All runs, from their request to their result's way out."""

    def __init__(
        self,
        supervisor: Supervisor,
        send: Callable[[Report], Any],
        models: EarlierModels,
        limits: Limits,
        files: Files,
        described: Collection[str] = (),
    ) -> None:
        self.supervisor = supervisor
        self.send = send
        self.models = models
        self.limits = limits
        self._described = described  # models whose files children find for themselves
        self._files = files
        self.results = Results()
        self.gates: dict[str, str] = {}  # why functions are not available here, by name
        self.others: Callable[[], int] = lambda: 0
        """Counts what runs beside runs: realtime sessions."""

        self.on_settled: Callable[[], None] | None = None  # called once nothing runs and every result was written
        self._clients: dict[str, EarlierJob] = {}
        self._config = DeploymentModelConfig()

    # --- what the orchestrator wants ---

    def request(self, run: TaskExecutionRequest) -> None:
        """Run a function, unless that run is under way or its result has yet to be sent."""
        asked, now = fingerprint(run), time.monotonic()
        if run.run_id in self._clients or self.results.waits(run.run_id, asked, now):
            return
        if again := self.results.crossed_with(run.run_id, asked, now):
            self._ship(again, asked)
            return
        self.results.forget(run.run_id)
        function = self.function_for(run.function_name)
        refusal = self._refusal(run, function)
        if isinstance(function, str) or refusal is not None:
            self._ship(refusal or refused(run.run_id, "internal", str(function)))
            return
        try:
            model_ids = self.required(run.required_models, function)
        except NotRequirableError as error:
            self._ship(refused(run.run_id, "validation", str(error)))
            return
        facts = self.facts(run.tenant_id, run.user_id, run.timeout_ms)
        client = self._clients[run.run_id] = EarlierJob(self, run, function, facts, now)
        if model_ids:
            client.wish = self.models.have(model_ids, partial(self._stocked, client))
        else:
            self._submit(client)

    def required(self, names: Sequence[str], function: Function) -> tuple[str, ...]:
        """Return the ids of models that have to be here before a function is called; raise `NotRequirableError`."""
        return required(names, function.own, self._config, self._described) if names else ()

    def _stocked(self, client: EarlierJob, missing: Missing | None) -> None:
        """The models that a run requires are here, or one of them cannot be."""
        if missing is None:
            self._submit(client)
        else:
            self._give_up(client, "retryable" if missing.retryable else "fatal", missing.text)

    def _give_up(self, client: EarlierJob, kind: str, text: str) -> None:
        """End a run that waits for models."""
        if client.wish is not None:
            client.wish.give_up()
        del self._clients[client.run.run_id]
        self._ship(refused(client.run.run_id, kind, text))

    def interrupt(self, order: InterruptTaskCommand) -> None:
        """End a run; one that is not under way is none of ours."""
        client = self._clients.get(order.run_id)
        if client is None:
            return
        if client.job is None:
            self._give_up(client, "canceled", "canceled")
        elif not client.job.ended:
            self.supervisor.end(client.job, Reason.CANCEL)

    def configure(self, config: DeploymentModelConfig) -> None:
        """Have later runs use these models only, and find them under these keys."""
        self._config = config

    def function_for(self, name: str) -> Function | str:
        """Return the function of a name, in either spelling; a text: why there is none."""
        routable = self.supervisor.routable(name)
        if routable is None:
            there = ", ".join(f"`{each}`" for each in sorted(self.supervisor.fleet.functions))
            return f"no function `{name[:100]}`; there are: {there}"
        return self.supervisor.fleet.functions[routable]

    def busy(self, function: Function) -> bool:
        """Whether so many jobs are held that another one has to go elsewhere."""
        held = len(self._clients) + self.others()
        of_function = sum(client.function.name == function.name for client in self._clients.values())
        return 0 < self.limits.concurrency <= held or 0 < function.own.max_concurrency <= of_function

    def unavailable(self, function: Function) -> str:
        """Return why a function cannot be run now, elsewhere perhaps; "" where it can."""
        if self.supervisor.fleet.draining:
            return BUSY
        if function.name in self.gates:
            return f"function unavailable: {self.gates[function.name]}"
        drained = drained_away(self.supervisor.fleet, function)
        return f"function unavailable: {drained}" if drained else BUSY if self.busy(function) else ""

    def facts(self, tenant_id: str, user_id: str, timeout_ms: int) -> EarlierRun:
        """Return what the earlier API tells a handler."""
        config = self._config
        keys = dict(config.model_id_by_key)
        return EarlierRun(tenant_id, user_id, timeout_ms, tuple(config.supported_model_ids), keys)

    def destination(self, run: TaskExecutionRequest | RealtimeOpenCommand, run_id: str) -> Destination:
        """Return where a run's files go and come from: a file API of the earlier generation."""
        base_url, token = run.file_base_url, run.file_token
        if not base_url:  # else what is ours is shown to nobody
            base_url, token = self._files.base_url, token or str(self._files.token)
        return Destination(base_url.rstrip("/"), token, run_id, 1, run.tenant_id, file_api=True)

    def _refusal(self, run: TaskExecutionRequest, function: Function | str) -> TaskExecutionResult | None:
        if isinstance(function, str):
            return refused(run.run_id, "internal", function)
        if function.own.realtime:
            return refused(run.run_id, "internal", f"`{function.name}` is a realtime function: open a session with it")
        if 0 < self.limits.input_bytes < len(run.input_payload):
            text = f"the input has {len(run.input_payload)} bytes, the limit is {self.limits.input_bytes}"
            return refused(run.run_id, "validation", f"{text} (`WORKER_MAX_INPUT_BYTES`)")
        if len(run.run_id) > REQUEST_ID_CHARS:
            return refused(
                run.run_id, "validation", f"a run id of {len(run.run_id)} characters: {REQUEST_ID_CHARS} at most"
            )
        unavailable = self.unavailable(function)
        return refused(run.run_id, "retryable", unavailable) if unavailable else None

    def _submit(self, client: EarlierJob) -> None:
        run = client.run
        function = self.supervisor.fleet.functions[client.function.name]  # its models may have been described since
        client.job = self.supervisor.submit(
            client,
            request_id=run.run_id,
            function=function,
            payload=InlinePayload(run.input_payload),
            encoding="msgpack",
            stream=function.surveyed.streams,
            events=True,
            remote=True,
            timeout_s=None if client.deadline is None else client.deadline - time.monotonic(),
            reruns=False,
            destination=self.destination(run, run.run_id),
            wire=True,
            tenant=run.tenant_id[:TENANT_CHARS],
            earlier=client.earlier,
        )

    def tick(self) -> None:
        """Tell of progress that was held back, and end what has waited for models for too long."""
        now = time.monotonic()
        self.results.tick(now)
        for client in list(self._clients.values()):
            if client.events.waiting:
                client.told(client.events.due(now))
            if client.job is not None:
                continue
            if client.deadline is not None and now > client.deadline:
                self._give_up(client, "fatal", OVERDUE)
            elif self.supervisor.fleet.draining:
                self._give_up(client, "retryable", "worker draining")

    # --- what became of it ---

    def ended(self, client: EarlierJob, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """A job has its outcome: send its result, after the end of its stream."""
        run_id = client.run.run_id
        client.told(client.events.rest())
        length = body.length if isinstance(body, Output) else len(body)
        output = b""
        if outcome.kind is None and not job.stream and length <= OUTPUT_BYTES:
            output = bytes(body.view()) if isinstance(body, Output) else body
        release(body)
        self._clients.pop(run_id, None)
        if outcome.kind is not None:
            result = failed(run_id, outcome, self.supervisor.log.hide_cut)
        elif not job.stream and length > OUTPUT_BYTES:
            text = f"the output has {length} bytes, the limit of this wire is {OUTPUT_BYTES}"
            result = refused(run_id, "validation", text)
        else:
            result = TaskExecutionResult(run_id=run_id, success=True, output_payload=output)
        if job.stream:
            self._end_stream(outcome, result)
        self._ship(result, None if job.stream else fingerprint(client.run))

    def _end_stream(self, outcome: Outcome, result: TaskExecutionResult) -> None:
        told = {"error_type": error_type(outcome), "message": result.safe_message} if outcome.kind is not None else {}
        kind = "output.error" if told else "output.completed"
        self.send(WorkerEvent(run_id=result.run_id, event_type=kind, payload_json=msgspec.json.encode(told)))

    def _ship(self, result: TaskExecutionResult, request: int | None = None) -> None:
        for each in (*self.results.add(result, request), result):
            self.send(each)

    # --- the link ---

    def left(self, message: Report, *, written: bool) -> None:
        """A message was written to a live stream, or was dropped."""
        if isinstance(message, TaskExecutionResult):
            if written:
                self.results.written(message, time.monotonic())
                self.note_settled()
        elif isinstance(message, WorkerEvent) and message.event_type == "output.delta":
            client = self._clients.get(message.run_id)
            if client is not None and client.job is not None:
                self.supervisor.more(client.job, 1)

    @property
    def settled(self) -> bool:
        """Whether nothing runs and every result was written to a live stream."""
        return not self._clients and not self.others() and self.results.all_written

    def note_settled(self) -> None:
        """Say that everything has come to its end, if it has and somebody waits for that."""
        if self.on_settled is not None and self.settled:
            self.on_settled()

    def give_up(self) -> None:
        """There is no more time; what runs has been ended by the drain."""


def fingerprint(run: TaskExecutionRequest) -> int | None:
    """Return what stands for what a run is asked to do; None for one that is too long to be looked at."""
    if len(run.input_payload) > COMPARED_BYTES:
        return None
    return hash((run.function_name, run.input_payload))


def sendable(limit: int) -> int:
    """Return how long a piece of an output may be where this is the limit, 0 for none: the wire has one of its own."""
    return min(limit or OUTPUT_BYTES, OUTPUT_BYTES)


def release(body: OutputBody) -> None:
    """Give back the region that a body lies in, if it does."""
    if isinstance(body, Output):
        body.release()
