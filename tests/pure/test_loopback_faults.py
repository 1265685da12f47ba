"""Which answers of the loopback hub a fault hits."""

import pytest

from gen_worker.testing import Cut, Status
from gen_worker.testing.faults import Faults, matches


@pytest.mark.parametrize(
    ("glob", "target", "meant"),
    [
        ("*/unet/*.safetensors", "acme/tiny/unet/weights.safetensors", True),
        ("unet/*", "acme/tiny/unet/weights.safetensors", True),
        ("*", "acme/tiny/config.json", True),
        ("acme/tiny/*", "acme/tiny/unet/deep/config.json", True),
        ("acme/tiny/*", "acme/other/config.json", False),
        ("model.safetensors", "4201/model.safetensors", True),
        ("*", "api:/api/models/acme/tiny", False),
        ("*", "resolve:acme/tiny/config.json", False),
        ("api:*", "api:/api/models/acme/tiny", True),
        ("api:*/tree/*", "api:/api/models/acme/tiny", False),
        ("api:*", "acme/tiny/config.json", False),
        ("resolve:acme/tiny/*", "resolve:acme/tiny/config.json", True),
        ("api:*", "resolve:acme/tiny/config.json", False),
    ],
)
def test_a_glob_means_files_by_their_path_and_routes_by_their_kind(glob: str, target: str, meant: bool) -> None:
    assert matches(target, glob) is meant


def test_faults_of_one_kind_take_turns_and_each_ends_after_its_times() -> None:
    faults = Faults()
    faults.plan("*", Status(503), 2)
    faults.plan("*", Status(404), None)
    codes = [fault.code for _ in range(4) if (fault := faults.take("a/b/c", Status))]
    assert codes == [503, 503, 404, 404]


def test_a_fault_of_another_kind_or_of_another_time_is_left_for_later() -> None:
    faults = Faults()
    faults.plan("*", Cut(after=10), 1)
    assert faults.take("a/b/c", Status) is None
    assert faults.take("a/b/c", Cut, when=lambda fault: fault.after < 5) is None
    assert faults.take("a/b/c", Cut) == Cut(after=10)
    assert faults.take("a/b/c", Cut) is None


def test_nothing_is_planned_any_more_after_it_was_cleared() -> None:
    faults = Faults()
    faults.plan("*", Cut(after=10), None)
    faults.clear()
    assert faults.take("a/b/c", Cut) is None
