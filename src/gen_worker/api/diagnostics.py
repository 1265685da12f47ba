"""Facts for the platform's operators, from deep inside an endpoint where no context is at hand."""

import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

Listener: TypeAlias = Callable[[dict[str, object]], None]

_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Send what `emit_diagnostic_log` is given to this listener, which must not raise; None ends that."""
    global _listener
    _listener = listener


def emit_diagnostic_log(
    category: str,
    message: str = "",
    payload: Mapping[str, object] | None = None,
    *,
    severity: str = "info",
    endpoint_class: str = "",
    function_name: str = "",
    image_digest: str = "",
) -> bool:
    """Tell the operators something; return False, never raise, where no worker listens."""
    if _listener is None:
        return False
    _listener(
        {
            "category": category,
            "message": message,
            "payload": dict(payload or {}),
            "severity": severity,
            "endpoint_class": endpoint_class,
            "function_name": function_name,
            "image_digest": image_digest,
            "timestamp": time.time(),
        }
    )
    return True
