"""A test's calls to a server of its own: real children, which may crash, hang and be killed."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.api.errors import CanceledError, RetryableError, ValidationError
from gen_worker.api.overrides import KEY as MODELS
from gen_worker.client import Client as Connection
from gen_worker.client import Job, JobError
from gen_worker.testing.calls import Call, refused
from gen_worker.testing.results import Event
from gen_worker.testing.target import Endpoint
from gen_worker.wire.status import Status

_RAISED: dict[str, type[Exception]] = {
    "usage": ValidationError,
    "invalid": ValidationError,
    "canceled": CanceledError,
    "retryable": RetryableError,
    "deadline": TimeoutError,
}
"""What a job's error is raised as, where the author's code would have raised that itself."""


class Isolated:
    """Makes calls, many at once, to a `gen-worker serve` that begins and ends with this; made in the main thread."""

    def __init__(self, endpoint: Endpoint, folder: Path, *, offline: bool, devices: str) -> None:
        self._endpoint = endpoint
        self._folder = folder
        self._options = ["--module", endpoint.module, "--devices", devices, *(["--offline"] if offline else [])]
        self._jobs: dict[Call, Job] = {}
        self._open = ExitStack()
        self.connection = self._started()
        """A client of the server, with an operator's verbs."""

    def _started(self) -> Connection:
        from gen_worker.cli.failure import Failure
        from gen_worker.cli.private import private_server

        if threading.current_thread() is not threading.main_thread():  # the server ends with the thread it was made in
            raise RuntimeError("an isolated client is made in the main thread")
        variables = {
            "PYTHONPATH": os.pathsep.join([*self._endpoint.paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "GEN_WORKER_LOCAL_OUTPUT_DIR": str(self._folder),
        }
        with _environment(variables):
            try:
                server = self._open.enter_context(private_server(self._options))
            except Failure as failure:
                raise RuntimeError(str(failure)) from None
        return self._open.enter_context(Connection(server.socket, name="test"))

    def call(self, call: Call) -> Any:
        """Make the call and wait for its end; an output is of the author's type."""

        def on_event(kind: Any, value: dict[str, Any]) -> None:
            call.events.append(Event(kind, value))

        if call.cancel.requested:
            raise CanceledError("canceled")
        job = self.connection.submit(
            call.spec.name,
            _payload(call),
            type=call.spec.output_type,
            request_id=call.request_id,
            timeout_s=call.timeout_s,
            on_event=on_event,
            stream=call.spec.shape in ("generator", "async_generator"),
        )
        self._jobs[call] = job
        if call.cancel.is_set():  # asked while there was no job yet
            job.cancel()
        try:
            return self._result(call, job)
        except JobError as error:
            if error.kind not in _RAISED:
                raise
            raise _RAISED[error.kind](error.message) from error
        except msgspec.ValidationError as error:
            raise TypeError(f"`{call.spec.name}` gives what its annotation does not allow: {error}") from None
        finally:
            del self._jobs[call]

    def _result(self, call: Call, job: Job) -> Any:
        if call.spec.shape not in ("generator", "async_generator"):
            output = job.result()
            self._note_files(call, output)
            return output
        for item in job.items():
            self._note_files(call, item)
            call.on_item(item)
        return None

    def _note_files(self, call: Call, value: Any) -> None:
        from gen_worker_child.inputs import assets_in

        for asset in assets_in(value) if isinstance(value, msgspec.Struct) else ():
            if asset.local_path is not None and Path(asset.local_path).is_relative_to(self._folder):
                call.files[asset.ref] = Path(asset.local_path)

    def ask_to_end(self, call: Call) -> None:
        """Cancel a call, and wait until it has ended."""
        call.cancel.set()
        if (job := self._jobs.get(call)) is not None:
            job.cancel()

    def status(self) -> Status:
        """Return what the server says of its children and jobs."""
        return self.connection.list()

    def close(self) -> None:
        """End the server and everything it has started."""
        self._open.close()


def _payload(call: Call) -> object:
    """Return the payload in the author's type, or plainly where it names models, which no type has."""
    try:
        payload = msgspec.json.decode(call.body, type=call.spec.payload_type)
    except msgspec.ValidationError as error:
        raise refused(call, error) from None
    plain = msgspec.json.decode(call.body)
    return plain if MODELS in plain else payload


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
