"""Revisions that are stored into: opened once for a job and a repository, made visible, or given up.

`POST …/revisions`, uploads below `…/revisions/<id>/uploads`, then `POST …/revisions/<id>/finalize` and, while that goes
on, GETs of where its answer says; or `DELETE …/revisions/<id>`.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.job_tokens import JobKey
from gen_worker.fetch.network.origins import without_queries
from gen_worker.fetch.platform.api import NO_REPO, NO_ROUTE, Api, Reply, documented, repo_route
from gen_worker.fetch.platform.failure import PlatformError
from gen_worker.fetch.uploading.pace import Pace
from gen_worker.models.errors import ModelError

REMEMBERED = 256  # revisions that may be open; the oldest one is forgotten first
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGER = 1.0, 10.0, 1.6
_DONE, _FAILED = "finalized", ("failed", "aborted")


class _Opened(msgspec.Struct):
    session_id: str


class _Session:
    """One revision, and the lock under which it is opened."""

    def __init__(self) -> None:
        self.opening = threading.Lock()
        self.id = ""
        self.unknown = False
        self.ended = False


class Revisions:
    """The revisions that were opened here. For any number of threads."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[JobKey, str], _Session] = OrderedDict()

    def route(self, api: Api, repo: str, opening: Mapping[str, Any], cancel: Cancel) -> str:
        """Return where a job's revision of a repository is, below its platform's address; the first one opens it.

        "": the platform has no revisions that are stored into.
        """
        route = f"{repo_route(repo)}/revisions"
        with self._lock:
            session = self._open.setdefault((api.job, repo), _Session())
            while len(self._open) > REMEMBERED:
                self._open.popitem(last=False)
        with session.opening:
            if not session.id and not session.unknown:
                self._begin(api, repo, session, opening, cancel)
        if session.unknown:
            return ""
        found = f"{route}/{quote(session.id, safe='')}"
        if session.ended:  # its job has, while this was under way
            self.abort(api, found, cancel)
            raise PlatformError("canceled", "the job has ended")
        return found

    def _begin(self, api: Api, repo: str, session: _Session, opening: Mapping[str, Any], cancel: Cancel) -> None:
        reply = api.ask("POST", f"{repo_route(repo)}/revisions", opening, cancel=cancel, accepted=NO_ROUTE)
        if reply.status not in NO_ROUTE:
            session.id = api.read(reply, _Opened).session_id
        elif reply.said in NO_REPO:
            raise PlatformError("invalid", f"`{repo}` is not on `{api.shown}`: {reply.said}", status=reply.status)
        else:
            session.unknown = True

    def finish(self, api: Api, repo: str, route: str, document: Mapping[str, Any], cancel: Cancel) -> dict[str, Any]:
        """Have a revision made visible, wait until it is, and return what its platform says of it."""
        until, pause_s = time.monotonic() + self._pace.finalize_s, FIRST_PAUSE_S
        reply, place = api.ask("POST", f"{route}/finalize", document, cancel=cancel), api.base + route
        while not (told := self._told(api, repo, reply)):
            if time.monotonic() + pause_s > until:
                minutes = self._pace.finalize_s / 60
                text = f"`{repo}` was not published: `{api.shown}` is at it for {minutes:.0f} minutes"
                raise PlatformError("transfer", text, retryable=True)
            place = _place(api, place, reply)
            cancel.wait(reply.wished_s(min(pause_s, self._pace.longest_poll_s), LONGEST_PAUSE_S))
            pause_s = min(LONGEST_PAUSE_S, pause_s * LONGER)
            reply = api.ask("GET", place, cancel=cancel)
        with self._lock:
            self._open.pop((api.job, repo), None)
        return told

    def _told(self, api: Api, repo: str, reply: Reply) -> dict[str, Any] | None:
        """Return what is said of a revision that is visible, None while it is not; raise where it never will be."""
        told = documented(api.read(reply, Any))
        state = str(told.get("state", ""))
        if state in _FAILED:
            why = str(told.get("message") or told.get("error") or "no reason is given")
            raise PlatformError("transfer", f"`{repo}` was not published: {without_queries(why)[:300]}")
        done = state == _DONE or (not state and reply.status != 202)
        return (told or {"state": _DONE}) if done else None

    def end(self, api: Api) -> None:
        """Give up what a job opened and did not finish; whether its platform hears that does not matter."""
        with self._lock:
            left = [(key, session) for key, session in self._open.items() if key[0] == api.job]
            for key, session in left:
                session.ended = True
                del self._open[key]
        for (_, repo), session in left:
            if session.id:
                with suppress(PlatformError, ModelError):
                    self.abort(api, f"{repo_route(repo)}/revisions/{quote(session.id, safe='')}", Cancel())

    def abort(self, api: Api, route: str, cancel: Cancel) -> None:
        """Give one up."""
        api.ask("DELETE", route, cancel=cancel, accepted=(404, 409))


def _place(api: Api, before: str, reply: Reply) -> str:
    """Return where the answer is to be looked for: on the platform itself, whose token the job shows."""
    named = urljoin(before, reply.headers.get("location", ""))
    at, there = urlsplit(api.base), urlsplit(named)
    if (at.scheme, at.netloc) != (there.scheme, there.netloc):
        raise PlatformError("transfer", f"`{api.shown}` sends the job's token to another host: `{there.netloc[:100]}`")
    return named
