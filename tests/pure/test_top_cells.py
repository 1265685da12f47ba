"""What stands in a cell of `gen-worker top` fits its room, whatever somebody wrote."""

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from gen_worker.top.cells import (
    bar,
    brief,
    clean,
    cut,
    cut_front,
    cut_middle,
    fitted,
    joined,
    of_total,
    sparkline,
    uptime,
    width_of,
    wrapped,
)
from gen_worker.top.columns import Column, widths
from gen_worker.top.views import Kept

GIB = 1 << 30
texts = st.text(st.characters(codec="utf-8"), max_size=40)


def test_what_could_steer_a_terminal_is_spelt_out() -> None:
    assert clean("\x1b[2Jred\r\n") == "\\x1b[2Jred\\x0d\\x0a"


def test_what_reorders_or_hides_text_is_spelt_out() -> None:
    assert clean("a\u202eb\u200bc\u2028") == "a\\u202eb\\u200bc\\u2028"
    assert clean("\u3164\u1160\U000e0100") == "\\u3164\\u1160\\U000e0100"


def test_what_terminals_give_different_widths_is_spelt_out() -> None:
    assert clean("\u2764\ufe0f 1\ufe0f\u20e3") == "\u2764\\ufe0f 1\\ufe0f\u20e3"


def test_markup_and_wide_characters_are_text_like_any_other() -> None:
    assert clean("[bold]絵文字 🎨") == "[bold]絵文字 🎨"


@given(texts, st.integers(0, 30))
def test_every_text_takes_exactly_the_room_of_its_cell(text: str, room: int) -> None:
    cell = fitted(((clean(text), "text"),), room)
    assert width_of(cell) == room
    assert "".join(part for part, _ in cell).isprintable()


@given(st.lists(texts, max_size=4), st.integers(0, 30))
def test_several_pieces_take_exactly_the_room_of_their_cell(pieces: list[str], room: int) -> None:
    assert width_of(fitted(tuple((clean(piece), "text") for piece in pieces), room)) == room


@given(texts, st.integers(0, 30))
def test_a_cut_text_is_never_wider_than_its_room(text: str, room: int) -> None:
    for shortened in (cut, cut_front, cut_middle):
        assert cell_len(shortened(clean(text), room)) <= room


def test_what_is_cut_says_so() -> None:
    assert fitted((("generate", "text"), (".image", "dim")), 10) == (("generate", "text"), (".…", "dim"))
    assert fitted((("generate", "text"), (".image", "dim")), 8) == (("generat…", "text"),)
    assert (cut("generate", 5), cut_front("local-0000002a", 8)) == ("gene…", "…000002a")
    assert cut_middle("stable-diffusion-xl-base-1.0", 12) == "stable-d…1.0"


def test_parts_that_are_not_there_leave_no_gap() -> None:
    assert joined([(), (("a", "text"),), (), (("b", "dim"),)]) == (("a", "text"), (" ", "text"), ("b", "dim"))


def test_a_text_that_goes_on_does_so_below_itself_between_words() -> None:
    rows = wrapped((("12:00 ", "dim"), ("a child that hangs is ended", "red")), 20)
    assert rows == (
        (("12:00 ", "dim"), ("a child that ", "red")),
        (("      hangs is ended", "red"),),
    )


@given(texts, st.integers(0, 30))
def test_rows_of_a_long_text_have_all_of_it_and_fit(text: str, room: int) -> None:
    rows = wrapped(((clean(text), "text"),), room)
    assert "".join(part for row in rows for part, _ in row) == clean(text)
    assert all(width_of(row) <= max(room, 8) for row in rows)


def test_times_are_brief() -> None:
    assert [brief(each) for each in (0.31, 9.94, 9.96, 47.4, 59.7, 362, 7200)] == [
        "0.3s",
        "9.9s",
        "10s",
        "47s",
        "60s",
        "6m02s",
        "2h00m",
    ]
    assert (uptime(312), uptime(3 * 86400 + 4 * 3600)) == ("5m12s", "3d04h")


def test_what_is_used_has_the_unit_of_the_whole() -> None:
    def told(used: int | None, total: int) -> str:
        return "".join(text for text, _ in of_total(used, total))

    assert told(int(28.7 * GIB), 80 * GIB) == "28.7/80G"
    assert told(1600 * GIB, 1900 * GIB) == "1.6/1.9T"
    assert told(120 << 20, 800 << 20) == "120/800M"
    assert told(None, 80 * GIB) == "-/80G"


def drawn(room: int, *shares: float) -> str:
    return "".join(text for text, _ in bar(room, [(share, "text") for share in shares]))


def test_a_bar_tells_its_parts_without_colour() -> None:
    assert drawn(10, 0.5, 0.2) == "━━━━━╍╍───"
    assert drawn(10, 0.0, 0.0) == "──────────"
    assert drawn(6, 0.01, 0.01) == "━╍────"
    assert drawn(6, 0.99, 0.5) == "━━━━━━"


@given(st.integers(0, 40), st.floats(0, 2), st.floats(0, 2))
def test_a_bar_takes_exactly_its_room(room: int, first: float, second: float) -> None:
    assert len(drawn(room, first, second)) == room


def test_a_sparkline_ends_with_the_latest_value() -> None:
    assert sparkline([0.0, 0.5, 1.0], 5, 5) == "  ▁▄▇"
    assert sparkline([0.0, 0.0, 1.0, 1.0], 2, 4) == "▁▇"
    assert sparkline([None, None, 1.0], 3, 3) == "  ▇"
    assert sparkline([], 4, 8) == "    "


def test_spare_room_goes_to_the_columns_that_take_shares() -> None:
    def column(least: int, share: int = 0) -> Column[None]:
        return Column("", lambda _thing, _room: (), least, share)

    assert widths([column(3), column(5, 1), column(5, 2)], 24) == [3, 8, 11]
    assert widths([column(3), column(5)], 24) == [3, 5]
    assert widths([column(3), column(5, 1)], 4) == [3, 5]


def test_a_very_long_text_is_cut_into_rows_of_which_nothing_is_lost() -> None:
    text = "漢字 and words " * 4000 + "e" + "\u0301" * 500 + "w" * 3000
    rows = wrapped((("ab ", "dim"), (text, "text")), 60)
    assert all(width_of(row) <= 60 for row in rows)
    assert "".join(row[-1][0].removeprefix("   " if at else "") for at, row in enumerate(rows)) == text


def test_a_line_that_is_shown_again_is_not_cut_into_rows_again() -> None:
    kept = Kept((("a child that hangs is ended", "red"),))
    rows = kept.rows(20)
    assert kept.rows(20) is rows
    assert len(kept.rows(10)) > len(rows)
