"""How a worker starts as a container starts it: in what order things are checked, what is said, how it ends."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from gen_worker.orchestrator.tokens import Tokens
from tests.served import alive, until

pytestmark = pytest.mark.process

CANARY = "canary-in-a-coal-mine"
SECRETS = ("WORKER_JWT", "HF_TOKEN", "CIVITAI_API_KEY", "COZY_HUB_TOKEN", "GEN_WORKER_TOKEN", "FILE_API_TOKEN")
MODULE = """
import os
import msgspec
from gen_worker import RequestContext, Resources, endpoint

class Text(msgspec.Struct):
    text: str = ""

@endpoint
def echo(ctx: RequestContext, payload: Text) -> Text:
    return payload
"""
NOWHERE = {"ORCHESTRATOR_PUBLIC_ADDR": "127.0.0.1:1"}  # nobody listens there, and a worker goes on dialing


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The folder of an image's application, with a manifest."""
    folder = tmp_path / "app"
    (folder / ".cozy").mkdir(parents=True)
    (folder / "shop.py").write_text(MODULE)
    promise(folder, "echo")
    return folder


def promise(folder: Path, *names: str, module: str = "shop") -> None:
    """Bake a manifest that promises these functions."""
    functions = [{"name": name, "module": module, "kind": "inference"} for name in names]
    (folder / ".cozy" / "manifest.json").write_text(json.dumps({"functions": functions}))


def environment(app: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return what a container has set, everything that is made below the test's folder."""
    own = {
        "GEN_WORKER_RUN_DIR": str(app.parent / "run"),
        "GEN_WORKER_DEVICES": "cpu:1",
        "TENSORHUB_CACHE_DIR": str(app.parent / "cache"),
        "ENDPOINT_LOCK_PATH": str(app / "none.lock"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**os.environ, **own, **variables}


COMMAND = [sys.executable, "-m", "gen_worker.entrypoint"]


class Ended:
    """A worker that has ended, and what it said."""

    def __init__(self, code: int, said: str) -> None:
        self.code = code
        self.said = said

    def documents(self, name: str) -> list[dict[str, Any]]:
        """Return the lines for programs that begin with this name."""
        lines = [line.partition(" ") for line in self.said.splitlines()]
        return [json.loads(rest) for first, _, rest in lines if first == name]

    @property
    def phases(self) -> list[tuple[str, str]]:
        """How far the start was."""
        return [(each["phase"], each["status"]) for each in self.documents("worker.startup.phase")]

    @property
    def fatal(self) -> dict[str, Any]:
        """Why it ended."""
        (document,) = self.documents("worker.fatal")
        return document


def refused(app: Path, /, **variables: str) -> Ended:
    """Start a worker that ends by itself."""
    done = subprocess.run(
        COMMAND,
        cwd=app,
        env=environment(app, variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == ""
    return Ended(done.returncode, done.stderr)


class Running:
    """A worker that runs, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """Everything that it has said."""
        return self._log.read_text()

    def until_ready(self) -> None:
        """Wait until its child can run jobs."""
        until(lambda: "ready after" in self.log or self.process.poll() is not None, what="a child")
        assert self.process.poll() is None, self.log

    def ends(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Have it end; return how that went."""
        self.process.send_signal(number)
        return Ended(self.process.wait(20), self.log)


@contextmanager
def running(app: Path, *around: str, variables: Mapping[str, str] = NOWHERE) -> Iterator[Running]:
    """Start a worker that goes on, by a command around it if there is one."""
    log = app.parent / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*around, *COMMAND],
            cwd=app,
            env=environment(app, variables),
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    try:
        yield Running(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


# --- what ends a start ------------------------------------------------------------------------------------------------


BEFORE = [("boot", "started"), ("manifest_loaded", "ok"), ("cache_preflight_started", "started")]


def test_without_an_orchestrator_nothing_starts(app: Path) -> None:
    ended = refused(app)
    assert (ended.code, ended.phases) == (1, [*BEFORE, ("cache_preflight_ok", "ok")])
    assert ended.fatal == {
        "phase_context": "orchestrator",
        "exception_class": "CannotWorkError",
        "exception_message": "no orchestrator: neither `ORCHESTRATOR_PUBLIC_ADDR` nor `SCHEDULER_ADDR` is set",
        "traceback": "",
        "exit_code": 1,
    }
    assert "\nerror: no orchestrator: neither" in ended.said
    assert "\nhint: set `ORCHESTRATOR_PUBLIC_ADDR`" in ended.said


def test_each_line_says_whose_process_it_is(app: Path) -> None:
    for document in refused(app).documents("worker.startup.phase"):
        assert (document["uid"], document["gid"], document["cwd"]) == (os.getuid(), os.getgid(), str(app))
        assert document["pid"] > 1


@pytest.mark.parametrize(
    ("variables", "context", "told"),
    [
        ({"WORKER_MODE": "training"}, "settings", "`WORKER_MODE` in the environment must be `inference` or `trainer`"),
        ({"WORKER_MODE": "trainer"}, "training", "startup.missing_job_spec_path: no job spec at `/app/.cozy/trainer_"),
        ({"ORCHESTRATOR_PUBLIC_ADDR": "gopher://x"}, "run", "cannot dial the orchestrator at `gopher://x`"),
        ({**NOWHERE, "GRPC_CA_BUNDLE": "/no/such.pem"}, "run", "/no/such.pem"),
        ({**NOWHERE, "GEN_WORKER_DEVICES": "cpu:0"}, "run", "`cpu:N` takes 1 to 256 slots"),
        ({**NOWHERE, "TENSORHUB_CACHE_DIR": "/dev/null"}, "cache_preflight", "models cannot be kept in `/dev/null`"),
        ({**NOWHERE, "SCHEDULER_JWKS_URL": "http://127.0.0.1:1/keys"}, "token", "there is no token to check"),
        ({**NOWHERE, "GEN_WORKER_RUN_DIR": "/dev/null"}, "run", "cannot open the control socket in `/dev/null`"),
    ],
)
def test_what_cannot_work_ends_the_start_with_what_to_do(
    app: Path, variables: Mapping[str, str], context: str, told: str
) -> None:
    ended = refused(app, **variables)
    assert ended.code == 1
    assert told in ended.fatal["exception_message"]
    assert (ended.fatal["phase_context"], ended.fatal["exit_code"], ended.fatal["traceback"]) == (context, 1, "")
    assert re.search(rf"^error: .*{re.escape(told)}", ended.said, re.MULTILINE)
    assert "Traceback" not in ended.said


def test_a_bad_manifest_is_told_when_the_rest_was_looked_at(app: Path) -> None:
    promise(app, "echo", module="no-module")
    ended = refused(app, **NOWHERE)
    assert (ended.code, ended.fatal["phase_context"]) == (1, "manifest")
    assert ended.phases[1:] == [
        ("manifest_loaded", "failed"),
        ("cache_preflight_started", "started"),
        ("cache_preflight_ok", "ok"),
    ]
    assert "'no-module' is no module's name" in ended.fatal["exception_message"]


def test_an_image_without_a_manifest_and_without_modules_serves_nothing(app: Path) -> None:
    (app / ".cozy" / "manifest.json").unlink()
    ended = refused(app, **NOWHERE)
    assert (ended.code, ended.fatal["exception_class"]) == (1, "ImageError")
    assert f"`{app}/.cozy/manifest.json`" in ended.said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_library", "`shop` does not import"),
        ("x = 1", "`shop` declares no endpoint"),
        (f"{MODULE}\nraise RuntimeError('no weather today')", "no weather today"),
    ],
)
def test_a_module_that_is_no_endpoint_ends_the_start_with_the_authors_lines(app: Path, text: str, told: str) -> None:
    (app / "shop.py").write_text(text)
    ended = refused(app, **NOWHERE)
    assert (ended.code, ended.fatal["phase_context"]) == (1, "run")
    assert told in ended.fatal["exception_message"]
    assert "gen_worker/" not in ended.fatal["traceback"]


def test_what_nobody_meant_is_told_with_its_stack(app: Path) -> None:
    broken = "import sys, gen_worker.entrypoint as e; e.look_at_cache = None; sys.exit(e.main([]))"
    done = subprocess.run(
        [sys.executable, "-c", broken],
        cwd=app,
        env=environment(app, NOWHERE),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    ended = Ended(done.returncode, done.stderr)
    assert (ended.code, ended.fatal["exception_class"]) == (1, "TypeError")
    assert "look_at_cache(settings.cache_dir)" in ended.fatal["traceback"]
    assert "error: the worker failed: TypeError" in ended.said


def test_an_orchestrator_that_never_comes_ends_the_worker(app: Path) -> None:
    ended = refused(app, **NOWHERE, WORKER_DISCONNECTED_TIMEOUT_S="0.5")
    assert (ended.code, ended.fatal["phase_context"], ended.fatal["exit_code"]) == (1, "run", 1)
    assert ended.fatal["exception_class"] == "LinkFatalError"
    assert "error: no orchestrator for " in ended.said
    assert "WORKER_DISCONNECTED_TIMEOUT_S" in ended.said


@pytest.mark.promise(3)
def test_a_worker_whose_children_never_come_up_ends_and_says_why(app: Path) -> None:
    in_a_child = "import os\nif 'GEN_WORKER_LOCAL_DEVICE' in os.environ:\n    raise RuntimeError('no sun here')\n"
    (app / "shop.py").write_text(MODULE + in_a_child)
    ended = refused(app, **NOWHERE)
    assert (ended.code, ended.fatal["phase_context"]) == (1, "run")
    assert "error: no device can serve: `shop` does not import: RuntimeError: no sun here" in ended.said


# --- what starts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_starts_its_children_while_it_dials_and_ends_with_0_when_it_is_told_to(
    app: Path, number: signal.Signals
) -> None:
    with running(app) as worker:
        worker.until_ready()
        ended = worker.ends(number)
    assert (ended.code, ended.documents("worker.fatal")) == (0, [])
    assert "draining: no more jobs are taken" in ended.said


def test_a_worker_that_is_told_to_end_before_it_has_begun_ends_with_0(app: Path) -> None:
    (app / "shop.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    with running(app) as worker:
        until(lambda: "importing" in worker.log, what="the import")
        assert worker.ends().code == 0


def test_a_manifest_that_says_something_else_than_the_code_is_a_warning(app: Path) -> None:
    promise(app, "echo", "gone")
    with running(app) as worker:
        worker.until_ready()
        assert "warning: the code does not declare `gone`: bake the manifest again" in worker.log
        assert worker.ends().code == 0


def test_modules_of_the_environment_are_served_without_a_manifest(app: Path) -> None:
    (app / ".cozy" / "manifest.json").unlink()
    (app / "zoo.py").write_text(MODULE.replace("echo", "roar"))
    with running(app, variables={**NOWHERE, "USER_MODULES": "shop, zoo"}) as worker:
        worker.until_ready()
        assert '"modules":["shop","zoo"]' in worker.log
        listed = subprocess.run(
            [str(Path(sys.executable).with_name("gen-worker")), "ps", "--json"],
            env=environment(app, {}),
            capture_output=True,
            check=True,
        )
        assert {each["name"] for each in json.loads(listed.stdout)["functions"]} == {"echo", "roar"}
        assert worker.ends().code == 0


def test_names_that_look_like_settings_are_told_at_the_start(app: Path) -> None:
    ended = refused(app, GEN_WORKER_DEVICE="cpu:1", WORKER_MAX_CONCURENCY="7")
    assert "warning: `GEN_WORKER_DEVICE` in the environment is no setting" in ended.said
    assert "did you mean `WORKER_MAX_CONCURRENCY`?" in ended.said


@pytest.mark.parametrize(
    ("variables", "told"),
    [({}, "expandable_segments:True"), ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native")],
)
def test_children_allocate_in_segments_that_grow_unless_something_else_is_set(
    app: Path, variables: Mapping[str, str], told: str
) -> None:
    seen = "import os, sys\nprint('allocator', os.environ['PYTORCH_CUDA_ALLOC_CONF'], file=sys.stderr, flush=True)\n"
    (app / "shop.py").write_text(seen + MODULE)
    with running(app, variables={**NOWHERE, **variables}) as worker:
        worker.until_ready()
        assert f"[cpu:0] allocator {told}" in worker.log
        assert worker.ends().code == 0


# --- secrets ----------------------------------------------------------------------------------------------------------


def jwt() -> str:
    """Return a token that nobody has signed."""
    parts = [b'{"alg":"none"}', b'{"sub":"w-7","release_id":"r-1"}', CANARY.encode()]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


@pytest.mark.promise(39)
def test_no_process_of_a_worker_shows_a_secret_of_it(app: Path) -> None:
    variables = {**NOWHERE, **dict.fromkeys(SECRETS, CANARY), "WORKER_JWT": jwt(), "ACME_KEY": "the author's own"}
    hidden = (CANARY, jwt().rpartition(".")[2])
    with running(app, variables=variables) as worker:
        worker.until_ready()
        tree = [psutil.Process(worker.process.pid), *psutil.Process(worker.process.pid).children(recursive=True)]
        assert len(tree) >= 3  # the supervisor, the zygote, a child
        for process in tree:
            for file in ("environ", "cmdline"):
                shown = Path(f"/proc/{process.pid}/{file}").read_bytes().decode(errors="replace")
                assert not any(secret in shown for secret in hidden), (process.cmdline(), file)
        seen = [process.environ().get("ACME_KEY") for process in tree]
        assert seen.count("the author's own") >= 2  # the fetcher needs nothing of the author's
        ended = worker.ends()
    assert not any(secret in ended.said for secret in hidden)
    for left in (app.parent / "run").rglob("*"):
        assert not left.is_file() or CANARY.encode() not in left.read_bytes()


# --- as the first process of a container ------------------------------------------------------------------------------


@pytest.mark.promise(14)
@pytest.mark.root
def test_as_the_first_process_it_drains_at_sigterm_and_leaves_no_zombie(app: Path) -> None:
    orphan = "import subprocess\nsubprocess.run(['sh', '-c', 'sleep 0.05 &'], check=True)\n"
    (app / "shop.py").write_text(orphan + MODULE)
    with running(app, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc") as worker:
        worker.until_ready()
        (first,) = psutil.Process(worker.process.pid).children()
        until(lambda: all(each.status() != psutil.STATUS_ZOMBIE for each in first.children()), what="reaping")
        assert '"pid":1,' in worker.log
        first.send_signal(signal.SIGTERM)
        assert worker.process.wait(20) == 0
        assert not alive(first.pid)


@pytest.mark.promise(30)
@pytest.mark.root
def test_files_that_may_only_be_read_and_little_shared_memory_are_enough(app: Path) -> None:
    mounted = (
        f'mount --bind -o ro "{app}" "{app}" && mount -t tmpfs -o size=64k none /dev/shm && cd "{app}" && exec "$@"'
    )
    with running(app, "unshare", "--mount", "sh", "-c", mounted, "sh") as worker:
        worker.until_ready()
        assert worker.ends().code == 0


@pytest.mark.root
def test_a_cache_in_memory_is_a_warning(app: Path) -> None:
    cache = app.parent / "cache"
    cache.mkdir()
    mounted = f'mount -t tmpfs -o size=16m none "{cache}" && exec "$@"'
    with running(app, "unshare", "--mount", "sh", "-c", mounted, "sh") as worker:
        worker.until_ready()
        assert f"warning: the cache is kept in memory (tmpfs): `{cache}`" in worker.log
        assert worker.ends().code == 0


@pytest.mark.promise(29)
@pytest.mark.root
def test_a_cache_that_may_only_be_read_is_a_warning_where_it_holds_models(app: Path) -> None:
    cache = app.parent / "cache"
    (cache / "cas" / "manifests").mkdir(parents=True)
    mounted = f'mount --bind -o ro "{cache}" "{cache}" && exec "$@"'
    around = ("unshare", "--mount", "sh", "-c", mounted, "sh")
    with running(app, *around) as worker:
        ended = Ended(worker.process.wait(20), worker.log)
    assert (ended.code, ended.phases[-1]) == (1, ("cache_preflight_failed", "failed"))
    assert "read-only file system" in ended.fatal["exception_message"]
    (cache / "cas" / "manifests" / "key.json").touch()
    with running(app, *around) as worker:
        worker.until_ready()
        assert ("cache_preflight_ok", "read_only") in Ended(0, worker.log).phases
        assert f"warning: the cache may only be read: `{cache}`" in worker.log
        assert worker.ends().code == 0


# --- the worker's own token -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    """Who signs tokens."""
    return Tokens.create(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def keys(tokens: Tokens) -> Iterator[str]:
    """Where the keys are that tokens must be signed with."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(tokens.jwks()).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/keys"
        server.shutdown()
        thread.join()


def test_a_token_that_is_signed_by_somebody_else_ends_the_start(app: Path, keys: str, tmp_path: Path) -> None:
    foreign = Tokens.create(tmp_path / "foreign").worker_token("w-1")
    ended = refused(app, **NOWHERE, SCHEDULER_JWKS_URL=keys, WORKER_JWT=foreign)
    assert (ended.code, ended.fatal["phase_context"], ended.fatal["traceback"]) == (1, "token", "")
    assert "not signed with one of the keys" in ended.fatal["exception_message"]
    assert foreign not in ended.said


def test_a_token_that_is_good_lets_the_worker_dial(app: Path, keys: str, tokens: Tokens) -> None:
    variables = {**NOWHERE, "SCHEDULER_JWKS_URL": keys, "AUTH_TOKEN": tokens.worker_token("w-1")}
    with running(app, variables={**variables, "WORKER_JWT": "outranked"}) as worker:
        worker.until_ready()
        assert worker.ends().code == 0
