"""A handler's place in a trace that its caller began."""

from gen_worker.api.context import RequestContext

__all__ = ["traceparent_of"]


def traceparent_of(ctx: RequestContext) -> str:
    """Return the job's span in a trace of its caller's, as W3C Trace Context writes it; empty without one.

    Send it as the header `traceparent` of what the handler asks of others.
    """
    return ctx._traceparent
