"""The platform of a producer that runs in this process, asked by the code of the fetcher."""

import os
from contextlib import suppress

from gen_worker.api.platform import failure_of
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.fetch.platform.calls import Calls
from gen_worker.fetch.platform.failure import PlatformError
from gen_worker.wire.fetching import Destination
from gen_worker.wire.platform import Answer, Verb


class LocalPlatform:
    """Asks a platform; what comes with answers is kept until `close`. `cancel` ends every wait."""

    def __init__(self, config: FetchConfig, to: Destination) -> None:
        self._calls = Calls(Fetcher(config))
        self._to = to
        self._held: list[int] = []
        self.cancel = Cancel()

    def call(self, verb: Verb[Answer], file: int | None = None) -> Answer:
        """Return the answer; as `gen_worker.api.platform.Platform`."""
        try:
            answered = self._calls.call(self._to, verb, file, self.cancel)  # type: ignore[arg-type]
        except PlatformError as error:
            raise failure_of(error.kind, str(error), retryable=error.retryable, status=error.status) from None
        if answered.lease >= 0:
            self._held.append(answered.lease)
        value: Answer = answered.value  # type: ignore[assignment]
        return value

    def close(self) -> None:
        """Give up what was begun and not finished, and let go of what came with answers."""
        self._calls.end(self._to)
        held, self._held = self._held, []
        for descriptor in held:
            with suppress(OSError):
                os.close(descriptor)
