"""Where the numbers and files of a training go: to where its job spec says, through its job's context.

What happens on the way is told by threads of their own; only for the final checkpoint the training waits.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gen_worker.api.errors import ArtifactTransferError
from gen_worker.api.producers import TrainingContext
from gen_worker.trainer.archives import as_one_file
from gen_worker.trainer.checkpoints import FINAL
from gen_worker.trainer.contracts import TrainingCanceled, checkpoint_folder
from gen_worker.trainer.courier import Courier, Made, News, Numbers, pause_after
from gen_worker.trainer.spec import TrainingSpec
from gen_worker.wire.platform import PostJson

BEGIN_S = 5.0  # what the news of an attempt before this one may take, which may die as soon as that one
LEAVE_S = 20.0  # what the news of a training that ends early may take, as long as they are taken
_LOOK_S = 0.1


class PlatformUploader:
    """Takes numbers and files to the platform: those on the way when it takes them, the final checkpoint for certain.

    Where the platform does not answer, the end of the training waits `upload_patience_seconds` for it, counted anew
    with everything that it takes.
    """

    def __init__(
        self,
        ctx: TrainingContext,
        spec: TrainingSpec,
        checkpoints: Path,
        events: Path,
        *,
        stores_files: bool,
        is_canceled: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ctx = ctx
        self._spec = spec
        self._checkpoints = checkpoints
        self._stores_files = stores_files
        self._is_canceled = is_canceled
        self._clock = clock
        self._numbers = Courier(events, ("metric",), self._tell, self._warn, clock=clock)
        self._files = Courier(events, ("checkpoint", "sample"), self._tell, self._warn, clock=clock)
        targets = spec.targets
        self._couriers = [
            *([self._numbers] if "metrics_url" in targets else []),
            *([self._files] if stores_files or {"checkpoint_url", "sample_url"} & targets.keys() else []),
        ]
        self._waits_since = 0.0
        self.final: dict[str, Any] = {}
        """What is known of the final checkpoint where it went."""

        self._tell_all()
        self._breathe(BEGIN_S)

    # --- what the loop calls ---

    def upload_metrics(self, *, metrics: Mapping[str, float], step: int) -> None:
        """Have the numbers of a step posted."""
        self._ctx.log(f"step {step}: {', '.join(f'{name} {value:.6g}' for name, value in metrics.items())}")
        self._tell_all()

    def upload_checkpoint(self, *, local_path: str, step: int) -> None:
        """Have a checkpoint stored; the final one is when this returns."""
        if not (self._checkpoints / FINAL).exists():
            self._tell_all()
        elif not self.final:
            self._tell_all()
            self._waits_since = self._clock()
            self._wait_for_couriers()
            self.final = self._store_final(Path(local_path), step)

    def upload_sample(self, *, local_path: str, step: int) -> None:
        """Have a sample stored."""
        self._tell_all()

    def leave(self) -> None:
        """Tell what can be told at once, and no more."""
        self._breathe(LEAVE_S)
        for courier in self._couriers:
            courier.close()

    def _breathe(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for courier in self._couriers:
            courier.wait(lambda: any(each.failing for each in self._couriers) or time.monotonic() > until)

    # --- the end ---

    def _wait_for_couriers(self) -> None:
        for courier in self._couriers:
            courier.wait(self._is_over)
            if courier.pending:
                what = "numbers" if courier is self._numbers else "checkpoints and samples"
                self._warn(f"not all {what} were told: nobody took any for {self._spec.upload_patience_seconds:g} s")
        self._tell_all()  # which raises what there is no use to wait for

    def _store_final(self, path: Path, step: int) -> dict[str, Any]:
        failures = 0
        while True:
            try:
                return self._store_checkpoint(path, step, final=True)
            except ArtifactTransferError as error:
                if not error.retryable or self._is_over():
                    raise
                if not failures:
                    wait_s = self._spec.upload_patience_seconds
                    self._warn(f"the final checkpoint is not stored: {error}; it is tried again for {wait_s:g} s")
            until = time.monotonic() + pause_after(failures)
            failures += 1
            while time.monotonic() < until and not self._is_over():
                time.sleep(_LOOK_S)

    def _is_over(self) -> bool:
        """Whether the platform has not answered for too long; raise `TrainingCanceled` once that is not waited for."""
        if self._is_canceled():
            raise TrainingCanceled("training canceled before its final checkpoint was stored")
        taken_at = max([self._waits_since, *(courier.moved_at for courier in self._couriers)])
        return self._clock() - taken_at > self._spec.upload_patience_seconds

    # --- what is told ---

    def _tell_all(self) -> None:
        for courier in self._couriers:
            courier.tell()

    def _tell(self, news: News) -> None:
        match news:
            case Numbers(step, metrics):
                self._post("metrics_url", {"step": step, "metrics": metrics})
            case Made(kind, step, path) if not Path(path).exists():
                self._warn(f"the {kind} after step {step} is not stored: `{path}` has been removed")
            case Made("checkpoint", step, path):
                self._store_checkpoint(Path(path), step, final=False)
            case Made(_, step, path):
                stored = self._stored(Path(path), "samples", f"{step:08d}")
                self._post("sample_url", {"step": step, "local_path": path, **stored})

    def _store_checkpoint(self, path: Path, step: int, *, final: bool) -> dict[str, Any]:
        if final and self._stores_files and self._spec.repository:
            stored = self._published(path, step)
        else:
            stored = self._stored(path, "checkpoints", f"{step:08d}" if not final else "final")
        size = path.stat().st_size if path.is_file() else 0
        document = {"step": step, "local_path": str(path), "size_bytes": size, "final": final, **stored}
        self._post("checkpoint_url", document)
        return document

    def _stored(self, path: Path, category: str, slot: str) -> dict[str, Any]:
        if not self._stores_files or not path.exists():
            return {}
        owner = self._spec.owner or "local"
        folder = f"v1/{owner}/jobs/{self._spec.work_id or self._spec.request_id}/{category}"
        with as_one_file(path) as file:
            kept = self._ctx.save_file(f"{folder}/{slot}-{file.name}", file)
        return _told(kept.ref, kept.sha256, kept.blake3, kept.size_bytes)

    def _published(self, path: Path, step: int) -> dict[str, Any]:
        """Publish what the trainer wrote at the end, or the final checkpoint, as a revision of the repository.

        Only that goes there: a revision that is not published in the attempt that began it is given up.
        """
        repo, ctx = self._spec.repository, self._ctx
        ctx.destination["ref"] = repo
        own = checkpoint_folder(self._checkpoints / FINAL)
        with ExitStack() as stack:
            if own in path.parents or path == own:
                files = {file.relative_to(own).as_posix(): file for file in sorted(own.rglob("*")) if file.is_file()}
            else:
                whole = stack.enter_context(as_one_file(path))
                files = {whole.name: whole}
            facts: dict[str, Any] = {"produced_by_kind": "training", "step_number": step}
            saved = {name: ctx.save_checkpoint(name, file, **facts) for name, file in files.items()}
        main = saved.get(path.relative_to(own).as_posix() if own in path.parents else "", next(iter(saved.values())))
        told = ctx.publish_repo_revision(
            destination_repo=repo,
            artifact_refs=saved,
            metadata={"request_id": self._spec.request_id, "step": step},
            destination_repo_tags=self._spec.repository_tags,
        )
        ctx.log(f"published to `{repo}`: revision {told.get('revision_id', '')}")
        snapshot = str(told.get("snapshot_digest") or "")
        return _told(main.ref, main.sha256, main.blake3, main.size_bytes, snapshot)

    def _post(self, target: str, document: Mapping[str, Any]) -> None:
        platform = self._ctx._platform
        if target in self._spec.targets and platform is not None:
            whose = {"request_id": self._spec.request_id, "kind": self._spec.kind}
            platform.call(PostJson(target=target, document={**whose, **document}))

    def _warn(self, text: str) -> None:
        self._ctx.log(text, "warning")


def _told(
    ref: str, sha256: str | None, blake3: str | None, size_bytes: int | None, snapshot_digest: str = ""
) -> dict[str, Any]:
    """Return what is posted of a file that the platform has."""
    digests = {"blob_digest": f"blake3:{blake3}" if blake3 else "", "snapshot_digest": snapshot_digest}
    known = {name: digest for name, digest in digests.items() if digest}
    return {"file_ref": ref, "sha256": sha256, "uploaded_size_bytes": size_bytes, **known}
