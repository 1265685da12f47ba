"""How gen-worker and its extras are installed, as messages say it; on PyPI its name is another project's."""


def installed_by(extra: str = "") -> str:
    """Return what a person types to have an extra, or gen-worker itself."""
    what = f"'.[{extra}]'" if extra else "."
    return f"`pip install -e {what}` in the clone of gen-worker"
