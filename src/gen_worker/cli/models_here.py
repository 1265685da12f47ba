"""The models in this machine's cache, as people name them."""

from typing import TYPE_CHECKING

from gen_worker.cli.settings import check_folders, read_settings

if TYPE_CHECKING:
    from gen_worker.fetch.cache.store import Listed, Store

PREFIXES = {"hf": "hf:", "tensorhub": "cozy:", "civitai": "civitai:", "modelscope": "modelscope:"}


def store_here() -> "Store":
    """Return this machine's cache; raise `Failure` where its folder cannot be used."""
    from gen_worker.fetch.cache.store import Store
    from gen_worker.fetch.config import FetchConfig

    config = FetchConfig.of(read_settings())
    check_folders(config)
    return Store(config)


def ref_of(listed: "Listed") -> str:
    """Return what a model is called first, with its provider."""
    return PREFIXES[listed.record.provider] + (listed.refs or (listed.record.wanted.ref,))[0]


def models_here() -> list[str]:
    """Return the refs of the models on this machine, each with its provider."""
    return sorted({f"{PREFIXES[each.record.provider]}{ref}" for each in store_here().listed() for ref in each.refs})


def names_of(listed: "Listed") -> set[str]:
    """Return what people may call a model: its refs with their provider and without, and its key."""
    prefix = PREFIXES[listed.record.provider]
    return {listed.record.key, *listed.refs, *(f"{prefix}{ref}" for ref in listed.refs)}
