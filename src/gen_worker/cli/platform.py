"""The platform of a producer that runs in this process, asked by the code of the fetcher."""

import os
from contextlib import suppress

from gen_worker.api.platform import failure_of
from gen_worker.cli.failure import Failure
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.fetch.platform.calls import Calls
from gen_worker.fetch.platform.failure import PlatformError
from gen_worker.settings import Settings
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


def local_destination(settings: Settings, request_id: str, *, publishes: bool) -> Destination:
    """Return where a producer publishes from here: nowhere, or with `publishes` what the settings name.

    Raises `Failure` where they name no platform, or no token for it.
    """
    if not publishes:
        return Destination("", "", request_id, 1)
    url, token = settings.cozy_hub_url or settings.tensorhub_public_url, settings.cozy_hub_token
    if not url or not token:
        lacks = "`COZY_HUB_URL`" if not url else "`COZY_HUB_TOKEN`"
        raise Failure("`--allow-publish` without a platform to publish to", f"set {lacks}: its address and its token")
    return Destination(url, str(token), request_id, 1)
