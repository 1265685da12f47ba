"""What leaves the disk when room is needed, and in which order."""

from hypothesis import given
from hypothesis import strategies as st

from gen_worker.fetch.cache.eviction import FRESH_S, Entry, evictable, excess, surplus, total, victims

NOW = 10_000.0


def entry(name: str, size: int = 10, age: float = 1000.0, *, in_use: bool = False, **shared: int) -> Entry:
    return Entry(name, (f"acme/{name}",), {name: size, **shared}, NOW - age, in_use)


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    old, older, newest = entry("old", age=500), entry("older", age=900), entry("newest", age=400)
    assert victims([old, older, newest], 15, NOW) == ["older", "old"]


def test_what_is_fresh_goes_after_what_is_not_and_what_is_kept_after_all_else() -> None:
    entries = [
        entry("kept-fresh", age=FRESH_S - 1),
        entry("kept", age=2000),
        entry("fresh", age=FRESH_S - 2),
        entry("old", age=400),
    ]
    keep = ["acme/kept", "acme/kept-fresh"]
    assert victims(entries, 40, NOW, keep) == ["old", "fresh", "kept", "kept-fresh"]


def test_what_is_in_use_never_goes() -> None:
    entries = [entry("used", age=9000, in_use=True), entry("idle", age=1)]
    assert victims(entries, 10, NOW) == ["idle"]
    assert victims(entries, 11, NOW) == []


def test_nothing_goes_when_all_of_it_would_not_be_enough() -> None:
    assert victims([entry("one"), entry("two")], 21, NOW) == []


def test_bytes_that_others_share_become_free_only_with_the_last_of_them() -> None:
    one, two = entry("one", 1, age=900, vae=50), entry("two", 2, age=800, vae=50)
    assert victims([one, two], 2, NOW) == ["one", "two"]
    assert evictable([one, two]) == 53 == total([one, two])
    assert evictable([one, entry("two", 2, in_use=True, vae=50)]) == 1


def test_a_cache_over_its_limit_shrinks_to_nine_tenths_of_it() -> None:
    assert excess(used=80, needed=20, limit=100) == 0
    assert excess(used=90, needed=20, limit=100) == 20
    assert excess(used=90, needed=20, limit=0) == 0


def test_a_surplus_that_is_in_use_in_part_goes_as_far_as_it_may() -> None:
    entries = [entry("used", in_use=True), entry("idle")]
    assert surplus(entries, 5, NOW) == ["idle"]
    assert surplus(entries, 20, NOW) == []


entries = st.lists(
    st.builds(
        Entry,
        st.text("abcdef", min_size=1, max_size=3),
        st.just(()),
        st.dictionaries(st.sampled_from("uvwxyz"), st.just(7), max_size=3),
        st.floats(0, NOW),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda each: each.key,
)


@given(entries, st.integers(1, 60))
def test_what_is_chosen_is_enough_and_never_in_use(there: list[Entry], needed: int) -> None:
    chosen = victims(there, needed, NOW)
    stay = [each for each in there if each.key not in chosen]
    assert not any(each.in_use for each in there if each.key in chosen)
    if chosen:
        assert total(there) - total(stay) >= needed
    else:
        assert evictable(there) < needed
