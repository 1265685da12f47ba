"""Sends the spans that a supervisor tells of: `python -m gen_worker.otlp --socket FD --supervisor PID`.

Where and how the standard `OTEL_*` variables say. The end of the socket is the end of the process, after what is left
was sent or some seconds have passed.
"""

import argparse
import os
import signal
import socket
from collections.abc import Mapping

from gen_worker.environment import close_memory
from gen_worker.oom_score import FETCHER, go_before

LAST_S = 5  # for what is left, once the supervisor has gone
SPOKEN = "http/protobuf"


def main() -> None:
    """Export until the supervisor closes the socket."""
    parser = argparse.ArgumentParser(prog="gen-worker otlp")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--supervisor", type=int, required=True)
    options = parser.parse_args()
    close_memory()  # children are of the same user, and a collector has a key
    go_before(options.supervisor, FETCHER)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to everybody; the supervisor decides
    with socket.socket(fileno=options.socket) as sock:
        _export(sock)


def _export(sock: socket.socket) -> None:
    import msgspec
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from gen_worker.otlp.spans import spans_of
    from gen_worker.otlp.taking import Taking
    from gen_worker.wire.spans import KEYS_LIMIT, SPAN_LIMIT, JobSpan

    os.environ.update(msgspec.msgpack.decode(sock.recv(KEYS_LIMIT), type=dict[str, str]))
    os.environ.setdefault("OTEL_SERVICE_NAME", "gen-worker")
    _tell_of_protocol(os.environ)
    try:
        resource = Resource.create()
        processor = BatchSpanProcessor(Taking(OTLPSpanExporter()))
    except ValueError as error:  # another start would find the same settings
        print(f"no spans are sent: the `OTEL_*` variables do not fit: {error}", flush=True)
        while sock.recv(SPAN_LIMIT):
            pass
        return
    decode = msgspec.msgpack.Decoder(JobSpan).decode
    while frame := sock.recv(SPAN_LIMIT):
        for span in spans_of(decode(frame), resource):
            processor.on_end(span)
    signal.alarm(LAST_S)
    processor.shutdown()  # type: ignore[no-untyped-call]


def _tell_of_protocol(environment: Mapping[str, str]) -> None:
    """Say that another protocol than the one that is spoken was asked for: it has another port."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    name = next((each for each in names if environment.get(each)), None)
    if name is not None and environment[name] != SPOKEN:
        print(f"spans are sent as `{SPOKEN}`, whatever `{name}` says: {environment[name]}", flush=True)


if __name__ == "__main__":
    main()
