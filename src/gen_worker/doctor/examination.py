"""The whole examination: every check with its limit, all at once, told in their order.

A check that does not end in time is a finding of its own; its thread is left behind, and costs nobody anything.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from typing import NamedTuple, TypeAlias

from gen_worker.doctor.finding import Finding, problem

SLOW_S = 1.0
_NOT_FOR_YOU = "run it as the user who runs the worker, with the same environment"
Look: TypeAlias = Callable[[], Finding | list[Finding]]


class Check(NamedTuple):
    """One thing to look at: under which heading it is told, what it is called, how long it may take.

    `tells` are the other names that its findings may have, `*` standing for anything; `stuck` says what to do when it
    does not end.
    """

    group: str
    name: str
    look: Look
    limit_s: float = 5.0
    tells: Sequence[str] = ()
    stuck: str = "a disk, a network folder or a driver does not answer: `ps` shows who waits in state `D`"

    def answers_to(self, name: str) -> bool:
        """Whether it is meant by a name: its own, its group's, or that of something it finds."""
        return name in (self.group, self.name) or any(fnmatch(name, pattern) for pattern in self.tells)


class Told(NamedTuple):
    """What one check found."""

    group: str
    findings: list[Finding]
    took_s: float


class _Examined:
    """A check that is under way in a thread of its own."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._found: list[Finding] = []
        self._failure: BaseException | None = None
        self._took_s = 0.0
        threading.Thread(target=self._run, name=f"gen-worker-doctor-{check.name}", daemon=True).start()

    def _run(self) -> None:
        try:
            found = self.check.look()
            self._found = found if isinstance(found, list) else [found]
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._failure = error
        finally:
            self._took_s = time.monotonic() - self._began
            self._ended.set()

    def told(self, on_slow: Callable[[str], None]) -> Told:
        """Wait for the end, and return what was found; raise what the check raised, but for what is not to be read."""
        ends = self._began + self.check.limit_s
        if not self._ended.wait(min(SLOW_S, ends - time.monotonic())):
            on_slow(self.check.name)
        if not self._ended.wait(max(0.0, ends - time.monotonic())):
            found = problem(
                self.check.name,
                f"looking at it did not end within {self.check.limit_s:g} s",
                self.check.stuck,
            )
            return Told(self.check.group, [found], self.check.limit_s)
        if isinstance(self._failure, OSError):  # one that cannot look costs the others nothing
            found = problem(self.check.name, f"cannot be looked at: {_reason(self._failure)}", _NOT_FOR_YOU)
            return Told(self.check.group, [found], self._took_s)
        if self._failure is not None:
            raise self._failure
        return Told(self.check.group, self._found, self._took_s)


def _reason(error: OSError) -> str:
    told = (error.strerror or str(error)).lower()
    return told if error.filename is None else f"`{error.filename}`: {told}"


def examine(checks: Sequence[Check], on_slow: Callable[[str], None] = lambda _name: None) -> Iterator[Told]:
    """Look at everything at once; return what was found in the order of the checks, each as soon as it is known."""
    for under_way in [_Examined(check) for check in checks]:
        yield under_way.told(on_slow)
