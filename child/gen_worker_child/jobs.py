"""Run jobs: on the job thread one at a time, or on the asyncio loop many at once.

Every job ends in exactly one `Done`, `Failed`, `Returned`, `Wants` or `NeedsInputs` frame. Never reads a frame itself.
"""

import asyncio
import ctypes
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import msgspec

from gen_worker.api.bindings import Binding, slots_of
from gen_worker.api.context import CancelFlag, RequestContext
from gen_worker.api.errors import (
    CanceledError,
    OutputTooLargeError,
    classify,
)
from gen_worker.api.producers import ProducerContext, begin, context_class
from gen_worker.models.broken_context import breaks_context
from gen_worker.models.wanted import overridden_instance
from gen_worker.wire.channel import Channel
from gen_worker.wire.earlier_runs import unpacked
from gen_worker.wire.messages import (
    INLINE_LIMIT,
    REGION_LIMIT,
    Body,
    Done,
    Event,
    Failed,
    Hangup,
    Item,
    Message,
    NeedsInputs,
    Order,
    Release,
    Returned,
    Started,
    Submit,
    Took,
    Wants,
)
from gen_worker.wire.page import PageWriter
from gen_worker.wire.values import Piece, pieces, total_length
from gen_worker_child.batches import Gathering, Running
from gen_worker_child.chunks import chunk_of
from gen_worker_child.executor import Executor
from gen_worker_child.failures import Interrupted, PayloadError, failure_of, give_memory_back
from gen_worker_child.inputs import filled, needed, refuse_paths
from gen_worker_child.job import Job
from gen_worker_child.lines import CURRENT_JOB, MarkedStreams
from gen_worker_child.loop import EXIT_BROKEN
from gen_worker_child.output import InputBody, InputMappings, OutputRegions
from gen_worker_child.peaks import Peaks
from gen_worker_child.platform import Calls, JobPlatform, producer_fields
from gen_worker_child.realtime import Mailbox, Session
from gen_worker_child.saves import JobSink, Saves
from gen_worker_child.telling import described, encoded, of_type, shortened
from gen_worker_child.windows import Window

MEASURED_S = 0.02  # of a run; what a job takes is measured in 20 microseconds, a thousandth of that
PROGRESS_INTERVAL_S = 0.1  # at most ten progress frames a second from one job


class Jobs:
    """All jobs of this child.

    `run` is called on the job thread; everything else by whichever thread reads frames.
    """

    def __init__(self, channel: Channel[Order], executor: Executor, page: PageWriter, streams: MarkedStreams) -> None:
        self._channel = channel
        self._executor = executor
        self._engines = executor.instances.engines
        self._page = page
        self._streams = streams
        self.outputs = OutputRegions(channel.send)
        self.calls = Calls(channel.send)
        self.saves = Saves(channel.send)
        self._inputs = InputMappings()
        self._peaks = Peaks()
        self._quick: set[str] = set()  # functions whose last run took less than `MEASURED_S`
        self._jobs: dict[int, Job] = {}
        self._taking = threading.Lock()
        self._on_thread: Job | None = None
        self._batch: Running | None = None  # that runs together on the job thread
        self._gathering = Gathering()
        self.read_ahead: Callable[[Callable[[], bool]], None] = lambda enough: None
        """Obeys the frames that have come, until there are enough; called in the job thread."""

        self.on_progress: Callable[[], None] = lambda: None
        """Called in the job thread when a job of it says how far it is."""

        self._owner = os.environ.get("USER") or "local-dev"

    # --- called by the thread that reads frames ---

    def submit(self, order: Submit, descriptors: Sequence[int]) -> Job | None:
        """Take a job over: start it on the loop, or return it for the job thread to `run`."""
        if order.earlier is not None and order.earlier.tables_bytes:
            *descriptors, tables = descriptors
            order.earlier = unpacked(order.earlier, tables)
        spec, body = self._executor.specs[order.function], InputBody(order.body, descriptors, self._inputs)
        window = None if spec.shape in ("sync", "async") else Window()
        job = Job(order.job, order, spec, order.instance or spec.instance, body, CancelFlag(), window)
        if spec.shape == "websocket":
            mailbox = Mailbox(lambda count: self._channel.send(Took(job.number, count)))
            job.session = Session(mailbox, partial(self._send_message, job))
        self._jobs[job.number] = job
        if spec.batch is not None:
            job.arrived = time.monotonic()
            self._gathering.add(job)
        if spec.lane == "device":
            return job
        self._executor.async_side.loop.call_soon_threadsafe(self._begin_on_loop, job)
        return None

    def cancel(self, number: int, *, unheard: bool = False) -> None:
        """Rung 1: a job that has not started is given back, one that runs is told to end.

        One whose batch goes on for others is answered now when it is `unheard`: nobody waits for what it may return.
        """
        job = self._jobs.get(number)
        if job is None or self._give_back(job):
            return
        job.ask_to_end()
        if unheard and self._leave_batch(job):
            return
        if job.task is not None:
            self._executor.async_side.loop.call_soon_threadsafe(job.task.cancel)
        elif job is self._on_thread or ((running := self._together_with(job)) is not None and running.nobody_wants()):
            self._executor.cancel()

    def _together_with(self, job: Job) -> Running | None:
        """Return the batch whose call has a job just now."""
        running = self._batch
        return running if running is not None and running.together and job in running.jobs else None

    def _leave_batch(self, job: Job) -> bool:
        """Answer a job whose batch runs for others, or that waits to run by itself after its batch; say whether so."""
        with self._taking:
            running = self._batch
            if running is None or job not in running.jobs or job.reported:
                return False
            if not running.others_want(job) if running.together else job is self._on_thread:
                return False
            job.reported = True
            running.left.append(job)
        self._streams.end_job(job.number)
        self._channel.send(failure_of(job, CanceledError("canceled")))
        return True

    def lose(self, instance: str) -> None:
        """An instance is of no use any more: what has not started on it is given back, what runs is told to end."""
        for job in tuple(self._jobs.values()):
            if job.instance == instance:
                self.cancel(job.number)

    def interrupt(self, number: int, job_thread: int) -> None:
        """Rung 2: raise `Interrupted` in the job thread while it runs this job."""
        job = self._jobs.get(number)
        if job is None or job.reported:
            return
        if job is self._on_thread or self._together_with(job) is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(job_thread), ctypes.py_object(Interrupted))

    def recall(self, number: int) -> None:
        """Give a job back unless it has started."""
        job = self._jobs.get(number)
        if job is not None:
            self._give_back(job)

    def more(self, number: int, items: int) -> None:
        """The reader took stream items."""
        job = self._jobs.get(number)
        if job is not None:
            job.taken_by_reader(items)

    def message(self, order: Message, descriptors: Sequence[int]) -> None:
        """The peer of a realtime job said something; a job that is over hears nothing."""
        body = InputBody(order.body, descriptors, self._inputs)
        data = bytes(body.view)
        body.close()
        if body.region is not None:
            self._channel.send(Release(body.region))
        job = self._jobs.get(order.job)
        if job is not None and job.session is not None:
            job.session.mailbox.put(data.decode("utf-8", "replace") if order.is_text else data)

    def hang_up(self, order: Hangup) -> None:
        """The peer of a realtime job is gone."""
        job = self._jobs.get(order.job)
        if job is not None and job.session is not None:
            job.session.mailbox.hang_up()

    def _give_back(self, job: Job) -> bool:
        with self._taking:
            if job.taken:
                return False
            job.returned = True
        if job.spec.batch is not None:
            self._gathering.drop(job)
        self._forget(job)
        self._channel.send(Returned(job.number))
        return True

    def _take(self, job: Job) -> bool:
        with self._taking:
            job.taken = not job.returned
            return job.taken

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.number, None)
        job.body.close()
        if job.body.region is not None:
            self._channel.send(Release(job.body.region))

    # --- on the job thread ---

    def run(self, job: Job) -> None:
        """Run a job to its end, unless it was given back; one that takes a batch, with others that wait."""
        if job.spec.batch is not None:
            self._run_batch(job)
            return
        if (job.instance and self._is_homeless(job)) or not self._take(job):
            return
        try:
            CURRENT_JOB.set(job.number)
            self._on_thread = job
            self._measure(job)
            self._page.job(job.number)  # says that it has started, for less than a frame costs, and outlives us
            began = time.monotonic()
            ending = self._attempt(job)
            self._on_thread = None
            CURRENT_JOB.set(0)
            self._report(job, ending, time.monotonic() - began)
        except Interrupted as error:  # aimed at this job, but it fired outside the handler
            self._on_thread = None
            CURRENT_JOB.set(0)
            if not job.reported:
                self._report(job, failure_of(job, error), 0.0)

    def _run_batch(self, first: Job) -> None:
        if not first.taken and not first.returned:
            self.read_ahead(lambda: self._gathering.is_full(first))
        jobs = self._gathering.take(first)
        jobs = [job for job in jobs if not (job.instance and self._is_homeless(job)) and self._take(job)]
        if not jobs:
            return
        running, began = Running(jobs), time.monotonic()
        while True:
            try:
                self._go_on(running, began)
                break
            except Interrupted as error:  # it fired outside the handler
                self._on_thread = None
                for job in jobs:
                    if job.cancel.is_set() and not job.reported:
                        running.endings.setdefault(job, failure_of(job, error))
        self._batch = None
        for job in running.left:
            self._forget(job)

    def _go_on(self, running: Running, began: float) -> None:
        """Run a batch and report how its jobs have ended; each that shows no ending runs by itself then.

        What was done is not done again, wherever an interrupt has ended the last call.
        """
        if not running.tried:
            running.tried = running.together = True
            CURRENT_JOB.set(running.jobs[0].number if len(running.jobs) == 1 else 0)
            for job in running.jobs:
                self._channel.send(Started(job.number))
            self._peaks.begin()
            self._batch = running
            self._attempt_together(running)
        running.together = False
        CURRENT_JOB.set(0)
        running.peaks = running.peaks or self._peaks.end()
        run_s = time.monotonic() - began
        for job in running.jobs:
            if job in running.endings and self._claim(job):
                self._report(job, running.endings[job], run_s, running)
        for job in running.jobs:
            self._run_by_itself(job, running)

    def _run_by_itself(self, job: Job, running: Running) -> None:
        with self._taking:
            if job.reported:
                return
            self._on_thread = job
        began = time.monotonic()
        if job not in running.endings:
            CURRENT_JOB.set(job.number)
            self._measure(job)
            running.endings[job] = self._attempt(job)
        self._on_thread = None
        CURRENT_JOB.set(0)
        if self._claim(job):
            self._report(job, running.endings[job], time.monotonic() - began)

    def _claim(self, job: Job) -> bool:
        """Return whether the caller is who reports a job of a batch."""
        with self._taking:
            claimed, job.reported = not job.reported, True
        return claimed

    def _attempt_together(self, running: Running) -> None:
        """Call the handler with every payload that can be had; find how each job has ended, if that shows it."""
        ready: list[tuple[Job, RequestContext, msgspec.Struct]] = []
        for job in running.jobs:
            begun = self._begin_in_batch(job)
            if isinstance(begun, tuple):
                ready.append((job, *begun))
            elif self._claim(job):
                self._report(job, begun, 0.0)
        if not ready:
            return
        try:
            with ExitStack() as files:
                for job, _, payload in ready:
                    files.enter_context(filled(payload, job.order.inputs, refs=job.order.earlier is not None))
                contexts, payloads = [ctx for _, ctx, _ in ready], [payload for _, _, payload in ready]
                running.called = len(ready)
                outputs = self._executor.run_batch(ready[0][0].spec, contexts, payloads, ready[0][0].instance)
        except BaseException as error:  # noqa: BLE001 - around the author's handler
            jobs = [job for job, _, _ in ready]
            if not self._is_lost(running, jobs, error):
                _judge_batch(running, jobs, error)
            return
        for (job, _, _), output in zip(ready, outputs, strict=True):
            running.endings[job] = self._ending_of(job, output)

    def _is_lost(self, running: Running, jobs: Sequence[Job], error: BaseException) -> bool:
        """Say how jobs have ended whose batch raised since their engine died; return whether that is so."""
        lost = self._engines.loss(jobs[0].number, jobs[0].instance, error)
        if lost is None:
            return False
        running.endings |= {job: msgspec.structs.replace(lost, job=job.number) for job in jobs}
        return True

    def _begin_in_batch(self, job: Job) -> tuple[RequestContext, msgspec.Struct] | Failed | Wants | NeedsInputs:
        try:
            payload = self._decode(job)
            models = self._models(job)
            if (wish := self._needs_inputs(job, payload) or self._wants(job, models)) is not None:
                return wish
            ctx = self._context(job, models)
            ctx.raise_if_cancelled("canceled")
            return ctx, payload
        except Interrupted:  # perhaps another job was meant
            raise
        except BaseException as error:  # noqa: BLE001 - around the author's types
            return failure_of(job, error)

    def _ending_of(self, job: Job, output: Any) -> Body | Failed:
        """Return how a job ended for which its batch has an output, or an exception in its place."""
        if isinstance(output, Exception):
            return failure_of(job, output)
        try:
            return self._place(self._encoded(job, output))
        except Interrupted:  # perhaps another job was meant
            raise
        except BaseException as error:  # noqa: BLE001 - around the author's types
            return failure_of(job, error)

    def _measure(self, job: Job) -> None:
        """Measure what a job takes, unless that would cost more than it tells."""
        if job.order.wire or job.spec.name not in self._quick:
            job.measured = True
            self._peaks.begin()

    def _is_homeless(self, job: Job) -> bool:
        """Give a job back whose instance is not set up here any more; say whether that was so."""
        return not self._executor.instances.holds(job.instance) and self._give_back(job)

    def _attempt(self, job: Job) -> Body | Failed | Wants | NeedsInputs:
        try:
            if job.session is not None:
                return self._executor.converse(job.spec, self._opened(job), job.session, job.instance)
            payload = self._decode(job)
            models = self._models(job)
            if (wish := self._needs_inputs(job, payload) or self._wants(job, models)) is not None:
                return wish
            ctx = self._context(job, models)
            ctx.raise_if_cancelled("canceled")
            emit = self._emit_on_loop if job.spec.shape == "async_generator" else self._emit
            with self._prepared(job, ctx, payload):
                output = self._executor.run(job.spec, ctx, payload, partial(emit, job), job.instance)
            return b"" if output is None else self._place(self._encoded(job, output))
        except BaseException as error:  # noqa: BLE001 - around the author's handler
            return self._engines.loss(job.number, job.instance, error) or failure_of(job, error)

    def _prepared(self, job: Job, ctx: RequestContext, payload: msgspec.Struct) -> AbstractContextManager[object]:
        """Have a job's files, and a producer's source, here for as long as the returned context is open."""
        if not job.order.inputs:
            return begin(ctx, payload)
        with ExitStack() as stack:
            stack.enter_context(filled(payload, job.order.inputs, refs=job.order.earlier is not None))
            stack.enter_context(begin(ctx, payload))
            return stack.pop_all()

    def _place(self, parts: Sequence[Piece]) -> Body:
        if len(parts) == 1 and len(parts[0]) <= INLINE_LIMIT:
            return bytes(parts[0])
        ready: queue.SimpleQueue[Body] = queue.SimpleQueue()
        self.outputs.place(parts, ready.put)
        return ready.get()

    def _emit(self, job: Job, item: Any) -> None:
        job.window.wait()
        if job.cancel.is_set():
            raise CanceledError("canceled")
        parts, content_type = self._encoded_item(job, item)
        self._send_item(job, self._place(parts), total_length(parts), content_type)

    # --- on the asyncio loop ---

    def _begin_on_loop(self, job: Job) -> None:
        lease = ExitStack()
        try:
            lease.enter_context(self._executor.instances.lease(job.instance))
        except KeyError:  # it had to go meanwhile
            self._give_back(job)
            return
        if not self._take(job):
            lease.close()
            return
        job.task = asyncio.get_running_loop().create_task(self._run_on_loop(job), name=job.order.request_id)
        job.task.add_done_callback(_exit_if_broken)
        job.task.add_done_callback(lambda _: lease.close())

    async def _run_on_loop(self, job: Job) -> None:
        CURRENT_JOB.set(job.number)
        self._channel.send(Started(job.number))
        self._measure(job)
        began = time.monotonic()
        ending = await self._attempt_on_loop(job)
        self._report(job, ending, time.monotonic() - began)

    async def _attempt_on_loop(self, job: Job) -> Body | Failed | Wants | NeedsInputs:
        try:
            if job.session is not None:
                return await self._executor.converse_on_loop(job.spec, self._opened(job), job.session, job.instance)
            payload = self._decode(job)
            models = self._models(job)
            if (wish := self._needs_inputs(job, payload) or self._wants(job, models)) is not None:
                return wish
            ctx = self._context(job, models)
            emit = partial(self._emit_on_loop, job)
            with filled(payload, job.order.inputs, refs=job.order.earlier is not None), await _begun(ctx, payload):
                output = await self._executor.run_on_loop(job.spec, ctx, payload, emit, job.instance)
            return b"" if output is None else await self._place_on_loop(self._encoded(job, output))
        except BaseException as error:  # noqa: BLE001 - around the author's handler
            return await self._engines.loss_on_loop(job.number, job.instance, error) or failure_of(job, error)

    async def _place_on_loop(self, parts: Sequence[Piece]) -> Body:
        if len(parts) == 1 and len(parts[0]) <= INLINE_LIMIT:
            return bytes(parts[0])
        placed: Future[Body] = Future()
        self.outputs.place(parts, placed.set_result)
        return placed.result() if placed.done() else await asyncio.wrap_future(placed)

    async def _emit_on_loop(self, job: Job, item: Any) -> None:
        waiting = job.window.wait_async()
        if waiting is not None:
            await waiting
        if job.cancel.is_set():
            raise CanceledError("canceled")
        parts, content_type = self._encoded_item(job, item)
        self._send_item(job, await self._place_on_loop(parts), total_length(parts), content_type)

    async def _send_message(self, job: Job, data: bytes, is_text: bool) -> None:
        waiting = job.window.wait_async()
        if waiting is not None:
            await waiting
        if job.cancel.is_set():
            raise CanceledError("canceled")
        content_type = "text/plain" if is_text else "application/octet-stream"
        self._send_item(job, await self._place_on_loop([data]), len(data), content_type)

    # --- both ---

    def _opened(self, job: Job) -> RequestContext:
        """Return the context of a realtime job, and have its peer's messages come."""
        ctx = self._context(job, {})
        ctx.raise_if_cancelled("canceled")
        self._channel.send(Took(job.number, 0))
        return ctx

    def _decode(self, job: Job) -> msgspec.Struct:
        body = job.body.bytes_for(job.spec.payload_type)
        try:
            payload = self._executor.decode(job.spec, body, job.order.encoding)
            if job.order.remote:
                refuse_paths(payload)
            return payload
        except (msgspec.MsgspecError, RecursionError, ValueError, MemoryError) as error:
            text = str(error) if isinstance(error, msgspec.MsgspecError | ValueError) else type(error).__name__
            raise PayloadError(f"the payload does not fit `{job.spec.name}`: {text}"[:1024]) from error

    def _needs_inputs(self, job: Job, payload: msgspec.Struct) -> NeedsInputs | None:
        """Return what asks for the files that a payload names by URLs, unless they are here."""
        if job.order.inputs:
            return None
        try:
            assets = needed(payload, refs=job.order.earlier is not None)
        except ValueError as error:
            raise PayloadError(f"the payload does not fit `{job.spec.name}`: {error}") from error
        return NeedsInputs(job.number, assets) if assets else None

    def _encoded(self, job: Job, value: Any) -> Sequence[Piece]:
        if job.order.encoding == "msgpack":
            parts: Sequence[Piece] = pieces(value)
        else:
            parts = [self._executor.encode(value, "json")]
        length = total_length(parts)
        if length > REGION_LIMIT:
            raise OutputTooLargeError(size_bytes=length, max_bytes=REGION_LIMIT)
        return parts

    def _encoded_item(self, job: Job, item: Any) -> tuple[Sequence[Piece], str]:
        if job.order.earlier is not None:
            return [self._executor.encode(item, "json")], "application/json"
        if not job.order.wire:
            return self._encoded(job, item), ""
        body, content_type = chunk_of(item)
        return [body], content_type

    def _send_item(self, job: Job, body: Body, length: int, content_type: str) -> None:
        job.window.add(length)
        job.yielded += 1
        self._channel.send(Item(job.number, body, content_type))

    def _report(
        self, job: Job, ending: Body | Failed | Wants | NeedsInputs, run_s: float, running: Running | None = None
    ) -> None:
        job.reported = True
        if isinstance(ending, Failed) and ending.kind == "out_of_memory":
            give_memory_back()
        self._streams.end_job(job.number)
        self._forget(job)
        together = 1
        if running is not None and running.peaks is not None:
            (peak_rss, peak_vram), together = running.peaks, running.called
        else:
            peak_rss, peak_vram = self._peaks.end() if job.measured else (0, 0)
            (self._quick.add if run_s < MEASURED_S else self._quick.discard)(job.spec.name)
        if isinstance(ending, Failed):
            ended = msgspec.structs.replace(
                ending, run_s=run_s, peak_rss=peak_rss, peak_vram=peak_vram, together=together
            )
            self._channel.send(ended)
        elif isinstance(ending, Wants | NeedsInputs):
            self._channel.send(ending)
        else:
            self._channel.send(Done(job.number, ending, run_s, job.yielded, peak_rss, peak_vram, together))

    def _context(self, job: Job, models: Mapping[str, Binding]) -> RequestContext:
        order = job.order
        named = {slot: binding.wire_ref for slot, binding in models.items()} if models and not order.models else None
        ctx = context_class(job.spec.kind)(
            request_id=order.request_id,
            emitter=partial(self._event, job),
            sink=JobSink(self.saves, job),
            cancel=job.cancel,
            timeout_s=order.time_left_s,
            owner="" if order.wire else self._owner,  # an orchestrator says whose a file is, or nobody does
            models=order.models or named,
            inline_file_bytes=order.inline_file_bytes,
            traceparent=order.traceparent,
            **self._producer_fields(job),
        )
        ctx._earlier = order.earlier
        return ctx

    def _producer_fields(self, job: Job) -> Mapping[str, Any]:
        if job.spec.kind == "inference":
            return {}
        return producer_fields(job.order.producing, JobPlatform(self.calls, job), remote=job.order.wire)

    def _models(self, job: Job) -> Mapping[str, Binding]:
        if not job.spec.bindings and job.spec.earlier is None:
            return {}
        return self._executor.models_of(job.spec, job.body.view, job.order.encoding, job.order.earlier)

    def _wants(self, job: Job, models: Mapping[str, Binding]) -> Wants | None:
        """Return what says that a job named other models than its instance has."""
        if not models or models == job.spec.bindings or job.order.models:
            return None
        own, named = slots_of(job.spec.bindings), slots_of(models)
        instance = overridden_instance(job.spec.instance, own, named)
        return None if instance in (job.instance, job.spec.instance) else Wants(job.number, instance, named)

    def _event(self, job: Job, event: dict[str, object]) -> None:
        value = event["payload"]
        assert isinstance(value, dict)
        if event["type"] == "request.progress":
            now = time.monotonic()
            progress, stage = min(1.0, max(0.0, float(value["progress"]))), shortened(value, "stage")
            value = {"progress": progress, **stage}
            if job.spec.lane == "device":
                self._page.progress(job.number, progress, stage.get("stage", ""))
                self.on_progress()
            if now < job.progress_due and value["progress"] != 1:
                return
            job.progress_due = now + PROGRESS_INTERVAL_S
            self._channel.send(Event(job.number, "progress", encoded(value)))
        else:
            if event["type"] != "request.log":
                value = described(str(event["type"]), value)
            value = shortened(value, "message") | shortened(value, "level") | of_type(value)
            self._channel.send(Event(job.number, "log", encoded(value)))


async def _begun(ctx: RequestContext, payload: msgspec.Struct) -> AbstractContextManager[None]:
    """Have a producer's source here without holding the loop."""
    return await asyncio.to_thread(begin, ctx, payload) if isinstance(ctx, ProducerContext) else begin(ctx, payload)


def _exit_if_broken(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(EXIT_BROKEN)


def _judge_batch(running: Running, jobs: Sequence[Job], error: BaseException) -> None:
    """Say how jobs have ended whose batch raised: one alone by that, of several only those that were to end.

    The others run by themselves, to tell who it was. In a context that is broken they cannot: the process ends with
    all of them, and each runs again in another.
    """
    if len(jobs) == 1:
        running.endings[jobs[0]] = failure_of(jobs[0], error)
        return
    if breaks_context(error):
        traceback.print_exception(error)
        os._exit(EXIT_BROKEN)
    for job in jobs:
        if job.cancel.is_set() and isinstance(error, CanceledError | Interrupted | asyncio.CancelledError):
            running.endings[job] = failure_of(job, error)
    if classify(error).kind == "out_of_memory":
        give_memory_back()
