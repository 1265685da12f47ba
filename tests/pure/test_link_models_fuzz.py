"""Whatever text an orchestrator sends for refs, digests, paths and slots: it is answered, and nothing breaks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker.models.wanted import SnapshotFile
from gen_worker.wire.scheduler import HelloAck, ModelEvent, ModelOpKind, Snapshot
from gen_worker_supervisor.core.state import Function
from tests.pure.linked import Worker, bound, gpu, hub

TEXTS = st.text(max_size=80) | st.sampled_from(["acme/m", "acme/m:prod", "acme/vae#fp8", "hf:a/b", "42", "a" * 100_000])
FILES = st.builds(SnapshotFile, TEXTS, st.integers(-1, 1 << 62), TEXTS, TEXTS)
SNAPSHOTS = st.builds(
    lambda digest, files: Snapshot(digest=digest, files=tuple(files)), TEXTS, st.lists(FILES, max_size=3)
)


def worker() -> Worker:
    return Worker(bound("f", hub("acme/m"), hub("acme/vae")), devices=[gpu()])


@settings(max_examples=150, deadline=None)
@given(ref=TEXTS, snapshot=st.none() | SNAPSHOTS, kind=st.sampled_from(list(ModelOpKind)[1:]))
def test_every_operation_is_answered_or_under_way(ref: str, snapshot: Snapshot | None, kind: ModelOpKind) -> None:
    the = worker()
    the.operates(kind, ref, snapshot)
    assert the.link.busy or [each for each in the.said if isinstance(each, ModelEvent) and each.ref == ref]


@settings(max_examples=150, deadline=None)
@given(snapshots=st.dictionaries(TEXTS, SNAPSHOTS, max_size=3), models=st.lists(st.tuples(TEXTS, TEXTS), max_size=3))
def test_every_job_gets_a_function_or_a_reason(snapshots: dict[str, Snapshot], models: list[tuple[str, str]]) -> None:
    the = worker()
    found = the.function("f", snapshots, models)
    assert isinstance(found, Function) or found
    if isinstance(found, Function):
        the.host.submit(function=found)


@settings(max_examples=50, deadline=None)
@given(keep=st.lists(TEXTS, max_size=5))
def test_whatever_is_to_be_kept_is_taken(keep: list[str]) -> None:
    the = worker()
    the.link.acknowledged(HelloAck(keep=tuple(keep)))
    assert the.models.kept[:2] == ["acme/m", "acme/vae"]
