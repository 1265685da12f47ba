"""An endpoint whose jobs use the child's own socket to its supervisor, in every way they should not."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from gen_worker import RequestContext, endpoint
from gen_worker.wire.messages import (
    Call,
    Done,
    Event,
    Failed,
    Hello,
    Item,
    LoadFailed,
    Need,
    NeedsInputs,
    Ready,
    Region,
    Release,
    Returned,
    Save,
    Started,
    Took,
    Wants,
    Warned,
)


class Lie(msgspec.Struct):
    """What to send, and about which job."""

    how: str
    job: int = 0
    text: str = ""


class Text(msgspec.Struct):
    """A text."""

    text: str = ""


def channel() -> Any:
    """Return the channel to the supervisor, from the runtime's frames below this one."""
    frame = sys._getframe()
    while frame is not None:
        found = getattr(frame.f_locals.get("self"), "_channel", None)
        if found is not None:
            return found
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("no channel")


FRAMES: dict[str, Callable[["Lie"], object]] = {
    "result": lambda lie: Done(lie.job, b'{"text":"forged"}', 0.1),
    "end": lambda lie: Failed(lie.job, "invalid", "forged", False, 0.1),
    "item": lambda lie: Item(lie.job, b"{}"),
    "start": lambda lie: Started(lie.job),
    "return": lambda lie: Returned(lie.job),
    "region": lambda lie: Item(lie.job, Region(77, 10)),
    "event": lambda lie: Event(lie.job, "log", lie.text.encode()),
    "progress": lambda lie: Event(lie.job, "progress", lie.text.encode()),
    "need": lambda lie: Need(1 << 40),
    "negative": lambda lie: Need(-1),
    "save": lambda lie: Save(lie.job, 1, "../../escape", 3, b"abc"),
    "call": lambda lie: Call(lie.job, 1, "readmetadata", b"\xc1"),
    "took": lambda lie: Took(lie.job, 1 << 62),
    "wants": lambda lie: Wants(lie.job, "x", []),
    "inputs": lambda lie: NeedsInputs(lie.job, []),
    "hello": lambda lie: Hello(1),
    "ready": lambda lie: Ready([], {"device": 999, "loop": 999}, 1),
    "load": lambda lie: LoadFailed("", "forged", []),
}


def say(lie: Lie) -> None:
    """Send what was asked for."""
    link = channel()
    sock: socket.socket = link.sock
    if lie.how in FRAMES:
        link.send(FRAMES[lie.how](lie))
    elif lie.how == "rubbish":
        sock.send(lie.text.encode("latin-1"))
    elif lie.how == "long":
        sock.send(b"x" * 70_000)
    elif lie.how == "deep":
        sock.send(b"\x93\x01\x02" + b"\x91" * 60_000)
    elif lie.how == "number":
        sock.send(msgspec.msgpack.encode((link.generation, 10**6, Warned("out of turn"))))
    elif lie.how == "empty":
        sock.send(b"")
    elif lie.how == "closed":
        sock.shutdown(socket.SHUT_RDWR)
    elif lie.how == "descriptors":
        with open("/dev/null") as null:
            socket.send_fds(sock, [b"x"], [null.fileno()] * 20)


@endpoint
def forge(ctx: RequestContext, payload: Lie) -> Text:
    """Send it, and never come back."""
    say(payload)
    threading.Event().wait()
    return Text("unreachable")


@endpoint
def whisper(ctx: RequestContext, payload: Lie) -> Text:
    """Send descriptors and frames that harm nobody, and go on."""
    link = channel()
    with open("/dev/null") as null:
        for _ in range(50):
            link.send(Warned("with a file"), [null.fileno()])
            link.send(Release(12345), [null.fileno()] * 3)
    link.sock.send(msgspec.msgpack.encode((link.generation - 1, 0, Warned("of another age"))))
    return Text(str(os.getpid()))


@endpoint
def chatter(ctx: RequestContext, payload: Lie) -> Text:
    """Say a lot, as an author may."""
    ctx.progress(float("nan"), stage="\U0001f600" * 100_000)
    ctx.progress(float("inf"))
    ctx.log("\U0001f600\n\x00\ud800" * 50_000)
    return Text("said")


@endpoint
def shriek(ctx: RequestContext, payload: Lie) -> Text:
    """Die after long last words."""
    for _ in range(40):
        print("\U0001f600" * 4000, file=sys.stderr)
    os._exit(9)


@endpoint
def echo(ctx: RequestContext, payload: Text) -> Text:
    """Return the payload."""
    return payload


@endpoint
def hold(ctx: RequestContext, payload: Text) -> Text:
    """Wait until it is cancelled."""
    while True:
        ctx.raise_if_cancelled()
        time.sleep(0.005)


@endpoint
def whole(ctx: RequestContext, payload: Text) -> Text:
    """Return how long the text was."""
    return Text(str(len(payload.text)))
