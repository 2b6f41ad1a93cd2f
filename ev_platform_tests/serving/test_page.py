"""The chat page in headless Chromium, on the real application over releases without weights."""

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from playwright.sync_api import expect

from ev_platform.serving.api import create_api
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.journal import read_journal
from ev_platform.serving.keys import KeyLimits, create_key, revoke_key
from ev_platform.serving.live import LiveRelease
from ev_platform.serving.replay import served
from ev_platform.serving.worker import LocalBackend
from ev_platform_tests.serving import fakes
from ev_platform_tests.serving.server import labels_release, span_release
from ev_platform_tests.serving.web import SayingEngine, chromium, needs_browser

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> [2]"
HOSTILE_CHUNKS = {
    "chk_cable": replace(fakes.CHUNKS[0], text=HOSTILE, heading_path=HOSTILE, url="javascript:document.title='taken'"),
    "chk_manual": replace(fakes.CHUNKS[1], title=HOSTILE, heading_path="", licence=HOSTILE, publisher=HOSTILE),
}


def releases():
    """Return a release of each kind, by the name it is served under."""
    return {
        "charging": fakes.fake_release("charging", engine=fakes.FakeWriter()),
        "cautious": fakes.fake_release("cautious", min_score=0.95),
        "hostile": fakes.fake_release("hostile", engine=SayingEngine(HOSTILE), chunks=HOSTILE_CHUNKS),
        "banking": labels_release("banking", engine=SayingEngine("refund")),
        "squad": span_release("squad", engine=SayingEngine("three months")),
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Serve a release of each kind; give the address, a key, and the folder that the journal is in."""
    root = tmp_path_factory.mktemp("page")
    key = create_key(root, "tests", limits=KeyLimits(requests_per_minute=None))
    by_name = releases()
    backend = LocalBackend({name: LiveRelease(release) for name, release in by_name.items()})
    with served(create_api(backend, root, ServingConfig()), backend) as url:
        yield SimpleNamespace(url=url, key=key, root=root, releases=by_name)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def context(browser):
    context = browser.new_context()
    context.set_default_timeout(10_000)
    yield context
    context.close()


@pytest.fixture
def page(context, site):
    """A tab on the page, whose console and requests are kept."""
    page = context.new_page()
    page.seen = []
    page.on("console", lambda message: page.seen.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.seen.append(f"error: {error}"))
    page.on("request", lambda request: page.seen.append(request.url))
    page.goto(site.url)
    return page


def enter(page, key, model="charging"):
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    page.get_by_label("Model", exact=True).select_option(model)


def ask(page, question):
    """Ask, and return the card of the question."""
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    return page.locator("article").last


def answered(page, question):
    card = ask(page, question)
    expect(card.locator(".end")).to_be_visible()
    return card


# ---- files ----


def test_page_and_its_files_come_without_a_key_and_may_load_nothing_from_elsewhere(site):
    page = httpx.get(site.url)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]*src=)|<style| style=| on\w+=", page.text)
    for name in re.findall(r'(?:src|href)="(static/[^"]+)"', page.text):
        file = httpx.get(f"{site.url}/{name}")
        assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")
    assert httpx.get(f"{site.url}/static/app.js").headers["content-type"].startswith("text/javascript")
    assert httpx.head(site.url).status_code == 200


@pytest.mark.parametrize("path", ["static/none.js", "static/%2e%2e/page.py", "static/..%2fpage.py", "favicon.ico"])
def test_other_files_are_not_there(site, path):
    response = httpx.get(f"{site.url}/{path}", headers={"Authorization": f"Bearer {site.key}"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


# ---- the key ----


@needs_browser
def test_key_stays_in_the_tab(page, context, site):
    expect(page.get_by_label("API key")).to_be_focused()
    enter(page, site.key)
    expect(page.get_by_label("Your question")).to_be_focused()
    assert site.key not in page.url
    assert site.key not in str(context.cookies())
    assert page.evaluate("Object.values(localStorage)") == []
    assert site.key not in "\n".join(page.seen)

    page.reload()
    expect(page.get_by_label("Your question")).to_be_visible()
    other = context.new_page()
    other.goto(site.url)
    expect(other.get_by_label("API key")).to_be_visible()
    expect(other.get_by_label("Your question")).to_be_hidden()

    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    assert page.evaluate("Object.values(sessionStorage)") == []


@needs_browser
def test_wrong_and_revoked_keys_are_told_in_words(page, site):
    page.get_by_label("API key").fill("ev_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not accept this key")
    page.get_by_label("API key").fill("kéy")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("copy it again")

    key = create_key(site.root, "short-lived")
    enter(page, key)
    revoke_key(site.root, key[3:11])
    ask(page, "How often?")
    expect(page.get_by_role("alert")).to_contain_text("does not accept this key")
    expect(page.get_by_label("API key")).to_be_focused()


@needs_browser
def test_conversation_is_shown_again_to_the_same_key_only(page, site):
    first, second = (create_key(site.root, name) for name in ("first", "second"))
    enter(page, first)
    answered(page, "How often, in private?")

    def lose_the_key():
        refused = {"status": 401, "json": {"error": {"message": "No.", "code": "invalid_api_key"}}}
        page.route("**/v1/answers", lambda route: route.fulfill(**refused), times=1)
        ask(page, "Who am I?")
        expect(page.get_by_label("API key")).to_be_focused()

    lose_the_key()
    enter(page, first)
    expect(page.locator("article")).to_have_count(2)
    expect(page.get_by_text("How often, in private?").first).to_be_visible()

    page.evaluate("document.getElementById('context').value = 'A passage of the first'")
    lose_the_key()
    page.get_by_label("API key").fill("ev_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not accept this key")
    enter(page, second)
    expect(page.get_by_text("stands alone")).to_be_visible()
    expect(page.locator("article")).to_have_count(0)
    expect(page.locator("#context")).to_have_value("")
    assert "in private" not in page.content()
    answered(page, "How often?")
    expect(page.locator("article")).to_have_count(1)


@needs_browser
def test_key_without_the_scope_is_told_which_one_it_lacks(page, site):
    page.get_by_label("API key").fill(create_key(site.root, "feedback-only", scopes=["feedback"]))
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This key may not do that")
    expect(page.get_by_role("alert")).to_contain_text("query")


# ---- answers ----


@needs_browser
def test_answer_comes_with_numbered_sources_its_version_and_its_time(page, site):
    enter(page, site.key)
    expect(page.get_by_text("stands alone")).to_be_visible()
    card = answered(page, "How often is the RCD tested?")
    expect(card.locator("h2")).to_have_text("How often is the RCD tested?")
    expect(card.locator(".answer")).to_contain_text("How often is the RCD tested?")  # the engine repeats its prompt
    expect(card.locator(".facts")).to_contain_text("charging@3")
    expect(card.locator(".facts")).to_contain_text(re.compile(r"\d s"))
    expect(page.get_by_role("status").first).to_contain_text("Answer: ")

    items = card.locator(".sources li")
    expect(items.locator(".number")).to_have_text(["1", "2"])
    link = items.nth(0).get_by_role("link")
    expect(link).to_have_text("Operations manual > RCD")
    expect(link).to_have_attribute("href", "https://example.org/operations-manual.pdf#page=7")
    expect(link).to_have_accessible_name("Operations manual > RCD, source 1 (opens a new tab)")
    expect(link).to_have_attribute("target", "_blank")
    expect(link).to_have_attribute("rel", re.compile("noopener"))
    expect(items.nth(0)).to_contain_text("page 7")
    expect(items.nth(0)).to_contain_text("CC-BY-SA-4.0")
    expect(items.nth(1)).not_to_contain_text("page")
    expect(items.nth(0).get_by_text("Test the RCD every three months.")).to_be_hidden()
    items.nth(0).get_by_text("Show passage").click()
    expect(items.nth(0).get_by_text("Test the RCD every three months.")).to_be_visible()

    requests = [line for line in page.seen if "://" in line]
    assert all(line.startswith(site.url) for line in requests), requests
    assert not [line for line in page.seen if line.startswith(("error", "warning"))]


@needs_browser
def test_what_a_model_or_a_page_wrote_stays_text(page, site):
    enter(page, site.key, "hostile")
    card = answered(page, HOSTILE)
    for detail in card.locator("summary").all():
        if detail.is_visible() and "Show" in detail.inner_text():
            detail.click()
    expect(card.locator("h2")).to_have_text(HOSTILE)
    expect(card.locator(".answer")).to_have_text(HOSTILE)
    expect(card.locator(".passage blockquote").filter(has_text="onerror")).to_be_visible()
    assert card.locator("img, .answer script, .sources script").count() == 0
    # What has no address on the web is no link; what the answer marks as [2] is.
    hrefs = {link.get_attribute("href") for link in page.get_by_role("link").all()}
    assert hrefs == {"https://example.org/operations-manual.pdf#page=7"}
    assert page.title() == "Ask · ev-platform"
    assert not [line for line in page.seen if line.startswith("error")]


@needs_browser
def test_abstention_is_shown_as_such_and_sources_are_folded(page, site):
    enter(page, site.key, "cautious")
    card = answered(page, "Who won the match?")
    expect(card.locator(".tag")).to_have_text("No answer in these sources")
    expect(card.locator(".answer")).to_have_text(site.releases["cautious"].no_answer)
    expect(card.locator(".sources")).not_to_have_attribute("open", "")


@needs_browser
@pytest.mark.parametrize("stop", ["button", "key"])
def test_stopping_ends_the_request_and_the_question_can_be_asked_again(page, site, stop):
    engine = site.releases["charging"].engine
    enter(page, site.key)
    engine.pause_s, n_before = 0.2, engine.n_written
    try:
        card = ask(page, "How often, slowly?")
        expect(card.locator(".answer")).to_contain_text("temperature=0.0")  # its first word
        expect(card.locator(".progress")).to_contain_text("Writing")
        expect(card.locator(".sources li")).to_have_count(2)
        with page.expect_event("requestfailed") as failed:
            if stop == "button":
                page.get_by_role("button", name="Stop").click()
            else:
                page.keyboard.press("Escape")
        assert failed.value.failure == "net::ERR_ABORTED"
        expect(card.locator(".tag")).to_have_text("Stopped")
        time.sleep(0.5)  # for words that nobody waits for
        assert engine.n_written - n_before < 8 < len(card.locator(".answer").inner_text()) < 200
    finally:
        engine.pause_s = 0.0
    expect(page.get_by_label("Your question")).to_be_focused()
    card.get_by_role("button", name="Ask again").click()
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("article").last.locator(".end")).to_be_visible()


@needs_browser
def test_rating_and_correction_reach_the_journal(page, site):
    enter(page, site.key)
    card = answered(page, "How often is the RCD looked at?")
    card.get_by_role("button", name="Good answer").click()
    expect(card.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    card.get_by_role("button", name="Correct it").click()
    expect(card.get_by_label("What should the answer have been?")).to_be_focused()
    card.get_by_label("What should the answer have been?").fill("Every three months.")
    card.get_by_role("button", name="Send").click()
    expect(card.get_by_text("Thank you.")).to_be_visible()
    expect(card.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")
    expect(card.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")

    rows = read_journal(site.root, "feedback").filter(question="How often is the RCD looked at?").sort("given_at")
    assert rows["correction"].to_list()[-1] == "Every three months."
    assert rows["rating"].to_list()[-1] == "down"
    asked = read_journal(site.root, "requests").filter(request_id=rows["request_id"][-1])
    assert (asked["route"].to_list(), asked["status"].to_list()) == (["/v1/answers"], [200])


@needs_browser
def test_promotion_meanwhile_shows_in_the_list_of_models(page, site):
    old = {"id": "charging", "version": "charging@2", "task_type": "open_book_qa", "labels": []}
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [old]}), times=1)
    enter(page, site.key)
    options = page.get_by_label("Model", exact=True).get_by_role("option")
    expect(options.first).to_have_text("charging (charging@2)")
    card = answered(page, "How often?")
    expect(card.locator(".facts")).to_contain_text("charging@3")
    expect(options.first).to_have_text("charging (charging@3)")


# ---- other kinds of models ----


@needs_browser
def test_text_is_labelled(page, site):
    enter(page, site.key, "banking")
    expect(page.get_by_role("list", name="Labels").get_by_role("listitem")).to_have_text(["card", "refund"])
    page.get_by_label("Text to label").fill("I left my card in a taxi.")
    page.get_by_role("button", name="Label").click()
    expect(page.locator(".answer.label")).to_have_text("refund")
    expect(page.locator(".facts")).to_contain_text("banking@3")


@needs_browser
def test_span_is_marked_where_it_stands_also_behind_characters_of_two_units(page, site):
    enter(page, site.key, "squad")
    page.get_by_label("Passage", exact=True).fill("🔌🔌 Test the RCD every three months.")
    page.get_by_label("Your question about the passage").fill("How often?")
    page.get_by_role("button", name="Find").click()
    expect(page.locator("mark")).to_have_text("three months")
    expect(page.locator(".given")).to_have_text("🔌🔌 Test the RCD every three months.")


# ---- trouble ----


@needs_browser
def test_limits_are_told_with_the_wait(page, site):
    enter(page, create_key(site.root, "slow", limits=KeyLimits(requests_per_minute=2)))  # the list of models is one
    answered(page, "How often?")
    card = ask(page, "And how often then?")
    expect(card.locator(".problem")).to_have_text(
        re.compile(r"^Too many requests in a short time\. Try again in \d+ seconds?\.$")
    )
    expect(card.get_by_role("button", name="Ask again")).to_be_visible()


@needs_browser
def test_failure_of_the_server_and_of_the_network_are_told_apart(page, context, site):
    enter(page, site.key)
    card = ask(page, "Please explode.")
    expect(card.locator(".problem")).to_contain_text("The server failed to answer")
    context.set_offline(True)
    card = ask(page, "Anybody there?")
    expect(card.locator(".problem")).to_contain_text("The server cannot be reached")
    context.set_offline(False)
    card.get_by_role("button", name="Ask again").click()
    expect(page.locator("article").last.locator(".end")).to_be_visible()


@needs_browser
def test_page_of_a_proxy_instead_of_an_answer_is_told_in_words(page, site):
    enter(page, site.key)
    sorry = {"status": 503, "headers": {"Retry-After": "120"}, "content_type": "text/html", "body": "<h1>Sorry</h1>"}
    page.route("**/v1/answers", lambda route: route.fulfill(**sorry))
    card = ask(page, "How often?")
    expect(card.locator(".problem")).to_have_text("The server is busy or not ready. Try again in 2 minutes.")


@needs_browser
def test_answer_that_breaks_off_is_told(page, site):
    enter(page, site.key)
    begun = 'event: citations\ndata: {"id": "x", "model": "charging@3", "citations": []}\n\n'
    page.route("**/v1/answers", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=begun))
    card = ask(page, "How often?")
    expect(card.locator(".problem")).to_contain_text("The connection broke before the answer was complete")


# ---- looks ----


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_its_text_is_readable(browser, site, scheme):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, is_mobile=True, has_touch=True
    )
    page = context.new_page()
    page.goto(site.url)
    enter(page, site.key)
    card = answered(page, "How often? " + "Antidisestablishmentarianism" * 8)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in page.locator("button:visible, select:visible, textarea:visible").all():
        assert control.bounding_box()["height"] >= 40, control.inner_text()
    expect(card.locator("h2")).to_be_in_viewport()
    for selector in (".facts", ".origin", ".question", ".answer", ".primary", ".hint", ".number"):
        assert contrast(page.locator(f"{selector}:visible").first) >= 4.5, selector
    context.close()


@needs_browser
def test_everything_can_be_done_by_keyboard(page, site):
    page.keyboard.type(site.key)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("How often")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("is it tested?")
    page.keyboard.press("Enter")
    card = page.locator("article").last
    expect(card.locator(".end")).to_be_visible()
    expect(card.locator("h2")).to_have_text("How often\nis it tested?", use_inner_text=True)
    names = []
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        names.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
    assert [name for name in names if name in ("Correct it", "Bad answer", "Good answer", "Forget key")] == [
        "Correct it",
        "Bad answer",
        "Good answer",
        "Forget key",
    ]


def contrast(locator):
    """Return the contrast ratio (WCAG) of an element's text and what it stands on."""
    return locator.evaluate(
        """element => {
            const channels = color => color.match(/[\\d.]+/g).map(Number);
            const luminance = color => {
                const [r, g, b] = channels(color).map(v => v / 255).map(v =>
                    v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            let behind = element;
            while (channels(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
            const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
                .map(luminance).sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05);
        }"""
    )
