"""What a client and its supervisor say to each other: which frames to send, and what those that come mean.

Pure: takes packets and gives packets, and knows how every job and question stands. Has no socket and no clock, never
waits, and leaves outputs encoded: who asked for one decodes it. Not for several threads at once.
"""

from collections import deque
from collections.abc import Callable
from operator import index
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar
from weakref import ReferenceType, ref

import msgspec

from gen_worker.rundir import SupervisorUnreachable
from gen_worker.wire import control
from gen_worker.wire.attachments import Inbox, Outbox, Outgoing
from gen_worker.wire.channel import close_all
from gen_worker.wire.messages import FRAME_LIMIT, REQUEST_ID_CHARS, ErrorDetail, ErrorKind
from gen_worker.wire.regions import RegionError

Answer = TypeVar(
    "Answer",
    control.Opened,
    control.Canceled,
    control.Killed,
    control.Listed,
    control.Restarted,
    control.Quarantined,
    control.Pardoned,
    control.Lines,
    control.Drained,
    control.Stacked,
    control.Modeled,
)
Asked: TypeAlias = (
    control.Cancel
    | control.Kill
    | control.List
    | control.Read
    | control.Restart
    | control.Drain
    | control.Stack
    | control.Model
    | control.Quarantine
    | control.Pardon
)
_Answers: TypeAlias = (
    control.Opened
    | control.Canceled
    | control.Killed
    | control.Listed
    | control.Restarted
    | control.Quarantined
    | control.Pardoned
    | control.Lines
    | control.Drained
    | control.Stacked
    | control.Modeled
)

Packet: TypeAlias = tuple[bytes, tuple[int, ...]]  # a frame to send and the descriptors to attach, which stay ours

KEPT_EVENTS = 256  # of a job that nobody waits for; newer ones replace the oldest
UNTAKEN = 64  # ended jobs whose callers dropped them, before they are looked for
_UNREADABLE = (msgspec.MsgspecError, RegionError, RecursionError, ValueError, MemoryError)


class JobError(Exception):
    """A job ended badly or was refused; `kind` says how, `detail` what else is known."""

    def __init__(
        self, kind: ErrorKind, message: str, retryable: bool = False, detail: ErrorDetail | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retryable = retryable
        self.detail = detail

    @property
    def retry_after_s(self) -> float | None:
        """When it is worth another try, of what was refused because too much waits; None: nobody said."""
        return None if self.detail is None else self.detail.retry_after_s


class Event(NamedTuple):
    """Progress or a log line of a job."""

    kind: Literal["progress", "log"]
    value: dict[str, Any]


class Errand:
    """Something the supervisor was asked for, which somebody may wait for."""

    __slots__ = ("__weakref__", "error")

    def __init__(self) -> None:
        self.error: Exception | None = None

    def has_news(self) -> bool:
        """Whether who waits for it has something to do."""
        raise NotImplementedError


class Question(Errand, Generic[Answer]):
    """A question that has one answer."""

    __slots__ = ("about", "answer", "kind")

    def __init__(self, kind: type[Answer], about: str | None = None) -> None:
        super().__init__()
        self.kind: type[Answer] = kind
        self.about = about
        self.answer: Answer | None = None

    def has_news(self) -> bool:
        """Whether it was answered, or never will be."""
        return self.answer is not None or self.error is not None


class RemoteJob(Errand):
    """How a job stands: what came of it and was not taken yet, and how it ended."""

    __slots__ = ("attempt", "body", "came", "ended", "events", "items", "payload", "request_id", "unwanted", "yielded")

    def __init__(self, request_id: str, payload: Outgoing) -> None:
        super().__init__()
        self.request_id = request_id
        self.payload = payload
        self.items: deque[bytes | memoryview] = deque()
        self.events: deque[Event] | None = None
        self.came = 0  # items, whether taken or not
        self.ended = False
        self.unwanted = False
        self.attempt = 0  # that its end has to be acknowledged as; 0: not at all
        self.body: bytes | memoryview | None = None
        self.yielded: int | None = None  # how many items the end counts, of a stream

    def has_news(self) -> bool:
        """Whether it ended or has something to take."""
        return self.ended or bool(self.items) or bool(self.events)


class Documents(Errand):
    """A subscription to the status document: the latest that came and was not taken."""

    __slots__ = ("latest",)

    def __init__(self) -> None:
        super().__init__()
        self.latest: bytes | None = None

    def has_news(self) -> bool:
        """Whether there is one to take, or never will be."""
        return self.latest is not None or self.error is not None

    def take(self) -> bytes:
        """Return the latest one; raise what ended the subscription."""
        document, self.latest = self.latest, None
        if document is not None:
            return document
        assert self.error is not None
        raise self.error


class Conversation:
    """One connection, from `open` to its end.

    Send what `outgoing` has, in that order; give what comes to `heard`. Once `broken` is set nothing follows, and every
    job and question that was under way has ended with an error.
    """

    def __init__(self, client: str) -> None:
        self.outgoing: deque[Packet] = deque()
        self.outbox = Outbox()
        self.broken: SupervisorUnreachable | None = None
        self._inbox = Inbox()
        self._jobs: dict[str, RemoteJob] = {}
        self._untaken: dict[
            str, ReferenceType[RemoteJob]
        ] = {}  # ended, with a result that is still the supervisor's too
        self._tidy_at = UNTAKEN
        self._questions: list[Question[Any]] = []
        self._documents: Documents | None = None
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[memoryview], control.ServerFrame]
        self._decode = msgspec.msgpack.Decoder(control.ServerFrame).decode
        self.opening = Question(control.Opened)
        self._questions.append(self.opening)
        self._say(control.Open(control.CONTROL_PROTOCOL, client))

    # --- out ----------------------------------------------------------------------------------------------------------

    def submit(
        self,
        request_id: str,
        function: str,
        payload: Outgoing,
        *,
        stream: bool = False,
        events: bool = False,
        timeout_s: float | None = None,
        tenant: str = "",
        priority: int = 0,
        traceparent: str = "",
    ) -> RemoteJob:
        """Start a job, or attach to the one of this name. From here on `payload` is given back when the job ends.

        Raises `ValueError` for a name that is in use here, `JobError` for a request that cannot be sent.
        """
        self._check(request_id)
        timeout_ms = 0 if timeout_s is None else max(1, round(timeout_s * 1000))
        self._release()
        frame = control.Submit(
            request_id,
            function,
            payload.body,
            stream=stream,
            events=events,
            timeout_ms=timeout_ms,
            tenant=tenant,
            priority=index(priority),
            traceparent=traceparent,
        )
        self._say(frame, payload.descriptors)
        job = self._jobs[request_id] = RemoteJob(request_id, payload)
        if events:
            job.events = deque(maxlen=KEPT_EVENTS)
        return job

    def _check(self, request_id: str) -> None:
        if self.broken is not None:
            raise SupervisorUnreachable(str(self.broken), self.broken.hint)
        if len(request_id) > REQUEST_ID_CHARS:
            text = f"a `request_id` of {len(request_id)} characters, the limit is {REQUEST_ID_CHARS}"
            raise JobError("usage", text)
        if request_id in self._jobs:
            raise ValueError(f"`{request_id}` has not ended yet")
        untaken = self._untaken.get(request_id)
        if untaken is not None and untaken() is not None:
            raise ValueError(f"`{request_id}` has ended, and nobody has taken its `result()` yet")

    def ask(self, frame: Asked, kind: type[Answer]) -> Question[Answer]:
        """Ask what has one answer of this kind."""
        question = Question(kind, _about(frame))
        if self.broken is None:
            self._say(frame)
            self._questions.append(question)
        else:
            question.error = _again(self.broken)
        return question

    def watch(self, every_ms: int, jobs: int) -> Documents:
        """Subscribe to the status document; an earlier subscription ends, as there is but one."""
        documents = Documents()
        if self.broken is None:
            self._say(control.Watch(every_ms, jobs))
            self._documents = documents
        else:
            documents.error = _again(self.broken)
        return documents

    def watched(self, documents: Documents) -> None:
        """End a subscription, unless another one took its place."""
        if self._documents is documents:
            self._documents = None
            self._say(control.Watch(0))

    def more(self, job: RemoteJob, items: int) -> None:
        """Say that items were taken, so that others may follow."""
        if not job.ended:
            self._say(control.More(job.request_id, items))

    def taken(self, job: RemoteJob) -> None:
        """The caller has the end of a job: the supervisor may forget it."""
        if job.attempt:
            self._say(control.Ack(job.request_id, job.attempt))
        self.spoil(job)

    def spoil(self, job: RemoteJob) -> None:
        """The caller could not use the end of a job: it stays with the supervisor, for who asks for it again."""
        job.attempt = 0
        job.body = None
        self._untaken.pop(job.request_id, None)
        self._release()

    def abandon(self, job: RemoteJob) -> None:
        """Nobody wants what comes of a job any more: ask for its end, and take nothing that still comes."""
        if not job.ended:
            if not job.unwanted:
                self._say(control.Cancel(job.request_id))
        elif job.attempt:
            self._discard(job)
        job.unwanted = True
        job.items.clear()

    def _discard(self, job: RemoteJob) -> None:
        job.error = job.error or JobError("canceled", "this client gave the job up")
        self.taken(job)

    def _release(self) -> None:
        for region in self._inbox.released() if self._inbox.lent else ():
            self._say(control.Release(region))

    def _say(self, frame: control.ClientFrame, descriptors: tuple[int, ...] = ()) -> None:
        if self.broken is not None:
            return
        data = self._encode(frame)
        if len(data) > FRAME_LIMIT:
            name = type(frame).__name__.lower()
            raise JobError("usage", f"a `{name}` frame of {len(data)} bytes, the limit is {FRAME_LIMIT}")
        self.outgoing.append((data, descriptors))

    # --- in -----------------------------------------------------------------------------------------------------------

    def heard(self, data: memoryview, descriptors: list[int]) -> Errand | None:
        """Do what a packet says, and close its descriptors; return what has news by it.

        A packet that cannot be read breaks the conversation.
        """
        if self.broken is not None:
            close_all(descriptors)
            return None
        try:
            return self._heed(self._decode(data), descriptors)
        except _UNREADABLE as error:
            self.end(SupervisorUnreachable(f"the supervisor sent what cannot be read: {error}"))
            return None
        finally:
            close_all(descriptors)

    def _heed(self, frame: control.ServerFrame, descriptors: list[int]) -> Errand | None:
        match frame:
            case control.Accepted():
                return None
            case control.Result(request_id, attempt, body, yielded):
                content = self._inbox.open(body, descriptors)
                return self._end(request_id, attempt, content, None, yielded if body == b"" else None)
            case control.Item(request_id, body):
                return self._item(self._jobs.get(request_id), self._inbox.open(body, descriptors))
            case control.Event(request_id, kind, value):
                return self._event(self._jobs.get(request_id), kind, value)
            case control.Error(request_id, attempt):
                error = JobError(frame.kind, frame.message, frame.retryable, frame.detail)
                if not request_id and not attempt:
                    self.end(SupervisorUnreachable(f"the supervisor refuses this client: {error}"))
                    return None
                return self._end(request_id, attempt, None, error, None)
            case control.Listed(document):
                return self._answer(control.Listed(bytes(self._inbox.open(document, descriptors))))
            case control.Lines():
                frame.lines = bytes(self._inbox.open(frame.lines, descriptors))
                return self._answer(frame)
            case control.Seen(document):
                return self._seen(bytes(self._inbox.open(document, descriptors)))
            case control.Opened():
                return self._opened(frame)
            case _:
                return self._answer(frame)

    def _seen(self, document: bytes) -> Errand | None:
        if self._documents is not None:
            self._documents.latest = document
        return self._documents

    def _item(self, job: RemoteJob | None, content: bytes | memoryview) -> RemoteJob | None:
        if job is None:
            return None
        job.came += 1
        if not job.unwanted:
            job.items.append(content)
        return job

    def _event(self, job: RemoteJob | None, kind: Literal["progress", "log"], value: bytes) -> RemoteJob | None:
        if job is None or job.events is None:
            return None
        job.events.append(Event(kind, msgspec.json.decode(value, type=dict[str, Any])))
        return job

    def _end(
        self,
        request_id: str,
        attempt: int,
        content: bytes | memoryview | None,
        error: Exception | None,
        yielded: int | None,
    ) -> RemoteJob | None:
        job = self._jobs.pop(request_id, None)
        if job is None:
            return None
        self.outbox.recycle(job.payload)
        job.attempt, job.body, job.error, job.yielded = attempt, content, error, yielded
        job.ended = True
        if job.unwanted:
            self._discard(job)
        elif attempt:
            self._untaken[request_id] = ref(job)
            if len(self._untaken) > self._tidy_at:
                self._tidy()
        return job

    def _tidy(self) -> None:
        """Forget the jobs that nobody can take any more."""
        self._untaken = {name: untaken for name, untaken in self._untaken.items() if untaken() is not None}
        self._tidy_at = UNTAKEN + 2 * len(self._untaken)

    def _opened(self, opened: control.Opened) -> Errand | None:
        if opened.protocol == control.CONTROL_PROTOCOL:
            return self._answer(opened)
        from gen_worker import __version__  # it is looked up in the installed files, which takes its time

        theirs, ours = opened.protocol, control.CONTROL_PROTOCOL
        self.end(
            SupervisorUnreachable(
                f"the supervisor (gen-worker {opened.version}) speaks control protocol {theirs}, "
                f"this client (gen-worker {__version__}) speaks {ours}",
                f"use the client of gen-worker {opened.version}, or serve with gen-worker {__version__}",
            )
        )
        return None

    def _answer(self, answer: _Answers) -> Errand | None:
        about = _about(answer)
        for position, question in enumerate(self._questions):
            if isinstance(answer, question.kind) and question.about == about:
                question.answer = answer
                return self._questions.pop(position)
        return None

    # --- the end ------------------------------------------------------------------------------------------------------

    def end(self, error: SupervisorUnreachable) -> None:
        """Nothing follows: what is under way ends with this error, and all memory is given back."""
        if self.broken is not None:
            return
        self.broken = error
        self.outgoing.clear()
        for question in self._questions:
            question.error = _again(error)
        self._questions.clear()
        if self._documents is not None:
            self._documents.error = _again(error)
        for job in list(self._jobs.values()):
            self._end(job.request_id, 0, None, _again(error), None)
        self._inbox.close()
        self.outbox.close()


def _again(error: SupervisorUnreachable) -> SupervisorUnreachable:
    """Return the error anew: each who waits raises one of their own."""
    return SupervisorUnreachable(str(error), error.hint)


def _about(frame: Asked | _Answers) -> str | None:
    """Return what a question, or its answer, is about."""
    match frame:
        case control.Cancel() | control.Canceled() | control.Kill() | control.Killed():
            return frame.request_id
        case control.Restart() | control.Restarted() | control.Drain() | control.Drained():
            return frame.device
        case control.Stack() | control.Stacked():
            return frame.device
        case control.Model() | control.Modeled():
            return f"{frame.operation} {frame.ref}"
        case _:
            return None
