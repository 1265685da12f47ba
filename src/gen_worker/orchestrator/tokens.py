"""Who is a worker: tokens that the control plane signs, checks and renews."""


class Tokens:
    """One key pair, and the tokens that are signed with it."""
