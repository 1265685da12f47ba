"""The whole platform: `gen-worker orchestrator`, its workers and their children, as a person starts them."""

import datetime
import ipaddress
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ports import documented_ports
from tests.served import GEN_WORKER, alive, until

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
SHORTEST_TRIES_S = 1.0  # what a worker tries again for before it gives a job back, where chance has it try in haste

ENDPOINT = """
import os
import time
from pathlib import Path

import msgspec

from gen_worker import Asset, Hub, RequestContext, endpoint


class Text(msgspec.Struct):
    text: str = ""


class File(msgspec.Struct):
    file: Asset


@endpoint
def shout(ctx: RequestContext, payload: Text) -> Text:
    with open(os.environ["RUNS"], "a") as runs:
        runs.write(f"{ctx.request_id}\\n")
    time.sleep(0.02)
    return Text(payload.text.upper())


@endpoint
def whoami(ctx: RequestContext, payload: Text) -> Text:
    return Text(str(os.getppid()))


@endpoint
def keep(ctx: RequestContext, payload: Text) -> File:
    return File(ctx.save_bytes("kept.txt", payload.text.encode()))


@endpoint
def keep_much(ctx: RequestContext, payload: Text) -> File:
    return File(ctx.save_bytes("much.bin", os.urandom(150_000_000)))


@endpoint
def read(ctx: RequestContext, payload: File) -> Text:
    return Text(Path(payload.file).read_text())


@endpoint(model=Hub("acme/words"))
class Poet:
    def setup(self, words: Path) -> None:
        self.words = (words / "words.txt").read_text()

    def speak(self, ctx: RequestContext, payload: Text) -> Text:
        return Text(self.words)
"""


class Platform:
    """A control plane that runs, with what it says."""

    def __init__(self, process: subprocess.Popen[str], context: ssl.SSLContext | None) -> None:
        self.process = process
        self.context = context
        self.said: list[dict[str, Any]] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.url = str(self.heard("listening")["http"])
        self.heard("ready")

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.said.extend(json.loads(line) for line in self.process.stdout)

    def heard(self, event: str, text: str = "", times: int = 1) -> dict[str, Any]:
        """Wait until it has said something so often; return the last."""

        def found() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.said
            lines = [each for each in list(self.said) if each["event"] == event and text in str(each.get("line", ""))]
            return lines[times - 1] if len(lines) >= times else None

        said = until(found, 30, what=f"{event} {text}")
        assert said is not None
        return said

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, bytes]:
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, sent, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=40, context=self.context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def run(self, function: str, **payload: Any) -> Any:
        status, body = self.ask(f"/v1/run/{function}", payload)
        assert status == 200, body
        return json.loads(body)

    def workers(self) -> dict[str, Any]:
        return {each["worker_id"]: each for each in json.loads(self.ask("/v1/workers")[1])["workers"]}

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reading.join(10)


@contextmanager
def platform(
    folder: Path, *arguments: str, context: ssl.SSLContext | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Platform]:
    """Run a control plane with its state in a folder until the body ends."""
    named = {arguments[at - 1] for at in range(1, len(arguments) + 1) if arguments[at - 1].startswith("--")}
    ports = [] if "--listen" in named else ["--listen", "127.0.0.1:0"]
    ports += [] if "--http" in named else ["--http", "127.0.0.1:0"]
    own = {"TENSORHUB_CACHE_DIR": str(folder / "cache"), "RUNS": str(folder / "runs"), "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            [*GEN_WORKER, "orchestrator", "--json", "--state", str(folder / "state"), *ports, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**os.environ, **own, **(variables or {})},
        ) as process,
    ):
        running = Platform(process, context)
        try:
            yield running
        finally:
            running.close()
    assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shouting"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[tool.gen_worker]\nmain = "shouting"\n')
    (folder / "shouting.py").write_text(ENDPOINT)
    return folder


def test_one_command_gives_a_platform_that_ends_in_order(project: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    (words / "words.txt").write_text("so much depends")
    given = ("--worker", str(project), "--devices", "cpu:1", "--model", f"acme/words={words}")
    with platform(tmp_path, *given, variables={"HF_TOKEN": "hf_secret_of_mine"}) as running:
        assert running.run("shout", text="hi") == {"text": "HI"}
        kept = running.run("keep", text="remember")["file"]
        assert running.run("read", file={"ref": kept["url"]}) == {"text": "remember"}
        assert running.run("speak") == {"text": "so much depends"}
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) >= 3  # the worker, its fetcher, its child
        with suppress(PermissionError):  # who is privileged sees that the worker got it, and has wiped it since
            environ = Path(f"/proc/{family[0].pid}/environ").read_bytes()
            assert b"HF_TOKEN=\0" in environ
        running.close()
        assert running.process.returncode == 0
        assert [each["event"] for each in running.said[-2:]] == ["worker", "stopped"] or running.said[-1][
            "event"
        ] == "stopped"
        assert not [each for each in family if alive(each.pid)]


def test_a_worker_that_is_killed_is_started_again_and_its_job_ends(project: Path, tmp_path: Path) -> None:
    with platform(tmp_path, "--worker", str(project), "--devices", "cpu:1") as running:
        supervisor = int(running.run("whoami")["text"])
        os.kill(supervisor, signal.SIGKILL)
        assert running.run("shout", text="again") == {"text": "AGAIN"}
        assert running.heard("worker", "starts again in")["worker"] == "shouting"
        assert int(running.run("whoami")["text"]) != supervisor


def test_a_worker_that_was_drained_stays_away(project: Path, tmp_path: Path) -> None:
    with platform(tmp_path, "--worker", str(project), "--devices", "cpu:1") as running:
        running.run("shout", text="hi")
        [worker_id] = running.workers()
        assert running.ask(f"/v1/workers/{worker_id}/drain", {})[0] == 202
        running.heard("worker", "ended with 0 and is not started again")


def test_workers_are_started_again_with_the_code_as_it_is_now(project: Path, tmp_path: Path) -> None:
    with platform(tmp_path, "--worker", str(project), "--devices", "cpu:1") as running:
        assert running.run("shout", text="hi") == {"text": "HI"}
        (project / "shouting.py").write_text(ENDPOINT.replace("payload.text.upper()", "payload.text.title()"))
        running.process.send_signal(signal.SIGUSR1)
        running.heard("worker", "starts again as it was told")
        assert running.run("shout", text="hi") == {"text": "Hi"}
        [worker_id] = running.workers()
        running.ask(f"/v1/workers/{worker_id}/drain", {})
        running.heard("worker", "is not started again")
        running.process.send_signal(signal.SIGUSR1)
        assert running.run("shout", text="once more") == {"text": "Once More"}


def test_functions_say_what_they_take_and_give_and_again_after_an_edit(project: Path, tmp_path: Path) -> None:
    with platform(tmp_path, "--worker", str(project), "--devices", "cpu:1") as running:

        def described() -> dict[str, Any]:
            """What is said of `shout`, where its schemas are known by now."""
            functions = json.loads(running.ask("/v1/functions")[1])["functions"]
            return next((each for each in functions if each["name"] == "shout" and each["input_schema"]), {})

        shout = until(described)
        assert shout["input_schema"]["properties"] == {"text": {"type": "string", "default": ""}}
        assert shout["output_schema"]["title"] == "Text"
        (project / "shouting.py").write_text(ENDPOINT.replace('text: str = ""', 'text: str = "?"'))
        running.process.send_signal(signal.SIGUSR1)
        until(lambda: '"default": "?"' in json.dumps(described()))


def test_a_job_goes_on_in_the_worker_of_a_control_plane_that_was_killed_beside_that_of_the_next_one(
    project: Path, tmp_path: Path
) -> None:
    (project / "shouting.py").write_text(ENDPOINT.replace("time.sleep(0.02)", "time.sleep(3)"))
    with platform(tmp_path, "--worker", str(project), "--devices", "cpu:1") as first:
        ports = ("--listen", str(first.said[0]["workers"]), "--http", first.url.removeprefix("http://"))
        first.ask("/v1/jobs", {"function": "shout", "request_id": "long", "payload": {"text": "a"}})
        until(lambda: (tmp_path / "runs").exists() and (tmp_path / "runs").read_text())
        first.process.kill()
        first.process.wait()
        with platform(tmp_path, *ports, "--worker", str(project), "--devices", "cpu:1") as second:
            end = json.loads(second.ask("/v1/jobs/long?wait=30")[1])
            assert (end["status"], end["attempt"], end["output"]) == ("ok", 1, {"text": "A"})
            assert (tmp_path / "runs").read_text() == "long\n"


def test_workers_do_not_outlive_a_control_plane_that_is_killed(project: Path, tmp_path: Path) -> None:
    with platform(tmp_path, "--worker", str(project), "--devices", "cpu:1") as running:
        running.run("shout", text="hi")
        family = psutil.Process(running.process.pid).children(recursive=True)
        running.process.kill()
        until(lambda: not [each for each in family if alive(each.pid)])


def test_a_second_signal_ends_it_at_once(project: Path, tmp_path: Path) -> None:
    (project / "shouting.py").write_text(ENDPOINT.replace("time.sleep(0.02)", "time.sleep(60)"))
    with platform(tmp_path, "--worker", str(project), "--devices", "cpu:1") as running:
        running.ask("/v1/jobs", {"function": "shout", "request_id": "long"})
        until(lambda: json.loads(running.ask("/v1/jobs/long")[1])["status"] == "running")
        running.process.send_signal(signal.SIGINT)
        running.heard("ending")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) == 130


def test_a_large_model_is_not_read_to_the_end_once_it_is_told_to_end(tmp_path: Path) -> None:
    with (tmp_path / "weights.safetensors").open("wb") as weights:
        weights.truncate(1 << 40)
    given = ["--json", "--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    command = [*GEN_WORKER, "orchestrator", *given, "--model", f"acme/large={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "reading"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_two_hundred_jobs_each_end_once_although_a_worker_and_the_control_plane_are_killed(
    project: Path, tmp_path: Path
) -> None:
    ids = [f"job-{at}" for at in range(200)]
    with platform(tmp_path) as first:
        ports = ("--listen", str(first.said[0]["workers"]), "--http", first.url.removeprefix("http://"))
        with own_worker(project, tmp_path, ports[1], "a") as victim, own_worker(project, tmp_path, ports[1], "b"):
            with ThreadPoolExecutor(4) as pool:
                codes = pool.map(lambda at: submitted(first, at), ids)
                assert Counter(codes) == {202: 200}
            until(lambda: (tmp_path / "runs").exists() and (tmp_path / "runs").read_text().count("\n") > 20)
            victim.kill()
            first.process.kill()
            first.process.wait()
            with platform(tmp_path, *ports) as second, own_worker(project, tmp_path, ports[1], "a"):
                ends = [json.loads(second.ask(f"/v1/jobs/{each}?wait=60")[1]) for each in ids]
                assert Counter(end["status"] for end in ends) == {"ok": 200}
                assert [end["output"]["text"] for end in ends] == [each.upper() for each in ids]
                assert set((tmp_path / "runs").read_text().split()) == set(ids)


def test_a_file_goes_on_into_the_store_after_the_control_plane_was_killed(project: Path, tmp_path: Path) -> None:
    arriving = tmp_path / "state" / "files" / "arriving"
    with platform(tmp_path) as first:
        ports = ("--listen", str(first.said[0]["workers"]), "--http", first.url.removeprefix("http://"))
        with own_worker(project, tmp_path, ports[1], "a"):
            first.ask("/v1/jobs", {"function": "keep-much", "request_id": "much"})
            until(lambda: arriving.exists() and os.listdir(arriving))
            first.process.kill()
            first.process.wait()
            killed = time.monotonic()
            with platform(tmp_path, *ports) as second:
                in_time = time.monotonic() - killed < SHORTEST_TRIES_S
                end = json.loads(second.ask("/v1/jobs/much?wait=60")[1])
                assert (end["status"], end["attempt"] == 1 or not in_time) == ("ok", True)
                assert end["output"]["file"]["size_bytes"] == 150_000_000


def submitted(running: Platform, name: str) -> int:
    return running.ask("/v1/jobs", {"function": "shout", "payload": {"text": name}, "request_id": name})[0]


@contextmanager
def own_worker(project: Path, folder: Path, address: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker that the control plane did not start."""
    own = {"TENSORHUB_CACHE_DIR": str(folder / "cache"), "RUNS": str(folder / "runs")}
    with (folder / f"worker-{name}").open("wb") as log:
        process = subprocess.Popen(
            [*GEN_WORKER, "up", "--orchestrator", address, "--worker-id", name, "--devices", "cpu:1"],
            cwd=project,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plane")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    places = folder / "plane.pem", folder / "plane.key"
    places[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    places[1].write_bytes(key.private_bytes(*encoding))
    return places


def test_with_tls_and_tokens_only_those_get_in_who_show_one(project: Path, tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    given = ["--auth", "--tls-cert", str(chain), "--tls-key", str(key), "--worker", str(project), "--devices", "cpu:1"]
    context = ssl.create_default_context(cafile=str(chain))
    with platform(tmp_path, *given, context=context) as running:
        assert running.url.startswith("https://")
        kept = running.run("keep", text="remember")["file"]
        assert running.run("read", file={"ref": kept["url"]}) == {"text": "remember"}
        assert json.loads(running.ask("/.well-known/jwks.json")[1])["keys"][0]["kty"] == "RSA"
        address = f"grpcs://{running.said[0]['workers']}"
        stranger = [*GEN_WORKER, "up", "--orchestrator", address, "--worker-id", "stranger", "--devices", "cpu:1"]
        trust = {**os.environ, "GRPC_CA_BUNDLE": str(chain), "RUNS": str(tmp_path / "runs"), "WORKER_JWT": "no"}
        with subprocess.Popen(
            stranger, cwd=project, env=trust, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as other:
            assert other.stderr is not None
            try:
                assert any(b"oken" in line for line in other.stderr)
            finally:
                other.kill()
        assert [each.rpartition("-")[0] for each in running.workers()] == ["shouting"]
        made = subprocess.run(
            [*GEN_WORKER, "orchestrator", "token", "--worker-id", "gpu-7", "--state", str(tmp_path / "state")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert made.stdout.count(".") == 2


@pytest.mark.timeout(300)  # torch and diffusers are imported from a cold disk
@pytest.mark.needs("torch", "diffusers", "transformers", "PIL")
def test_the_quickstart_of_the_readme_ends_with_a_picture(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"not run: tests/e2e/test_orchestrator_platform.py runs it -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    setup, serving, asking = block[1].replace("\\\n", "").strip().splitlines()
    assert setup == "make setup && . .venv/bin/activate"
    own = {
        "TENSORHUB_CACHE_DIR": str(tmp_path / "cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    serving = serving.replace("orchestrator", f"orchestrator --state {tmp_path}/state", 1)
    asking = asking.replace("cat.png", f"{tmp_path}/cat.png")
    with documented_ports():
        with (tmp_path / "log").open("wb") as log:
            platform = subprocess.Popen(
                serving.split(), cwd=ROOT, env={**os.environ, **own}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            until(lambda: "\nready\n" in (tmp_path / "log").read_text(), 100, what="ready")
            subprocess.run(["bash", "-c", asking], cwd=ROOT, check=True, capture_output=True, timeout=100)
            assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")
        finally:
            platform.terminate()
            platform.wait(40)
