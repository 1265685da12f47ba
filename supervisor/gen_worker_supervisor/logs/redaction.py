"""What texts for others may not say, whoever wrote them: tokens, passwords, what URLs are asked with. Pure."""

import re

_SECRETS = tuple(
    (traces, re.compile(pattern, re.IGNORECASE | re.ASCII))
    for traces, pattern in (  # a text in which none of its traces is, in small letters, need not be searched
        (("://",), r"""(://(?:[^\s?"'`<>:]|:(?!//))*\?)[^\s"'`<>]+"""),  # the query of a URL: it may be a signature
        (("://",), r"""(://)[^\s/?#"'`]*(?=@)"""),  # the user and the password in one
        (
            ("authorization",),
            r"""(authorization["']?\s*[=:]\s*["']?(?:(?:bearer|basic|digest|token)\s+)?)[^\s"',;]+""",
        ),
        (("bearer",), r"""(bearer\s+)[^\s"',;]+"""),
        (
            ("token", "passw", "secret", "signature", "api", "access"),
            r"""((?:token|passw(?:or)?d|secret|signature|api[_-]?key|access[_-]?key)["']?\s*[=:]\s*["']?)[^\s"',;&>]+""",
        ),
        (("x-amz-", "sig="), r"""((?:(?<![a-z-])x-amz-[a-z-]+|\bsig)=)[^\s"',;&>]+"""),
        (("eyj",), r"""((?<![\w-]))eyJ[\w-]+\.[\w-]+\.[\w-]*"""),  # a JWT by itself
        (  # known by how they begin
            ("hf_", "sk-", "akia"),
            r"""((?<![\w-]))(?:hf_[a-z0-9]{20,}|sk-[\w-]{20,}|akia[a-z0-9]{16})(?![\w-])""",
        ),
    )
)


def redacted(text: str) -> str:
    """Return a text without tokens, passwords and what URLs are asked with; the rest of it stays."""
    lower = text.lower()
    for traces, pattern in _SECRETS:
        for trace in traces:
            if trace in lower:
                text = pattern.sub(r"\1[secret]", text)
                break
    return text
