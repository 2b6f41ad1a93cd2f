"""What goes into pages for people: the words of strangers do nothing there."""

import pytest

from ev_platform.pages import table_cell, unlinked


@pytest.mark.parametrize("text", ["https://evil.example/x", "HTTP://evil.example", "www.evil.example", "WWW.e.example"])
def test_address_of_a_stranger_is_text_and_reads_as_it_was_written(text):
    shown = table_cell(unlinked(f"see {text}"))
    assert shown.replace("\u200b", "") == f"see {text}"
    assert "://" not in shown and "www." not in shown.lower()


def test_mail_address_of_a_stranger_is_text():
    assert unlinked("ann@firm.example") == "ann@\u200bfirm.example"


def test_cell_keeps_the_table_and_is_no_html():
    assert table_cell("a|b\n<b>[x](y)") == r"a\|b &lt;b&gt;\[x\](y)"
