"""One trace from run to task to request, in OpenTelemetry. Without an SDK set up, spans cost next to nothing and go nowhere.

Trace and parent ids follow from the run and task by name alone, so rooms that do not know each other end up in one trace.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, Tracer

from claudecluster.ports.gateway import Visitor

TRACER = trace.get_tracer("claudecluster.gateway")


def parent(run: str, task: str) -> Context | None:
    """Return the context that a task's spans belong under; None outside of runs."""
    if not run:
        return None
    trace_id = int.from_bytes(hashlib.blake2b(run.encode(), digest_size=16).digest())
    span_id = int.from_bytes(hashlib.blake2b(f"{run}/{task}".encode(), digest_size=8).digest())
    return trace.set_span_in_context(
        NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    )


@contextmanager
def request_span(visitor: Visitor, path: str, model: str, tracer: Tracer = TRACER) -> Iterator[Span]:
    """Span one request."""
    if tracer is TRACER and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield trace.INVALID_SPAN  # nobody has set up tracing
        return
    attributes: dict[str, str | int] = {
        "claudecluster.run": visitor.run,
        "claudecluster.task": visitor.task,
        "claudecluster.attempt": visitor.attempt,
        "gen_ai.request.model": model,
        "url.path": path,
    }
    with tracer.start_as_current_span("gateway.request", parent(visitor.run, visitor.task), SpanKind.SERVER, attributes) as span:
        yield span
