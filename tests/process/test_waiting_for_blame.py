"""Requests that wait while others like them kill children."""

from collections import Counter

import pytest

from tests.served import Serve

pytestmark = pytest.mark.process


@pytest.mark.promise(2)
def test_twenty_waiting_requests_with_a_deadly_payload_kill_two_children_and_nobody_else_waits_for_them(
    serve: Serve,
) -> None:
    server = serve()
    with server.connect() as connection:
        connection.send("gated", "before", text="before", gate="go")
        server.until_running("before")
        guilty = [f"guilty-{number}" for number in range(20)]
        for each in guilty:
            connection.send("die", each, text="SIGSEGV", gate="now")
        connection.send("echo", "after", text="after")
        server.open("now")
        server.open("go")
        answers = connection.frames(22)
    assert answers["before"]["ok"]
    assert answers["after"]["ok"]
    kinds = Counter(answers[each]["error"]["kind"] for each in guilty)
    assert kinds == {"quarantined": 19, "child_died": 1}
    assert len([pid for each in guilty for pid in server.homes(each)]) == 2
    assert server.status().quarantined == 1
    assert server.client.pardon("die") == 1
    assert server.status().quarantined == 0
