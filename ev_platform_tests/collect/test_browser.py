import asyncio
import shutil
import socket
import threading

import pytest

from ev_platform.collect.browser import _NAMES
from ev_platform.errors import UserError
from ev_platform.settings import get_settings

from .conftest import page
from .test_fetch import fetching

needs_browser = pytest.mark.skipif(
    not any(shutil.which(name) for name in _NAMES), reason="no Chromium is installed on this machine"
)
BUILT = """<!DOCTYPE html><html><head><meta charset="iso-8859-1"><title>T</title></head><body><h1>Fixed</h1>
<div id="main"></div><img src="/picture.png"><script src="/app.js"></script></body></html>"""
APP = """fetch('/data.json').then(r => r.json()).then(data => {
    document.getElementById('main').textContent = data.text;
});"""


def rendered(site, *paths, at_once=False, **sources):
    """Fetch and render pages of a site; give their texts."""

    async def run():
        async with fetching(site.root, **sources) as fetcher:

            async def text_of(path):
                answer = await fetcher.fetch(site.root + path)
                assert answer.drop_reason is None
                return (await fetcher.render(answer)).decode()

            if at_once:
                return await asyncio.gather(*map(text_of, paths))
            return [await text_of(path) for path in paths]

    return asyncio.run(run())


@pytest.fixture
def listener():
    """A port of this machine and the list of connections that arrived at it."""
    arrived = []
    server = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, address = server.accept()
            except OSError:
                return
            arrived.append(address)
            connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1], arrived
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@needs_browser
def test_browser_script_built_page_has_its_text_and_declares_utf8(site):
    site.routes = {
        "/": (200, {"Content-Type": "text/html; charset=iso-8859-1"}, BUILT),
        "/app.js": (200, {"Content-Type": "text/javascript"}, APP),
        "/data.json": (200, {"Content-Type": "application/json"}, '{"text": "Ladesäule 11 kW ⚡"}'),
        "/second": BUILT,
    }
    first, second = rendered(site, "/", "/second")
    for text in (first, second):
        assert '<div id="main">Ladesäule 11 kW ⚡</div>' in text
        assert '<meta charset="utf-8">' in text
        assert "iso-8859-1" not in text
    # The script is shared by the pages; the picture is never asked for.
    assert site.asked() == ["/", "/app.js", "/data.json", "/second", "/data.json"]


@needs_browser
def test_browser_requests_of_scripts_keep_robots_hosts_and_sizes(site, other_site):
    site.routes = {
        "/robots.txt": "User-agent: *\nDisallow: /secret\n",
        "/": """<body><p id="out"></p><script>
            const asked = ['/secret', '/large', 'FAR/far', 'file:///etc/passwd', '/away'].map(
                url => fetch(url).then(() => 'answered', () => 'refused'));
            Promise.all(asked).then(all => { document.getElementById('out').textContent = all.join(' '); });
        </script></body>""".replace("FAR", other_site.root),
        "/large": "x" * 200_000,
        "/away": (302, {"Location": f"{other_site.root}/far"}, ""),
    }
    (text,) = rendered(site, "/", max_bytes=100_000)
    assert '<p id="out">refused refused refused refused refused</p>' in text
    assert other_site.requests == []
    assert sorted(site.asked()) == ["/", "/away", "/large"]  # asked at once


@needs_browser
def test_browser_has_no_way_to_the_network(site, listener):
    port, arrived = listener
    to = f"127.0.0.1:{port}"
    site.routes = {
        "/": f"""<html><head><link rel="preconnect" href="http://{to}"><link rel="prefetch" href="http://{to}/p">
        <link rel="stylesheet" href="http://{to}/s.css"></head><body><p id="out">before</p>
        <iframe src="http://{to}/f"></iframe><img src="http://{to}/i.png">
        <script>
            new WebSocket('ws://{to}/w');
            new EventSource('http://{to}/e');
            navigator.sendBeacon('http://{to}/b', 'x');
            window.open('http://{to}/popup');
            const peer = new RTCPeerConnection({{iceServers: [{{urls: 'turn:{to}?transport=tcp', username: 'u',
                credential: 'c'}}]}});
            peer.createDataChannel('c');
            peer.createOffer().then(offer => peer.setLocalDescription(offer));
            new Worker(URL.createObjectURL(new Blob(["fetch('http://{to}/worker')"])));
            fetch('http://localhost:{port}/l', {{mode: 'no-cors'}}).catch(() => 0);
            fetch('http://{to}/x', {{mode: 'no-cors'}}).catch(() => {{
                document.getElementById('out').textContent = 'after';
                location.href = 'http://{to}/navigated';
            }});
        </script></body></html>"""
    }
    (text,) = rendered(site, "/")
    assert '<p id="out">after</p>' in text
    assert arrived == []
    assert site.asked() == ["/"]


@needs_browser
def test_browser_pages_that_never_end_come_back_and_the_next_is_rendered(site, caplog):
    site.routes = {
        "/polls": "<p id=o></p><script>setInterval(() => fetch('/poll'), 50); o.textContent = 'built'</script>",
        "/poll": "x",
        "/hangs": "<p>as it came</p><script>while (true) {}</script>",
        "/good": "<p id=o></p><script>o.textContent = 'built'</script>",
    }
    polls, hangs, good = rendered(site, "/polls", "/hangs", "/good", timeout_s=1.5)
    assert '<p id="o">built</p>' in polls
    assert hangs == site.routes["/hangs"]
    assert '<p id="o">built</p>' in good
    assert site.asked().count("/poll") < 100
    assert f"{site.root}/polls still asks for more after 1.5 s" in caplog.text
    assert f"{site.root}/hangs could not be rendered (no end within 1.5 s)" in caplog.text


@needs_browser
def test_browser_pages_that_grow_or_leave_come_back_as_they_were(site, caplog):
    site.routes = {
        "/grows": "<p>small</p><script>document.body.append('x'.repeat(1e6))</script>",
        "/leaves": "<p>stays</p><script>location.href = 'about:blank'</script>",
        "/reloads": "<p>reloads</p><script>location.reload()</script>",
    }
    grows, leaves, reloads = rendered(site, "/grows", "/leaves", "/reloads", at_once=True, max_bytes=100_000)
    assert grows == site.routes["/grows"]
    assert leaves == site.routes["/leaves"]
    assert "<p>reloads</p>" in reloads
    assert site.asked().count("/reloads") == 1
    assert f"{site.root}/grows renders to more than 100000 bytes" in caplog.text
    assert f"{site.root}/leaves could not be rendered (it went away to about:blank)" in caplog.text


@pytest.fixture
def fresh_settings():
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def test_browser_missing_named_with_what_to_do(site, fresh_settings, monkeypatch, tmp_path):
    site.routes = {"/": page()}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no Chromium: install one .`playwright install chromium`"):
        rendered(site, "/")
    monkeypatch.setenv("EV_BROWSER_PATH", str(tmp_path / "chrome"))
    get_settings.cache_clear()
    with pytest.raises(UserError, match=r"EV_BROWSER_PATH is .*chrome, which is no file"):
        rendered(site, "/")
    (tmp_path / "chrome").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "chrome").chmod(0o755)
    with pytest.raises(UserError, match=r"chrome does not start .*: install a Chromium that does"):
        rendered(site, "/")
