"""What producers have of `run` and `serve`, where no platform is asked."""

from pathlib import Path

import pytest
from blake3 import blake3

from gen_worker.api.platform import NoPlatformError
from gen_worker.cli.platform import LocalPlatform
from gen_worker.fetch.config import FetchConfig
from gen_worker.wire.fetching import Destination
from gen_worker.wire.platform import Materialize


def test_without_a_platform_a_content_comes_from_this_machines_cache_and_only_whole(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    platform = LocalPlatform(FetchConfig(root=str(root), hf_cache=str(root)), Destination("", "", "local-1", 1))
    digits = blake3(b"weights").hexdigest()
    blob = root / "cas" / "blobs" / "blake3" / digits[:2] / digits[2:4] / digits
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    with open(tmp_path / "to", "w+b", buffering=0) as to:
        assert platform.call(Materialize(digest=f"blake3:{digits}"), to.fileno()).size_bytes == 7
        assert to.read() == b"weights"
        blob.write_bytes(b"damaged")
        with pytest.raises(NoPlatformError):
            platform.call(Materialize(digest=f"blake3:{digits}"), to.fileno())
    platform.close()
