"""What is wrong with the author's project, told so that the author can mend it."""

from collections.abc import Iterable


class DiscoveryError(ValueError):
    """The endpoints cannot be read: what is wrong, what to do, and the author's part of a traceback."""

    def __init__(self, message: str, hint: str = "", stack: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.stack = list(stack)
