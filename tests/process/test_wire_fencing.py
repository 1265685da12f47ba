"""Jobs sent once, twice, late, anew and cancelled in any order: what an orchestrator may rely on, whatever it does."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.scripted.entrypoint import Driven, driven
from tests.scripted.orchestrator import CANCELED, OK

pytestmark = [pytest.mark.process, pytest.mark.needs("grpc_tools")]
REQUESTS = ("one", "other")


class Move(NamedTuple):
    """One message about one attempt of one request."""

    what: Literal["run", "cancel"]
    request: str
    attempt: int


MOVES = st.lists(
    st.builds(Move, st.sampled_from(["run", "run", "run", "cancel"]), st.sampled_from(REQUESTS), st.integers(1, 3)),
    min_size=1,
    max_size=12,
)
FUNCTIONS = st.sampled_from(["echo", "gated-async", "polite-async", "gated"])


@pytest.fixture(scope="module")
def shared(grpc_awake: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    with driven(tmp_path_factory.mktemp("wired")) as made:
        yield made


@pytest.mark.promise(17, 18)
@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])  # a failure may cost 20 s
@given(moves=MOVES, function=FUNCTIONS)
def test_whatever_is_sent_each_attempt_runs_once_and_is_answered_once(
    shared: Driven, moves: list[Move], function: str
) -> None:
    round_number = len(shared.orchestrator.heard)  # no two rounds have a name in common
    gate = f"gate-{round_number}"
    names = {request: f"{request}-{round_number}" for request in REQUESTS}
    newest: dict[str, int] = {}
    stale: set[tuple[str, int]] = set()
    wanted: set[tuple[str, int]] = set()
    for move in moves:
        name, attempt = names[move.request], move.attempt
        if move.what == "cancel":
            shared.connection.cancel(name, attempt)
            continue
        if attempt < newest.get(name, 0):
            if (name, attempt) not in wanted:
                stale.add((name, attempt))
        else:
            newest[name] = attempt
            wanted.add((name, attempt))
        shared.connection.run(function, {"gate": gate}, request_id=name, attempt=attempt)
    shared.connection.settle()
    shared.worker.open(gate)
    if function == "polite-async":
        for name, attempt in newest.items():
            shared.connection.cancel(name, attempt)
    for name, attempt in newest.items():  # a later attempt may silence those before it, nothing silences the last
        shared.orchestrator.expect("job_result", request_id=name, attempt=attempt)
    shared.connection.settle()
    cancelled = {(names[move.request], move.attempt) for move in moves if move.what == "cancel"}
    for name, attempt in wanted:
        results = {each.SerializeToString() for each in shared.orchestrator.results(name, attempt)}
        assert len(results) <= 1, f"{name} {attempt} was answered in {len(results)} ways"
        assert "job_accepted" in shared.orchestrator.of(name, attempt)
        for each in shared.orchestrator.results(name, attempt):
            allowed = {OK, CANCELED} if (name, attempt) in cancelled or function == "polite-async" else {OK}
            assert each.status in allowed
    for pair in stale:
        assert shared.orchestrator.of(*pair) == []
    runs = shared.worker.runs()
    for name in names.values():
        assert runs[name] <= len({attempt for each, attempt in wanted if each == name})
