"""What is kept of a child's death: one file each, in a folder that outlives every supervisor.

Files are written by supervisors and read by anybody of the same user, with or without a supervisor. None holds a
payload, an output or a secret.
"""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

import msgspec

from gen_worker.wire.messages import Climbed

SCHEMA = 1
FOLDER = "postmortems"
MOST_BYTES = 1 << 20  # of a file that is read; a longer one is not ours
ABANDONED_S = 3600.0  # a file that was begun so long ago is finished by nobody
_NAME = re.compile(r"\d{8}-\d{6}-[a-z0-9]{1,32}-[0-9a-f]{4}", re.ASCII)
_SUFFIX = ".json"
_LAST_SECOND = 253402300800  # of the year 9999


class PostMortemError(Exception):
    """A post-mortem cannot be read; the text says why."""


class Held(msgspec.Struct):
    """A job that was with the child."""

    request_id: str
    function: str
    state: str  # when the child died: "leased" before its handler was called, "started", "emitted"
    link: str = ""
    attempt: int = 1
    tenant: str = ""
    ran_s: float | None = None  # since its handler was called
    payload: str | None = None  # the digest; what `gen-worker quarantine` calls it
    payload_bytes: int = 0
    ended_for: str | None = None  # why it was being ended, where it was
    rungs: list[Climbed] = []
    became: str = ""  # its state once that was judged: "queued" runs again


class Moment(msgspec.Struct, omit_defaults=True):
    """What was seen of the child at one moment; unknown values are left out."""

    before_s: float  # its death
    phase: str
    job: str | None = None
    progress: float | None = None
    stage: str | None = None
    rss: int | None = None
    vram: int | None = None
    cpu_s: float | None = None
    state: str | None = None  # of its job thread, as the kernel says: "R" computes, "S" sleeps, "D" waits for a driver
    wchan: str | None = None  # where in the kernel it waits
    beat_age_s: float | None = None


class Model(msgspec.Struct):
    """A model that the child held."""

    ref: str
    instance: str
    tier: str
    bytes: int | None = None


class Memory(msgspec.Struct, omit_defaults=True):
    """The memory of the host or its cgroup around the death, in bytes."""

    used: int
    limit: int
    source: str
    after: int | None = None


class PostMortem(msgspec.Struct, kw_only=True):
    """Everything that is known of one child's death. Within a schema number names are only added."""

    schema: int = SCHEMA
    id: str
    when: float  # seconds since 1970
    host: str
    supervisor: int  # its pid
    version: str
    device: str
    generation: int
    pid: int | None = None
    phase: str = ""  # when it died
    lived_s: float = 0.0
    ready: bool = False
    cause: str
    signal: str | None = None
    exit_code: int | None = None
    hang: str | None = None
    stack: list[str] = []
    printed: list[tuple[str | None, str]] = []  # its last lines, each with the request that printed it
    jobs: list[Held] = []
    jobs_left_out: int = 0
    jobs_done: int = 0
    loading: str | None = None
    models: list[Model] = []
    timeline: list[Moment] = []
    memory: Memory | None = None
    oom_kills: int = 0
    device_health: str = "ok"
    device_reason: str | None = None
    vram_used: int | None = None  # of its device, by whomever
    vram_total: int | None = None
    environment: dict[str, str] = {}


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(PostMortem)


def folder_in(run_dir: Path) -> Path:
    """Return where the post-mortems of a run directory lie."""
    return run_dir / FOLDER


def is_name(text: str) -> bool:
    """Whether a text is what a post-mortem may be called: it names no other file."""
    return _NAME.fullmatch(text) is not None


def names(folder: Path) -> list[str]:
    """Return the names of the post-mortems in a folder, the oldest first; raise `PostMortemError` for a foreign one."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PostMortemError(f"cannot look into `{folder}`: {(error.strerror or str(error)).lower()}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH:
        raise PostMortemError(f"`{folder}` is not a folder of this user alone")
    try:
        listed = os.listdir(folder)
    except OSError as error:
        raise PostMortemError(f"cannot look into `{folder}`: {(error.strerror or str(error)).lower()}") from None
    return sorted(filter(is_name, (name.removesuffix(_SUFFIX) for name in listed if name.endswith(_SUFFIX))))


def read(folder: Path, name: str) -> PostMortem:
    """Return a post-mortem; raise `PostMortemError` when there is none of this name, or it says other things."""
    if not is_name(name):
        raise PostMortemError(f"`{name}` is no name of a post-mortem")
    try:
        told = _decoder.decode(_content(folder / f"{name}{_SUFFIX}"))
    except FileNotFoundError:
        raise PostMortemError(f"post-mortem `{name}` is gone") from None
    except OSError as error:
        raise PostMortemError(f"cannot read post-mortem `{name}`: {(error.strerror or str(error)).lower()}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PostMortemError(f"post-mortem `{name}` is of another version, or damaged: {error}") from None
    if not 0 <= told.when < _LAST_SECOND:
        raise PostMortemError(f"post-mortem `{name}` is damaged: `when` is {told.when:g}")
    return told


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise PostMortemError(f"`{path}` is no post-mortem")
        return file.read(MOST_BYTES)


def write(folder: Path, postmortem: PostMortem) -> int:
    """Put a post-mortem into the folder, for its user alone; return its bytes. Readers see it whole or not at all."""
    if not is_name(postmortem.id):
        raise ValueError(postmortem.id)
    content = _encoder.encode(postmortem) + b"\n"
    part = folder / f".{postmortem.id}.{os.getpid()}"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        part.replace(folder / f"{postmortem.id}{_SUFFIX}")
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return len(content)


def keep_within(folder: Path, limit_bytes: int, now: float) -> int:
    """Remove the oldest files until the rest takes no more than so many bytes; return how many that are.

    With them go the files that were begun, and never finished, by supervisors that were killed.
    """
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another supervisor was faster
                if is_name(entry.name.removesuffix(_SUFFIX)):
                    sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
                elif entry.name.startswith(".") and entry.stat(follow_symlinks=False).st_mtime < now - ABANDONED_S:
                    os.unlink(entry.path)
    taken = sum(sizes.values())
    for name in sorted(sizes):
        if taken <= limit_bytes:
            break
        (folder / name).unlink(missing_ok=True)
        taken -= sizes[name]
    return taken
