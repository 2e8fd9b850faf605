"""A real browser in which an admin is logged in, on another site's page, before an upstream that serves script.

The pages try what they can: to run, to read the console, to pause a route, to label, to generate, to stay as a service
worker. Nothing is written and nothing is paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.hostile import HostileUpstream, Stage, answer_of, stage
from tests.console.chromium import PROGRAM, Tab, tab
from tests.console.visitor import people_of

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed: apt-get install chromium")

# As a page or as a script: takes the token of the console's pages, pauses a route, and tells that it ran.
SCRIPT = """
(async () => {
  try { top.ran = window.ran = true; document.title = "ran"; } catch (_) { /* told below */ }
  new Image().src = "EVIL/ran";
  const page = await (await fetch("/console", {credentials: "include"})).text();
  const csrf = page.match(/name="csrf" value="([0-9a-f]{64})"/)[1];
  await fetch("/console/routes/pause", {method: "POST", credentials: "include",
    headers: {"content-type": "application/x-www-form-urlencoded"},
    body: new URLSearchParams({route: "off", reason: "pwned", csrf})});
})();
"""
PAGE = "<!doctype html><title>quiet</title><body>hello<script>SCRIPT</script></body>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>SCRIPT</script></svg>'
XHTML = """<html xmlns="http://www.w3.org/1999/xhtml"><head><title>quiet</title><script>//<![CDATA[
SCRIPT
//]]></script></head><body/></html>"""
# id → (content type, body)
SERVED = {
    "html": ("text/html; charset=utf-8", PAGE),
    "html_in_json": ("application/json", PAGE),
    "html_in_text": ("text/plain", PAGE),
    "html_without_type": ("", PAGE),
    "html_twice": ("application/json, text/html", PAGE),
    "svg": ("image/svg+xml", SVG),
    "xhtml": ("application/xhtml+xml", XHTML),
    "mixed": ("multipart/x-mixed-replace; boundary=x", f"--x\r\ncontent-type: text/html\r\n\r\n{PAGE}\r\n--x--"),
    "script": ("text/javascript", SCRIPT),
    "script_in_json": ("application/json", SCRIPT),
    "worker": ("text/javascript", "self.addEventListener('fetch', (e) => e.respondWith(new Response('owned')));"),
    "style": ("text/css", "body { background: red; }"),
}
COMMANDS = [
    ("service-worker-allowed", "/"),
    ("set-cookie", "suffice_session=evil; Path=/"),
    ("access-control-allow-origin", "*"),
    ("content-security-policy", "default-src * 'unsafe-inline'"),
    ("clear-site-data", '"cookies"'),
]


# How a page of our own origin would take a script from an address.
FROM_INSIDE = {
    "a script": """new Promise((done) => {
        const one = document.createElement("script");
        Object.assign(one, {src: ADDRESS, onload: () => done("ran"), onerror: () => done("refused")});
        document.head.append(one);
    })""",
    "a module": "import(ADDRESS).then(() => 'ran', () => 'refused')",
    "a service worker": "navigator.serviceWorker.register(ADDRESS).then(() => 'kept', () => 'refused')",
    "a wide one": "navigator.serviceWorker.register(ADDRESS, {scope: '/'}).then(() => 'kept', () => 'refused')",
    "a worker": """new Promise((done) => {
        const one = new Worker(ADDRESS);
        one.onerror = () => done("refused");
        one.onmessage = () => done("ran");
        setTimeout(() => done("no error"), 10_000);
    })""",
}
FRAMED = """new Promise((done) => {
    const one = document.createElement("iframe");
    one.onload = () => { try { done(one.contentDocument ? "read" : "blank"); } catch (_) { done("blank"); } };
    one.src = ADDRESS;
    document.body.append(one);
})"""
PLAYGROUND = """(async () => {
    const answer = await fetch("GATEWAY/v1/chat/completions", {method: "POST",
        headers: {"content-type": "application/json", authorization: "Bearer k", "x-suffice-route": "off"},
        body: JSON.stringify({model: "off", messages: [{role: "user", content: "hello"}]})});
    return [answer.status, answer.headers.get("x-suffice-route"), (await answer.json()).choices[0].message.content];
})()"""


class Site(http.server.ThreadingHTTPServer):
    """Another site: an empty page for every path; what was asked of it is kept."""

    daemon_threads = True
    seen: list[str]

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Site]:
        with cls(("127.0.0.1", 0), _Page) as server:
            server.seen = []
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            try:
                yield server
            finally:
                server.shutdown()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Page(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        body = b"<!doctype html><title>another site</title><body></body>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Switch(socketserver.ThreadingTCPServer):
    """Passes connections on to `port`: what a name with a short life points to."""

    daemon_threads = True
    port: int

    @classmethod
    @contextmanager
    def running(cls, port: int) -> Iterator[Switch]:
        with cls(("127.0.0.1", 0), _Passing) as server:
            server.port = port
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            try:
                yield server
            finally:
                server.shutdown()


class _Passing(socketserver.BaseRequestHandler):
    server: Switch

    def handle(self) -> None:
        self.request.recv(1, socket.MSG_PEEK)  # a browser connects ahead: where to is decided when it asks
        with socket.create_connection(("127.0.0.1", self.server.port)) as behind:
            there = threading.Thread(target=_pump, args=(self.request, behind), daemon=True)
            there.start()
            _pump(behind, self.request)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def arm(upstream: HostileUpstream, site: Site) -> None:
    """Have the upstream serve all of it, as stored responses."""
    for name, (kind, body) in SERVED.items():
        headers = [("content-type", kind)] if kind else []
        text = body.replace("SCRIPT", SCRIPT).replace("EVIL", f"http://127.0.0.1:{site.port}")
        upstream.answers[f"/v1/responses/{name}"] = answer_of(text.encode(), headers + COMMANDS)
    upstream.answer = answer_of(b"[]", [("content-type", "application/json"), *COMMANDS])


async def login(page: Tab, g: Stage, secret: str) -> None:
    await page.go(f"{g.url}/console")
    await page.until("document.activeElement.name === 'secret'")
    await page.write(secret)
    await page.press("Enter", leads_on=True)
    assert await page.place() == "/console"


def report_of(g: Stage, secret: str) -> list[str]:
    answer = g.ask("GET", "/api/changes", {"authorization": f"Bearer {secret}"})
    return [line["kind"] for line in json.loads(answer.body)["lines"]]


async def opened(page: Tab, url: str) -> None:
    """Go there, wherever that leads: a download stays where one was."""
    await page.send("Page.navigate", url=url)
    await asyncio.sleep(0.3)  # a script that runs would be done; one that needs longer is seen at the end


async def assert_still_in(page: Tab, g: Stage) -> None:
    await page.go(f"{g.url}/console")
    assert await page.place() == "/console", "the login was lost"
    assert await page.run("navigator.serviceWorker.getRegistrations().then((all) => all.length)") == 0


def assert_quiet(g: Stage, site: Site, secret: str) -> None:
    """Nothing ran, nothing was written, nothing was paused."""
    assert "/ran" not in site.seen
    assert report_of(g, secret) == ["config_changed"], "the gateway's start alone"
    assert b'suffice_feedback_total{result="accepted"}' not in g.ask("GET", "/metrics").body


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[tuple[Stage, Site, str]]:
    with stage(tmp_path) as g, Site.running() as site:
        arm(g.upstream, site)
        yield g, site, people_of(g.settings).first() or ""


@pytest.mark.slow
async def test_what_the_upstream_serves_runs_nowhere(scene: tuple[Stage, Site, str]) -> None:
    g, site, secret = scene
    async with tab() as page:
        await page.send("Browser.setDownloadBehavior", behavior="deny")
        await login(page, g, secret)
        for name in SERVED:
            await opened(page, f"{g.url}/v1/responses/{name}")  # as somebody who was sent a link and pastes it
            assert await page.run("document.title") != "ran", name
            assert await page.run("window.ran") is None, name
        # From a page of our own origin that may run scripts: as if the console had a hole.
        await page.send("Page.setBypassCSP", enabled=True)
        await page.go(f"{g.url}/console/login")
        for name in SERVED:
            address = json.dumps(f"/v1/responses/{name}")
            for how, script in FROM_INSIDE.items():
                assert await page.run(script.replace("ADDRESS", address)) == "refused", (how, name)
        await assert_still_in(page, g)
    assert_quiet(g, site, secret)


# What a page of another site can send without asking: of each, where it goes and how.
UNASKED = """
(async () => {
  const url = "GATEWAY", said = [];
  const label = JSON.stringify({episode_id: "ep_1", correct: true, source: "reviewer"});
  const chat = JSON.stringify({model: "off", messages: [{role: "user", content: "hello"}]});
  const bodies = (text) => [text, new Blob([text]), new Blob([text], {type: "text/plain"}),
    new Blob([text], {type: "application/json"}), new URLSearchParams({json: text})];
  for (const [path, text] of [["/v1/feedback", label], ["/v1/chat/completions", chat], ["/v1/responses", chat],
      ["/v1/responses/html/cancel", ""], ["/v1/feedback/batch", label], ["/v1/decide", chat],
      ["/console/routes/pause", "route=off&reason=pwned"], ["/api/routes/pause", "{}"]]) {
    for (const body of bodies(text)) {
      for (const mode of ["no-cors", "cors"]) {
        try {
          const answer = await fetch(url + path, {method: "POST", mode, body, credentials: "include"});
          if (mode === "cors") said.push(path + " could be read: " + answer.status);
        } catch (_) { /* refused */ }
      }
      navigator.sendBeacon(url + path, body);
    }
  }
  for (const method of ["GET", "DELETE"]) {
    for (const path of ["/v1/models", "/v1/responses/html", "/metrics", "/console", "/api/overview"]) {
      try {
        await fetch(url + path, {method, credentials: "include", headers: {authorization: "Bearer x"}});
        said.push(method + " " + path + " could be read");
      } catch (_) { /* refused */ }
    }
  }
  const include = (tag, set) => new Promise((done) => {
    const one = document.createElement(tag);
    one.onload = () => done(tag + " took " + JSON.stringify(set));
    one.onerror = () => done("");
    Object.assign(one, set);
    document.body.append(one);
    setTimeout(() => done(""), 1000);
  });
  for (const name of ["script", "script_in_json", "style", "svg"]) {
    said.push(await include("script", {src: url + "/v1/responses/" + name}));
    said.push(await include("link", {rel: "stylesheet", href: url + "/v1/responses/" + name}));
    said.push(await include("img", {src: url + "/v1/responses/" + name}));
  }
  return said.filter((one) => one);
})()
"""
SENT_BY_FORMS = [
    ("/v1/chat/completions", "text/plain"),
    ("/v1/feedback", "text/plain"),
    ("/v1/responses", "multipart/form-data"),
    ("/console/routes/pause", "application/x-www-form-urlencoded"),
    ("/console/changes.csv", "text/plain"),
]
FORM = """
(() => {
  const form = document.createElement("form");
  Object.assign(form, {method: "post", action: "GATEWAY" + "PATH", enctype: "ENCTYPE"});
  const field = document.createElement("input");
  Object.assign(field, {name: '{"model": "off", "messages": [], "x": "', value: '"}'});
  form.append(field, document.createElement("button"));
  document.body.append(form);
})()
"""


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "evil.localhost"])
async def test_a_page_of_another_site_does_nothing(scene: tuple[Stage, Site, str], host: str) -> None:
    """From another port of this machine, where cookies are shared; and from another name."""
    g, site, secret = scene
    home = f"http://{host}:{site.port}"
    async with tab() as page:
        await page.send("Browser.setDownloadBehavior", behavior="deny")
        await login(page, g, secret)
        await page.go(home)
        assert await page.run(UNASKED.replace("GATEWAY", g.url)) == []
        for path, enctype in SENT_BY_FORMS:
            await page.go(home)
            await page.run(FORM.replace("GATEWAY", g.url).replace("PATH", path).replace("ENCTYPE", enctype))
            await page.click("form button")
            assert not (await page.run("location.href")).startswith(home)
        # Links, frames and windows to what the upstream serves, and to pages of the console.
        for name in ("html", "html_in_json", "svg", "xhtml", "mixed"):
            await page.go(home)
            address = json.dumps(f"{g.url}/v1/responses/{name}")
            assert await page.run(FRAMED.replace("ADDRESS", address)) == "blank", name
            await page.run("document.body.innerHTML = '<a>link</a>'")
            await page.run(f"document.querySelector('a').href = {address}")
            await page.click("a")
            assert "page of another site" in await page.text(), name
        await page.go(home)
        assert await page.run(FRAMED.replace("ADDRESS", json.dumps(f"{g.url}/console"))) == "blank"
        await assert_still_in(page, g)
    heads = [head.split("\r\n", 1)[0] for head in g.upstream.heads]
    assert not [line for line in heads if not line.startswith(("GET /v1/models", "GET /health"))], heads
    assert_quiet(g, site, secret)


@pytest.mark.slow
async def test_a_name_that_was_made_to_point_here_reads_and_does_nothing(scene: tuple[Stage, Site, str]) -> None:
    """After DNS rebinding the stranger's page and the gateway have one origin."""
    g, site, secret = scene
    with Switch.running(site.port) as switch:
        async with tab(f"--host-resolver-rules=MAP rebound.example 127.0.0.1:{switch.server_address[1]}") as page:
            await login(page, g, secret)
            await page.go("http://rebound.example/")
            assert await page.run("document.title") == "another site"
            switch.port = g.port  # the name points here from now on; the page stays
            for path in ("/v1/models", "/v1/responses/html", "/console", "/api/overview", "/metrics"):
                status = f"fetch({json.dumps(path)}, {{credentials: 'include'}}).then((one) => one.status)"
                assert await page.run(status) == 421, path
            for path in ("/v1/chat/completions", "/v1/feedback", "/api/routes/pause", "/console/routes/pause"):
                status = f"fetch({json.dumps(path)}, {{method: 'POST', headers: {{'content-type': 'application/json'}},"
                status += ' body: \'{"model": "off"}\'}).then((one) => one.status)'
                assert await page.run(status) == 421, path
            await page.go("http://rebound.example/console")
            assert "not a name of this server" in await page.text()
            await assert_still_in(page, g)
    assert not [head for head in g.upstream.heads if "POST" in head]
    assert_quiet(g, site, secret)


@pytest.mark.slow
async def test_a_playground_of_an_allowed_origin_works_and_opens_no_console(tmp_path: Path) -> None:
    with Site.running() as site:
        friend = f"http://localhost:{site.port}"
        with stage(tmp_path, server={"allowed_origins": [friend]}) as g:
            secret = people_of(g.settings).first() or ""
            async with tab() as page:
                await login(page, g, secret)
                await page.go(friend)
                assert await page.run(PLAYGROUND.replace("GATEWAY", g.url)) == [200, "off", "fine"]
                other = f"fetch('{g.url}/api/overview', {{credentials: 'include'}}).then(() => 'read', () => 'refused')"
                assert await page.run(other) == "refused"
            assert report_of(g, secret) == ["config_changed"]
