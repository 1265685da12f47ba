"""Says once that a collector does not take spans, and once that it takes them again."""

import logging
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

LOST = "spans do not reach the collector, and are dropped after some tries"
TAKEN = "spans reach the collector again"
TRIES = "opentelemetry.exporter"  # the loggers that tell of each try


class Taking(SpanExporter):
    """Exports with another exporter; of the troubles that this logs the first is printed, until a batch gets through.

    It has the loggers of exporters for itself, so there is one in a process.
    """

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._told = False
        logger = logging.getLogger(TRIES)
        logger.handlers = [_Handler(self)]
        logger.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, and return whether the collector has it."""
        result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.complain("")
        elif self._told:
            self._told = False
            print(TAKEN, flush=True)
        return result

    def shutdown(self) -> None:
        """Try no more."""
        self._inner.shutdown()

    def complain(self, why: str) -> None:
        """Say that spans do not get through, where that has not been said yet."""
        if not self._told:
            self._told = True
            print(f"{LOST}: {why}" if why else LOST, flush=True)


def reason_of(record: logging.LogRecord) -> str:
    """Return why a try failed, without the collector's URL: there may be a key in its query. Pure."""
    errors = [each for each in record.args or () if isinstance(each, Exception)]
    if not errors:
        return record.getMessage()
    error = errors[0]
    while isinstance(inner := getattr(error, "reason", None) or next(iter(error.args), None), Exception):
        error = inner  # each that wraps another one has more of the request in its text
    before, _, after = str(error).partition("): ")  # `HTTPConnection(host='…', port=…): `
    return after or before


class _Handler(logging.Handler):
    def __init__(self, exporter: Taking) -> None:
        super().__init__(logging.WARNING)
        self._exporter = exporter

    def emit(self, record: logging.LogRecord) -> None:
        self._exporter.complain(reason_of(record))
