"""A container without a container engine: the steps of an image's Dockerfile, and its command in a root of its own.

`Image` copies a project and runs what the Dockerfile runs in it. `Container` starts the entrypoint as the first process
of its own namespaces, as a user who is nobody special, in a root that is read-only but for what a container may write.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
UID = 1000
SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc")


def run_steps(dockerfile: Path) -> list[str]:
    """Return the shell commands that a Dockerfile runs once the project has been copied."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    after = text.partition("COPY . .")[2]
    return [line.removeprefix("RUN ") for line in after.splitlines() if line.startswith("RUN ")]


class Image:
    """A project, made ready as its Dockerfile says."""

    def __init__(self, project: Path, app: Path) -> None:
        self.app = app
        shutil.copytree(project, app, ignore=shutil.ignore_patterns("__pycache__", "tests", "conftest.py"))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        for step in run_steps(REPOSITORY / "docker/endpoint.Dockerfile"):
            subprocess.run(["sh", "-ec", step], cwd=app, env=os.environ | {"PATH": path}, check=True)


class Container:
    """One run of an image."""

    def __init__(self, image: Image, root: Path, environment: Mapping[str, str], *, shm_bytes: int = 1 << 20) -> None:
        self.root = root
        self.log = root.with_name(f"{root.name}.log")
        script = _mounts(image, root, shm_bytes)
        inside = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/tmp", **environment}
        given = " ".join(shlex.quote(f"{name}={value}") for name, value in inside.items())
        user = f"setpriv --reuid {UID} --regid {UID} --clear-groups --no-new-privs --bounding-set -all"
        self.inside = f"chroot {shlex.quote(str(root))} env -i -C /app {given} {user}"
        script += f"exec {self.inside} {sys.executable} -m gen_worker.entrypoint\n"
        with self.log.open("wb") as log:
            self._unshare = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The first process of the container, as the host counts it."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        return int(children[0])

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `docker exec` does."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid"]
        words = " ".join(map(shlex.quote, command))
        return subprocess.run(
            [*enter, "sh", "-c", f"{self.inside} {words}"], capture_output=True, text=True, timeout=30, check=False
        )

    def signal(self, number: int) -> None:
        """Send its first process a signal."""
        with contextlib.suppress(ProcessLookupError, IndexError, FileNotFoundError):  # it has just ended
            os.kill(self.pid, number)

    def stop(self) -> int:
        """Ask it to end, as `docker stop` does; return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def has_ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._unshare.poll() is not None

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        return self._unshare.wait(30)

    def close(self) -> None:
        """End it, whatever it does; its mounts go with its namespace."""
        if self._unshare.poll() is None:
            self.signal(signal.SIGKILL)
            self._unshare.kill()
            self._unshare.wait()


def _mounts(image: Image, root: Path, shm_bytes: int) -> str:
    """Return the commands that make the container's root, whose mounts nobody else sees."""
    homes = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent, REPOSITORY}
    outer = sorted(home for home in homes if not any(home != other and home.is_relative_to(other) for other in homes))
    lines = ["mount --make-rprivate /", f"mount -t tmpfs -o mode=0755 none {root}"]
    lines += [
        f"mkdir -p {root}/proc {root}/dev/shm {root}/tmp {root}/cache {root}/run/gen-worker",
        *(f"touch {root}/dev/{name}; mount --bind /dev/{name} {root}/dev/{name}" for name in ("null", "urandom")),
        f"mount -t proc none {root}/proc",
        f"mount -t tmpfs -o size={shm_bytes},mode=1777 none {root}/dev/shm",
        *(
            f"mount -t tmpfs -o mode=0700,uid={UID},gid={UID} none {root}/{name}"
            for name in ("tmp", "cache", "run/gen-worker")
        ),
    ]
    for name in SYSTEM:
        source = Path("/", name)
        if source.is_symlink():
            lines.append(f"ln -s {os.readlink(source)} {root}/{name}")
        elif source.is_dir():
            lines += _bound(source, root / name)
    for home in outer:
        if not home.is_relative_to("/usr"):
            lines += _bound(home, root / home.relative_to("/"))
    lines += _bound(image.app, root / "app")
    lines.append(f"mount -o remount,ro {root}")
    return "".join(f"{line}\n" for line in lines)


def _bound(source: Path, target: Path) -> list[str]:
    return [f"mkdir -p {target}", f"mount --bind {source} {target}", f"mount -o remount,ro,bind {target}"]
