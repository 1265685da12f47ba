"""Downloads as tests make them: small pieces, no waiting between tries, everything told and kept."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.download import download
from gen_worker.fetch.network.links import Fresh
from gen_worker.fetch.network.patience import Patience
from gen_worker.fetch.network.transport import Transport
from gen_worker.models.manifest import Algorithm, ManifestFile
from gen_worker.testing import LoopbackHub
from gen_worker.testing.contents import Content

PIECE = 64 << 10
SOON = Patience(first_delay_s=0.001, longest_delay_s=0.01, quiet_s=2.0, connect_s=5.0)
REF = "acme/tiny"
NOTHING_SET = FetchConfig(root="", hf_cache="")


def content_of(size: int, seed: int = 0) -> bytes:
    """Return bytes of which no piece is like another."""
    return random.Random(seed).randbytes(size)


@dataclass
class Told:
    """What a download told of itself."""

    there: int = 0
    lost: int = 0
    retries: int = 0
    each: list[int] = field(default_factory=list)
    at_bytes: int = 0
    then: Callable[[], None] = lambda: None
    """What to do once `at_bytes` are there."""

    def bytes(self, count: int) -> None:
        self.there += count
        if self.there >= self.at_bytes:
            self.then()
        self.lost -= min(0, count)
        self.each.append(count)

    def retry(self) -> None:
        self.retries += 1


@dataclass
class Downloads:
    """A folder to download into, and how."""

    folder: Path
    patience: Patience = SOON
    stall_timeout_s: float = 10.0
    config: FetchConfig = NOTHING_SET
    told: Told = field(default_factory=Told)

    @property
    def to(self) -> Path:
        return self.folder / "blob"

    @property
    def names(self) -> list[str]:
        """What is in the folder."""
        return sorted(path.name for path in self.folder.iterdir())

    def run(
        self,
        file: ManifestFile,
        *,
        token: str = "",
        token_for: str = "",
        fresh: Fresh | None = None,
        cancel: Cancel | None = None,
        connections: int = 4,
        piece_bytes: int = PIECE,
    ) -> int:
        """Download a file; return the bytes that came over the network."""
        with Transport(self.config, self.patience) as transport:
            return download(
                file,
                self.to,
                ref=REF,
                transport=transport,
                token=token,
                token_for=token_for,
                fresh=fresh,
                on_bytes=self.told.bytes,
                on_retry=self.told.retry,
                cancel=cancel or Cancel(),
                stall_timeout_s=self.stall_timeout_s,
                connections=connections,
                piece_bytes=piece_bytes,
                patience=self.patience,
            )


def manifest(content: bytes, url: str, *, algorithm: Algorithm = "blake3", sized: bool = True) -> ManifestFile:
    """Return what a listing would say of a file."""
    digest = Content(content).digest(algorithm) if algorithm else ""
    return ManifestFile("unet/w.safetensors", len(content) if sized else None, algorithm, digest, url)


def listed(hub: LoopbackHub, content: bytes, *, algorithm: Algorithm = "blake3", sized: bool = True) -> ManifestFile:
    """Put a file on a hub; return what a listing says of it: its URL redirects to another origin."""
    commit = hub.add_repo(REF, {"unet/w.safetensors": content})
    url = f"{hub.url}/{REF}/resolve/{commit}/unet/w.safetensors"
    return manifest(content, url, algorithm=algorithm, sized=sized)


def signed(hub: LoopbackHub, content: bytes) -> ManifestFile:
    """Put a file on a hub; return what an orchestrator says of it, with a URL that needs no token and ends."""
    [file] = hub.signed_files(REF, {"unet/w.safetensors": content})
    return ManifestFile(file.path, file.size_bytes, "blake3", file.blake3, file.url, signed=True)
