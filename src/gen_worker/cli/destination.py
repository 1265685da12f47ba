"""Where the producers of this machine publish: nowhere, unless somebody says that they may."""

from gen_worker.cli.failure import Failure
from gen_worker.settings import Settings
from gen_worker.wire.fetching import Destination


def local_destination(settings: Settings, request_id: str, *, publishes: bool) -> Destination:
    """Return where a producer publishes from here: nowhere, or with `publishes` what the settings name.

    Raises `Failure` where they name no platform, or no token for it.
    """
    if not publishes:
        return Destination("", "", request_id, 1)
    url, token = settings.cozy_hub_url or settings.tensorhub_public_url, settings.cozy_hub_token
    if not url or not token:
        lacks = "`COZY_HUB_URL`: its address" if not url else "`COZY_HUB_TOKEN`: its token"
        raise Failure("`--allow-publish` without a platform to publish to", f"set {lacks}")
    return Destination(url, str(token), request_id, 1)
