"""Every check of the doctor, handed what it looks at."""

import resource
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gen_worker.doctor import (
    configuration,
    gpus,
    kernel,
    leftovers,
    limits,
    memory,
    needs,
    network,
    storage,
    system,
)
from gen_worker.doctor.examination import Check
from gen_worker.doctor.finding import Finding, problem, skipped
from gen_worker.doctor.gpu_probe import Driver, Gpu
from gen_worker.settings import Settings, SettingsError
from gen_worker.sources import default_cache_dir, default_run_dir

_ENDPOINT_LIMIT_S = 60.0


class Endpoint(NamedTuple):
    """The endpoint whose needs are looked at: its module, and where that is imported from."""

    module: str
    paths: list[str]


class Patient(NamedTuple):
    """A host as the doctor looks at it."""

    env: Mapping[str, str]
    settings: Settings
    settings_error: str = ""
    endpoint: Endpoint | None = None
    online: bool = False
    root: Path = Path("/")

    @classmethod
    def here(cls, env: Mapping[str, str], endpoint: Endpoint | None = None, *, online: bool = False) -> "Patient":
        """Return this host; with the defaults where the settings cannot be read."""
        try:
            return cls(env, Settings.load(env=env), "", endpoint, online)
        except SettingsError as error:
            settings = Settings(run_dir=default_run_dir(env), cache_dir=default_cache_dir(env))
            return cls(env, settings, str(error), endpoint, online)


def checks(patient: Patient) -> list[Check]:
    """Return every check that applies, in the order in which it is told."""
    driver = _Driver()
    return [
        *_of_system(patient),
        *_of_limits(patient.root),
        *_of_memory(patient),
        *_of_gpus(patient, driver),
        *_of_storage(patient),
        *_of_worker(patient),
        *_of_network(patient),
        *(_of_endpoint(patient.endpoint, patient, driver) if patient.endpoint is not None else ()),
    ]


def _of_system(patient: Patient) -> list[Check]:
    env = patient.env

    def installation() -> Finding:
        import gen_worker

        command = system.command_on(env.get("PATH"))
        return system.installation(gen_worker.__version__, system.packaged_version(), command, sys.executable)

    def encoding() -> Finding:
        return system.encoding(sys.getfilesystemencoding(), sys.stdout.encoding or "", system.locale_of(env))

    return [
        Check("system", "platform", lambda: system.platform(system.this_platform())),
        Check("system", "system-calls", kernel.kernel, kernel.LIMIT_S + 2.0, tuple(kernel.NEEDED_FOR)),
        Check("system", "privileges", lambda: limits.privileges(patient.root)),
        Check("system", "clock", lambda: system.clock(time.time(), system.written_at(Path(__file__)))),
        Check("system", "encoding", encoding),
        Check("system", "installation", installation),
        Check("system", "bytecode", lambda: system.bytecode(*system.own_sources())),
    ]


def _of_limits(root: Path) -> list[Check]:
    pattern = root / "proc/sys/kernel/core_pattern"
    return [
        Check("limits", "open-files", lambda: limits.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))),
        Check("limits", "processes", lambda: limits.processes(resource.getrlimit(resource.RLIMIT_NPROC)[1], root)),
        Check(
            "limits",
            "core-files",
            lambda: limits.core_files(
                resource.getrlimit(resource.RLIMIT_CORE)[0],
                pattern.read_text().strip() if pattern.exists() else "core",
            ),
        ),
        Check("limits", "first-process", lambda: limits.first_process(root)),
    ]


def _of_memory(patient: Patient) -> list[Check]:
    root, shm = patient.root, patient.root / "dev/shm"
    return [
        Check("memory", "memory", lambda: memory.memory(root)),
        Check("memory", "memory-kills", lambda: memory.killing(root, patient.settings.memory_reserve_bytes)),
        Check("memory", "oom-order", lambda: limits.victims(root)),
        Check("memory", "swap", lambda: memory.swap(root)),
        Check("memory", "overcommit", lambda: memory.overcommit(root)),
        Check(
            "memory", "dev-shm", lambda: memory.shared_memory(shutil.disk_usage(shm).total if shm.exists() else None)
        ),
    ]


def _of_gpus(patient: Patient, driver: "_Driver") -> list[Check]:
    env = patient.env

    def each() -> list[Finding]:
        seen = driver.seen()
        return [found for gpu in seen.gpus for found in gpus.about_gpu(gpu, gpus.holder_of(gpu.uuid))]

    def contexts() -> list[Finding]:
        free = [gpu for gpu in driver.seen().gpus if _is_free(gpu)]
        return list(gpus.usable(free, env))

    def torch() -> Finding:
        folder = gpus.torch_folder()
        return gpus.about_torch(gpus.torch_build(folder) if folder is not None else None, driver.seen())

    def code() -> list[Finding]:
        seen, folder = driver.seen(), gpus.torch_folder()
        build = gpus.torch_build(folder) if folder is not None else None
        return [gpus.torch_on_gpus(seen.gpus)] if seen.gpus and build is not None and build.cuda else []

    asked = gpus.DRIVER_LIMIT_S + 5.0
    return [
        Check("gpus", "driver", lambda: gpus.about_driver(driver.seen(), patient.root), asked),
        Check("gpus", "gpus", each, asked, ("cuda:*",)),
        Check("gpus", "devices", lambda: gpus.about_devices(driver.seen()), asked),
        Check("gpus", "contexts", contexts, asked + gpus.CONTEXT_LIMIT_S + 5.0),
        Check("gpus", "torch", torch, asked),
        Check("gpus", "torch-gpus", code, asked + gpus.TORCH_LIMIT_S),
        Check(
            "gpus",
            "nvml-binding",
            lambda: gpus.binding(system.packaged_version("nvidia-ml-py"), system.packaged_version("pynvml")),
        ),
    ]


def _is_free(gpu: Gpu) -> bool:
    """Whether a context can be tried on a GPU: one that a supervisor has may be exclusive, and is in use anyhow."""
    return not (gpu.error or gpu.mig or gpus.holder_of(gpu.uuid))


def _of_storage(patient: Patient) -> list[Check]:
    settings = patient.settings
    hub = Path(settings.hf_home) / "hub" if settings.hf_home else settings.cache_dir / "hub"
    return [
        Check("disk", "cache", lambda: storage.cache(settings.cache_dir)),
        Check("disk", "hub-cache", lambda: storage.hub_cache(hub, settings.cache_dir)),
        Check("disk", "lower-caches", lambda: storage.lower_caches(settings.lower_caches)),
        Check("disk", "temporary", lambda: storage.temporary(storage.temporary_in(patient.env))),
    ]


def _of_worker(patient: Patient) -> list[Check]:
    settings = patient.settings
    return [
        Check("worker", "settings", lambda: configuration.settings(patient.settings_error, settings.warnings)),
        Check("worker", "tokens", lambda: configuration.tokens(settings), tells=("token",)),
        Check("worker", "run-dir", lambda: storage.run_dir(settings.run_dir)),
        Check("worker", "supervisors", lambda: leftovers.supervisors(settings.run_dir), 10.0),
        Check("worker", "leftovers", lambda: leftovers.leftovers(settings.run_dir), 10.0),
        Check("worker", "orphans", lambda: limits.orphans(patient.root)),
    ]


def _of_network(patient: Patient) -> list[Check]:
    settings, patience = patient.settings, network.ANSWER_S + 5.0
    reached = len(settings.orchestrators) * network.CONNECT_S + 2.0
    found = [
        Check("network", "authorities", lambda: network.authorities(settings.ca_bundle)),
        Check("network", "orchestrator", lambda: network.orchestrator(settings.orchestrators), reached),
    ]
    hubs = {"hugging-face": settings.hf_endpoint, "hub": settings.cozy_hub_url} if patient.online else {}
    for name, url in hubs.items():
        if settings.offline:
            found.append(Check("network", name, partial(skipped, name, "`GEN_WORKER_OFFLINE` is set")))
        elif url:
            found.append(_hub(name, url, settings.ca_bundle, patience))
    return found


def _hub(name: str, url: str, ca_bundle: str, patience: float) -> Check:
    return Check("network", name, lambda: network.hub(name, url, ca_bundle, time.time()), patience, ("clock-offset",))


def _of_endpoint(endpoint: Endpoint, patient: Patient, driver: "_Driver") -> list[Check]:
    def look() -> list[Finding]:
        from gen_worker.discovery.errors import DiscoveryError
        from gen_worker.discovery.process import survey_of_module
        from gen_worker.fetch.cache.store import Store
        from gen_worker.fetch.config import FetchConfig

        try:
            survey = survey_of_module(endpoint.module, endpoint.paths)
        except DiscoveryError as error:
            return [problem("module", error.message, error.hint)]
        config = FetchConfig.of(patient.settings)
        here = {ref for listed in Store(config).listed() for ref in listed.refs}
        free = shutil.disk_usage(storage.existing(patient.settings.cache_dir)).free
        return [
            *needs.devices(survey, driver.seen().gpus),
            *needs.models(survey, here, free, offline=patient.settings.offline),
        ]

    stuck = f"importing `{endpoint.module}` takes too long: what is slow belongs into `setup()`"
    return [Check("endpoint", "endpoint", look, _ENDPOINT_LIMIT_S, ("module", "functions", "models"), stuck)]


class _Driver:
    """What the driver says, asked once whoever asks first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: Driver | None = None

    def seen(self) -> Driver:
        """Return it; blocks while the driver is asked."""
        with self._lock:
            if self._seen is None:
                self._seen = gpus.driver()
            return self._seen
