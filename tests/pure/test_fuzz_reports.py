"""A child's frames with any values in them: the core takes or refuses each, and answers every job once."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from gen_worker.wire.messages import Need, Release, Report, Save, Took
from gen_worker_supervisor.core.ladder import Reason
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child
from tests.pure.host import Host, function

NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, -1, 2**31, 2**63 - 1, -(2**63)])
REPORTS = [kind for kind in get_args(Report) if kind not in (Need, Release, Save, Took)]  # those do not reach the core
_decode = msgspec.msgpack.Decoder(Report).decode


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Return values of a type of the wire."""
    match kind:
        case inspect.IntType():
            return NUMBERS
        case inspect.FloatType():
            return st.floats()
        case inspect.StrType():
            return st.text(max_size=5)
        case inspect.BytesType():
            return st.binary(max_size=5)
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.LiteralType(values=known):
            return st.sampled_from(known)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return st.lists(values(item), max_size=3)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=3)
        case inspect.UnionType(types=types):
            return st.one_of(*map(values, types))
        case inspect.StructType(cls=cls):
            return frames(cls)
    raise NotImplementedError(kind)


def frames(cls: Any) -> st.SearchStrategy[Any]:
    """Return instances of a type of the wire."""
    found = inspect.type_info(cls)
    assert isinstance(found, inspect.StructType)
    return st.builds(cls, **{field.name: values(field.type) for field in found.fields})


@pytest.mark.promise(9)
@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(*map(frames, REPORTS)), max_size=8), st.booleans())
def test_whatever_a_childs_frames_say_each_job_has_one_answer(said: list[Any], up: bool) -> None:
    host = Host(function("f"), function("s", shape="generator"), function("a", lane="loop", shape="async"), up=up)
    liar = host.child()
    jobs = [host.submit(name, stream=name == "s") for name in ("f", "a", "a", "s")]
    for message in said:
        host.reports(liar, _decode(msgspec.msgpack.encode(message)))
    for job in jobs:
        host.ends(job, Reason.KILL, at_once=True)
    host.passes(2.0)
    if liar.phase is not Phase.BACKOFF:
        host.dies(liar)
    host.passes(60.0)
    assert [len(host.answers[job.number]) for job in jobs] == [1, 1, 1, 1]
    assert host.fleet.jobs == {}
    assert serves_again(host)


def serves_again(host: Host) -> bool:
    """Whether the device's next child answers the next job."""
    following: Child = host.child()
    if following.phase is Phase.FORKING:
        host.boot()
    job = host.submit("f", b"another")
    host.starts(job)
    host.done(job)
    return host.answer(job).kind is None
