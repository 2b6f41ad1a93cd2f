import pytest

from ev_platform.corpus.extracted import UnusableError, licence_id, normalise
from ev_platform.corpus.html import read_html
from ev_platform_tests.corpus.files import BODY, PROSE, URL, page


def read(html, url=URL):
    return read_html(html.encode() if isinstance(html, str) else html, url)


# ---- characters ----


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("e\u0301tage", "étage"),
        ("32\u00a0A\u2009at\t230\u202fV", "32 A at 230 V"),
        ("o\ufb03cial \ufb01xed \ufb02ow", "official fixed flow"),
        ("char\u00adging\u200b cab\u2060le\ufeff", "charging cable"),
        ("one\u2028two\u2029three", "one\ntwo\n\nthree"),
        ("one\r\ntwo\rthree\x0cfour\x85five", "one\ntwo\nthree\nfour\nfive"),
        ("bell\x07 null\x00", "bell null"),
        ("  one  \n\n\n\n\ntwo \n", "one\n\ntwo"),
        ("10 kΩ, 5 µs, x²", "10 kΩ, 5 µs, x²"),
    ],
)
def test_normalise_leaves_plain_text(raw, clean):
    assert normalise(raw) == clean
    assert normalise(clean) == clean


GERMAN = "Das Ladekabel für größere Ströme wird jährlich geprüft. " * 6


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("", "utf-8"),
        ('<meta charset="utf-8">', "utf-8"),
        ('<meta charset="iso-8859-1">', "utf-8"),  # declared wrongly
        ('<meta charset="iso-8859-1">', "iso-8859-1"),
        ('<meta http-equiv="content-type" content="text/html; charset=windows-1252">', "windows-1252"),
        ("", "windows-1252"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
        ('<meta charset="no-such-thing">', "utf-8"),
    ],
)
def test_characters_are_right_whatever_the_page_declares(declared, encoding):
    got = read(page(declared, f"<p>{GERMAN}</p>").encode(encoding))
    assert got.text == GERMAN.strip()


def test_bytes_that_are_no_utf8_cost_themselves_only():
    got = read(page('<meta charset="utf-8">', f"<p>{GERMAN}</p>").encode().replace(b"Strom", b"Str\xff\xfeom", 1))
    assert "größere" in got.text and "Ladekabel" in got.text


# ---- text ----


def test_page_gives_its_text_without_menu_and_footer():
    html = page().replace("<main>", '<nav><a href="/">Home page link</a></nav><main>')
    text = read(html.replace("</main>", "</main><footer>All rights reserved 2026</footer>")).text
    assert "damaged sheath" in text and text.startswith("# Cables")
    assert "Home page link" not in text and "rights reserved" not in text


def test_headings_lists_and_code_stay_markdown():
    body = f"""{BODY}<h2>Settings of
      the charger</h2><ul><li>One<ul><li>Nested</li></ul></li></ul><ol><li>First</li><li>Second</li></ol>
      <pre class="shiki"><code><span>{{</span>
  <span>"a"</span>: 1,

  "b": 2
}}</code></pre><h3>Wiring</h3><pre>L1 --- N
  PE</pre><p>Set max_current_a. The cross-section is 6 mm<sup>2</sup>, more
      than enough.</p>"""
    text = read(page(body=body)).text
    assert "\n## Settings of the charger\n" in text and "\n### Wiring\n" in text
    assert "\n- One\n  - Nested\n" in text and "\n1. First\n2. Second\n" in text
    assert '\n```\n{\n  "a": 1,\n\n  "b": 2\n}\n```\n' in text
    assert "\n```\nL1 --- N\n  PE\n```\n" in text
    assert text.endswith("Set max_current_a. The cross-section is 6 mm², more than enough.")


ROWS = "<tr><td>16 A</td><td>2.5 | 4</td></tr><tr><td>32 A</td><td>6</td></tr>"


@pytest.mark.parametrize(
    ("table", "markdown"),
    [
        (f"<thead><tr><th>Current</th><th>Size</th></tr></thead><tbody>{ROWS}</tbody>", "|Current|Size|"),
        (f"<caption>Cable sizes</caption><tr><th>Current</th><th>Size</th></tr>{ROWS}", "|Current|Size|"),
        (f"<tr><th>Current</th><td>Size</td></tr>{ROWS.replace('td>16', 'th>16')}", "|Current|Size|"),
        (f"<tr><td>Current</td><td>Size</td></tr>{ROWS}", "|Current|Size|"),
    ],
    ids=["head", "caption", "row heads", "no head"],
)
def test_table_has_one_rule_below_its_first_row_and_escaped_cells(table, markdown):
    text = read(page(body=f"{BODY}<table>{table}</table><p>{PROSE[:110]} More.</p>")).text
    lines = [line.replace(" ", "") for line in text.splitlines() if line.startswith("|")]
    assert lines == [markdown, "|---|---|", "|16A|2.5\\|4|", "|32A|6|"]
    assert ("Cable sizes" in text) == ("caption" in table)
    if "caption" in table:
        assert text.index("Cable sizes") < text.index("| Current")


def test_code_block_right_behind_inline_code_starts_its_own_line():
    example = "<h4>JSON</h4><code>GET /stations.json</code><pre>{\n  1\n}</pre>"
    body = f"<h1>Stations</h1><p>{PROSE}</p>{example}<p>{PROSE}</p>"
    text = read_html(page(body=body).encode(), URL).text
    assert "`GET /stations.json`\n\n```\n{\n  1\n}\n```\n" in text


def test_page_of_many_small_boxes_keeps_them():
    boxes = "".join(
        f'<div class="card"><div><span>Model {n}</span></div><div>Output {n} kW, cable of {n} m</div></div>'
        for n in range(60)
    )
    text = read(page(body=f"<h1>Chargers</h1><p>{PROSE}</p><div class='grid'>{boxes}</div>")).text
    assert all(f"cable of {n} m" in text for n in range(60))


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ('<img src="a.png">', False),
        ('<div id="root"></div><script src="app.js"></script>', True),
        (f'<div id="app">Loading</div><script>{"x=1;" * 3000}</script>', True),
        ("<p>Hi</p><script>x=1</script>", False),
    ],
)
def test_page_without_text_says_so_and_whether_scripts_would_write_it(body, hint):
    try:
        text, detail = read(page(body=body)).text, ""
    except UnusableError as error:
        assert error.reason == "no_text"
        text, detail = "", error.detail
    assert ("fetcher: browser" in detail) == hint
    assert text in ("", "Hi")


def test_short_page_beside_scripts_is_read():
    assert "damaged sheath" in read(page('<script src="a.js"></script>')).text


def test_bytes_that_are_no_page_are_refused():
    with pytest.raises(UnusableError) as refused:
        read(b"")
    assert refused.value.reason == "not_html"


# ---- what the page declares ----

LD = '<script type="application/ld+json">{}</script>'


@pytest.mark.parametrize(
    ("head", "published", "modified"),
    [
        ('<meta property="article:published_time" content="2024-01-31T09:00:00Z">', "2024-01-31", None),
        ('<meta property="article:modified_time" content="2024-02-28">', None, "2024-02-28"),
        ('<meta name="DCTERMS.created" content="2023-05-06">', "2023-05-06", None),
        (LD.format('{"datePublished": "2022-03-04", "dateModified": "2022-03-05T01:02"}'), "2022-03-04", "2022-03-05"),
        (LD.format('{"@graph": [{"@type": "Article", "datePublished": "2022-03-04"}]}'), "2022-03-04", None),
        (LD.format('[{"datePublished": "2022-03-04"}]'), "2022-03-04", None),
        (LD.format('{"datePublished": "soon", broken'), None, None),
        ('<meta property="article:modified_time" content="2024-02-31">', None, None),
    ],
)
def test_dates_are_those_declared(head, published, modified):
    got = read(page(head))
    assert (got.published_on, got.modified_on) == (published, modified)


def test_dates_of_time_elements_count():
    body = BODY + '<p><time itemprop="datePublished" datetime="2021-02-03">Feb</time></p>'
    assert read(page(body=body)).published_on == "2021-02-03"
    article = f'<article><time datetime="2021-02-03">Feb</time>{BODY}<time datetime="2022-02-03"></time></article>'
    assert read(page(body=article)).published_on == "2021-02-03"
    assert read(page(body=article * 2)).published_on is None  # a list of posts


def test_title_author_and_publisher_are_those_declared():
    head = (
        '<title>Cables</title><meta name="author" content="Ann Writer"><meta property="og:site_name" content="Guide">'
    )
    got = read(page(head))
    assert (got.title, got.author, got.publisher) == ("Cables", "Ann Writer", "Guide")
    assert read(page()).publisher is None


@pytest.mark.parametrize(
    ("head", "footer", "licence"),
    [
        ('<link rel="license" href="https://creativecommons.org/licenses/by-sa/3.0/">', "", "CC-BY-SA-3.0"),
        ('<link rel="license" href="https://creativecommons.org/publicdomain/zero/1.0/">', "", "CC0-1.0"),
        ('<link rel="license" href="/terms.html">', "", "/terms.html"),
        (LD.format('{"license": "https://creativecommons.org/licenses/by/4.0/"}'), "", "CC-BY-4.0"),
        (LD.format('{"license": {"url": "https://creativecommons.org/licenses/by/4.0/"}}'), "", "CC-BY-4.0"),
        ("", '<a rel="noopener license" href="https://creativecommons.org/licenses/by-nc/4.0/">L</a>', "CC-BY-NC-4.0"),
        ("", '<a href="https://creativecommons.org/licenses/by/4.0/">CC BY 4.0</a>', "CC-BY-4.0"),
        ("", '<a href="/imprint">Imprint</a>', None),
    ],
)
def test_licence_is_the_one_that_the_page_declares(head, footer, licence):
    assert read(page(head).replace("</main>", f"</main><footer>{footer}</footer>")).licence == licence


@pytest.mark.parametrize(
    ("declared", "licence"),
    [("CC BY-SA 4.0", "CC-BY-SA-4.0"), ("cc0", "CC0-1.0"), ("MIT", "MIT"), ("", None), (None, None), (" ", None)],
)
def test_licence_id_knows_creative_commons(declared, licence):
    assert licence_id(declared) == licence


@pytest.mark.parametrize(
    ("lang", "head", "language"),
    [
        ('lang="en-GB"', "", "en"),
        ('lang="DE"', "", "de"),
        ("", '<meta http-equiv="Content-Language" content="nl, en">', "nl"),
        ("", '<meta property="og:locale" content="fr_BE">', "fr"),
        ('lang="english"', "", None),
        ("", "", None),
    ],
)
def test_language_is_the_one_declared(lang, head, language):
    assert read(page(head, lang=lang)).language_declared == language


@pytest.mark.parametrize(
    ("href", "canonical"),
    [
        ("/cables/", "https://a.example/cables/"),
        ("https://a.example/c", "https://a.example/c"),
        ("https://seller.example/c", None),
        ("https://[broken", None),
        ("", None),
    ],
)
def test_canonical_address_is_believed_of_the_own_host_only(href, canonical):
    assert read(page(f'<link rel="canonical" href="{href}">')).canonical == canonical
