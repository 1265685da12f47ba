"""How the HTTP side of a control plane says no."""


class Refusal(Exception):
    """A request that is not done: its HTTP status, a word for programs, a sentence for people and what to do next."""

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.hint = hint
