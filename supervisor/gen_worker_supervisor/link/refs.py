"""What a ref means that comes over the wire, where no provider is named. Pure."""

from collections.abc import Iterable, Mapping

from gen_worker.models.refs import parse_ref
from gen_worker.models.wanted import Provider, Wanted
from gen_worker.wire.scheduler import Snapshot

_HEX = frozenset("0123456789abcdef")
_DIGITS = range(40, 65)  # of a digest that may name a folder


def providers(bound: Iterable[Wanted]) -> Mapping[str, Provider]:
    """Return the provider of each spelling of the models that functions bind; of two for one the more exact holds."""
    models = list(bound)
    found: dict[str, Provider] = {}
    for spelled in (_canonical, _flavored, _bare):
        for wanted in models:
            found.setdefault(spelled(wanted), wanted.provider)
            if spelled is _canonical:
                found.setdefault(wanted.wire_ref, wanted.provider)
                found.setdefault(wanted.ref, wanted.provider)
    return found


def wanted_of(ref: str, known: Mapping[str, Provider]) -> Wanted:
    """Return the model that a ref on the wire means; raise `RefError` for one that means none.

    Its provider is that of the binding it is looked up as: raw, stripped, then without its tag or revision. A model
    that nobody binds is the platform's; of that, no tag stands for `prod`.
    """
    stripped = ref.strip()
    head, hash_mark, flavor = stripped.partition("#")
    for spelled in (ref, stripped, head.partition(":")[0] + hash_mark + flavor, head.partition(":")[0]):
        if spelled in known:
            provider = known[spelled]
            return parse_ref(stripped if provider == "tensorhub" else spelled.strip(), provider, tag="prod")
    bare = head.partition("@")[0]
    if known.get(bare, "tensorhub") != "tensorhub":
        return parse_ref(stripped, known[bare])
    return parse_ref(stripped, "", tag="prod")


def digest_of(snapshot: Snapshot) -> str:
    """Return what names the content of a snapshot, fit to name a folder; empty for a snapshot that says nothing.

    An orchestrator may name it as it likes: what is no digest in hex stands for one.
    """
    algorithm, _, digits = snapshot.digest.strip().lower().rpartition(":")
    if algorithm in ("", "blake3", "sha256") and len(digits) in _DIGITS and _HEX.issuperset(digits):
        return f"{algorithm or 'blake3'}:{digits}"
    if not snapshot.digest and not snapshot.files:
        return ""
    import hashlib  # only who names snapshots in a way of his own needs it

    lines = snapshot.digest or "\n".join(sorted(f"{file.path}\t{file.blake3}" for file in snapshot.files))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _canonical(wanted: Wanted) -> str:
    if wanted.provider != "tensorhub" or wanted.digest:
        return wanted.ref
    return f"{wanted.repo}:{wanted.tag or 'prod'}{f'#{wanted.flavor}' if wanted.flavor else ''}"


def _flavored(wanted: Wanted) -> str:
    return f"{wanted.repo}#{wanted.flavor}" if wanted.flavor else wanted.repo


def _bare(wanted: Wanted) -> str:
    return wanted.repo
