"""What `serve` and a worker have in common: a supervisor with children, a control socket, a fetcher, a run directory.

It knows nothing of how jobs come in.
"""

import asyncio
import gc
import importlib.metadata
import os
import resource
import shutil
import signal
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from gen_worker import log_files
from gen_worker.compile_caches import COMPILED, CompileCaches, tidy
from gen_worker.environment import SUPERVISOR, close_memory
from gen_worker.extras import installed_by
from gen_worker.rundir import CONTROL, SupervisorFile, make_private
from gen_worker.scratch import remove_abandoned
from gen_worker.settings import Settings
from gen_worker.wire import control as wire
from gen_worker.wire.channel import close_all
from gen_worker.wire.fetching import FetchReport, Keep, PlatformAnswered, TokenRenewed
from gen_worker.wire.survey import Look as CodeLook
from gen_worker.wire.survey import Survey
from gen_worker_supervisor.clients.control import STALLED_S, ControlServer
from gen_worker_supervisor.clients.verbs import Verbs
from gen_worker_supervisor.code_watch import CodeWatch
from gen_worker_supervisor.core.blame import Blame
from gen_worker_supervisor.core.catalog import Catalog
from gen_worker_supervisor.core.evidence import MemoryReading
from gen_worker_supervisor.core.guard import default_reserve, doubts, needed_bytes
from gen_worker_supervisor.core.happenings import DeviceFault, GpusRead, MemoryRead
from gen_worker_supervisor.core.state import Device, Fleet, Function, Recycling
from gen_worker_supervisor.devices.gpu_watch import GpuWatch
from gen_worker_supervisor.files.fetching import FetcherProcess
from gen_worker_supervisor.files.inputs import Inputs
from gen_worker_supervisor.files.platform import PlatformCalls
from gen_worker_supervisor.files.saving import Saver
from gen_worker_supervisor.files.storing import Storing
from gen_worker_supervisor.files.uploads import Uploads
from gen_worker_supervisor.history.postmortems import Graveyard
from gen_worker_supervisor.history.records import Records
from gen_worker_supervisor.history.spans import Spans, is_wanted, missing
from gen_worker_supervisor.http_front import HttpFront, HttpPort
from gen_worker_supervisor.logs.log import Log, Look
from gen_worker_supervisor.logs.log_files import LineFiles
from gen_worker_supervisor.loop.rounds import Rounds
from gen_worker_supervisor.memory.host_memory import FOLDER, LAST_BYTES, HostMemory, default_budget
from gen_worker_supervisor.memory.keeping import Keeper
from gen_worker_supervisor.memory.usage import ended_together, tightest
from gen_worker_supervisor.memory.watch import MemoryWatch
from gen_worker_supervisor.processes import predecessors
from gen_worker_supervisor.processes.environment import threads_of_each
from gen_worker_supervisor.processes.reaper import Reaper, become_subreaper
from gen_worker_supervisor.sockets.listening import ListenError, SocketInUseError, bind_unix
from gen_worker_supervisor.sockets.poller import LINGER_S, Poller
from gen_worker_supervisor.start import StartError
from gen_worker_supervisor.status.host_facts import Disk, HostWatch
from gen_worker_supervisor.status.readiness import ReadyFile, is_ready
from gen_worker_supervisor.status.report import Reporter
from gen_worker_supervisor.supervisor import Supervisor
from gen_worker_supervisor.watching import Watching

READY_LOOK_S = 0.5  # whether the ready file says what is
GC_THRESHOLD = 50_000  # jobs are freed by their counts; the collector's default looks at them every few hundred


class HostPlan(NamedTuple):
    """Everything that is known of a host before anything runs."""

    survey: Survey
    owned: list[Device]
    settings: Settings
    environment: Mapping[str, str]
    look: Look
    fetching: bytes  # an encoded `gen_worker.fetch.config.FetchConfig`, with the tokens
    address: str | None = None  # where requests come in, as `ps` says it
    vram_budget_gb: float = 0.0  # 0: what the settings say
    eager: bool = False
    patient: bool = False  # what cannot be set up at the start does not end it
    stalled_s: float = STALLED_S  # a client of the control socket that takes nothing for so long is cut off
    http: HttpPort | None = None  # that probes and metrics are served on
    reloads: bool = False  # other code may come, with models that nothing of the present one has
    linger_s: float = LINGER_S  # of its poller: 0 where the loop has more to do than its children and their clients

    def fleet(self) -> Fleet:
        """Return the fleet at its beginning."""
        settings = self.settings
        budget = int((self.vram_budget_gb or settings.max_vram_gb) * (1 << 30))
        for device in self.owned:
            device.budget_bytes = budget * device.gpu_count
            for gpu in device.members:
                gpu.budget_bytes = budget
        return Fleet(
            {function.name: Function(function) for function in self.survey.functions},
            self.owned,
            max_queued=settings.max_queued,
            max_queued_per_function=settings.max_queued_per_function,
            max_queued_bytes=settings.max_queued_bytes,
            stall_timeout_s=settings.stall_timeout_s,
            memory_reserve=_reserve(settings),
            recycling=Recycling(settings.recycle_jobs, settings.recycle_growth_bytes, settings.recycle_age_s),
            max_input_bytes=settings.max_input_bytes,
            max_output_bytes=settings.max_output_bytes,
            eager=self.eager,
            booting=not self.patient,
            catalog=Catalog(settings.max_concurrent_downloads, settings.allow_pickle),
            blame=Blame(settings.quarantine_s),
        )


def _reserve(settings: Settings) -> int:
    """Return the bytes of memory that stay free; 0 where that is not wanted, or nothing tells how much there is."""
    room = tightest()
    if room is None or settings.memory_reserve_bytes is not None:
        return settings.memory_reserve_bytes or 0
    return default_reserve(room.limit)


def reason_of(error: OSError | ListenError) -> str:
    """Return what went wrong, without a number of the system's."""
    said = error.strerror if isinstance(error, OSError) else None
    return (said or str(error)).lower()


def _take_every_descriptor() -> None:
    """Raise the limit as far as may be: each child, client and big payload takes some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Host:
    """A supervisor and everything around it, from the first child to the last file removed."""

    def __init__(self, plan: HostPlan) -> None:
        loop = asyncio.get_running_loop()
        become_subreaper()
        _take_every_descriptor()
        self.plan = plan
        self.loop = loop
        self._boot_id = uuid.uuid4().hex
        self.log = Log(plan.look, kept=self._log_files if plan.settings.log_bytes else None)
        self.poller = Poller(loop, linger_s=plan.linger_s)
        self.version = importlib.metadata.version("gen-worker")
        self._reaper = Reaper(loop)
        self._saver = Saver(loop, plan.settings.local_output_dir, plan.settings.max_upload_bytes)
        self._compiled = CompileCaches(plan.settings.cache_dir / "compiled")
        self.supervisor = self._supervisor(plan)
        self._spans = self.supervisor.spans = self._exporter()
        self._watching = Watching(self.supervisor, loop)
        self._memory_watch = MemoryWatch(
            loop,
            self._on_memory,
            reserve=self.supervisor.fleet.memory_reserve,
            rounds=Rounds("memory", "a look at the memory", loop, self.log),
        )
        self.gpu_watch = GpuWatch(
            loop,
            plan.owned,
            self._on_gpus,
            self._on_gpu_note,
            self._settles,
            rounds=Rounds("devices", "a look at the GPUs", loop, self.log),
        )
        self.supervisor.look_at_gpus = self.gpu_watch.look_now
        self._fetcher: FetcherProcess | None = None
        self.inputs = self.supervisor.inputs = Inputs(
            self.fetcher,
            self.supervisor.handle,
            max_bytes=plan.settings.max_input_file_bytes,
            allow_private=plan.settings.allow_private_inputs,
        )
        self.uploads = Uploads(self.fetcher)
        self.supervisor.storing = Storing(self.uploads)
        self.platform = self.supervisor.platform = PlatformCalls(self.fetcher)
        self.platform.on_renewed = self.uploads.renewed
        self._http: HttpFront | None = None
        self._ready_file: ReadyFile | None = None
        self._ready_look: asyncio.TimerHandle | None = None
        self._folder: Path | None = None
        opened = wire.Opened(wire.CONTROL_PROTOCOL, self._boot_id, os.getpid(), self.version, plan.address)
        self._control = ControlServer(self.supervisor, loop, self.poller, opened, stalled_s=plan.stalled_s)
        self._host_watch = HostWatch(
            Disk(plan.settings.cache_dir), Rounds("host", "a look at the host", loop, self.log)
        )
        self.reporter = Reporter(self.supervisor, plan.address, lambda: self._host_watch.facts)
        self._control.verbs = Verbs(self.supervisor, loop, self.reporter)
        self._watching.on_hang = self._control.verbs.show_now

    def _supervisor(self, plan: HostPlan) -> Supervisor:
        """Return the supervisor, which keeps what its settings say of deaths and jobs."""
        settings = plan.settings
        made = Supervisor(
            plan.fleet(),
            plan.survey,
            loop=self.loop,
            poller=self.poller,
            reaper=self._reaper,
            log=self.log,
            saver=self._saver,
            environment={
                **plan.environment,
                SUPERVISOR: self._boot_id,
                **threads_of_each(plan.environment, plan.owned, len(os.sched_getaffinity(0))),
                **self._compile_caches(),
            },
            margin_bytes=int(settings.vram_margin_gb * (1 << 30)),
            derived=str(settings.cache_dir / "cas/derived"),
        )
        if limit := settings.postmortem_bytes:
            made.graveyard = Graveyard(made.fleet, self.loop, self.log, settings.run_dir, limit, self.version)
        if limit := settings.job_log_bytes:
            made.records = Records(self.loop, self.log, settings.run_dir, limit, self._boot_id)
        return made

    def _log_files(self, log: Log) -> LineFiles:
        def complain(text: str) -> None:
            log.event("warning", "log", text)

        settings = self.plan.settings
        return LineFiles(log_files.folder_in(settings.run_dir), settings.log_bytes, self._boot_id, complain)

    def _exporter(self) -> Spans | None:
        if not is_wanted(self.plan.environment):
            return None
        if lacking := missing():
            text = f"no spans are sent: {', '.join(f'`{name}`' for name in lacking)} not installed"
            self.log.event("warning", "otlp", f"{text}: {installed_by('otel')}")
            return None
        return Spans(self.loop, self.poller, self._reaper, self.log, self.plan.environment)

    # --- its beginning ---

    def open(self) -> None:
        """Open the control socket and what models need; raise `StartError` where that is not possible."""
        if not self.plan.settings.debuggable:
            close_memory()
        for number in (signal.SIGUSR1, signal.SIGUSR2):  # whose default would end it, and with it every job
            self.loop.add_signal_handler(number, self._on_odd_signal, signal.Signals(number).name)
        self._open_control()
        self._open_models()
        self._open_probes()

    def start(self) -> None:
        """Start the children."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        reserve, needed = self.supervisor.fleet.memory_reserve, needed_bytes(self.plan.survey.preload)
        for text in doubts(tightest(), reserve, needed, ended_together()):
            self.log.event("warning", "memory", text)
        if self._spans is not None:
            self._spans.start()
        self.supervisor.start()
        self._watching.start()
        self._memory_watch.start()
        self.gpu_watch.start()
        self._host_watch.start()
        if self.supervisor.graveyard is not None:
            self.supervisor.graveyard.watch(self.supervisor.readings)

    def _on_odd_signal(self, name: str) -> None:
        self.log.event("info", "supervisor", f"{name} came, which means nothing here")

    def _on_gpus(self, happening: GpusRead | DeviceFault) -> None:
        if isinstance(happening, DeviceFault):
            self.supervisor.look_at_pages()  # which jobs had begun on it
        self.supervisor.handle(happening)

    def _on_gpu_note(self, device: str, text: str) -> None:
        self.log.event("info", device, text)

    def _settles(self) -> bool:
        """Whether the memory of some dead child has yet to come back."""
        return any(device.settle_by is not None for device in self.plan.owned)

    def _open_control(self) -> None:
        place = self.plan.settings.run_dir
        try:
            make_private(place)
            self._bury_predecessors(place)
            self._folder, sock = self._own_folder(place)
            self._control.listen(sock)
            control = str(self._folder / CONTROL)
            here = predecessors.here()
            file = SupervisorFile(os.getpid(), self._boot_id, control, self.plan.address, wire.CONTROL_PROTOCOL, here)
            file.write(self._folder)
        except (OSError, ListenError) as error:
            unusable = isinstance(error, FileExistsError | NotADirectoryError)
            reason = "it is not a folder" if unusable else reason_of(error)
            hint = "set `GEN_WORKER_RUN_DIR` to a folder of yours"
            raise StartError(f"cannot open the control socket in `{place}`: {reason}", hint) from None

    def _bury_predecessors(self, place: Path) -> None:
        if ended := predecessors.bury(place):
            listed = ", ".join(map(str, ended))
            text = f"processes that jobs of a killed supervisor had left are ended: {listed}"
            self.log.event("warning", "supervisor", text)

    def _own_folder(self, place: Path) -> tuple[Path, socket.socket]:
        """Return a folder that is ours alone, and the control socket in it.

        A server in another container may have our pid and this very run directory: what is alive there stays.
        """
        folder = place / str(os.getpid())
        try:
            folder.mkdir(mode=0o700, exist_ok=True)  # a dead one's is used again
            return folder, bind_unix(folder / CONTROL, socket.SOCK_SEQPACKET)
        except (SocketInUseError, FileNotFoundError):  # the other one removes it at its end
            folder = place / f"{folder.name}-{self._boot_id}"
            folder.mkdir(mode=0o700)
            return folder, bind_unix(folder / CONTROL, socket.SOCK_SEQPACKET)

    def _open_models(self) -> None:
        functions = self.plan.survey.functions
        bound = {ref: None for function in functions for ref in function.models}
        named = any(function.injections for function in functions)  # by requests
        if not (bound or named or self.plan.patient or self.plan.reloads):
            return
        budget = self.plan.settings.host_cache_bytes
        try:
            keeper = Keeper(self._reaper, self.supervisor.models.on_keeper_lost)
            budget_bytes = default_budget() if budget is None else budget
            left_bytes = LAST_BYTES + self.supervisor.fleet.memory_reserve
            memory = HostMemory(self.folder / FOLDER, budget_bytes, keeper, last_bytes=left_bytes)
        except OSError as error:
            text = f"cannot use `{self.folder}`: {reason_of(error)}"
            raise StartError(text, "set `GEN_WORKER_RUN_DIR`") from None
        self.supervisor.models.start(self.fetcher, memory)
        if bound:
            self.fetcher().send(Keep(list(bound)))

    def _open_probes(self) -> None:
        port, path = self.plan.http, self.plan.settings.ready_file
        if path is not None:
            try:
                self._ready_file = ReadyFile(path)
            except OSError as error:
                text = f"cannot keep the ready file `{path}`: {reason_of(error)}"
                raise StartError(text, "set `GEN_WORKER_READY_FILE` to a file in a folder of yours") from None
            self._look_whether_ready()
        if port is not None:
            self._http = HttpFront(self.loop, self.poller, self._reaper, self.log, port, self.folder / CONTROL)
            self.reporter.http = port.url
            self._http.start()
            self.log.event("info", "http", f"probes and metrics are at {port.url}")

    def _look_whether_ready(self) -> None:
        assert self._ready_file is not None
        self._ready_look = self.loop.call_later(READY_LOOK_S, self._look_whether_ready)
        self._show_ready(is_ready(self.supervisor.fleet))

    def _show_ready(self, ready: bool) -> None:
        assert self._ready_file is not None
        try:
            self._ready_file.show(ready)
        except OSError as error:
            text = f"the ready file `{self.plan.settings.ready_file}` cannot be kept: {reason_of(error)}"
            self.log.event("warning", "supervisor", text)

    @property
    def folder(self) -> Path:
        """Its own folder in the run directory, once it is open."""
        assert self._folder is not None
        return self._folder

    def fetcher(self) -> FetcherProcess:
        """Return the fetcher; the first who needs it has it started."""
        if self._fetcher is None:
            self._fetcher = FetcherProcess(
                self.loop,
                self.poller,
                self._reaper,
                self.log,
                self.plan.fetching,
                self._on_report,
                self._on_fetcher_lost,
            )
            self._fetcher.start()
        return self._fetcher

    def watch_code(self, functions: Sequence[str], on_look: Callable[[CodeLook], None]) -> CodeWatch:
        """Return what watches the author's code, for whoever asks to start and close; `functions` are wanted of it."""
        return CodeWatch(
            self.loop,
            self.poller,
            self._reaper,
            self.log,
            module=self.plan.survey.module,
            paths=self.plan.survey.paths,
            functions=functions,
            environment=self.plan.environment,
            on_look=on_look,
        )

    def _on_report(self, report: FetchReport, descriptors: list[int]) -> None:
        if isinstance(report, PlatformAnswered | TokenRenewed):
            self.platform.on_report(report, descriptors)
            close_all(descriptors)
            return
        self.supervisor.models.on_report(report, descriptors)
        self.inputs.on_report(report)
        self.uploads.on_report(report)

    def _on_memory(self, reading: MemoryReading) -> None:
        supervisor = self.supervisor
        supervisor.oom_kills.look(reading.at)
        loose, kills = supervisor.models.loose_bytes, supervisor.oom_kills.total
        supervisor.handle(MemoryRead(replace(reading, models=loose, oom_kills=kills)))
        living = [child for child in supervisor.fleet.children() if supervisor.process_of(child) is not None]
        self._memory_watch.children = {child.generation: child.pid for child in living if child.pid is not None}

    def _on_fetcher_lost(self) -> None:
        self.supervisor.models.on_lost()
        self.inputs.on_lost()
        self.uploads.on_lost()
        self.platform.on_lost()

    # --- its end ---

    def _compile_caches(self) -> dict[str, str]:
        """Have folders for what children compile, where that is wanted and can be; return what tells children."""
        most_bytes, root = self.plan.settings.compile_cache_bytes, self._compiled.root
        if not most_bytes:
            return {}
        try:
            self._compiled.open({device.sm if device.kind == "cuda" else "" for device in self.plan.owned})
        except OSError as error:
            self.log.event("info", "host", f"what children compile is not kept: `{root}`: {reason_of(error)}")
            return {}
        for key in tidy(root, most_bytes):
            self.log.event("info", "host", f"removed what was compiled: `{root / key}`")
        return {COMPILED: str(root)}

    def close(self, last_word: str = "") -> None:
        """Remove every trace but the post-mortems, the log and the records of jobs: processes, sockets, files."""
        if self._ready_look is not None:
            self._ready_look.cancel()
            self._show_ready(False)
        if self._http is not None:
            self._http.close()
        self._watching.close()
        self._memory_watch.close()
        if self.supervisor.graveyard is not None:
            self.supervisor.graveyard.close()
        self.gpu_watch.close()
        self._host_watch.close()
        self.supervisor.close()
        self._compiled.close()
        if self.supervisor.records is not None:
            self.supervisor.records.close()
        if self._spans is not None:
            self._spans.close()
        if self._fetcher is not None:
            self._fetcher.close()
        self.inputs.close()
        self.uploads.close()
        self.platform.close()
        if self._folder is not None:  # before its socket closes: from then on it would be anyone's with our pid
            shutil.rmtree(self._folder, ignore_errors=True)
        self._control.close()
        self.poller.close()
        self._reaper.close()
        self._saver.close()
        if last_word:
            self.log.say(last_word)
        self.log.close()
        remove_abandoned()  # the last of all: the log of one whose starter was killed lies in such a folder
