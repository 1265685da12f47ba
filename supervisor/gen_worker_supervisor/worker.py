"""A worker: a host whose jobs come from an orchestrator, from its first dial until it is drained.

It exits with 0 after a drain, with 1 when the orchestrator will never have it, or when no device can serve.
"""

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import NoReturn, TypeAlias

import msgspec

from gen_worker.discovery.image import difference
from gen_worker.environment import secret_values
from gen_worker.settings import Settings
from gen_worker.wire.status import LinkStatus
from gen_worker.wire.survey import Survey
from gen_worker_supervisor import start
from gen_worker_supervisor.core.actions import Note
from gen_worker_supervisor.earlier_link.dialing import Patience
from gen_worker_supervisor.earlier_link.registration import host_of
from gen_worker_supervisor.earlier_link.required import described_models
from gen_worker_supervisor.earlier_link.stream import EarlierLink
from gen_worker_supervisor.earlier_link.worker import EarlierWorker
from gen_worker_supervisor.host import Host, HostPlan
from gen_worker_supervisor.link.config import LinkConfig
from gen_worker_supervisor.link.redialing import LinkFatalError
from gen_worker_supervisor.link.renewals import Renewals
from gen_worker_supervisor.link.resources import resources
from gen_worker_supervisor.link.stream import Link
from gen_worker_supervisor.link.worker import Worker
from gen_worker_supervisor.logs.log import stderr_look

OK, FAILED = 0, 1
STOCK_S = 5.0  # for the fetcher to say what lies on the disk; a cache that takes longer is told of model by model
FLUSH_S = 30.0  # what results have to be written after the drain
HASTE_S = 2.0  # and then those of jobs whose outputs could not be stored
ONE_SIGNAL_S = 0.2  # a terminal or `timeout` may signal the process and its group: that is one wish


class WorkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker is to do, beside the settings."""

    module: str  # several with `,` between them
    paths: list[str]
    declared: tuple[str, ...] = ()  # the functions that a manifest promises; none: there is no manifest
    worker_id: str
    release_id: str = ""
    devices: str = "auto"
    devices_option: str = "GEN_WORKER_DEVICES"  # as it was written
    strict_gpus: bool = True  # a host without GPUs runs no GPU functions, unless its devices were named
    vram_budget_gb: float = 0.0  # 0: what the settings say
    fetching: bytes = b""  # an encoded `gen_worker.fetch.config.FetchConfig`, with the tokens


def work(options: WorkOptions, settings: Settings, environment: Mapping[str, str]) -> int:
    """Be a worker until it is drained; return the exit code.

    Raises `StartError` and `SettingsError` where it cannot start, `LinkFatalError` where no orchestrator will have it.
    """
    config = LinkConfig.of(settings)
    look = stderr_look(settings.log_format, settings.log_level, environment, secret_values(environment, settings))
    survey = start.survey_module(options.module, options.paths, environment)
    owned = start.own_devices(
        options.devices,
        survey,
        environment,
        serves=f"worker {options.worker_id} of {options.module}",
        option=options.devices_option,
        strict_gpus=options.strict_gpus,
    )
    with ExitStack() as ends:
        ends.enter_context(owned.locks)
        http = start.open_http(settings.http)
        if http is not None:
            ends.enter_context(http.sock)
        usable, broken = start.without_unusable(owned.devices, environment, owned.gpu_counts)
        plan = HostPlan(
            survey,
            usable,
            settings,
            environment,
            look,
            options.fetching,
            vram_budget_gb=options.vram_budget_gb,
            eager=True,
            patient=True,
            linger_s=0.0,
            http=http,
        )
        notices = [*owned.notices, *_notices(options, survey, broken)]
        with asyncio.Runner() as runner:
            return runner.run(_work(plan, options, config, notices))


def _notices(options: WorkOptions, survey: Survey, broken: Mapping[str, str]) -> list[Note]:
    """Return what is said when the worker begins: where it is less than was promised."""
    found = [Note("error", name, f"not used, CUDA cannot: {reason}") for name, reason in broken.items()]
    if options.declared and (
        differs := difference(options.declared, [each.name for each in survey.functions if not each.realtime])
    ):
        found.append(Note("warning", "manifest", f"{differs}: bake the manifest again"))
    return found


async def _work(plan: HostPlan, options: WorkOptions, config: LinkConfig, notices: list[Note]) -> int:
    service = _Service(plan, options, config, notices)
    try:
        return await service.run()
    finally:
        await service.close()


_Uplink: TypeAlias = tuple[Worker | EarlierWorker, Link | EarlierLink, Callable[[], None]]
"""A worker towards its orchestrator, the stream to it, and what has the first speak over the second."""


class _Service:
    """A host, its link, and the signals that end both."""

    def __init__(self, plan: HostPlan, options: WorkOptions, config: LinkConfig, notices: list[Note]) -> None:
        self._settings = plan.settings
        self._notices = notices
        self._host = Host(plan)
        self._loop = self._host.loop
        self._log = self._host.log
        self._supervisor = self._host.supervisor
        self._worker, self._link, self._begin = (
            self._to_earlier(plan, options, config)
            if plan.settings.speaks_earlier
            else self._to_orchestrator(plan, options, config)
        )
        self._linked: asyncio.Task[None] | None = None
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._forced: asyncio.Future[None] = self._loop.create_future()
        self._signaled_at: float | None = None
        self._has_begun = False

    def _to_orchestrator(self, plan: HostPlan, options: WorkOptions, config: LinkConfig) -> _Uplink:
        worker = Worker(
            self._supervisor,
            self._host.uploads,
            self._host.inputs,
            plan.settings,
            worker_id=options.worker_id,
            release_id=options.release_id,
            resources=lambda: resources(plan.owned, plan.survey.libraries, plan.settings),
            free_vram_bytes=self._host.gpu_watch.free_total,
            on_drain=self._drain,
        )
        link = Link(config, worker, self._log, self._loop)
        worker.jobs.renewals = Renewals(
            self._host.platform.renew,
            worker_token=lambda: str(link.token),
            warn=lambda text: self._log.event("warning", "link", text),
        )
        return worker, link, lambda: worker.start(link.send)

    def _to_earlier(self, plan: HostPlan, options: WorkOptions, config: LinkConfig) -> _Uplink:
        has_gpus = any(device.kind == "cuda" for device in plan.owned)
        host = host_of(plan.settings, options.worker_id, has_gpus=has_gpus)
        free = self._host.gpu_watch.free_total
        worker = EarlierWorker(
            self._supervisor,
            self._host.inputs,
            plan.settings,
            host,
            free_vram_bytes=free,
            described=described_models(plan.environment),
        )
        link = EarlierLink(config, Patience.of(plan.settings), worker, self._log, self._loop)
        return worker, link, lambda: worker.start(link.send)

    async def run(self) -> int:
        """Work until the end; return the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
            self._loop.add_signal_handler(signal.SIGHUP, self._on_signal)
        self._host.open()
        self._host.reporter.link = self._link_status
        self._has_begun = True
        for notice in self._notices:
            self._log.event(notice.level, notice.source, notice.message)
        self._linked = self._loop.create_task(self._link_up())
        self._begin()
        self._host.start()
        ended = (self._supervisor.status, self._linked, self._forced)
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        if self._forced.done():
            return FAILED
        if self._linked.done():
            self._link_ended()
        return await self._flushed(self._supervisor.status.result())

    async def _link_up(self) -> None:
        """Talk to the orchestrator, once it is known what lies on the disk, which the first `Hello` says."""
        known: asyncio.Future[None] = self._loop.create_future()
        self._worker.models.when_stocked(lambda: None if known.done() else known.set_result(None))
        await asyncio.wait((known,), timeout=STOCK_S)
        await self._link.run()

    def _link_ended(self) -> NoReturn:
        """The link goes on for ever, but for what no other try would mend."""
        assert self._linked is not None
        error = self._linked.exception()
        if isinstance(error, LinkFatalError):
            raise error
        raise AssertionError(f"the link ended by itself: {error!r}") from error

    async def _flushed(self, status: int) -> int:
        """Write the results that are left, then leave the orchestrator in order."""
        assert self._linked is not None
        self._worker.look_now()
        self._worker.jobs.on_settled = self._on_settled
        await self._settle(FLUSH_S)
        if not self._worker.jobs.settled:
            self._log.event("error", "link", f"some outputs were not stored or written within {FLUSH_S:.0f} s")
            self._worker.jobs.give_up()
            await self._settle(HASTE_S)
        if self._forced.done():
            return FAILED
        closing = self._loop.create_task(self._link.close(FLUSH_S))
        await asyncio.wait((closing, self._forced), return_when=asyncio.FIRST_COMPLETED)
        return status if self._worker.jobs.settled and not self._forced.done() else FAILED

    async def _settle(self, within_s: float) -> None:
        assert self._linked is not None
        if not self._worker.jobs.settled:
            waiting = (self._settled, self._forced, self._linked)
            await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)

    def _on_settled(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)

    def _link_status(self) -> LinkStatus:
        found = self._link.status()
        state = "connected" if found.connected else "connecting"
        rtt_ms = None if found.rtt_s is None else round(found.rtt_s * 1000, 1)
        return LinkStatus(state, found.address, rtt_ms, since_s=round(max(0.0, time.time() - found.since), 3))

    # --- its end ---

    def _drain(self, within_s: float | None) -> None:
        left = "as long as they take" if within_s is None else f"{within_s:g} s"
        self._log.say(f"draining: no more jobs are taken, running ones have {left}")
        self._supervisor.drain(within_s)
        self._worker.look_now()

    def _on_signal(self) -> None:
        """First signal: drain. Second: end at once."""
        now = self._loop.time()
        if self._signaled_at is None:
            self._signaled_at = now
            self._drain(self._settings.drain_timeout_s)
        elif now - self._signaled_at > ONE_SIGNAL_S and not self._forced.done():
            self._log.say("ending at once")
            self._forced.set_result(None)

    async def close(self) -> None:
        """Remove every trace: link, sockets, files, processes."""
        self._worker.close()
        if self._linked is not None and not self._linked.done():
            self._linked.cancel()
            with suppress(asyncio.CancelledError):
                await self._linked
        self._host.close("stopped" if self._has_begun else "")
