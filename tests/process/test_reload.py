"""`serve --reload`: changed code takes over when it works, and no request is lost."""

import threading
from pathlib import Path

import pytest

from tests.served import Server, serving, text_of, until

pytestmark = [pytest.mark.process, pytest.mark.needs("watchfiles")]

CODE = """
import time, msgspec
from gen_worker import RequestContext, endpoint

class In(msgspec.Struct):
    wait: float = 0.0

class Out(msgspec.Struct):
    text: str

@endpoint
def say(ctx: RequestContext, payload: In) -> Out:
    time.sleep(payload.wait)
    return Out("one")
"""


def says(server: Server) -> str:
    return text_of(server.ask("say"))


def test_changed_code_takes_over_under_load_and_code_that_fails_does_not(tmp_path: Path) -> None:
    """A changed answer, an error that changes nothing, an added and a removed function, under requests all the time."""
    project = tmp_path / "project"
    project.mkdir()
    source = project / "live.py"
    source.write_text(CODE)
    with serving(tmp_path, "--reload", module="live", devices="cpu:2", cwd=project) as server:
        until(lambda: "watching the code" in server.log(), what="the watch")
        over, answers = threading.Event(), []

        def ask() -> None:
            while not over.is_set():
                answers.append(server.ask("say", wait=0.002))

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        try:
            assert says(server) == "one"
            with server.connect() as slow:
                slow.send("say", "slow", wait=2.5)
                source.write_text(CODE.replace('"one"', '"two"'))
                until(lambda: says(server) == "two", what="the changed answer")
                assert text_of(slow.frame()) == "one", "what ran when the code changed ends as it began"

            source.write_text(CODE.replace("return Out", "retrun Out"))
            until(lambda: "SyntaxError" in server.log(), what="the error")
            assert says(server) == "two"

            source.write_text(CODE.replace('"one"', '"three"') + CODE[CODE.index("@endpoint") :].replace("say", "tell"))
            until(lambda: "tell" in server.sidecar.read_text(), what="the added function")
            assert text_of(server.ask("tell")) == "one"
            assert says(server) == "three"
        finally:
            over.set()
            for asker in askers:
                asker.join()
        assert {text_of(answer) for answer in answers} == {"one", "two", "three"}, "every answer is one"

        source.write_text(CODE.replace("say", "tell"))
        until(lambda: "removed: say" in server.log(), what="the removal")
        assert server.ask("say")["error"]["kind"] == "not_found"
        assert text_of(server.ask("tell")) == "one"


def test_code_whose_setup_fails_does_not_take_over(tmp_path: Path) -> None:
    code = CODE[: CODE.index("@endpoint")] + (
        "@endpoint\nclass Sayer:\n    def setup(self) -> None:\n        self.word = 'one'\n\n"
        "    def say(self, ctx: RequestContext, payload: In) -> Out:\n        return Out(self.word)\n"
    )
    project = tmp_path / "project"
    project.mkdir()
    source = project / "live.py"
    source.write_text(code)
    with serving(tmp_path, "--reload", module="live", cwd=project) as server:
        until(lambda: "watching the code" in server.log(), what="the watch")
        assert says(server) == "one"
        source.write_text(code.replace("= 'one'", "= 1 / 0"))
        until(lambda: "the changed code does not work" in server.log(), what="the refusal")
        told = (
            "[cpu:0] error: the present child stays: in the next one setup of `live:Sayer` failed: ZeroDivisionError: "
        )
        assert f"{told}division by zero\n" in server.log()
        assert 'live.py", line' in server.log()  # where
        assert says(server) == "one"
        source.write_text(code.replace("= 'one'", "= 'two'"))
        until(lambda: says(server) == "two", what="the mended code")
        assert "died" not in server.log()  # the children that were ended for it are no news
