"""Which models stay on a device, and how the one that comes is placed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.capability import InsufficientVRAMError
from gen_worker.models.rungs import ALL, EXACT, GB, NEXT, Rung, Sizes, fitting_rung, in_words, next_rung
from gen_worker_child.models.residency import NO_LIMIT, Held, allowance, make_room, plan

ORDER = list(Rung)
MODULE = frozenset({Rung.OFF, Rung.GROUP_OFFLOAD})


def gb(total: float, component: float | None = None, layer: float = 0.1) -> Sizes:
    return Sizes(int(total * GB), int((component if component is not None else total * 0.7) * GB), int(layer * GB))


def fitting(sizes: Sizes | None, free: float, margin: float = 2, possible: frozenset[Rung] = EXACT) -> Rung | None:
    return fitting_rung(sizes, free_bytes=int(free * GB), margin_bytes=int(margin * GB), possible=possible)


# --- rungs ------------------------------------------------------------------------------------------------------------


def test_a_rung_leads_to_those_that_need_less_memory_and_the_last_to_none() -> None:
    assert set(NEXT) == set(Rung)
    for rung, targets in NEXT.items():
        assert list(targets) == ORDER[ORDER.index(rung) + 1 :]
    assert next_rung(Rung.GROUP_OFFLOAD, ALL) is None


def test_weights_are_stored_in_eight_bits_only_where_that_is_asked_for() -> None:
    assert next_rung(Rung.VAE_ONLY) is Rung.MODEL_OFFLOAD
    assert next_rung(Rung.VAE_ONLY, ALL) is Rung.LAYERWISE_FP8
    assert all(fitting(gb(9), free / 4, possible=ALL) is not Rung.LAYERWISE_FP8 for free in range(200))


def test_only_a_model_that_is_not_plainly_on_its_device_is_reported() -> None:
    assert [rung.reported for rung in Rung] == ["", "vae_only", "layerwise_fp8", "model_offload", "group_offload"]


@pytest.mark.parametrize(
    ("size", "free", "rung"),
    [
        (2, 6, "group_offload"),
        (2, 6.1, "vae_only"),
        (7, 24, "off"),
        (7, 17, "off"),
        (7, 16.9, "vae_only"),
        (7, 9, "vae_only"),
        (7, 8.9, "model_offload"),
        (24, 20, "model_offload"),
        (24, 10, "group_offload"),  # its largest component is not among what fits
        (None, 6, "group_offload"),
        (None, 8, "model_offload"),
        (None, 8.1, "vae_only"),
    ],
)
def test_a_pipeline_is_placed_by_what_its_device_has_free(size: float | None, free: float, rung: str) -> None:
    assert fitting(None if size is None else gb(size), free) == rung


def test_a_small_model_is_placed_by_its_size_alone() -> None:
    assert fitting(gb(0.09, layer=0.01), 2.5) is Rung.OFF
    assert fitting(gb(0.9, 0.6), 2.7) is Rung.MODEL_OFFLOAD


def test_a_model_that_decodes_no_images_is_plainly_on_its_device_or_offloaded() -> None:
    assert fitting(gb(3), 5.5, possible=MODULE) is Rung.OFF
    assert fitting(gb(8), 5.5, possible=MODULE) is Rung.GROUP_OFFLOAD
    assert fitting(gb(8), 5.5, possible=frozenset({Rung.OFF})) is None


def test_the_last_rung_may_use_the_margin() -> None:
    assert fitting(gb(7), 1.5) is Rung.GROUP_OFFLOAD
    assert fitting(gb(7), 0.1) is None


def test_amounts_of_memory_are_told_in_gb_or_mb() -> None:
    assert in_words(7 * GB) == "7.0 GB"
    assert in_words(5 << 20) == "5.0 MB"


# --- plans ------------------------------------------------------------------------------------------------------------


def held(instance: str, size: float, last_used: float, leased: bool = False) -> Held:
    return Held(instance, int(size * GB), last_used, leased)


def test_what_fits_beside_the_others_sends_nobody_away() -> None:
    planned = plan([held("a", 10, 1)], gb(7), free_bytes=24 * GB, margin_bytes=2 * GB)
    assert planned == ((), Rung.OFF, "")


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    others = [held("new", 8, 3), held("old", 8, 1), held("older but leased", 8, 0, leased=True)]
    planned = plan(others, gb(7), free_bytes=2 * GB, margin_bytes=2 * GB)
    assert planned.evict == ("old",)
    assert planned.rung is Rung.VAE_ONLY
    assert planned.reason == "weights of 7.0 GB come where 10.0 GB are free, 2.0 GB of them to stay so"


def test_nobody_goes_only_so_that_images_decode_in_one_go() -> None:
    planned = plan([held("a", 10, 1)], gb(7), free_bytes=10 * GB, margin_bytes=2 * GB)
    assert planned.evict == ()
    assert planned.rung is Rung.VAE_ONLY


def test_a_model_that_does_not_fit_even_alone_is_offloaded_and_nobody_goes_in_vain() -> None:
    planned = plan([held("a", 1, 1)], gb(40, 12), free_bytes=16 * GB, margin_bytes=2 * GB)
    assert planned.evict == ()
    assert planned.rung is Rung.MODEL_OFFLOAD


def test_what_fits_no_way_is_refused_with_figures() -> None:
    with pytest.raises(InsufficientVRAMError) as refusal:
        plan(
            [held("a", 6, 1, leased=True)],
            gb(7),
            free_bytes=1 * GB,
            margin_bytes=2 * GB,
            possible=frozenset({Rung.OFF}),
        )
    assert str(refusal.value) == (
        "weights and margin need 9.0 GB, and 1.0 GB of the device can be had; jobs that run keep 6.0 GB"
    )
    assert refusal.value.available_bytes == 1 * GB
    assert refusal.value.required_bytes == 9 * GB


def pinned(instance: str, size: float, last_used: float) -> Held:
    return Held(instance, int(size * GB), last_used, False, (f"acme/{instance}",))


def test_what_is_pinned_makes_room_for_nobody_however_long_it_was_not_used() -> None:
    others = [pinned("old", 8, 1), held("new", 8, 3)]
    assert plan(others, gb(7), free_bytes=2 * GB, margin_bytes=2 * GB).evict == ("new",)
    assert make_room(others, 100 * GB) == ("new",)


def test_where_pins_leave_no_room_the_refusal_names_them_and_says_how_one_goes() -> None:
    plain = frozenset({Rung.OFF})
    with pytest.raises(InsufficientVRAMError) as refusal:
        plan([pinned("a", 6, 1), pinned("b", 2, 2)], gb(7), free_bytes=GB, margin_bytes=2 * GB, possible=plain)
    assert str(refusal.value) == (
        "weights and margin need 9.0 GB, and 1.0 GB of the device can be had; "
        "8.0 GB are of what is pinned: `acme/a`, `acme/b`"
    )
    assert refusal.value.hint == "`gen-worker models unpin acme/a` lets it go for others"


def test_a_rung_that_was_needed_before_is_where_the_next_load_starts() -> None:
    planned = plan([], gb(7), free_bytes=70 * GB, margin_bytes=2 * GB, at_least=Rung.MODEL_OFFLOAD)
    assert planned.rung is Rung.MODEL_OFFLOAD


def test_a_rung_of_before_that_a_model_cannot_take_is_not_asked_of_it() -> None:
    only_plain = frozenset({Rung.OFF})
    planned = plan([], gb(7), free_bytes=70 * GB, margin_bytes=2 * GB, at_least=Rung.MODEL_OFFLOAD, possible=only_plain)
    assert planned.rung is Rung.OFF


SIZES = st.integers(0, 40 * GB)


@st.composite
def models(draw: st.DrawFn) -> Sizes:
    total = draw(st.integers(1, 60 * GB))
    component = draw(st.integers(1, total))
    return Sizes(total, component, draw(st.integers(1, component)))


@st.composite
def residents(draw: st.DrawFn) -> list[Held]:
    count = draw(st.integers(0, 5))
    return [Held(f"i{at}", draw(SIZES), draw(st.integers(0, 3)), draw(st.booleans())) for at in range(count)]


@given(
    residents(),
    models() | st.none(),
    SIZES,
    st.integers(0, 4 * GB),
    st.sampled_from([EXACT, MODULE, frozenset({Rung.OFF})]),
)
def test_whatever_is_held_a_plan_keeps_to_the_device_and_to_the_leases(
    others: list[Held], sizes: Sizes | None, free: int, margin: int, possible: frozenset[Rung]
) -> None:
    def try_plan(inputs: list[Held]) -> object:
        return plan(inputs, sizes, free_bytes=free, margin_bytes=margin, possible=possible)

    by_name = {each.instance: each for each in others}
    try:
        planned = plan(others, sizes, free_bytes=free, margin_bytes=margin, possible=possible)
    except InsufficientVRAMError:
        assert sizes is not None
        going = sum(each.bytes for each in others if not each.leased)
        assert fitting_rung(sizes, free_bytes=free + going, margin_bytes=margin, possible=possible) is None
        return
    assert planned == try_plan(list(reversed(others))), "the order of what is held decides nothing"
    victims = [by_name[each] for each in planned.evict]
    assert not any(each.leased for each in victims)
    assert planned.rung in possible
    freed = sum(each.bytes for each in victims)
    if sizes is not None:
        assert sizes.on_device(planned.rung) <= free + freed
    evictable = sorted((each for each in others if not each.leased and each.bytes), key=lambda each: each.last_used)
    assert [each.last_used for each in victims] == [each.last_used for each in evictable[: len(victims)]]
    if victims:
        before = freed - victims[-1].bytes
        without = fitting_rung(sizes, free_bytes=free + before, margin_bytes=margin, possible=possible)
        assert without is None or ORDER.index(without) > ORDER.index(planned.rung), "the last one went for nothing"


@given(residents(), SIZES)
def test_room_is_made_by_the_least_recently_used_and_no_more_than_needed(others: list[Held], needed: int) -> None:
    by_name = {each.instance: each for each in others}
    gone = [by_name[name] for name in make_room(others, needed)]
    assert not any(each.leased for each in gone)
    assert sum(each.bytes for each in gone[:-1]) < needed or not gone
    if sum(each.bytes for each in gone) < needed:
        assert {each.instance for each in gone} == {each.instance for each in others if not each.leased and each.bytes}


# --- what may be taken ------------------------------------------------------------------------------------------------


def test_a_budget_is_what_models_may_take_whatever_the_device_has() -> None:
    others = [held("a", 3, 1)]
    assert allowance(budget_bytes=10 * GB, margin_bytes=2 * GB, held=others, device_free_bytes=None) == (7 * GB, 0)
    assert allowance(budget_bytes=10 * GB, margin_bytes=2 * GB, held=others, device_free_bytes=5 * GB) == (3 * GB, 0)
    assert allowance(budget_bytes=2 * GB, margin_bytes=0, held=others, device_free_bytes=None) == (0, 0)


def test_without_a_budget_the_device_says_what_is_free_and_the_cpu_takes_everything() -> None:
    assert allowance(budget_bytes=0, margin_bytes=2 * GB, held=[], device_free_bytes=5 * GB) == (5 * GB, 2 * GB)
    free, margin = allowance(budget_bytes=0, margin_bytes=2 * GB, held=[], device_free_bytes=None)
    assert (free, margin) == (NO_LIMIT, 0)
    assert plan([], gb(500), free_bytes=free, margin_bytes=margin).rung is Rung.OFF
