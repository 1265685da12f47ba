"""Files that a payload names by URLs, for a job in this process: here before it runs, gone when it has ended."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from gen_worker.cli.failure import CANCELED, USAGE, USER_CODE, Failure
from gen_worker.cli.interrupts import announce, interrupts
from gen_worker.settings import Settings
from gen_worker.terminal import printable
from gen_worker.wire.messages import InputAsset, InputFile

if TYPE_CHECKING:
    from gen_worker.fetch.config import FetchConfig
    from gen_worker.fetch.inputs.fetch import InputError
    from gen_worker_child.inputs import InputFiles

AT_ONCE = 4
SILENCE_S = 1.0  # then a person is told what is waited for


@contextmanager
def with_inputs(
    payload: msgspec.Struct, files: "InputFiles", settings: Settings, config: "FetchConfig"
) -> Iterator[None]:
    """Have the files that a payload names while the body runs; raise `Failure` when one of them cannot be had.

    The first Ctrl-C meanwhile ends in a `Failure`, a second one ends the process. Closes `files` in the end.
    """
    from gen_worker_child.inputs import filled, needed

    try:
        assets = needed(payload)
    except ValueError as error:
        raise Failure(f"the payload cannot be used: {error}") from None
    if not assets:
        yield
        return
    try:
        folder = files.folder()
        try:
            with filled(payload, _fetched(assets, folder, settings, config)):
                yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        files.close()


def _fetched(assets: Sequence[InputAsset], folder: Path, settings: Settings, config: "FetchConfig") -> list[InputFile]:
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    from gen_worker.fetch.cancel import Cancel
    from gen_worker.fetch.inputs.fetch import InputError, Limits, fetch_input

    cancel = Cancel()
    limits = Limits(max_bytes=settings.max_input_file_bytes, allow_private=settings.allow_private_inputs)

    def one(number: int) -> InputFile:
        return fetch_input(assets[number], str(folder / f"input-{number}"), limits, config, cancel)

    def ask() -> None:
        announce("canceling; press Ctrl-C again to end at once")
        cancel.set()

    with interrupts(ask, lambda: os._exit(CANCELED)), ThreadPoolExecutor(AT_ONCE, "gen-worker-input") as threads:
        works = [threads.submit(one, number) for number in range(len(assets))]
        try:
            if wait(works, timeout=SILENCE_S, return_when=FIRST_EXCEPTION).not_done:
                announce(f"fetching the payload's files from {_hosts(assets)}")
            ended, _ = wait(works, return_when=FIRST_EXCEPTION)
            failed = next((error for work in ended if (error := work.exception()) is not None), None)
            if failed is not None:
                raise failed
            return [work.result() for work in works]
        except InputError as error:
            raise _failure(error) from None
        finally:
            cancel.set()  # of what is under way beside one that failed


def _hosts(assets: Sequence[InputAsset]) -> str:
    """Return who is asked for the files."""
    found = dict.fromkeys(urlsplit(asset.url).hostname or "elsewhere" for asset in assets)
    return ", ".join(f"`{printable(host)}`" for host in found)


def _failure(error: "InputError") -> Failure:
    if error.kind == "canceled":
        return Failure("canceled", code=CANCELED)
    return Failure(str(error), error.hint, code=USAGE if error.kind == "invalid" else USER_CODE)
