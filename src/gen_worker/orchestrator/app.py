"""The control plane as one process: workers' streams, the HTTP API, the store, workers of this host, one loop."""

import asyncio
import fcntl
import os
import resource
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec
import uvicorn

from gen_worker.environment import close_memory, forget_secrets
from gen_worker.http import connections
from gen_worker.orchestrator.files import FileLimits, FileStore
from gen_worker.orchestrator.folder import make_state_folder
from gen_worker.orchestrator.http import Threads
from gen_worker.orchestrator.local_workers import Inherited, LocalWorker, LocalWorkers, names_of
from gen_worker.orchestrator.offered import ModelFolderError, OfferedModels
from gen_worker.orchestrator.plane import ControlPlane, PlaneOptions
from gen_worker.orchestrator.repositories import Repositories
from gen_worker.orchestrator.schemas import Schemas
from gen_worker.orchestrator.signing import SECRET_BYTES, Signer
from gen_worker.orchestrator.store import StoreError
from gen_worker.orchestrator.tokens import TokenError, Tokens
from gen_worker.orchestrator.transfers import PlaneFiles
from gen_worker.orchestrator.web import Web
from gen_worker.settings import Secret

DONE, FAILED, INTERRUPTED = 0, 1, 130
SWEEP_S = 60.0
CONNECTIONS_END_S = 5
MOST_DESCRIPTORS = 16384
SPARE_DESCRIPTORS = 192  # for workers' streams, files, databases and the processes of workers of this host
_SECRET = "files.key"

Said = Callable[[str, Mapping[str, object]], None]
"""Takes the name of something that happened, and what is to be known about it."""


class StartError(Exception):
    """The control plane cannot be started; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `gen-worker orchestrator` is started with."""

    state: Path
    listen: str = "127.0.0.1:8080"
    http: str = "127.0.0.1:8081"
    url: str = ""
    """Where workers and callers reach the HTTP API; empty: where it listens."""

    models: Mapping[str, Path] = {}
    needs: Mapping[str, tuple[str, ...]] = {}
    workers: tuple[Path, ...] = ()
    worker_arguments: tuple[str, ...] = ()
    tls: tuple[Path, Path] | None = None
    auth: bool = False
    token: Secret | None = None
    """What callers of the HTTP API must show."""

    limits: FileLimits = FileLimits()
    max_queued: int = 10_000
    """Jobs that may wait; one more is told to come back."""


def run(options: Options, said: Said) -> int:
    """Serve until a signal ends it; return the exit code. Raises `StartError`.

    It is this process's whole life: what is written from now on is for its owner alone, and jobs of workers of this
    host find no secret in its environment or memory.
    """
    inherited = Inherited(dict(os.environ), os.umask(0o077))
    forget_secrets()
    close_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MOST_DESCRIPTORS)), hard))
    return asyncio.run(_serve(options, inherited, said))


async def _serve(options: Options, inherited: Inherited, said: Said) -> int:
    with _interrupts() as interrupts:
        async with AsyncExitStack() as stack:
            starting = asyncio.ensure_future(stack.enter_async_context(_started(options, inherited, said)))
            pressed = asyncio.ensure_future(interrupts.first.wait())
            await asyncio.wait((starting, pressed), return_when=asyncio.FIRST_COMPLETED)
            pressed.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait((starting,))
                return INTERRUPTED
            workers, web = starting.result()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, workers.restart)
            said("ready", {})
            await interrupts.first.wait()
            said("ending", {"workers": len(options.workers)})
            web.refuse()
            leaving = asyncio.ensure_future(workers.end())
            insisting = asyncio.ensure_future(interrupts.second.wait())
            await asyncio.wait((leaving, insisting), return_when=asyncio.FIRST_COMPLETED)
            insisting.cancel()
            if not leaving.done():
                workers.kill()
                await leaving
                return INTERRUPTED
        said("stopped", {})
        return DONE


@asynccontextmanager
async def _started(options: Options, inherited: Inherited, said: Said) -> AsyncIterator[tuple[LocalWorkers, Web]]:
    """Open everything in its order; close it in the opposite one."""
    async with AsyncExitStack() as stack:
        stack.enter_context(_state_of_one(options.state))
        listening = stack.enter_context(_listening(options.http))
        base_url = options.url.rstrip("/") or _url_of(listening, tls=options.tls is not None)
        signer = Signer(_secret(options.state / _SECRET))
        store = FileStore(options.state / "files", options.limits)
        stack.callback(store.close)
        threads = Threads()
        stack.callback(threads.close)
        models = OfferedModels(signer, options.state / "models.sqlite", base_url=base_url)
        stack.callback(models.close)
        for ref, folder in options.models.items():
            await _offer(models, ref, folder, threads, said)
        files, auth = PlaneFiles(models, signer), _tokens(options)
        repositories = Repositories(options.state / "repositories.sqlite", store)
        stack.callback(repositories.close)
        ids = [f"{name}-{os.urandom(2).hex()}" for name in names_of(list(options.workers))]
        schemas = Schemas(dict(zip(ids, options.workers, strict=True)), inherited.environment)
        files.kind_of = schemas.kind_of
        stack.push_async_callback(schemas.close)

        def told(event: str, facts: Mapping[str, object]) -> None:
            said(f"worker_{event}", facts)
            if event == "connected":
                schemas.look(str(facts["worker"]))

        plane_options = _plane_options(options, files, auth, said, told, base_url=base_url)
        plane = ControlPlane(msgspec.structs.replace(plane_options, published=repositories.published))
        web = Web(
            plane,
            store,
            files,
            threads,
            base_url=base_url,
            repositories=repositories,
            schemas=schemas.of,
            token=options.token,
            auth=auth,
        )
        try:
            await plane.start()
        except (OSError, StoreError) as error:
            raise StartError(str(error), "another one may be running: `--listen` takes another address") from None
        stack.push_async_callback(plane.close)
        await stack.enter_async_context(_serving(web, listening, options.tls))
        await stack.enter_async_context(_sweeping(plane, store, repositories, threads, said))
        said("listening", {"workers": plane.address, "http": base_url, "state": str(options.state)})
        workers = LocalWorkers(
            _local(options, ids, plane.address, auth),
            inherited,
            lambda name, line: said("worker", {"worker": name, "line": line}),
            plane.expect_back,
        )
        workers.start()
        yield workers, web


def _plane_options(
    options: Options, files: PlaneFiles, auth: Tokens | None, said: Said, told: Said, *, base_url: str
) -> PlaneOptions:
    return PlaneOptions(
        state=options.state / "jobs.sqlite",
        files=files,
        listen=options.listen,
        file_base_url=base_url,
        tls=options.tls,
        auth=auth,
        needs=options.needs,
        offered=tuple(options.models),
        max_queued=options.max_queued,
        told=told,
        warned=lambda message: said("warning", {"message": message}),
    )


def _local(options: Options, ids: list[str], address: str, auth: Tokens | None) -> list[LocalWorker]:
    """Return what workers of this host are told: where their control plane is, and who they are.

    The ids are new at each start: a worker of the one before may still be ending its jobs.
    """
    host, _, port = address.rpartition(":")
    scheme = "grpc" if options.tls is None else "grpcs"
    here = f"{scheme}://{'127.0.0.1' if host in ('0.0.0.0', '[::]', '') else host}:{port}"
    found = []
    for name, worker_id, project in zip(names_of(list(options.workers)), ids, options.workers, strict=True):
        variables = {"ORCHESTRATOR_PUBLIC_ADDR": here, "WORKER_ID": worker_id}
        if auth is not None:
            variables["WORKER_JWT"] = auth.worker_token(worker_id)
        if options.tls is not None:
            certificate = str(options.tls[0].absolute())
            trusted = {
                name: certificate for name in ("GRPC_CA_BUNDLE", "GEN_WORKER_CA_BUNDLE") if name not in os.environ
            }
            variables |= trusted
        found.append(LocalWorker(name, project, options.worker_arguments, variables))
    return found


async def _offer(models: OfferedModels, ref: str, folder: Path, threads: Threads, said: Said) -> None:
    said("reading", {"ref": ref, "folder": str(folder)})
    try:
        model = await threads.run(models.add, ref, folder)
    except (ModelFolderError, OSError) as error:
        raise StartError(
            f"`{ref}` cannot be offered: {error}", "`--model REF=FOLDER` takes a folder of files"
        ) from None
    said("offered", {"ref": ref, "digest": model.digest, "bytes": model.size_bytes})


def _tokens(options: Options) -> Tokens | None:
    try:
        return Tokens.create(options.state) if options.auth else None
    except TokenError as error:
        raise StartError(str(error)) from None


# --- the state folder -------------------------------------------------------------------------------------------------


@contextmanager
def _state_of_one(folder: Path) -> Iterator[None]:
    """Hold the state folder; raise `StartError` where another process does."""
    try:
        make_state_folder(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"the state cannot be kept in `{folder}`: {(error.strerror or str(error)).lower()}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        text = f"another control plane keeps its state in `{folder}`"
        raise StartError(text, "end it, or take another folder: `--state`") from None
    try:
        yield
    finally:
        os.close(lock)


def _secret(path: Path) -> bytes:
    """Return the secret that URLs are signed with, made at the first start."""
    with suppress(FileNotFoundError):
        found = path.read_bytes()
        if len(found) >= SECRET_BYTES:
            return found
    secret = os.urandom(SECRET_BYTES)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    draft.replace(path)
    return secret


# --- HTTP -------------------------------------------------------------------------------------------------------------


@contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # only so does asyncio set TCP_NODELAY
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, int(port)))
        except OSError as error:
            text = f"cannot listen on `{address}`: {(error.strerror or str(error)).lower()}"
            raise StartError(text, "another one may be running: `--http` takes another address") from None
        listening.listen(connections.QUEUED)
        yield listening
    finally:
        listening.close()


def _url_of(listening: socket.socket, *, tls: bool) -> str:
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def _serving(web: Web, listening: socket.socket, tls: tuple[Path, Path] | None) -> AsyncIterator[None]:
    certificate, key = (str(path) for path in tls) if tls is not None else (None, None)
    config = uvicorn.Config(
        web.app(),
        http=connections.Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # whoever sends garbage is told so, and nobody else: else the log would be theirs to fill
        access_log=False,
        server_header=False,
        limit_concurrency=connections.most_connections(
            connections.MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
        ),
        backlog=connections.QUEUED,
        timeout_keep_alive=connections.KEPT_S,
        timeout_graceful_shutdown=CONNECTIONS_END_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    server = connections.LoopServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    web.open()
    try:
        yield
    finally:
        web.close()
        server.should_exit = True
        await serving


@asynccontextmanager
async def _sweeping(
    plane: ControlPlane, store: FileStore, repositories: Repositories, threads: Threads, said: Said
) -> AsyncIterator[None]:
    """Remove the files of jobs that are not known any more, and uploads of attempts that are over; again and again."""

    async def sweep() -> None:
        while True:
            try:
                with_files = await threads.run(store.jobs)
                known = await plane.known(with_files)
                await threads.run(store.forget, [each for each in with_files if each not in known])
                left = await threads.run(store.unfinished)
                await threads.run(
                    store.give_up, [each.id for each in left if plane.live_attempt(each.request_id) != each.attempt]
                )
                await threads.run(repositories.give_up, lambda request, at: plane.live_attempt(request) == at)
            except (OSError, sqlite3.Error, StoreError) as error:
                said("warning", {"message": f"old files cannot be removed now: {error}"})
            await asyncio.sleep(SWEEP_S)

    sweeping = asyncio.create_task(sweep())
    try:
        yield
    finally:
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping


# --- signals ----------------------------------------------------------------------------------------------------------


class _Interrupts:
    """Whether somebody has asked for the end, and asked again."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def press(self) -> None:
        """Take a signal."""
        (self.second if self.first.is_set() else self.first).set()


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    loop, found = asyncio.get_running_loop(), _Interrupts()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` ignores one
    for number in heard:
        loop.add_signal_handler(number, found.press)
    try:
        yield found
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
