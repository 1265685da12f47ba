"""A hub of models on the loopback, for tests: the routes of every provider, and all that can go wrong with them."""

from gen_worker.models.wanted import SnapshotFile
from gen_worker.testing.answers import Access, Cdn, Provider, as_json
from gen_worker.testing.civitai import Civitai
from gen_worker.testing.contents import Files, contents
from gen_worker.testing.faults import Fault, Faults, matches
from gen_worker.testing.huggingface import HuggingFace
from gen_worker.testing.modelscope import ModelScope
from gen_worker.testing.origin import Answer, Origin, Request
from gen_worker.testing.snapshots import Snapshots


class LoopbackHub:
    """A hub and the CDN that its files come from, two origins of 127.0.0.1, served by threads until `close`.

    Anything may be added and any fault planned while it serves.
    """

    def __init__(self, *, port: int = 0) -> None:
        self._access = Access("hf_loopback")
        self._faults = Faults()
        cdn = Cdn(self._faults)
        self._cdn = Origin("cdn", 0, self._faults, cdn.answer)
        cdn.url = self._cdn.url
        shared = (self._access, self._faults, cdn)
        self._huggingface = HuggingFace(*shared)
        self._modelscope = ModelScope(*shared)
        self._civitai = Civitai(*shared)
        self._snapshots = Snapshots(*shared)
        try:
            self._hub = Origin("hub", port, self._faults, self._answer)
        except OSError:  # the port is taken
            self._cdn.close()
            raise
        self._cdn.requests = self._hub.requests  # one list, in the order in which they came

    def __enter__(self) -> "LoopbackHub":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and every thread."""
        self._hub.close()
        self._cdn.close()

    # --- where it is --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where all providers are."""
        return self._hub.url

    @property
    def cdn_url(self) -> str:
        """Where redirects and signed URLs lead: another origin, which no credentials may reach."""
        return self._cdn.url

    @property
    def token(self) -> str:
        """The token that may see everything; another one is refused."""
        return self._access.token

    @property
    def denied(self) -> set[str]:
        """Tokens that are good, but may see nothing gated or private; add to it."""
        return self._access.denied

    def variables(self) -> dict[str, str]:
        """Return what leads a process here that is started with these environment variables; no token is among them."""
        names = ("HF_ENDPOINT", "COZY_HUB_URL", "GEN_WORKER_CIVITAI_ENDPOINT", "GEN_WORKER_MODELSCOPE_ENDPOINT")
        return dict.fromkeys(names, self.url)

    # --- what it has --------------------------------------------------------------------------------------------------

    def add_repo(
        self,
        name: str,
        files: Files,
        *,
        revision: str = "main",
        gated: bool = False,
        private: bool = False,
        lfs_from: int = 1024,
    ) -> str:
        """Commit files to a branch of a repository on Hugging Face and return the commit.

        They replace all files of the commit before. Files of `lfs_from` bytes or more come by a redirect to the CDN.
        Gated: everybody sees the listing, the files need the token.
        """
        found = contents(files)
        return self._huggingface.add(name, found, revision, gated=gated, private=private, lfs_from=lfs_from)

    def add_modelscope(self, name: str, files: Files, *, revision: str = "master", private: bool = False) -> None:
        """Put files on a branch of a repository on ModelScope."""
        self._modelscope.add(name, contents(files), revision, private=private)

    def add_civitai(self, model: str, files: Files, *, version: str, gated: bool = False) -> None:
        """Add a version to a model on Civitai, both by their numbers; the first file is the primary one."""
        self._civitai.add(model, version, contents(files), gated=gated)

    def add_snapshot(
        self, repo: str, files: Files, *, tag: str = "prod", flavor: str = "", private: bool = False
    ) -> str:
        """Tag a snapshot of a repository on the platform's hub and return its digest, `blake3:<hex>`."""
        return self._snapshots.add(repo, contents(files), tag, flavor, private=private)

    def signed_files(self, repo: str, files: Files) -> list[SnapshotFile]:
        """Return files with URLs that carry their own permission, as an orchestrator describes a snapshot."""
        return self._snapshots.signed(repo, contents(files))

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def fail(self, glob: str, fault: Fault, *, times: int | None = None) -> None:
        """Have a fault hit the next so many answers that a glob means, or all of them.

        `*` matches `/`, too. A glob is for `owner/name/path` or the path alone of a file's content; with `resolve:`
        before it, for the hub's redirect to that; with `api:` before it, for the path of a route of metadata. Faults of
        different kinds come together; of those of one kind the first planned goes first.
        """
        self._faults.plan(glob, fault, times)

    def heal(self) -> None:
        """Have nothing go wrong any more."""
        self._faults.clear()

    # --- what it has seen ---------------------------------------------------------------------------------------------

    @property
    def requests(self) -> list[Request]:
        """All requests, in the order in which they came; clear it to count anew."""
        return self._hub.requests

    @property
    def leaks(self) -> list[Request]:
        """The requests that showed credentials to the CDN."""
        return [request for request in self.requests if request.origin != "hub" and request.carries_credentials]

    def wire_bytes(self, glob: str = "*") -> int:
        """Return how many bytes of the bodies that a glob means were sent, as in `fail`."""
        return sum(request.sent for request in self.requests if matches(request.target, glob))

    def _answer(self, request: Request) -> Answer:
        providers: tuple[Provider, ...] = (self._huggingface, self._modelscope, self._civitai, self._snapshots)
        for provider in providers:
            answer = provider.answer(request)
            if answer is not None:
                return answer
        return as_json(request, {"error": "no such route"}, 404, {"X-Error-Code": "RepoNotFound"})
