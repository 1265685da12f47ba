"""A collector of OpenTelemetry's spans on loopback, as `http/protobuf` speaks to it."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Collector:
    """What came, and where it listens."""

    url: str
    spans: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    tries: int = 0

    def named(self, name: str) -> list[Any]:
        """Return the spans of a name."""
        return [span for span in self.spans if span.name == name]

    def below(self, span: Any) -> dict[str, Any]:
        """Return the spans whose parent is this one, by name."""
        return {each.name: each for each in self.spans if each.parent_span_id == span.span_id}


def attributes(span: Any) -> dict[str, Any]:
    """Return what a span, or a resource, says of itself."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Listen until the body ends."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.tries += 1
            if collector.status == 200:
                self.take(body)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def take(self, body: bytes) -> None:
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                collector.resources.append(attributes(resource.resource))
                for scope in resource.scope_spans:
                    collector.spans.extend(scope.spans)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
