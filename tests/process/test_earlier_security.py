"""Whom a worker on the earlier wire shows its token, by whom it lets itself be led, and when it gives up."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gen_worker.orchestrator.tokens import AUDIENCE, ISSUER, Tokens
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Faults
from gen_worker.testing.origin import Answer, Origin, Request
from tests.process.test_earlier_wire import CLOSE_S, Shop, ended, unpacked
from tests.scripted.certificates import certificate
from tests.scripted.earlier import EarlierOrchestrator, Stream
from tests.served import until

pytestmark = pytest.mark.process


@contextmanager
def starting(folder: Path, orchestrator: EarlierOrchestrator, **variables: str) -> Iterator[Shop]:
    """Start a worker, whatever becomes of it, until the body ends."""
    shop = Shop(folder, orchestrator, "earlier_shop", GEN_WORKER_DEVICES="cpu:1", **variables)
    try:
        yield shop
    except AssertionError as error:
        raise AssertionError(f"{error}\nits log ends:\n{shop.log()[-4000:]}") from None
    finally:
        ended(shop.process)


def serves(stream: Stream) -> bool:
    stream.run("greet_all", {"text": "x"}, run_id="r")
    return unpacked(stream.result("r"))["text"] == "hello x of None"


def fatal(shop: Shop) -> str:
    """Return what a worker says that ends its start, once it has ended with 1."""
    assert shop.process.wait(CLOSE_S) == 1
    return shop.log()


# --- its own token ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return Tokens.create(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def keys(tokens: Tokens) -> Iterator[Origin]:
    """Where the keys are that tokens must be signed with."""
    content = Content(json.dumps(tokens.jwks()).encode())

    def answer(request: Request) -> Answer:
        return Answer(200, "jwks", {}, content)

    origin = Origin("keys", 0, Faults(), answer)
    yield origin
    origin.close()


def test_a_token_that_is_good_is_checked_once_and_shown(
    grpc_awake: None, tmp_path: Path, tokens: Tokens, keys: Origin
) -> None:
    variables = {
        "SCHEDULER_JWKS_URL": f"{keys.url}/jwks",
        "SCHEDULER_JWKS_TTL_SECONDS": "0",  # keys are not kept at all
        "SCHEDULER_JWT_ISSUER": ISSUER,
        "SCHEDULER_JWT_AUDIENCE": AUDIENCE,
        "AUTH_TOKEN": "",
        "WORKER_JWT": tokens.worker_token("shop-1"),
    }
    with EarlierOrchestrator() as orchestrator, starting(tmp_path, orchestrator, **variables):
        orchestrator.stream().cut()
        assert serves(orchestrator.stream())
        shown = [each["authorization"] for each in orchestrator.metadata]
        assert shown == [f"Bearer {variables['WORKER_JWT']}"] * 2
        assert len(keys.requests) == 1


@pytest.mark.parametrize(
    ("variables", "lifetime_s", "foreign", "told"),
    [
        ({"SCHEDULER_JWT_ISSUER": "somebody"}, 60.0, False, "has the wrong `iss` (`SCHEDULER_JWT_ISSUER`)"),
        ({"SCHEDULER_JWT_AUDIENCE": "somebody"}, 60.0, False, "has the wrong `aud` (`SCHEDULER_JWT_AUDIENCE`)"),
        ({}, -100.0, False, "the worker's token has expired"),
        ({}, 60.0, True, "is not signed with one of the keys"),
    ],
)
def test_a_token_that_is_not_good_ends_the_start_before_anybody_sees_it(
    tmp_path: Path, tokens: Tokens, keys: Origin, variables: dict[str, str], lifetime_s: float, foreign: bool, told: str
) -> None:
    signer = Tokens.create(tmp_path / "foreign") if foreign else tokens
    token = signer.worker_token("shop-1", lifetime_s=lifetime_s)
    variables = {"SCHEDULER_JWKS_URL": f"{keys.url}/jwks", "AUTH_TOKEN": token, **variables}
    with EarlierOrchestrator() as orchestrator, starting(tmp_path, orchestrator, **variables) as shop:
        said = fatal(shop)
        assert told in said
        assert token not in said
        assert orchestrator.metadata == []


# --- whom it speaks to ------------------------------------------------------------------------------------------------


def test_over_tls_a_worker_is_led_to_the_leader_and_trusts_the_authorities_it_is_told(
    grpc_awake: None, tmp_path: Path
) -> None:
    shown = certificate()
    variables = {"USE_TLS": "true", "GRPC_CA_BUNDLE": str(shown.bundle(tmp_path)), "RECONNECT_DELAY": "60"}
    with (
        EarlierOrchestrator(tls=shown) as leader,
        EarlierOrchestrator(tls=shown, leader=leader.address) as other,
        starting(tmp_path, other, **variables) as shop,
    ):
        assert serves(leader.stream())
        assert len(leader.metadata) == 1
        until(lambda: f"is not the leader: dialing grpcs://{leader.address}" in shop.log())


def test_who_shows_a_certificate_of_a_stranger_never_sees_the_token(tmp_path: Path) -> None:
    bundle = certificate().bundle(tmp_path)
    variables = {"USE_TLS": "1", "GRPC_CA_BUNDLE": str(bundle), "MAX_RECONNECT_ATTEMPTS": "1"}
    with (
        EarlierOrchestrator(tls=certificate()) as orchestrator,
        starting(tmp_path, orchestrator, **variables) as shop,
    ):
        assert "no orchestrator after 1 attempts" in fatal(shop)
        assert orchestrator.metadata == []


def test_after_so_many_attempts_in_a_row_a_worker_ends_with_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    with EarlierOrchestrator() as orchestrator:
        variables = {"SCHEDULER_ADDRS": nobody, "MAX_RECONNECT_ATTEMPTS": "3"}
        with starting(tmp_path, orchestrator, **variables) as shop:
            for _ in range(4):  # each that is answered begins the row anew
                stream = orchestrator.stream()
                assert serves(stream)
                stream.cut()
            orchestrator.stream()
            orchestrator.stop()
            said = fatal(shop)
            assert "no orchestrator after 3 attempts, at last" in said
            assert "hint: check `SCHEDULER_ADDR`; `MAX_RECONNECT_ATTEMPTS=0` tries for ever" in said
