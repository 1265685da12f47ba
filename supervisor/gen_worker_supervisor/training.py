"""A training under supervision: one child that trains, and another in its place whenever it dies.

Nothing here loads torch, or what trains. The token of the training's job stays here and with the fetcher.
"""

import asyncio
import fcntl
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gen_worker.environment import secret_values
from gen_worker.models.refs import RefError, parse_ref
from gen_worker.models.wanted import Slot
from gen_worker.settings import Settings
from gen_worker.trainer.checkpoints import FINAL, final_named, link_checkpoint, steps_in
from gen_worker.trainer.events import EventFile, last_event
from gen_worker.trainer.handover import TrainerSubprocessContractV1, write_subprocess_contract
from gen_worker.trainer.spec import SpecError, TrainingSpec, asks_to_cancel, read_spec
from gen_worker.wire.channel import DECODE_ERRORS
from gen_worker.wire.fetching import Destination
from gen_worker.wire.messages import Call, Called, Event, Producing
from gen_worker.wire.platform import PostJson, encoded
from gen_worker.wire.survey import Survey, SurveyedFunction
from gen_worker_supervisor import start
from gen_worker_supervisor.core.bodies import InlinePayload, Output, OutputBody
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.state import Device, Job, Outcome
from gen_worker_supervisor.host import Host, HostPlan
from gen_worker_supervisor.http_front import HttpPort
from gen_worker_supervisor.logs.log import Look, stderr_look
from gen_worker_supervisor.start import StartError
from gen_worker_supervisor.training_rules import Again, Ended, Record, Status, hint, judge

MODULE, FUNCTION = "gen_worker.trainer.job", "train"
INSTANCE = f"{MODULE}:{FUNCTION}"
MODEL_SLOT = "base_model"
FOLDERS = ("checkpoints", "samples", "metrics")
BEFORE = ".before"  # what a folder of the training before this one is called
JOB = "job.json"
CANCEL = ".cancel"  # is there while the training is asked to end
RESUMED = "resumed"  # where the checkpoint is that a training began with, if it was in the folder
RESUME_HINT = "what a training leaves in this folder is in `checkpoints.before` once another one has begun"
COMPLETED, FAILED, CANCELED, TERMINATED = 0, 1, 130, 143
LOOK_S = 1.0  # how soon a cancel file is seen where the child does not see it
POST_S = 30.0  # what the last post may take
ONE_SIGNAL_S = 0.2  # a terminal or `timeout` may signal the process and its group: that is one wish
ASKED_S = 20.0  # what a training that is asked to end may take to store where it is; as a job that ends it may not
DRAIN_S = 5.0  # what the child may take to leave


class TrainingOptions(NamedTuple):
    """What one training is, beside the settings."""

    spec: TrainingSpec
    paths: list[str]
    """Go to the front of `sys.path` where the trainer is imported."""

    fetching: bytes = b""
    """An encoded `gen_worker.fetch.config.FetchConfig`, with the tokens."""

    devices_option: str = "GEN_WORKER_DEVICES"
    folder_option: str = "GEN_WORKER_TRAINING_DIR"


class TrainingReport(msgspec.Struct, kw_only=True):
    """How a training ended."""

    status: Status
    step: int = 0
    final_checkpoint: str | None = None
    final_checkpoint_ref: str = ""
    final_checkpoint_sha256: str = ""
    error: str = ""
    code: int = FAILED


def train(options: TrainingOptions, settings: Settings, environment: Mapping[str, str]) -> TrainingReport:
    """Train until it is done, fails or is canceled; raise `StartError` where it cannot begin."""
    spec = options.spec
    secrets = (*secret_values(environment, settings), *filter(None, (spec.capability_token, *spec.targets.values())))
    look = stderr_look(settings.log_format, settings.log_level, environment, secrets)
    survey = survey_of(spec, options.paths)
    with ExitStack() as ends:
        folder = ends.enter_context(_Folder(settings.training_dir, options.folder_option))
        device = _own_device(settings.devices or "auto", survey, environment, options, ends)
        http = start.open_http(settings.http)
        if http is not None:
            ends.enter_context(http.sock)
        if not spec.resume_from_latest or folder.is_of_another(spec.request_id):
            spec = folder.set_aside(spec)
        contract = folder.hand_over(spec)
        plan = _plan(options, survey, device, settings, environment, look, http)
        with asyncio.Runner() as runner:
            return runner.run(_train(plan, spec, contract, settings))


def survey_of(spec: TrainingSpec, paths: list[str]) -> Survey:
    """Return what dispatch knows of the one function there is; raise `StartError` for a base model that is none."""
    function = SurveyedFunction(
        name=FUNCTION,
        python_name=FUNCTION,
        class_name="",
        instance=INSTANCE,
        shape="sync",
        lane="device",
        gpu=True,
        vram_gb=None,
        slots=_slots(spec.inputs.base_model_ref),
        gpu_count=spec.gpu_count,
        produces=True,
    )
    description = msgspec.Raw(msgspec.json.encode({"functions": [{"name": FUNCTION, "kind": "training"}]}))
    preload = ["torch"] if find_spec("torch") is not None else []
    return Survey(MODULE, paths, [function], description, preload)


def _slots(ref: str) -> list[Slot]:
    if not ref:
        return []
    try:
        return [Slot(MODEL_SLOT, parse_ref(ref))]
    except RefError as error:
        raise StartError(f"startup: `inputs.base_model_ref`: {error}") from None


def _own_device(
    wanted: str, survey: Survey, environment: Mapping[str, str], options: TrainingOptions, ends: ExitStack
) -> Device:
    """Return the device that the training has, locked; of several that are free the others stay so."""

    def own(wanted: str) -> start.Owned:
        serves = f"the training {options.spec.request_id}"
        return start.own_devices(wanted, survey, environment, serves=serves, option=options.devices_option)

    owned = own(wanted)
    with ExitStack() as undo:
        undo.callback(owned.locks.close)
        usable, _ = start.without_unusable(owned.devices, environment, owned.gpu_counts)
        if len(owned.devices) == 1:
            ends.callback(undo.pop_all().close)
            return usable[0]
    if usable[0].kind == "cpu":
        return usable[0]
    owned = own("+".join(str(gpu.uuid) for gpu in usable[0].gpus))
    ends.callback(owned.locks.close)
    return owned.devices[0]


def _plan(
    options: TrainingOptions,
    survey: Survey,
    device: Device,
    settings: Settings,
    environment: Mapping[str, str],
    look: Look,
    http: HttpPort | None,
) -> HostPlan:
    """Return the host: a training is refused for no death, and its child is replaced for no age."""
    own = msgspec.structs.replace(settings, quarantine_s=0.0, recycle_jobs=0, recycle_growth_bytes=0, recycle_age_s=0.0)
    return HostPlan(survey, [device], own, environment, look, options.fetching, patient=True, http=http)


class _Folder:
    """The files of a training, which no other training of this machine touches meanwhile."""

    def __init__(self, path: Path, option: str) -> None:
        self._path = path
        self._option = option
        self._lock = -1

    def __enter__(self) -> "_Folder":
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.__exit__()
            hint = f"wait for its end, or name another folder by `{self._option}`"
            raise StartError(f"another training uses `{self._path}`", hint) from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = f"name a folder of yours by `{self._option}`"
            raise StartError(f"the training cannot keep its files in `{self._path}`: {reason}", hint) from None
        return self

    def __exit__(self, *_raised: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def is_of_another(self, request_id: str) -> bool:
        """Whether the training that was here last is known, and is another one."""
        with suppress(OSError, SpecError):
            return read_spec(self._path / JOB).request_id != request_id
        return False

    def set_aside(self, spec: TrainingSpec) -> TrainingSpec:
        """Keep what the training before this one left under other names, in the place of that of the one before.

        Returns the spec with the place where a checkpoint is found then, if it is one of those that are set aside.
        Raises `StartError` where that cannot be.
        """
        spec = self._with_checkpoint_at_hand(spec)
        for name in FOLDERS:
            there, before = self._path / name, self._path / f"{name}{BEFORE}"
            if not there.exists():
                continue
            shutil.rmtree(before, ignore_errors=True)
            try:
                there.rename(before)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                hint = f"remove both, or name another folder by `{self._option}`"
                raise StartError(f"`{there}` cannot be set aside as `{before.name}`: {reason}", hint) from None
        return spec

    def _with_checkpoint_at_hand(self, spec: TrainingSpec) -> TrainingSpec:
        """Link the files of the checkpoint that a training goes on from, if they are here, where nothing moves them."""
        told = spec.resume_checkpoint_path or spec.inputs.resume_checkpoint_ref
        named = Path(told).absolute()
        if not told or "://" in told or not named.is_relative_to(self._path.absolute()):
            return spec
        try:
            kept = link_checkpoint(named, self._path / RESUMED)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StartError(f"input: no checkpoint at `{named}`: {reason}", RESUME_HINT) from None
        return msgspec.structs.replace(spec, resume_checkpoint_path=str(kept))

    def hand_over(self, spec: TrainingSpec) -> Path:
        """Write down what the child is to know; return where."""
        try:
            return self._hand_over(spec)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = f"make room there, or name another folder by `{self._option}`"
            raise StartError(f"the training cannot keep its files in `{self._path}`: {reason}", hint) from None

    def _hand_over(self, spec: TrainingSpec) -> Path:
        job = self._path / JOB
        part = self._path / f".{JOB}.part"
        part.write_bytes(spec.written())
        part.replace(job)
        contract = TrainerSubprocessContractV1(
            trainer_plugin=spec.trainer,
            job_spec_path=str(job),
            checkpoints_dir=str(self._path / "checkpoints"),
            samples_dir=str(self._path / "samples"),
            events_path=str(self._path / "metrics" / "events.jsonl"),
        )
        return write_subprocess_contract(contract, self._path / "contract.json")


async def _train(plan: HostPlan, spec: TrainingSpec, contract: Path, settings: Settings) -> TrainingReport:
    service = _Service(plan, spec, contract, settings)
    try:
        return await service.run()
    finally:
        service.close()


class _End(msgspec.Struct):
    """What a child says of a training that came to its end."""

    step: int = 0
    final_checkpoint: str | None = None
    final_checkpoint_ref: str = ""
    final_checkpoint_sha256: str = ""


class _Attempt:
    """One job of the training, and the client of it."""

    link = "training"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answered: asyncio.Future[tuple[Outcome, bytes]] = loop.create_future()

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """Take the answer."""
        if isinstance(body, Output):  # far longer than what a training says of its end
            body.release()
        self.answered.set_result((outcome, b"" if isinstance(body, Output) else body))

    def item(self, job: Job, body: OutputBody, content_type: str) -> None:
        """A training has no items."""

    def event(self, job: Job, event: Event) -> None:
        """The log has it already."""

    def rerun(self, job: Job) -> None:
        """It was taken back before it had begun."""


class _Service:
    """A host with one job after the other, until the training has ended."""

    def __init__(self, plan: HostPlan, spec: TrainingSpec, contract: Path, settings: Settings) -> None:
        self._spec = spec
        self._contract = contract
        self._checkpoints = contract.parent / "checkpoints"
        self._events = contract.parent / "metrics" / "events.jsonl"
        self._host = Host(plan)
        self._loop = self._host.loop
        self._log = self._host.log
        self._supervisor = self._host.supervisor
        self._destination = _destination(spec, settings)
        self._stores_files = bool((spec.base_url or settings.tensorhub_public_url) and spec.capability_token)
        self._job: Job | None = None
        self._canceled_by: int | None = None
        self._forced: asyncio.Future[None] = self._loop.create_future()
        self._signaled_at = -1.0
        self._cancel_look: asyncio.TimerHandle | None = None
        self._cancel_mark = contract.parent / CANCEL
        self._cancel_mark.unlink(missing_ok=True)
        self._cancel_due: asyncio.TimerHandle | None = None
        self._ends_at = None if spec.max_runtime_seconds is None else self._loop.time() + spec.max_runtime_seconds
        self._end = _End()

    async def run(self) -> TrainingReport:
        """Train; return how it ended."""
        for number, code in ((signal.SIGTERM, TERMINATED), (signal.SIGINT, CANCELED)):
            self._loop.add_signal_handler(number, self._on_signal, code)
        self._host.open()
        self._log.say(f"training {self._spec.request_id}: its files are in {self._contract.parent}")
        if self._spec.targets and not self._spec.posted_to:
            self._log.event("warning", "training", "nothing is posted to `uploads`: there is no `capability_token`")
        self._host.start()
        self._look_for_cancel()
        ended = await self._attempts()
        report = self._report(ended)
        self._tell(report)
        await self._post(report)
        await self._leave()
        return report

    async def _attempts(self) -> Ended:
        record = Record(self._latest())
        resume, number = self._spec.resume_from_latest, 0
        while True:
            number += 1
            outcome = await self._attempt(number, resume)
            if outcome is None:
                return self._gone()
            verdict = judge(record, outcome, self._latest())
            if isinstance(verdict, Ended):
                return verdict
            if self._canceled_by is not None:
                return Ended("canceled", verdict.reason)
            self._go_on(verdict)
            record, resume = verdict.record, True

    def _gone(self) -> Ended:
        """The supervisor, or whoever is at the keyboard, has given the training up."""
        if self._forced.done():
            return Ended("canceled", "ended at once")
        loss = self._supervisor.fleet.devices[0].loss
        return Ended("failed", f"startup: no device can train: {loss}")

    def _go_on(self, verdict: Again) -> None:
        where = f"after step {verdict.record.latest}" if verdict.record.latest >= 0 else "from the beginning"
        self._log.event("warning", "training", f"{verdict.reason}: it goes on {where}")
        if verdict.got_on:
            self._supervisor.fleet.devices[0].deaths_in_row = 0

    async def _attempt(self, number: int, resume: bool) -> Outcome | None:
        """Run the job once; return its outcome, None where nothing runs any more."""
        attempt = _Attempt(self._loop)
        left = None if self._ends_at is None else max(0.0, self._ends_at - self._loop.time())
        self._job = self._supervisor.submit(
            attempt,
            request_id=self._spec.request_id,
            function=self._supervisor.fleet.functions[FUNCTION],
            payload=InlinePayload(msgspec.msgpack.encode(self._order(resume))),
            encoding="msgpack",
            attempt=number,
            timeout_s=left,
            reruns=False,
            destination=self._destination,
            producing=Producing(job_id=self._spec.work_id),
        )
        if self._canceled_by is not None:
            self._supervisor.end(self._job, Reason.CANCEL)
        gone = (attempt.answered, self._supervisor.status, self._forced)
        await asyncio.wait(gone, return_when=asyncio.FIRST_COMPLETED)
        self._job = None
        if not attempt.answered.done():
            return None
        outcome, body = attempt.answered.result()
        if outcome.kind is None:
            self._end = _told_end(body)
        return outcome

    def _order(self, resume: bool) -> dict[str, Any]:
        """Return the payload, as `gen_worker.trainer.running.TrainingOrder` has it."""
        inputs = self._spec.inputs
        return {
            "contract_path": str(self._contract),
            "resume": resume,
            "stores_files": self._stores_files,
            "cancel_path": str(self._cancel_mark),
            "dataset_files": [_asset(ref) for ref in inputs.dataset_parquet_refs],
            "resume_file": _asset(inputs.resume_checkpoint_ref) if inputs.resume_checkpoint_ref else None,
        }

    def _latest(self) -> int:
        if (self._checkpoints / FINAL).exists():
            return self._spec.max_steps + 1
        return self._latest_step()

    def _latest_step(self) -> int:
        return next((step for step, _ in steps_in(self._checkpoints)), -1)

    # --- who wants it to end ---

    def _look_for_cancel(self) -> None:
        path = self._spec.cancel_file_path
        if path and asks_to_cancel(path):
            self._cancel(CANCELED, f"`{path}` asks for the end of the training")
        elif path:
            self._cancel_look = self._loop.call_later(LOOK_S, self._look_for_cancel)

    def _on_signal(self, code: int) -> None:
        """First signal: end in order, with a checkpoint. Second: at once."""
        now = self._loop.time()
        if self._canceled_by is None:
            self._signaled_at = now
            self._cancel(code, "ending: the training keeps where it is; another signal ends it at once")
        elif now - self._signaled_at > ONE_SIGNAL_S and not self._forced.done():
            self._canceled_by = code
            self._forced.set_result(None)

    def _cancel(self, code: int, reason: str) -> None:
        if self._canceled_by is None:
            self._canceled_by = code
            self._log.say(reason)
            if self._destination is None:
                self._end_job()
            else:
                self._cancel_mark.touch()
                self._cancel_due = self._loop.call_later(ASKED_S, self._end_job)

    def _end_job(self) -> None:
        if self._job is not None:
            self._supervisor.end(self._job, Reason.CANCEL)

    # --- its end ---

    def _report(self, ended: Ended) -> TrainingReport:
        code = {"completed": COMPLETED, "failed": FAILED}.get(ended.status, self._canceled_by or CANCELED)
        end = self._end
        latest = max(0, self._latest_step())
        return TrainingReport(
            status=ended.status,
            step=end.step if ended.status == "completed" else latest,
            final_checkpoint=end.final_checkpoint or final_named(self._checkpoints),
            final_checkpoint_ref=end.final_checkpoint_ref,
            final_checkpoint_sha256=end.final_checkpoint_sha256,
            error=self._log.hide(ended.error),
            code=code,
        )

    def _tell(self, report: TrainingReport) -> None:
        """Say how it ended, in the events' file, too, where the child could not."""
        if report.status == "completed":
            self._log.say(f"training completed after step {report.step}: {report.final_checkpoint}")
            return
        if report.status == "canceled":
            self._log.say(f"training canceled, its latest checkpoint is after step {report.step}: {report.error}")
        else:
            told = (f"training failed: {report.error}", *self._hint(report))
            self._log.say("\n".join(told), "error")
        try:
            if last_event(self._events) not in ("failed", "completed"):
                EventFile(self._events, self._spec.request_id).write("failed", step=report.step, error=report.error)
        except OSError as error:
            text = f"`{self._events}` cannot be written: {(error.strerror or str(error)).lower()}"
            self._log.event("warning", "training", text)

    def _hint(self, report: TrainingReport) -> tuple[str, ...]:
        text = hint(report.error, self._latest_step(), report.final_checkpoint or "")
        return (f"hint: {text}",) if text else ()

    async def _post(self, report: TrainingReport) -> None:
        """Tell the platform how it ended."""
        calls = self._supervisor.platform
        if "terminal_url" not in self._spec.posted_to or self._destination is None or calls is None:
            return
        posted: asyncio.Future[str] = self._loop.create_future()

        def tell(answer: Called, _descriptors: list[int]) -> None:
            if not posted.done():
                posted.set_result(answer.error)

        document = msgspec.to_builtins(report)
        del document["code"]
        document["status"] = "completed" if report.status == "completed" else "failed"
        document |= {"request_id": self._spec.request_id, "kind": self._spec.kind}
        verb = PostJson(target="terminal_url", document=document)
        calls.call(Call(0, 1, "PostJson", encoded(verb)), self._destination, [], tell)
        await asyncio.wait((posted, self._forced), timeout=POST_S, return_when=asyncio.FIRST_COMPLETED)
        if not posted.done() or posted.result():
            why = posted.result() if posted.done() else f"no answer within {POST_S:.0f} s"
            self._log.event("error", "training", f"the platform was not told how it ended: {why}")

    async def _leave(self) -> None:
        if not self._supervisor.status.done():
            self._supervisor.drain()
            ended = (self._supervisor.status, self._forced)
            await asyncio.wait(ended, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        """Remove every trace but the training's files."""
        for timer in (self._cancel_look, self._cancel_due):
            if timer is not None:
                timer.cancel()
        self._cancel_mark.unlink(missing_ok=True)
        self._host.close()


def _asset(ref: str) -> dict[str, Any]:
    """Return what names a file of the job, which is fetched before the job begins where its ref is a URL."""
    return {"ref": ref, "url_max_bytes": 1 << 50}


def _destination(spec: TrainingSpec, settings: Settings) -> Destination | None:
    """Return where the files and posts of the training go, None where they stay here."""
    if not spec.capability_token:
        return None
    base_url = spec.base_url or settings.tensorhub_public_url
    if not base_url and spec.targets:  # posts go to whole URLs: this is only where the platform is, for messages
        base_url = "/".join(next(iter(spec.targets.values())).split("/", 3)[:3])
    if not base_url:
        return None
    return Destination(
        base_url,
        spec.capability_token,
        spec.request_id,
        1,
        owner=spec.owner,
        job_id=spec.work_id,
        targets=spec.posted_to,
    )


def _told_end(body: bytes) -> _End:
    with suppress(*DECODE_ERRORS):  # the plugin may have done anything to its process
        return msgspec.msgpack.decode(body, type=_End)
    return _End()
