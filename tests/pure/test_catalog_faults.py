"""What the catalog makes of fetchers that die, of damaged files, and of what a child claims to have left on disk."""

from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.fetching import Abort, Fetch, Fetched, FetchFailed, Fetching
from gen_worker_supervisor.core.actions import OrderFetch
from gen_worker_supervisor.core.catalog import DEADLY, RETRY_S, VERIFIED_S, Catalog, Model
from gen_worker_supervisor.core.phases import ModelState
from tests.pure.host import Host, function, snapshot

WANTED = Wanted("hf", "a/m")
SLOTS = [Slot("s", WANTED)]


def ordered(catalog: Catalog, now: float = 0.0) -> Fetch:
    """Return the one order that is due."""
    (order,) = catalog.orders(now)
    assert isinstance(order, Fetch)
    return order


def seeking() -> tuple[Catalog, Model, Fetch]:
    """Return a catalog whose one model is looked for."""
    catalog = Catalog(derived_root="/cache/derived")
    catalog.ask(SLOTS, 0.0, urgent=True)
    return catalog, catalog.of(WANTED), ordered(catalog)


def downloading() -> tuple[Catalog, Model, Fetch]:
    """Return a catalog whose one model is downloaded."""
    catalog, model, look = seeking()
    catalog.reported(FetchFailed(look.number, "absent", "no", "", False), 0.0)
    return catalog, model, ordered(catalog)


def here(now: float = 0.0) -> tuple[Catalog, Model]:
    """Return a catalog whose one model is on disk."""
    catalog, model, look = seeking()
    catalog.reported(Fetched(look.number, snapshot(WANTED), 0), now)
    return catalog, model


def fetched_again(catalog: Catalog, now: float) -> Fetch:
    """Have the model looked for once more, and found; return the order."""
    catalog.ask(SLOTS, now, urgent=True)
    order = ordered(catalog, now)
    catalog.reported(Fetched(order.number, snapshot(WANTED), 0), now)
    return order


# --- fetchers that die ------------------------------------------------------------------------------------------------


def test_a_fetch_that_somebody_else_ended_is_ordered_again_and_fails_nobody() -> None:
    catalog, model, order = downloading()
    catalog.reported(FetchFailed(order.number, "canceled", "it was canceled", "", True), 1.0)
    assert model.state is ModelState.QUEUED
    again = ordered(catalog)
    assert (again.wanted, again.probe) == (WANTED, False)
    assert again.number != order.number


def test_a_look_that_somebody_else_ended_is_ordered_again() -> None:
    catalog, model, look = seeking()
    catalog.reported(FetchFailed(look.number, "canceled", "it was canceled", "", True), 1.0)
    assert model.state is ModelState.SEEKING
    assert ordered(catalog).probe


def test_a_model_of_which_fetcher_after_fetcher_dies_fails_for_a_while_and_is_named() -> None:
    catalog, model, _ = downloading()
    for _ in range(DEADLY - 1):
        assert catalog.fetcher_lost(5.0) == []
        ordered(catalog)
    assert catalog.fetcher_lost(5.0) == [model]
    assert catalog.orders(5.0) == []
    failure = catalog.failure(SLOTS, 6.0)
    assert failure is not None
    assert (failure.kind, failure.retryable) == ("download_failed", True)
    assert "`a/m`" in failure.message
    catalog.ask(SLOTS, 5.0 + RETRY_S, urgent=True)
    assert ordered(catalog).probe


def test_a_download_that_gets_on_between_deaths_never_fails_of_them() -> None:
    catalog, model, order = downloading()
    for done in range(10, 200, 10):
        catalog.reported(Fetching(order.number, done, 1000), 1.0)
        assert catalog.fetcher_lost(1.0) == []
        order = ordered(catalog)
    assert model.state is ModelState.FETCHING


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_model_that_could_not_be_loaded_is_verified_before_it_is_tried_again() -> None:
    catalog, _ = here()
    assert catalog.damaged(SLOTS, 1.0) is True
    assert fetched_again(catalog, 2.0).verify


def test_a_verified_model_that_still_cannot_be_loaded_is_not_hashed_again_at_once() -> None:
    catalog, _ = here()
    catalog.damaged(SLOTS, 1.0)
    fetched_again(catalog, 2.0)
    assert catalog.damaged(SLOTS, 3.0) is False
    assert not fetched_again(catalog, 33.0).verify
    assert catalog.damaged(SLOTS, 3.0 + VERIFIED_S) is True


def test_damage_that_is_found_is_verified_as_it_comes_again() -> None:
    catalog, model = here()
    catalog.damaged(SLOTS, 1.0)
    catalog.ask(SLOTS, 1.0, urgent=True)
    look = ordered(catalog)
    catalog.reported(FetchFailed(look.number, "absent", "no", "", False), 2.0)
    download = ordered(catalog)
    assert (download.probe, download.verify) == (False, True)
    catalog.reported(Fetched(download.number, snapshot(WANTED), 10), 3.0)
    assert model.here


# --- copies in another dtype ------------------------------------------------------------------------------------------


def test_a_copy_is_believed_in_only_where_copies_of_that_very_model_are() -> None:
    catalog, model = here()
    key = snapshot(WANTED).key.replace("/", "-")
    assert model.snapshot is not None
    model.snapshot = type(model.snapshot)(WANTED, key, "c0", "/cache/a/m", model.snapshot.files)
    for path in (
        "/usr",
        f"/usr/{key}-fp32",
        "/cache/derived/other-fp32",
        f"/cache/derived/{key}-fp32/deeper",
        f"/cache/derived/{key}-fp32/..",
        f"/cache/derived/../{key}-fp32",
        "/cache/derived/..",
        "",
    ):
        assert catalog.learn_derived(WANTED, path) is False
        assert model.derived is None
    assert catalog.learn_derived(WANTED, f"/cache/derived/{key}-fp32") is True
    assert (model.path, model.key) == (f"/cache/derived/{key}-fp32", f"{key}-fp32")
    assert catalog.learn_derived(WANTED, f"/cache/derived/{key}-fp32") is True  # said of every load of it


# --- how fast ---------------------------------------------------------------------------------------------------------


def test_the_speed_of_a_resumed_download_is_that_of_what_comes_now() -> None:
    catalog, model, order = downloading()
    assert model.bytes_per_s(1.0) == 0.0
    catalog.reported(Fetching(order.number, 900, 1000), 1.0)
    assert model.bytes_per_s(2.0) == 0.0
    catalog.reported(Fetching(order.number, 920, 1000), 3.0)
    assert model.bytes_per_s(3.0) == 10.0
    catalog.fetcher_lost(3.0)
    assert model.bytes_per_s(4.0) is None
    order = ordered(catalog)
    catalog.reported(Fetching(order.number, 920, 1000), 5.0)
    catalog.reported(Fetching(order.number, 930, 1000), 6.0)
    assert model.bytes_per_s(6.0) == 10.0


# --- who comes first --------------------------------------------------------------------------------------------------


def test_a_download_that_nobody_waits_for_any_more_makes_room_for_one_that_a_job_waits_for() -> None:
    catalog = Catalog(at_once=1)
    slots = {ref: [Slot("s", Wanted("hf", ref))] for ref in ("a/m", "b/m")}
    keys = {ref: each[0].wanted.key for ref, each in slots.items()}
    catalog.ask(slots["a/m"], 0.0, urgent=True)
    look = ordered(catalog)
    catalog.reported(FetchFailed(look.number, "absent", "no", "", False), 0.0)
    (first,) = catalog.orders(0.0, {keys["a/m"]})
    catalog.ask(slots["b/m"], 1.0, urgent=True)
    look = ordered(catalog)
    catalog.reported(FetchFailed(look.number, "absent", "no", "", False), 1.0)
    assert catalog.orders(1.0, set(keys.values())) == []  # somebody waits for each
    abort, second = catalog.orders(2.0, {keys["b/m"]})
    assert abort == Abort(first.number)
    assert isinstance(second, Fetch)
    assert second.wanted.ref == "b/m"
    assert catalog.reported(FetchFailed(first.number, "canceled", "it was", "", True), 3.0) is None
    assert catalog.orders(3.0, {keys["b/m"]}) == []
    catalog.reported(Fetched(second.number, snapshot(second.wanted), 10), 4.0)
    (again,) = catalog.orders(4.0, set())
    assert isinstance(again, Fetch)
    assert again.wanted.ref == "a/m"


def test_a_download_that_nobody_waits_for_goes_on_while_there_is_room() -> None:
    catalog, model, _ = downloading()
    catalog.ask([Slot("s", Wanted("hf", "b/m"))], 1.0, urgent=True)
    look = ordered(catalog)
    catalog.reported(FetchFailed(look.number, "absent", "no", "", False), 1.0)
    (second,) = catalog.orders(1.0, {Wanted("hf", "b/m").key})
    assert isinstance(second, Fetch)
    assert model.state is ModelState.FETCHING


def test_canceling_the_only_job_that_waits_for_a_download_lets_the_next_one_begin() -> None:
    host = Host(function("a", instance="A", models=["a/m"]), function("b", instance="B", models=["b/m"]))
    host.fleet.catalog.at_once = 1
    given_up = host.submit("a")
    host.absent(*host.ordered())
    host.submit("b")
    host.absent(host.ordered()[-1])
    assert [order.wanted.ref for order in host.ordered(probe=False)] == ["a/m"]
    actions = host.ends(given_up)
    assert [type(action.order) for action in actions if isinstance(action, OrderFetch)] == [Abort, Fetch]
    assert host.ordered()[-1].wanted.ref == "b/m"
