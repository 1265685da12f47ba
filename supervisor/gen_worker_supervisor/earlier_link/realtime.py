"""The realtime sessions of an earlier orchestrator: each is a job whose peer speaks through the link.

Of what a peer sends, so much is with the child as its handler has room for; the rest waits here, within bounds, and
then the stream is read no further for a while. A handler that takes nothing for longer loses its session.
"""

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from gen_worker.wire.earlier import RealtimeCloseCommand, RealtimeFrame, RealtimeOpenCommand, Report
from gen_worker.wire.messages import MESSAGES_AHEAD, REQUEST_ID_CHARS, TENANT_CHARS, EarlierRun, Event
from gen_worker.wire.regions import RegionError
from gen_worker_supervisor.core.bodies import InlinePayload, Output, OutputBody
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.state import Function, Job, Outcome
from gen_worker_supervisor.earlier_link.answers import close_reason
from gen_worker_supervisor.earlier_link.jobs import LINK, EarlierJobs, release, sendable
from gen_worker_supervisor.earlier_link.required import Missing, NotRequirableError, Wish

MESSAGES_WAITING = 64  # of one session, beside those that are with the child
BYTES_WAITING = 16 << 20
REASON_CHARS = 500  # of what a peer says when it leaves: it travels in a frame
STUCK_S = 10.0  # the stream is not read for so long at most for the sake of one session


class Session:
    """A peer as the client of one realtime job."""

    link = LINK

    def __init__(
        self, sessions: "Sessions", order: RealtimeOpenCommand, function: Function, earlier: EarlierRun, now: float
    ) -> None:
        self.session_id = order.session_id
        self.order = order
        self.function = function
        self.earlier = earlier
        self.deadline = now + order.timeout_ms / 1000 if order.timeout_ms > 0 else None
        self.job: Job | None = None  # once the models that it requires are here
        self.wish: Wish | None = None
        self.reason = ""  # why it ends, where that is not its handler's doing
        self.gone = False  # the connection that its peer spoke over is: nothing of it is for the next one
        self._sessions = sessions
        self._waiting: deque[RealtimeFrame] = deque()
        self._sent: deque[RealtimeFrame] = deque()  # with the child, in case it dies before it begins
        self._bytes = 0
        self._open = False  # its handler is there
        self._hung_up = ""
        self.full_since: float | None = None

    # --- the peer speaks ---

    def heard(self, frame: RealtimeFrame, now: float) -> None:
        """Pass a message of the peer on, or keep it until there is room; who has left says nothing more."""
        if self._hung_up:
            return
        self._waiting.append(frame)
        self._bytes += len(frame.data)
        self._go_on()
        full = len(self._waiting) > MESSAGES_WAITING or self._bytes > BYTES_WAITING
        if full and self.job is None:  # models take longer than a stream can be left unread
            self._sessions.end(self, "error:HandlerTooSlow")
            return
        self.full_since = self.full_since or now if full else None

    def hang_up(self, reason: str) -> None:
        """The peer is gone: its handler hears what it has said, and then the end."""
        self._hung_up = self._hung_up or reason[:REASON_CHARS] or "closed"
        self._go_on()

    def took(self, messages: int) -> None:
        """The handler took messages; 0: it is there."""
        self._open = True
        for _ in range(min(messages, len(self._sent))):
            self._sent.popleft()
        self._go_on()
        if len(self._waiting) <= MESSAGES_WAITING // 2 and self._bytes <= BYTES_WAITING // 2:
            self.full_since = None

    def _go_on(self) -> None:
        if self.job is None or self.job.child is None or not self._open or self.job.ended:
            return
        supervisor = self._sessions.jobs.supervisor
        while self._waiting and len(self._sent) < MESSAGES_AHEAD:
            frame = self._waiting.popleft()
            self._bytes -= len(frame.data)
            self._sent.append(frame)
            try:
                supervisor.tell_peer_said(self.job, frame.data, is_text=frame.is_text)
            except (RegionError, OSError):  # no memory for it: a conversation with a gap is none
                self._sessions.end(self, "error:OutOfMemory")
                return
        if self._hung_up and not self._waiting:
            supervisor.tell_peer_left(self.job, self._hung_up)

    # --- the job speaks ---

    def answer(self, job: Job, outcome: Outcome, body: OutputBody) -> None:
        """Take the job's one answer: the session is over."""
        closed = outcome.kind is None and not isinstance(body, Output) and body == b"closed"
        release(body)
        self._sessions.over(self, self.reason or close_reason(outcome, closed=closed))

    def item(self, job: Job, body: OutputBody, content_type: str) -> None:
        """Send the peer a message."""
        data = bytes(body.view()) if isinstance(body, Output) else body
        release(body)
        if self.gone:
            return
        limit = self._sessions.frame_bytes
        if len(data) > limit:
            self._sessions.end(self, "frame_too_large")
            return
        is_text = content_type.startswith("text/")
        self._sessions.send(RealtimeFrame(session_id=self.session_id, data=data, is_text=is_text))

    def event(self, job: Job, event: Event) -> None:
        """Progress and log lines stay in the worker's log: a session has no place for them."""

    def rerun(self, job: Job) -> None:
        """It goes to another child: what the one before had not taken is said again."""
        self._open = False
        self._bytes += sum(len(frame.data) for frame in self._sent)
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()


class Sessions:
    """All sessions, by their ids."""

    def __init__(self, jobs: EarlierJobs, send: Callable[[Report], Any], *, frame_bytes: int) -> None:
        self.jobs = jobs
        self.send = send
        self.frame_bytes = sendable(frame_bytes)
        self._sessions: dict[str, Session] = {}
        jobs.others = lambda: len(self._sessions)
        jobs.supervisor.on_took = self._took

    def open(self, order: RealtimeOpenCommand) -> None:
        """Begin a session; one that cannot be is closed at once."""
        before = self._sessions.get(order.session_id)
        if before is not None:
            if before.gone:  # it still ends
                self._close(order.session_id, "worker_busy")
            return
        if len(order.session_id) > REQUEST_ID_CHARS:
            self._close(order.session_id, "session_id_too_long")
            return
        function = self.jobs.function_for(order.function_name)
        if isinstance(function, str) or not function.own.realtime:
            self._close(order.session_id, "unknown_function")
            return
        if unavailable := self.jobs.unavailable(function):
            self._close(
                order.session_id, unavailable.replace(" ", "_") if unavailable == "worker busy" else unavailable
            )
            return
        try:
            model_ids = self.jobs.required(order.required_models, function)
        except NotRequirableError as error:
            self.jobs.supervisor.log.event("warning", "link", f"session {order.session_id}: {error}")
            self._close(order.session_id, "unknown_model")
            return
        facts = self.jobs.facts(order.tenant_id, order.user_id, order.timeout_ms)
        session = self._sessions[order.session_id] = Session(self, order, function, facts, time.monotonic())
        if model_ids:
            session.wish = self.jobs.models.have(model_ids, partial(self._stocked, session))
        else:
            self._begin(session)

    def _stocked(self, session: Session, missing: Missing | None) -> None:
        """The models that a session requires are here, or one of them cannot be."""
        if missing is None:
            self._begin(session)
            return
        self.jobs.supervisor.log.event("warning", "link", f"session {session.session_id}: {missing.text}")
        self.end(session, "model_unavailable")

    def _begin(self, session: Session) -> None:
        order = session.order
        function = self.jobs.supervisor.fleet.functions[session.function.name]
        session.job = self.jobs.supervisor.submit(
            session,
            request_id=order.session_id,
            function=function,
            payload=InlinePayload(b"\x80"),  # an empty map: it has no payload
            encoding="msgpack",
            stream=True,
            remote=True,
            timeout_s=None if session.deadline is None else session.deadline - time.monotonic(),
            reruns=False,
            destination=self.jobs.destination(order, order.session_id),
            wire=True,
            tenant=order.tenant_id[:TENANT_CHARS],
            earlier=session.earlier,
        )

    def heard(self, frame: RealtimeFrame) -> None:
        """A peer said something; of a session that is over nobody hears it."""
        session = self._sessions.get(frame.session_id)
        if session is None or session.reason:
            return
        if len(frame.data) > self.frame_bytes:
            self.end(session, "frame_too_large")
        else:
            session.heard(frame, time.monotonic())

    def hang_up(self, order: RealtimeCloseCommand) -> None:
        """A peer is gone."""
        session = self._sessions.get(order.session_id)
        if session is not None and session.job is None:
            self.end(session, order.reason or "closed")
        elif session is not None:
            session.hang_up(order.reason)

    def disconnected(self) -> None:
        """The stream that the peers speak over is gone, and with it they are."""
        for session in list(self._sessions.values()):
            session.gone = True
            self.end(session, "disconnected")

    def tick(self) -> None:
        """End sessions whose handlers have taken nothing for too long, or that have waited too long for models."""
        now = time.monotonic()
        for session in list(self._sessions.values()):
            if session.job is None and session.deadline is not None and now > session.deadline:
                self.end(session, "error:deadline")
            elif session.job is None and self.jobs.supervisor.fleet.draining:
                self.end(session, "worker_busy")
            elif session.full_since is not None and now - session.full_since > STUCK_S and not session.reason:
                self.end(session, "error:HandlerTooSlow")

    @property
    def full(self) -> bool:
        """Whether some session has so much waiting that nothing more should be read."""
        return any(session.full_since is not None and not session.reason for session in self._sessions.values())

    def left(self, message: Report) -> None:
        """A message was written, or was dropped."""
        if isinstance(message, RealtimeFrame):
            session = self._sessions.get(message.session_id)
            if session is not None and session.job is not None:
                self.jobs.supervisor.more(session.job, 1)

    def end(self, session: Session, reason: str) -> None:
        """End a session for this reason."""
        session.reason = session.reason or reason
        if session.job is not None:
            if not session.job.ended:
                self.jobs.supervisor.end(session.job, Reason.CANCEL)
        elif self._sessions.get(session.session_id) is session:  # it waits for models
            if session.wish is not None:
                session.wish.give_up()
            self.over(session, session.reason)

    def over(self, session: Session, reason: str) -> None:
        """A session's job has ended."""
        self._sessions.pop(session.session_id, None)
        if not session.gone:
            self._close(session.session_id, reason)
        self.jobs.note_settled()

    def _close(self, session_id: str, reason: str) -> None:
        self.send(RealtimeCloseCommand(session_id=session_id, reason=reason))

    def _took(self, job: Job, messages: int) -> None:
        if isinstance(job.client, Session):
            job.client.took(messages)
