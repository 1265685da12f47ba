"""Models that a command has on this machine before it goes on: several at once, until a Ctrl-C."""

import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from gen_worker.cli.failure import CANCELED, NO_MODEL, Failure
from gen_worker.cli.interrupts import announce, interrupts
from gen_worker.cli.settings import check_folders
from gen_worker.cli.watching import Watch
from gen_worker.models.errors import ModelError
from gen_worker.models.wanted import Wanted

if TYPE_CHECKING:
    from gen_worker.fetch.cancel import Cancel
    from gen_worker.fetch.config import FetchConfig
    from gen_worker.fetch.fetcher import Fetched, Fetcher

Outcome: TypeAlias = "Fetched | ModelError"

_SILENCE_S = 1.0  # without a byte: then a person is told what is waited for
_LOOK_S = 0.25


@contextmanager
def fetched(wanted: Iterable[Wanted], config: "FetchConfig", watch: Watch) -> Iterator[Mapping[Wanted, Outcome]]:
    """Have models on this machine, or learn why they cannot be had; none of them is evicted before the body ends.

    Each is fetched once. The first Ctrl-C meanwhile ends in a `Failure` within 200 ms, what came so far is kept; a
    second one ends the process.
    """
    from gen_worker.fetch.cancel import Cancel
    from gen_worker.fetch.fetcher import Fetcher

    each_once = list(dict.fromkeys(wanted))
    cancel = Cancel()
    if each_once:
        check_folders(config)
        _make_folder(config)
    fetcher = Fetcher(config)
    outcomes: dict[Wanted, Outcome] = {}
    try:

        def ask() -> None:
            announce("canceling; press Ctrl-C again to end at once")
            cancel.set()

        with interrupts(ask, lambda: os._exit(CANCELED)):
            _fetch_all(each_once, fetcher, config.models_at_once, _Told(watch, _hosts(config)), cancel, outcomes)
        watch.hide()
        if cancel.is_set():
            raise Failure("canceled", "what came is kept: the next try goes on from there", code=CANCELED)
        yield {model: outcomes[model] for model in each_once}
    finally:
        for outcome in outcomes.values():
            if not isinstance(outcome, ModelError) and outcome.lease >= 0:
                os.close(outcome.lease)
        fetcher.close()


def _make_folder(config: "FetchConfig") -> None:
    """Make the folder of models; raise `Failure` where no folder can be, as in `/proc`.

    One that may only be read is no fault yet: the models may be here.
    """
    if config.offline:
        return
    try:
        os.makedirs(config.root, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            text = f"models cannot be kept in `{config.root}`: {(error.strerror or str(error)).lower()}"
            raise Failure(text, "set `TENSORHUB_CACHE_DIR` to another folder") from None


def failure_of(error: ModelError) -> Failure:
    """Return how a command ends that needs a model which cannot be had."""
    return Failure(str(error), error.hint, code=CANCELED if error.kind == "canceled" else NO_MODEL)


class _Told:
    """Lets several threads tell one watch, one after the other, and tells of models that nothing comes of."""

    def __init__(self, watch: Watch, hosts: Mapping[str, str]) -> None:
        self._watch = watch
        self._hosts = hosts
        self._lock = threading.Lock()
        self._silent: dict[Wanted, float] = {}  # since when, until something comes or that was told

    def started(self, wanted: Wanted) -> None:
        with self._lock:
            self._silent[wanted] = time.monotonic()
            self._watch.started(wanted)

    def progress(self, wanted: Wanted, bytes_done: int, bytes_total: int | None, retries: int) -> None:
        with self._lock:
            self._silent.pop(wanted, None)
            self._watch.progress(wanted, bytes_done, bytes_total, retries)

    def ended(self, wanted: Wanted, outcome: "Outcome") -> None:
        with self._lock:
            self._silent.pop(wanted, None)
            if isinstance(outcome, ModelError):
                self._watch.failed(wanted, outcome)
            else:
                self._watch.completed(wanted, outcome.snapshot, outcome.fetched_bytes)

    def look(self) -> None:
        """Tell of each model that nothing has come of for a while, once."""
        with self._lock:
            due = time.monotonic() - _SILENCE_S
            for wanted in [wanted for wanted, since in self._silent.items() if since <= due]:
                del self._silent[wanted]
                if wanted.provider in self._hosts:
                    self._watch.waiting(wanted, self._hosts[wanted.provider])


def _hosts(config: "FetchConfig") -> dict[str, str]:
    """Return who is asked for the models of each provider; nobody without a network."""
    if config.offline:
        return {}
    endpoints = {
        "hf": config.hf_endpoint,
        "civitai": config.civitai_endpoint,
        "modelscope": config.modelscope_endpoint,
        "tensorhub": config.cozy_hub_url,
    }
    return {provider: urlsplit(url).hostname or provider for provider, url in endpoints.items()}


def _fetch_all(
    wanted: list[Wanted],
    fetcher: "Fetcher",
    at_once: int,
    told: _Told,
    cancel: "Cancel",
    outcomes: dict[Wanted, Outcome],
) -> None:
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    def one(model: Wanted) -> None:
        outcomes[model] = _fetch(model, fetcher, told, cancel)

    with ThreadPoolExecutor(at_once, "gen-worker-model") as threads:
        results = [threads.submit(one, model) for model in wanted]
        try:
            left = set(results)
            while left and not any(result.done() and result.exception() for result in results):
                left = wait(results, timeout=_LOOK_S, return_when=FIRST_EXCEPTION).not_done
                told.look()
            for result in results:
                result.result()
        except BaseException:  # nobody reads what is told, say
            cancel.set()
            raise


def _fetch(wanted: Wanted, fetcher: "Fetcher", told: _Told, cancel: "Cancel") -> Outcome:
    """Fetch one model and tell how it goes."""

    def on_progress(bytes_done: int, bytes_total: int | None, retries: int) -> None:
        told.progress(wanted, bytes_done, bytes_total, retries)

    try:
        cancel.raise_if_set()
        told.started(wanted)
        outcome: Outcome = fetcher.fetch(wanted, on_progress=on_progress, cancel=cancel)
    except ModelError as error:
        outcome = error
    told.ended(wanted, outcome)
    return outcome
