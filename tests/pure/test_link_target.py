"""An orchestrator's address means one place, or says why it means none."""

from pathlib import Path

import pytest

from gen_worker.settings import Settings
from gen_worker_supervisor.link.config import LinkConfig
from gen_worker_supervisor.link.target import AddressError, Target, parse_target, redirected


def settings(**variables: str) -> Settings:
    """Settings from these variables and nothing else."""
    nowhere = Path("/nonexistent")
    return Settings.load(env=variables, folder=nowhere, root=nowhere)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("orch.example:8080", Target("orch.example", 8080, False)),
        ("orch.example:443", Target("orch.example", 443, True)),
        ("grpcs://orch.example:8080", Target("orch.example", 8080, True)),
        ("https://orch.example", Target("orch.example", 443, True)),
        ("HTTPS://orch.example:8443/", Target("orch.example", 8443, True)),
        ("http://orch.example:443", Target("orch.example", 443, False)),
        ("http://orch.example", Target("orch.example", 80, False)),
        ("grpc://127.0.0.1:1", Target("127.0.0.1", 1, False)),
        (" [::1]:8080 ", Target("::1", 8080, False)),
        ("grpcs://[fe80::1%eth0]:443", Target("fe80::1%eth0", 443, True)),
        ("https://[2001:db8::2]", Target("2001:db8::2", 443, True)),
    ],
)
def test_an_address_is_read_as_it_is_meant(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


def test_an_address_without_a_scheme_is_spoken_to_as_told() -> None:
    assert parse_target("o:8080", bare="tls").tls
    assert not parse_target("o:443", bare="plain").tls
    assert not parse_target("grpc://o:8080", bare="tls").tls


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("orch.example", "it has no port"),
        ("grpc://orch.example", "it has no port"),
        ("orch.example:0", "its port is no number"),
        ("orch.example:65536", "its port is no number"),
        ("orch.example:\uff18\uff10", "its port is no number"),
        ("orch.example:", "its port is no number"),
        ("ftp://orch.example:21", "its scheme is none of"),
        ("unix:///run/o.sock", "its scheme is none of"),
        ("::1:8080", "stands in brackets"),
        ("[nonsense]:8080", "no IPv6 address"),
        ("[::1]x", "stands in brackets"),
        ("https://orch.example/path", "not a host and a port"),
        ("orch example:8080", "not a host and a port"),
        (":8080", "not a host and a port"),
        ("", "not a host and a port"),
    ],
)
def test_what_is_no_address_is_told_with_a_hint(text: str, why: str) -> None:
    with pytest.raises(AddressError, match=why) as raised:
        parse_target(text)
    assert raised.value.hint


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(AddressError) as raised:
        parse_target("https://user:hunter2@orch.example:443")
    assert "hunter2" not in str(raised.value) + raised.value.hint


@pytest.mark.parametrize(
    ("details", "tls", "target"),
    [
        ("not_leader:o2:8080", False, Target("o2", 8080, False)),
        ("not_leader:o2:8080", True, Target("o2", 8080, True)),
        ("not_leader:o2:443", False, Target("o2", 443, False)),
        ("not_leader:grpcs://o2:8080", False, Target("o2", 8080, True)),
        ("not_leader: o2:8080, since 12:00", True, Target("o2", 8080, True)),
        ("not_leader:", True, None),
        ("not_leader:nowhere", True, None),
        ("something else", True, None),
    ],
)
def test_a_redirect_without_a_scheme_keeps_the_kind_of_its_connection(
    details: str, tls: bool, target: Target | None
) -> None:
    assert redirected(details, tls=tls) == target


def test_the_public_address_comes_before_the_scheduler_s() -> None:
    every = {"ORCHESTRATOR_PUBLIC_ADDR": "a:1, b:2", "SCHEDULER_ADDR": "c:3", "SCHEDULER_ADDRS": "d:4,c:3"}
    assert settings(**every).orchestrators == ("a:1", "b:2")
    del every["ORCHESTRATOR_PUBLIC_ADDR"]
    assert settings(**every).orchestrators == ("c:3", "d:4")
    del every["SCHEDULER_ADDR"]
    assert settings(**every).orchestrators == ("d:4", "c:3")
    assert settings().orchestrators == ()


def test_the_settings_say_how_to_connect(tmp_path: Path) -> None:
    found = LinkConfig.of(
        settings(SCHEDULER_ADDR="o:8080", USE_TLS="1", WORKER_JWT="SECRET", WORKER_DISCONNECTED_TIMEOUT_S="7")
    )
    assert found.places() == (Target("o", 8080, True),)
    assert found.token == "SECRET"
    assert "SECRET" not in repr(found)
    assert found.disconnected_timeout_s == 7
    assert found.ca_bundle is None


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), (b"", "no certificates"), (b"\xff", "no certificates"), (b"nonsense", "no certificates")],
)
def test_certificates_that_cannot_be_used_are_told_at_the_start(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_bytes(content)
    with pytest.raises(AddressError, match=why) as raised:
        LinkConfig.of(settings(ORCHESTRATOR_PUBLIC_ADDR="o:443", GRPC_CA_BUNDLE=str(bundle)))
    assert str(bundle) in str(raised.value)
    assert "GRPC_CA_BUNDLE" in raised.value.hint


def test_a_worker_without_an_address_is_told_which_variable_to_set() -> None:
    with pytest.raises(AddressError) as raised:
        LinkConfig.of(settings())
    assert "ORCHESTRATOR_PUBLIC_ADDR" in raised.value.hint
