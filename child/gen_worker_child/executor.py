"""Set up the author's classes and call the author's handlers, whatever their shape.

Knows nothing of frames, sockets or processes: `gen-worker run` uses it in its own process, a child in its own.
"""

import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from gen_worker.api.clamping import clamping_of
from gen_worker.api.context import RequestContext
from gen_worker.api.errors import FatalError
from gen_worker.api.overrides import named_models, overridden, takes_overrides, without_models
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.earlier.refs import refuse_others
from gen_worker.wire.messages import EarlierRun, Encoding, Resident, SlotModel
from gen_worker_child.checks import OnItem, Stream, all_checked, checked
from gen_worker_child.inputs import InputFiles
from gen_worker_child.instances import Instances

if TYPE_CHECKING:
    import asyncio

    from gen_worker.api.bindings import Binding
    from gen_worker_child.loop import Aside, LoopCall, LoopThread
    from gen_worker_child.models.plane import Models
    from gen_worker_child.realtime import Session


class Executor:
    """The author's functions, ready to be called. One blocking call at a time; `run_on_loop` any number at once."""

    def __init__(self, specs: Sequence[FunctionSpec], open_models: "Callable[[], Models] | None" = None) -> None:
        self.instances = Instances(specs, self._call_hook, open_models)
        self.current: RequestContext | None = None
        """The context of the sync handler that runs."""

        self.hand_over: Callable[[Callable[[], None]], None] = lambda call: call()
        """Has the thread that loads make a call, for jobs that were begun with `run_on_loop`."""

        self.specs = {spec.name: spec for spec in specs}
        self._streams = {spec.name: Stream(spec) for spec in specs}
        self._making = threading.Lock()
        self._async_side: LoopThread | None = None
        self._turning = False
        self._decoders: dict[tuple[str, Encoding], Callable[[bytes | memoryview], msgspec.Struct]] = {}
        self._encoders: dict[Encoding, Callable[[Any], bytes]] = {
            "json": msgspec.json.Encoder().encode,
            "msgpack": msgspec.msgpack.Encoder().encode,
        }
        self.inputs = InputFiles()
        """The files of payloads while their jobs run."""

        self._blocking: LoopCall | None = None

    @property
    def async_side(self) -> "LoopThread":
        """Where async handlers run; made by whichever thread asks first."""
        with self._making:
            if self._async_side is None:
                from gen_worker_child.loop import LoopThread  # brings asyncio, which no sync handler needs

                self._async_side = LoopThread()
            return self._async_side

    @property
    def loop(self) -> "asyncio.AbstractEventLoop | None":
        """The loop of async handlers, once there is one."""
        return None if self._async_side is None else self._async_side.loop

    def turn(self, call: Callable[[], None]) -> None:
        """Have the loop make a call at its next turn, if there is a loop; not again before it has made the last one."""
        side = self._async_side
        if side is not None and not self._turning:
            self._turning = True
            with suppress(RuntimeError):  # it is closed
                side.loop.call_soon_threadsafe(self._turned, call)

    def _turned(self, call: Callable[[], None]) -> None:
        self._turning = False
        call()

    def load(self, instance: str, models: Sequence[SlotModel] = ()) -> list[Resident]:
        """Make the instance, give it its models, run its `setup()` and `warmup()`; return what it holds then.

        Raises what the author's code raises, and `ModelError` for a model that cannot be loaded.
        """
        return self.instances.load(instance, models)

    def _call_hook(self, instance: object, name: str, arguments: Mapping[str, object]) -> None:
        hook = getattr(instance, name, None)
        if hook is None:
            return
        outcome = hook(**arguments)
        if inspect.iscoroutine(outcome):
            self.async_side.start(lambda _: outcome).wait()

    def _wait(self, work: "Callable[[Aside], Coroutine[Any, Any, Any]]", ctx: RequestContext) -> Any:
        self._blocking = self.async_side.start(work)
        if ctx.cancelled:  # asked while there was nothing to cancel yet, although it has begun
            self.cancel()
        try:
            return self._blocking.wait()
        finally:
            self._blocking = None

    def cancel(self) -> None:
        """Cancel the async handler that `run` waits for, if any; a sync one has only its context's flag."""
        blocking = self._blocking
        if blocking is not None:
            blocking.cancel()

    def decode(self, spec: FunctionSpec, body: bytes | memoryview, encoding: Encoding) -> msgspec.Struct:
        """Decode a payload straight into the author's type, its numbers brought into the ranges of their Clamps.

        Raises `msgspec.ValidationError` naming the path, for models that the payload may not name too.
        """
        decode = self._decoders.get((spec.name, encoding))
        if decode is None:
            decode = self._decoders[spec.name, encoding] = _decoder(spec, encoding)
        return decode(body)

    def models_of(
        self, spec: FunctionSpec, body: bytes | memoryview, encoding: Encoding, run: EarlierRun | None = None
    ) -> "dict[str, Binding]":
        """Return the model in each slot for this payload; raise `msgspec.ValidationError` as `decode`.

        `run` is what the earlier wire says of the job.
        """
        if spec.earlier is not None:
            payload = self.decode(spec, body, encoding) if spec.earlier.asks else None
            return spec.earlier.bindings(spec.earlier.ids(payload, run))
        named = named_models(body, encoding) if takes_overrides(spec.payload_type, spec.bindings) else msgspec.UNSET
        chosen = overridden(spec.bindings, named)
        if run is not None and chosen != spec.bindings:
            refuse_others(run.model_ids, {slot: each for slot, each in chosen.items() if each != spec.bindings[slot]})
        return chosen

    def encode(self, value: Any, encoding: Encoding) -> bytes:
        """Encode an output or a stream item."""
        return self._encoders[encoding](value)

    def run(
        self, spec: FunctionSpec, ctx: RequestContext, payload: msgspec.Struct, on_item: OnItem, instance: str = ""
    ) -> Any:
        """Call the handler and wait for it; return its output, None for a stream; raise what the author raises.

        `instance` is what it is called on, where that is not the function's own. A sync handler runs in the calling
        thread. An awaitable that `on_item` returns is for async generators only.
        """
        if spec.batch is not None:
            return _raised(self.run_batch(spec, [ctx], [payload], instance)[0])
        instance = instance or spec.instance
        if spec.shape not in ("sync", "generator"):
            with self.instances.lease(instance):
                return self._wait(lambda aside: self.run_on_loop(spec, ctx, payload, on_item, instance, aside), ctx)
        self.current = ctx
        if spec.shape == "sync" and not instance and spec.earlier is None:  # nothing is set up for it: the shortest way
            try:
                with self.inputs.of(payload):
                    return checked(spec, spec.function(ctx, payload))
            finally:
                self.current = None
        try:
            with self.inputs.of(payload), self.instances.lease(instance):
                made = self.instances.call(spec, instance, ctx, payload)
                if spec.shape != "generator":
                    return checked(spec, made)
                self._streams[spec.name].pump(made, on_item, ctx)
                return None
        finally:
            self.current = None

    def run_batch(
        self, spec: FunctionSpec, contexts: Sequence[RequestContext], payloads: list[msgspec.Struct], instance: str = ""
    ) -> list[Any]:
        """Call the handler of a batch and wait for it; return an output, or an exception, for each payload.

        Raises what the author raises.
        """
        from gen_worker.api.batch_context import BatchContext

        instance = instance or spec.instance
        ctx = BatchContext(contexts)
        with ExitStack() as held:
            for payload in payloads:
                held.enter_context(self.inputs.of(payload))
            held.enter_context(self.instances.lease(instance))
            if spec.shape == "async":
                made = self._wait(lambda aside: self._batch_on_loop(spec, ctx, payloads, instance, aside), ctx)
                return all_checked(spec, made, len(payloads))
            self.current = ctx
            try:
                return all_checked(spec, self.instances.call(spec, instance, ctx, payloads), len(payloads))
            finally:
                self.current = None

    async def _batch_on_loop(
        self, spec: FunctionSpec, ctx: RequestContext, payloads: list[msgspec.Struct], instance: str, aside: "Aside"
    ) -> Any:
        try:
            return await self.instances.call(spec, instance, ctx, payloads, aside)
        except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and with it every other job on it
            raise FatalError(f"the handler raised {type(error).__name__}: {error}") from error

    async def run_on_loop(
        self,
        spec: FunctionSpec,
        ctx: RequestContext,
        payload: msgspec.Struct,
        on_item: OnItem,
        instance: str = "",
        aside: "Aside | None" = None,
    ) -> Any:
        """Call an async handler on the loop this runs on, whose instance is leased; as `run` otherwise.

        Room on the device is made `aside`, which is `hand_over` where nobody waits for this.
        """
        ctx.raise_if_cancelled("canceled")
        try:
            with self.inputs.of(payload):
                made = self.instances.call(spec, instance or spec.instance, ctx, payload, aside or self._aside)
                if spec.shape == "async":
                    return checked(spec, await made)
                await self._streams[spec.name].pump_async(made, on_item, ctx)
        except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and with it every other job on it
            raise FatalError(f"the handler raised {type(error).__name__}: {error}") from error
        return None

    def converse(self, spec: FunctionSpec, ctx: RequestContext, session: "Session", instance: str = "") -> bytes:
        """Have a realtime handler speak with its peer, and wait for its end; as `converse_on_loop` otherwise."""
        with self.instances.lease(instance or spec.instance):
            return bytes(self._wait(lambda aside: self.converse_on_loop(spec, ctx, session, instance, aside), ctx))

    async def converse_on_loop(
        self,
        spec: FunctionSpec,
        ctx: RequestContext,
        session: "Session",
        instance: str = "",
        aside: "Aside | None" = None,
    ) -> bytes:
        """Have a realtime handler speak with its peer; return `closed` where it closed the session itself.

        Raises what the author raises.
        """
        try:
            await self.instances.call(spec, instance or spec.instance, ctx, session, aside or self._aside)
        except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and with it every other job on it
            raise FatalError(f"the handler raised {type(error).__name__}: {error}") from error
        return b"closed" if session.closed else b""

    async def _aside(self, call: Callable[[], None]) -> None:
        from gen_worker_child.loop import done_by

        await done_by(self.hand_over, call)

    def leave(self, status: int) -> NoReturn:
        """End the process at once; of the author's code nothing more runs, but no input file stays."""
        self.inputs.close()
        os._exit(status)

    def shutdown(self, on_error: Callable[[Exception], None]) -> None:
        """Call every instance's `shutdown()`; an exception there goes to `on_error` and stops nothing."""
        self.instances.shutdown(on_error)
        if self._async_side is not None:
            self._async_side.close()
            self._async_side = None
        self.inputs.close()


def _decoder(spec: FunctionSpec, encoding: Encoding) -> Callable[[bytes | memoryview], msgspec.Struct]:
    kind = msgspec.json.Decoder if encoding == "json" else msgspec.msgpack.Decoder
    decode: Callable[[bytes | memoryview], msgspec.Struct] = kind(spec.payload_type).decode
    clamping = clamping_of(spec.payload_type)
    clamped = decode if clamping is None else lambda body: clamping(decode(body))
    if spec.earlier is not None or not takes_overrides(spec.payload_type, spec.bindings):
        return clamped
    strict = spec.payload_type.__struct_config__.forbid_unknown_fields

    def with_models(body: bytes | memoryview) -> msgspec.Struct:
        named = named_models(body, encoding)
        overridden(spec.bindings, named)
        return clamped(without_models(body, encoding) if strict and named is not msgspec.UNSET else body)

    return with_models


def _raised(output: Any) -> Any:
    if isinstance(output, Exception):
        raise output
    return output
