"""Functions with models of two sources, each of which reads what its model says."""

from pathlib import Path

import msgspec

from gen_worker import HF, Hub, RequestContext, endpoint


class Ask(msgspec.Struct):
    pass


class Read(msgspec.Struct):
    text: str


@endpoint(model=HF("acme/words", files=("*.txt",)))
class Words:
    def setup(self, weights: Path) -> None:
        self.weights = weights

    def words(self, ctx: RequestContext, payload: Ask) -> Read:
        return Read((self.weights / "words.txt").read_text())


@endpoint(model=Hub("acme/lines", tag="beta"))
class Lines:
    def setup(self, weights: Path) -> None:
        self.weights = weights

    def lines(self, ctx: RequestContext, payload: Ask) -> Read:
        return Read((self.weights / "lines.txt").read_text())
