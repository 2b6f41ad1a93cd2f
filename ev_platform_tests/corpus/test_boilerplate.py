from random import Random

import pytest

from ev_platform.corpus.boilerplate import strip_boilerplate

COOKIES = "We use one cookie to remember that you have closed this notice."


def page(text, path="p", host="a.example", kind="web"):
    return {"url": f"https://{host}/{path}", "kind": kind, "text": text}


def own(n, n_words=60):
    """Return text that no other page has."""
    return " ".join(f"page{n}word{i}" for i in range(n_words))


def site(n, make, host="a.example", folder=""):
    return [page(make(i), f"{folder}p{i}", host) for i in range(n)]


def test_line_on_every_page_is_removed_and_blank_lines_behind_it_are_tidied():
    results = strip_boilerplate(site(6, lambda i: f"{own(i)}\n\n{COOKIES}\n\n{own(100 + i)}\n\n- Home\n- Contact us"))
    assert results == [(f"{own(i)}\n\n{own(100 + i)}", 3) for i in range(6)]


def test_line_on_a_few_pages_of_a_site_stays():
    results = strip_boilerplate(site(12, lambda i: f"{own(i)}\n\n{COOKIES if i < 7 else own(100 + i)}"))
    assert [n for _, n in results] == [0] * 12  # 7 of 12 is less than 0.6
    results = strip_boilerplate(site(12, lambda i: f"{own(i)}\n\n{COOKIES if i < 8 else own(100 + i)}"))
    assert [n for _, n in results] == [1] * 8 + [0] * 4


def test_small_site_keeps_its_text():
    assert strip_boilerplate(site(4, lambda i: f"{own(i)}\n\n{COOKIES}"))[0] == (f"{own(0)}\n\n{COOKIES}", 0)


def test_other_sites_do_not_count():
    pages = [page(f"{own(i)}\n\n{COOKIES}", host=f"h{i % 3}.example", path=f"p{i}") for i in range(12)]
    assert all(n == 0 for _, n in strip_boilerplate(pages))


def test_line_of_a_section_is_removed_although_the_host_has_other_pages():
    english = site(6, lambda i: f"{own(i)}\n\n{COOKIES}", folder="en/")
    german = site(14, lambda i: own(50 + i), folder="de/")
    results = strip_boilerplate(english + german)
    assert [n for _, n in results] == [1] * 6 + [0] * 14


def test_line_repeated_within_one_page_counts_once():
    pages = site(6, lambda i: f"{own(i)}\n\n" + (f"{COOKIES}\n\n" * 6 if i == 0 else ""))
    assert strip_boilerplate(pages)[0][1] == 0


def test_heading_on_every_page_stays_where_what_follows_differs():
    results = strip_boilerplate(site(6, lambda i: f"## Installation\n\n{own(i)}\n\n{COOKIES}"))
    assert results[0] == (f"## Installation\n\n{own(0)}", 1)


def test_repeated_block_goes_with_its_headings():
    block = f"## Newsletter\n\n{COOKIES}\n\n### How to leave\n\nUnsubscribe with one click."
    results = strip_boilerplate(site(6, lambda i: f"# Page {i}\n\n{own(i)}\n\n{block}\n\n## Costs\n\n{own(50 + i)}"))
    assert results[0] == (f"# Page 0\n\n{own(0)}\n\n## Costs\n\n{own(50)}", 4)


def test_repeated_heading_stays_above_a_subsection_that_stays():
    block = f"## Costs\n\n{COOKIES}\n\n### In all\n\n"
    results = strip_boilerplate(site(6, lambda i: f"{block}{own(i)}"))
    assert results[0] == (f"## Costs\n\n### In all\n\n{own(0)}", 1)


def test_heading_of_one_page_stays_though_its_text_goes():
    results = strip_boilerplate(site(6, lambda i: f"{own(i)}\n\n## Heading {i}\n\n{COOKIES}"))
    assert results[0] == (f"{own(0)}\n\n## Heading 0", 1)


def test_repeated_headings_without_text_stay():
    results = strip_boilerplate(site(6, lambda i: f"{own(i)}\n\n## Type 2\n\n## CCS"))
    assert [n for _, n in results] == [0] * 6


@pytest.mark.parametrize(
    "block",
    [
        "| Parameter | Required |\n| --- | --- |\n| limit | No |",
        "```\nfrom charger import start\nstart()\n```",
        "~~~~\n```\nrun it now\n~~~~",
        '"metadata": {\n"total": 3,\n}',
    ],
    ids=["table", "code", "code in code", "code without its fence"],
)
def test_tables_and_code_stay(block):
    assert strip_boilerplate(site(6, lambda i: f"{own(i)}\n\n{block}"))[0] == (f"{own(0)}\n\n{block}", 0)


def test_text_after_code_is_seen_again():
    results = strip_boilerplate(site(6, lambda i: f"{own(i)}\n\n```sh\nrun\n```\n\n{COOKIES}"))
    assert results[0] == (f"{own(0)}\n\n```sh\nrun\n```", 1)


def test_page_that_would_lose_more_than_half_is_left_as_it_is():
    pages = site(6, lambda i: f"{own(i)}\n\n{COOKIES}")
    pages.append(page(f"Not found.\n\n{COOKIES}", "404"))
    results = strip_boilerplate(pages)
    assert results[0][1] == 1 and results[6] == (f"Not found.\n\n{COOKIES}", 0)


def test_near_copies_of_a_page_do_not_erase_each_other():
    # Eight versions of one manual and two other pages: every line of the manual is on 80 % of the pages.
    manual = "\n\n".join(own(100 + n, 20) for n in range(20))
    pages = [page(f"{manual}\n\nVersion {i}.", f"v{i}") for i in range(8)] + site(2, own)
    assert all(n == 0 for _, n in strip_boilerplate(pages))


def test_near_copies_count_as_one_page():
    manual = "\n\n".join(own(100 + n, 20) for n in range(20))
    copies = [page(f"{manual}\n\n{COOKIES}\n\nVersion {i}.", f"v{i}") for i in range(10)]
    others = site(5, lambda i: f"{own(i)}\n\n{COOKIES}")
    # With four others it is on five distinct pages, with three on four.
    assert all(n == 1 for _, n in strip_boilerplate(copies + others[:4]))
    assert all(n == 0 for _, n in strip_boilerplate(copies + others[:3]))


def test_pdfs_are_untouched_and_do_not_count():
    pages = site(6, lambda i: f"{own(i)}\n\n{COOKIES}")
    pdfs = [p | {"kind": "pdf"} for p in pages]
    assert strip_boilerplate(pdfs) == [(p["text"], 0) for p in pdfs]
    assert strip_boilerplate(pdfs[:2] + pages[:4])[5][1] == 0


def test_order_of_pages_does_not_matter():
    manual = "\n\n".join(own(100 + n, 20) for n in range(9))
    pages = [page(f"{manual}\n\n{COOKIES}\n\nVersion {i}.", f"v{i}") for i in range(4)]
    pages += site(9, lambda i: f"{own(i)}\n\n{COOKIES if i < 6 else own(60 + i)}\n\n- Menu of folder", folder="en/")
    expected = {p["url"]: result for p, result in zip(pages, strip_boilerplate(pages), strict=True)}
    assert {n for _, n in expected.values()} >= {1, 2}
    for seed in range(5):
        Random(seed).shuffle(pages)
        assert {p["url"]: r for p, r in zip(pages, strip_boilerplate(pages), strict=True)} == expected


def test_page_without_boilerplate_keeps_its_text_to_the_letter():
    text = f"  {own(0)}\n\n\n\nodd   blanks\n"
    assert strip_boilerplate([page(text)]) == [(text, 0)]
    assert strip_boilerplate([]) == []
