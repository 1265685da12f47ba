"""A training under supervision: whatever its process does, it goes on, or ends and says why."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gen_worker.testing.faults import Status
from gen_worker.testing.store import LoopbackStore, StoredFile
from gen_worker.trainer.archives import as_one_file
from tests.served import alive, until

pytestmark = pytest.mark.process

CANARY = "t0ken-that-nobody-may-see"
TRAINER = """
import os, random, signal, sys, time

class Trainer:
    def setup(self, ctx):
        self.told = ctx.job.hyperparams

    def configure(self, ctx):
        return {"sum": 0, "steps": 0}

    def prepare_batch(self, raw, state, ctx):
        return raw

    def train_step(self, batch, state, ctx):
        self.steps_taken = state["steps"]
        for word, steps in self.told.get("at", {}).items():
            if state["steps"] in steps:
                self.act(word, ctx)
        state["steps"] += 1
        state["sum"] += batch["a"][0] if isinstance(batch, dict) else batch
        return {"loss": 1 / (1 + state["sum"])}

    def act(self, word, ctx):
        mark = os.path.join(self.told["folder"], f"{word}-{os.getpid()}")
        if word == "die":
            signal.raise_signal(signal.SIGSEGV)
        elif word == "fail":
            open(mark, "w").close()
            raise RuntimeError("no step can be taken here")
        elif word == "hang":
            time.sleep(3600)
        elif word == "gate":
            open(mark, "w").close()
            while not os.path.exists(os.path.join(self.told["folder"], "open", str(self.steps_taken))):
                time.sleep(0.005)
        elif word == "wait":
            open(mark, "w").close()
            while not ctx.is_canceled():
                time.sleep(0.005)

    def state_dict(self, state):
        return state

    def load_state_dict(self, state, payload, ctx):
        state.update(payload)

class Sampling(Trainer):
    def sample(self, *, prompts, seed, step, state, output_dir, ctx):
        return [{"sum": state["sum"]} for prompt in prompts]

class Growing(Trainer):
    '''Has a state that grows with every step, and some chance in it.'''

    def train_step(self, batch, state, ctx):
        state.setdefault("words", []).append("x" * 10_000)
        return super().train_step(batch * random.random(), state, ctx)

class Lucky(Trainer):
    '''Dies in every process once, a few steps after it has begun.'''

    def train_step(self, batch, state, ctx):
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 4 and state["steps"] < 15:
            os._exit(7)
        return super().train_step(batch, state, ctx)
"""


class Training:
    """A training in a folder of its own."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        self.folder = folder
        (folder / "shaky.py").write_text(TRAINER)
        given = {"trainer": "shaky:Trainer", "request_id": "r", "max_steps": 20, "mock_batches": [1, 2, 3]}
        told = spec.pop("hyperparams", {}) | {"folder": str(folder)}
        (folder / "job.json").write_text(json.dumps({**given, "metric_every": 1, "hyperparams": told, **spec}))
        self.said = ""

    @contextmanager
    def started(self, longest_file_bytes: int = 0, **variables: str) -> Iterator["subprocess.Popen[str]"]:
        """Start a worker in trainer mode; it is gone at the end of the block."""
        own = {
            "WORKER_MODE": "trainer",
            "TRAINER_JOB_SPEC_PATH": str(self.folder / "job.json"),
            "GEN_WORKER_TRAINING_DIR": str(self.folder / "out"),
            "GEN_WORKER_RUN_DIR": str(self.folder / "run"),
            "GEN_WORKER_DEVICES": "cpu",
            "TENSORHUB_CACHE_DIR": str(self.folder / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "gen_worker.entrypoint"]
        if longest_file_bytes:
            command = ["prlimit", f"--fsize={longest_file_bytes}:", *command]
        with subprocess.Popen(
            command, cwd=self.folder, env={**os.environ, **own, **variables}, stderr=subprocess.PIPE, text=True
        ) as worker:
            try:
                yield worker
            finally:
                worker.kill()

    def end(self, worker: "subprocess.Popen[str]") -> int:
        """Wait for the end; return the exit code."""
        _, self.said = worker.communicate(timeout=40)
        return worker.returncode

    def run(self, longest_file_bytes: int = 0, **variables: str) -> int:
        """Train; return the exit code."""
        with self.started(longest_file_bytes, **variables) as worker:
            return self.end(worker)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What happened, of one kind."""
        lines = (self.folder / "out/metrics/events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def open(self, step: int) -> None:
        """Let a step that waits at a gate go on."""
        (self.folder / "open").mkdir(exist_ok=True)
        (self.folder / "open" / str(step)).touch()

    def marks(self, word: str) -> list[int]:
        """The processes that have left a mark."""
        return [int(path.name.partition("-")[2]) for path in self.folder.glob(f"{word}-*")]


class Platform:
    """Whom a training posts to: it notes everything that it takes and says nothing."""

    def __init__(self) -> None:
        self.status = 200
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.bearers: set[str | None] = set()
        self.contents: dict[str, bytes] = {}
        platform = self

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if platform.status == 200:
                    platform.posts.append((self.path.removeprefix("/"), json.loads(body)))
                platform.bearers.add(self.headers["Authorization"])
                self.send_response(platform.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                content = platform.contents[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Answers)
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self) -> "Platform":
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def uploads(self) -> dict[str, str]:
        """The URLs as a job spec has them."""
        names = ("metrics_url", "checkpoint_url", "sample_url", "terminal_url")
        return {name: f"{self.url}/{name}" for name in names}

    def of(self, name: str) -> list[dict[str, Any]]:
        """What was posted to one of them."""
        return [document for each, document in self.posts if each == name]


def test_a_training_goes_on_as_long_as_it_gets_on_and_each_death_costs_what_came_after_the_checkpoint(
    tmp_path: Path,
) -> None:
    training = Training(tmp_path, trainer="shaky:Lucky", checkpoint_every=1)
    assert training.run() == 0, training.said
    assert len(training.events("started")) == 5  # four deaths, each after another checkpoint
    (completed,) = training.events("completed")
    assert completed["step"] == 20
    final = json.loads((tmp_path / "out/checkpoints/step-00000020.json").read_text())
    assert final["state"] == {"sum": sum([1, 2, 3][at % 3] for at in range(20)), "steps": 20}


def test_one_that_dies_in_one_place_ends_with_the_cause_and_the_platform_is_told(tmp_path: Path) -> None:
    with Platform() as platform:
        told = {"uploads": platform.uploads, "capability_token": CANARY, "orchestrated": True}
        training = Training(tmp_path, checkpoint_every=2, hyperparams={"at": {"die": [5]}}, **told)
        assert training.run() == 1, training.said
    assert len(training.events("started")) == 3
    (failed,) = training.events("failed")
    assert failed["error"].startswith("train-step: it ended 3 times without a checkpoint in between")
    assert "SIGSEGV" in failed["error"]
    (terminal,) = platform.of("terminal_url")
    assert (terminal["status"], terminal["request_id"], terminal["step"]) == ("failed", "r", 4)
    assert "SIGSEGV" in terminal["error"]
    assert {each["step"] for each in platform.of("metrics_url")} == {1, 2, 3, 4, 5}
    assert {each["step"] for each in platform.of("checkpoint_url")} == {2, 4}
    assert platform.bearers == {f"Bearer {CANARY}"}
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert CANARY not in training.said
    assert CANARY.encode() not in everything


@pytest.mark.needs("pyarrow")
def test_what_was_trained_is_stored_where_the_platform_wants_it(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = {"a": [1, 2, 3], "b": ["x", "y", "z"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    dataset = {"parquet_paths": [str(tmp_path / "rows.parquet")], "batch_size": 1, "columns": ["a"]}
    with Platform() as platform, LoopbackStore() as store:
        told = {"uploads": platform.uploads, "capability_token": store.token, "base_url": store.url, "owner": "acme"}
        training = Training(tmp_path, mock_batches=[], dataset=dataset, checkpoint_every=10, **told)
        assert training.run() == 0, training.said
        kept, file = sorted(store.files.values(), key=lambda each: each.ref)[0::2]
    final = tmp_path / "out/checkpoints/step-00000020.json"
    assert json.loads(final.read_text())["state"]["sum"] == 39
    with as_one_file(final) as whole:
        assert (file.ref, file.owner, file.content) == (
            f"v1/acme/jobs/r/checkpoints/final-{whole.name}",
            "acme",
            whole.read_bytes(),
        )
    posted = platform.of("checkpoint_url")[-1]
    assert (posted["final"], posted["step"], posted["sha256"], posted["file_ref"]) == (True, 20, file.sha256, file.ref)
    (terminal,) = platform.of("terminal_url")
    assert terminal["status"] == "completed"
    assert (terminal["final_checkpoint_ref"], terminal["final_checkpoint_sha256"]) == (file.ref, file.sha256)
    goes_on_elsewhere(tmp_path / "elsewhere", kept, final, dataset)


def test_a_training_goes_on_while_the_platform_is_gone_and_it_hears_all_of_it_later_once_and_in_order(
    tmp_path: Path,
) -> None:
    with Platform() as platform, LoopbackStore() as store:
        told = {"uploads": platform.uploads, "capability_token": store.token, "base_url": store.url, "owner": "acme"}
        training = Training(
            tmp_path,
            trainer="shaky:Sampling",
            max_steps=12,
            checkpoint_every=2,
            sample_every=6,
            sample_prompts=["a cat"],
            hyperparams={"at": {"gate": [5, 11]}},
            **told,
        )
        with training.started() as worker:
            until(lambda: training.marks("gate"), what="the fifth step")
            until(lambda: len(platform.of("checkpoint_url")) == 2, what="the first two checkpoints")
            platform.status = 503
            store.fail("*", Status(503))
            training.open(5)
            until(lambda: (tmp_path / "out/checkpoints/step-00000010.json").exists(), what="the tenth step")
            assert {each["step"] for each in platform.of("checkpoint_url")} == {2, 4}
            until(lambda: len(store.seen("create:*step-00000006*")) > 3, what="one who tries again and again")
            platform.status = 200
            store.heal()
            training.open(11)
            assert training.end(worker) == 0, training.said
    assert [each["step"] for each in platform.of("metrics_url")] == [*range(1, 13)]
    assert [each["step"] for each in platform.of("checkpoint_url")] == [2, 4, 6, 8, 10, 12, 12]
    assert [each["final"] for each in platform.of("checkpoint_url")] == [False] * 6 + [True]
    assert [each["step"] for each in platform.of("sample_url")] == [6, 12]
    for posted in platform.of("checkpoint_url") + platform.of("sample_url"):
        with as_one_file(Path(posted["local_path"])) as whole:
            content = whole.read_bytes()
        stored = store.files[posted["file_ref"]]
        assert (stored.content, stored.sha256, posted["uploaded_size_bytes"]) == (
            content,
            posted["sha256"],
            len(content),
        )
    assert "it is tried again until it is taken, and the training goes on" in training.said


def test_what_was_trained_is_published_to_the_repository_that_the_hints_name_and_nothing_on_the_way(
    tmp_path: Path,
) -> None:
    with Platform() as platform, LoopbackStore(way="grant") as store:
        hints = {"repo": "acme/tiny", "conversion_job_id": "work-1", "destination_repo_tags": ["prod"]}
        told = {"uploads": platform.uploads, "capability_token": store.token, "base_url": store.url, "owner": "acme"}
        training = Training(tmp_path, checkpoint_every=10, execution_hints=hints, **told)
        assert training.run() == 0, training.said
        (published,) = store.published
        files = dict(store.files)
    on_the_way, final = platform.of("checkpoint_url")[0], platform.of("checkpoint_url")[-1]
    assert on_the_way["file_ref"].startswith("v1/acme/jobs/work-1/checkpoints/00000010-step-00000010.")
    assert files[on_the_way["file_ref"]].sha256 == on_the_way["sha256"]
    content = files[final["file_ref"]]
    assert (final["final"], final["sha256"], final["blob_digest"]) == (
        True,
        content.sha256,
        f"blake3:{content.blake3}",
    )
    assert "/" not in final["file_ref"]
    repo, document = published
    assert (repo, document["tags"]) == ("acme/tiny", [{"tag": "prod"}])
    (checkpoint,) = document["checkpoint_flavors"]
    assert [each["path"] for each in checkpoint["snapshot_manifest"]] == [final["file_ref"]]
    assert checkpoint["metadata"]["step"] == 20


def test_what_cannot_be_stored_at_the_end_is_kept_and_stored_when_the_training_is_begun_again(tmp_path: Path) -> None:
    with Platform() as platform, LoopbackStore() as store:
        told = {"uploads": platform.uploads, "capability_token": store.token, "base_url": store.url, "owner": "acme"}
        training = Training(tmp_path, checkpoint_every=10, resume_from_latest=True, upload_patience_seconds=0, **told)
        store.fail("*", Status(503))
        assert training.run() == 1
        assert "error: training failed: upload: ArtifactTransferError: " in training.said
        final = tmp_path / "out/checkpoints/step-00000020.json"
        assert f"hint: what was trained is here: `{final}`; with the platform back" in training.said
        (failed,) = platform.of("terminal_url")
        assert (failed["status"], failed["step"]) == ("failed", 20)
        store.heal()
        assert training.run() == 0, training.said
    assert len(training.events("started")) == 1
    assert sorted(ref.rpartition("/")[2].split("-")[0] for ref in store.files) == ["00000010", "00000020", "final"]
    assert [each["step"] for each in platform.of("metrics_url")] == [*range(1, 21)]


def test_a_token_that_is_refused_is_the_end_and_the_category_says_so(tmp_path: Path) -> None:
    with Platform() as platform:
        platform.status = 401
        training = Training(tmp_path, uploads=platform.uploads, capability_token=CANARY, orchestrated=True)
        assert training.run() == 1
    (failed,) = training.events("failed")
    assert failed["error"].startswith("auth: AuthError: ")
    assert "hint: " in training.said
    assert "capability_token" in training.said.partition("hint: ")[2]
    assert CANARY not in training.said


@pytest.mark.needs("pyarrow")
def test_the_rows_of_a_data_set_may_be_contents_of_the_platform(tmp_path: Path) -> None:
    import pyarrow
    from blake3 import blake3
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": [5, 6, 7]}), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    ref = f"blake3:{blake3(content).hexdigest()}"
    with Platform() as platform:
        platform.contents[f"/api/v1/blobs/{ref}/content"] = content
        told = {"base_url": platform.url, "capability_token": CANARY, "inputs": {"dataset_parquet_refs": [ref]}}
        training = Training(
            tmp_path,
            mock_batches=[],
            max_steps=4,
            dataset={"batch_size": 1, "columns": ["a"]},
            checkpoint_every=2,
            **told,
        )
        assert training.run() == 1  # it takes no files
        assert "error: training failed: upload: " in training.said
    state = json.loads((tmp_path / "out/checkpoints/step-00000004.json").read_text())["state"]
    assert state == {"sum": 5 + 6 + 7 + 5, "steps": 4}


def test_a_training_that_is_stopped_stores_where_it_is_before_it_goes(tmp_path: Path) -> None:
    with Platform() as platform, LoopbackStore() as store:
        told = {"uploads": platform.uploads, "capability_token": store.token, "base_url": store.url}
        training = Training(tmp_path, hyperparams={"at": {"wait": [3]}}, **told)
        with training.started() as worker:
            until(lambda: training.marks("wait"), what="the third step")
            worker.terminate()
            assert training.end(worker) == 143, training.said
    (posted,) = platform.of("checkpoint_url")
    assert (posted["step"], posted["sha256"]) == (4, store.files[posted["file_ref"]].sha256)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 130)], ids=["term", "int", "hup"]
)
def test_a_training_that_is_stopped_before_it_begins_is_not_complete(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    training = Training(tmp_path)
    spec = tmp_path / "job.json"
    spec.unlink()
    os.mkfifo(spec)
    with training.started() as worker, ExitStack() as ends:

        def reads() -> bool:
            with suppress(OSError):  # nobody does yet
                ends.callback(os.close, os.open(spec, os.O_WRONLY | os.O_NONBLOCK))
                return True
            return False

        until(reads, what="a worker that reads its job spec")
        until(partial(sleeps, worker.pid), what="one that waits for what stands there")
        worker.send_signal(number)
        assert training.end(worker) == code, training.said


def sleeps(pid: int) -> bool:
    """Whether a process waits in the kernel: there a signal wakes it, just before it may be noticed only afterwards."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def goes_on_elsewhere(folder: Path, kept: StoredFile, final: Path, dataset: dict[str, Any]) -> None:
    """Check that a checkpoint of which only the stored file is left leads to the same end."""
    assert kept.ref.rpartition("/")[2].startswith("00000010-step-00000010.")
    folder.mkdir()
    with Platform() as platform:
        platform.contents[f"/api/v1/blobs/blake3:{kept.blake3}/content"] = kept.content
        told = {"base_url": platform.url, "capability_token": CANARY}
        inputs = {"resume_checkpoint_ref": f"blake3:{kept.blake3}"}
        training = Training(folder, mock_batches=[], dataset=dataset, inputs=inputs, **told, uploads=platform.uploads)
        assert training.run() == 1  # its last checkpoint can be stored nowhere here
        assert "error: training failed: upload: " in training.said
    assert training.events("started")[0]["resumed_from"] == 10
    assert json.loads((folder / "out/checkpoints" / final.name).read_text())["state"]["sum"] == 39


def test_a_training_goes_on_from_a_checkpoint_that_one_before_it_has_left_in_the_folder(tmp_path: Path) -> None:
    checkpoints = tmp_path / "out/checkpoints"
    first = Training(tmp_path, checkpoint_every=5)
    assert first.run() == 0, first.said
    whole = json.loads((checkpoints / "step-00000020.json").read_text())["state"]
    again = Training(tmp_path, request_id="again", resume_checkpoint_path=str(checkpoints / "step-00000010.json"))
    assert again.run() == 0, again.said
    assert again.events("started")[0]["resumed_from"] == 10
    assert json.loads((checkpoints / "step-00000020.json").read_text())["state"] == whole
    assert again.run() == 1
    assert "hint: what a training leaves in this folder is in `checkpoints.before`" in again.said
    assert (checkpoints / "step-00000020.json").exists()
    other = Training(tmp_path, request_id="other", max_steps=3, resume_from_latest=True)
    assert other.run() == 0, other.said
    assert [path.name for path in checkpoints.glob("step-*.json")] == ["step-00000003.json"]


def test_an_error_of_the_trainers_own_ends_it_at_once(tmp_path: Path) -> None:
    training = Training(tmp_path, hyperparams={"at": {"fail": [3]}})
    assert training.run() == 1
    (failed,) = training.events("failed")
    assert failed["error"] == "train-step: RuntimeError: no step can be taken here"
    assert len(training.marks("fail")) == 1
    assert "error: training failed: train-step: RuntimeError: no step can be taken here" in training.said
    assert 'shaky.py", line' in training.said
    assert "direct cause" not in training.said


def test_a_mistake_in_what_is_to_be_trained_is_told_without_a_traceback(tmp_path: Path) -> None:
    training = Training(tmp_path, trainer="shaky:Trainr")
    assert training.run() == 1
    told = "error: training failed: startup: ValueError: `shaky` has no `Trainr`"
    assert f"{told}\n  hint: `trainer` of the job spec is" in training.said
    assert "Traceback" not in training.said


def test_a_checkpoint_that_has_no_room_costs_no_other_one_and_with_room_the_training_ends_as_if_there_had_been(
    tmp_path: Path,
) -> None:
    def state(folder: Path) -> dict[str, Any]:
        return json.loads((folder / "out/checkpoints/step-00000020.json").read_text())["state"]  # type: ignore[no-any-return]

    spec = {"trainer": "shaky:Growing", "checkpoint_every": 5, "metric_every": 0, "resume_from_latest": True}
    (tmp_path / "roomy").mkdir()
    roomy = Training(tmp_path / "roomy", **spec)
    assert roomy.run() == 0, roomy.said

    training = Training(tmp_path, **spec)
    assert training.run(longest_file_bytes=150_000) == 1, training.said
    checkpoints = tmp_path / "out/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir() if path.suffix != ".safetensors") == [
        "step-00000005.json",
        "step-00000010.json",
    ]
    path = checkpoints / "step-00000015.json"
    told = (
        rf"no room for `{path}`: it takes \d+ bytes or more, a file may have 150000 \(`ulimit -f`\)\n  hint: make room"
    )
    assert re.search(
        rf"error: training failed: train-step: NoRoomError: {told}.* goes on after step 10\n", training.said
    )
    assert training.run() == 0, training.said
    assert training.events("started")[-1]["resumed_from"] == 10
    assert state(tmp_path) == state(tmp_path / "roomy")


@pytest.mark.parametrize(
    ("obstacle", "told"),
    [
        (
            "checkpoints.before",
            "error: `{out}/checkpoints` cannot be set aside as `checkpoints.before`: not a directory\n"
            "hint: remove both, or name another folder by `GEN_WORKER_TRAINING_DIR`\n",
        ),
        (
            "job.json/x",
            "error: the training cannot keep its files in `{out}`: is a directory\n"
            "hint: make room there, or name another folder by `GEN_WORKER_TRAINING_DIR`\n",
        ),
    ],
)
def test_what_stands_in_the_way_of_its_files_is_told_before_it_begins(tmp_path: Path, obstacle: str, told: str) -> None:
    training, out = Training(tmp_path), tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    (out / obstacle).parent.mkdir(exist_ok=True)
    (out / obstacle).touch()
    assert training.run() == 1
    assert training.said.endswith(told.format(out=out)), training.said


def test_a_cancel_file_ends_it_in_order_and_another_training_waits_for_its_folder(tmp_path: Path) -> None:
    cancel = tmp_path / "cancel"
    training = Training(tmp_path, cancel_file_path=str(cancel), hyperparams={"at": {"wait": [3]}})
    with training.started() as worker:
        until(lambda: training.marks("wait"), what="the training")
        other = subprocess.run(
            [sys.executable, "-m", "gen_worker.entrypoint"],
            cwd=tmp_path,
            env={
                **os.environ,
                "WORKER_MODE": "trainer",
                "TRAINER_JOB_SPEC_PATH": str(tmp_path / "job.json"),
                "GEN_WORKER_TRAINING_DIR": str(tmp_path / "out"),
            },
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
        assert (other.returncode, "another training uses" in other.stderr) == (1, True)
        assert "hint: wait for its end, or name another folder by `GEN_WORKER_TRAINING_DIR`" in other.stderr
        command = [str(Path(sys.executable).with_name("gen-worker")), "train", "job.json", "--output-dir", "out"]
        by_hand = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
        assert by_hand.returncode == 2
        assert "hint: wait for its end, or name another folder by `--output-dir`" in by_hand.stderr
        cancel.touch()
        assert training.end(worker) == 130, training.said
    (failed,) = training.events("failed")
    assert (failed["step"], failed["error"]) == (4, "train-step: training canceled after step 4")
    assert (tmp_path / "out/checkpoints/step-00000004.json").exists()
    assert not any(alive(pid) for pid in training.marks("wait"))


@pytest.mark.parametrize("word", ["wait", "hang"])
def test_one_that_is_out_of_time_ends_and_says_so_whether_it_listens_or_hangs(tmp_path: Path, word: str) -> None:
    training = Training(tmp_path, max_runtime_seconds=3, hyperparams={"at": {word: [3]}})
    assert training.run() == 1, training.said
    (failed,) = training.events("failed")
    assert failed["error"] == "train-step: deadline exceeded: `max_runtime_seconds` are over"
