"""What texts for others may not say, whoever wrote them: tokens, passwords, what URLs are asked with. Pure."""

import re

_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE | re.ASCII)
    for pattern in (
        r"""(://(?:[^\s?"'`<>:]|:(?!//))*\?)[^\s"'`<>]+""",  # the query of a URL: it may be a signature
        r"""(://)[^\s/?#"'`]*(?=@)""",  # the user and the password in one
        r"""(authorization["']?\s*[=:]\s*["']?(?:(?:bearer|basic|digest|token)\s+)?)[^\s"',;]+""",
        r"""(bearer\s+)[^\s"',;]+""",
        r"""((?:token|passw(?:or)?d|secret|signature|api[_-]?key|access[_-]?key)["']?\s*[=:]\s*["']?)[^\s"',;&>]+""",
        r"""((?:(?<![a-z-])x-amz-[a-z-]+|\bsig)=)[^\s"',;&>]+""",
        r"""((?<![\w-]))eyJ[\w-]+\.[\w-]+\.[\w-]*""",  # a JWT by itself
        r"""((?<![\w-]))(?:hf_[a-z0-9]{20,}|sk-[\w-]{20,}|akia[a-z0-9]{16})(?![\w-])""",  # known by how they begin
    )
)

_TRACES = (
    *("://", "author", "bearer", "token", "passw", "secret", "sig"),
    *("api", "access", "x-amz", "eyj", "hf_", "sk-", "akia"),
)


def redacted(text: str) -> str:
    """Return a text without tokens, passwords and what URLs are asked with; the rest of it stays."""
    lower = text.lower()
    if not any(trace in lower for trace in _TRACES):  # a tenth of the time, and most texts are such
        return text
    for pattern in _SECRETS:
        text = pattern.sub(r"\1[secret]", text)
    return text
