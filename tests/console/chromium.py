"""A headless Chromium, driven over its DevTools protocol: go, press keys, read, take pictures, hear complaints."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
START_S = 30.0
WAIT_S = 15.0
# Noted before anything of the page runs; a page's own policy does not concern the protocol.
LISTEN = """
window.complaints = [];
document.addEventListener("securitypolicyviolation",
  (e) => window.complaints.push(e.violatedDirective + " " + e.blockedURI));
for (const name of ["alert", "confirm", "prompt"]) window[name] = () => { window.complaints.push("dialog " + name); };
window.pwned = () => window.complaints.push("script ran");
"""
# Parts of a page that come by themselves are there: none says any more that it is being read.
ARRIVED = (
    "![...document.querySelectorAll('[hx-trigger=load]')]"
    ".some((one) => /\\u2026.*as a page of its own/.test(one.innerText))"
)
KEYS = {"Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, "\t"), "Escape": ("Escape", 27, "")}


class Tab:
    """One page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._n = socket, 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()
        self.errors: list[str] = []  # errors of scripts, and what the browser reports of security
        self.dialogs: list[str] = []
        self.weight: dict[str, int] = {}  # bytes of each address that the last page asked for
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            message_read = json.loads(message.data)
            if "id" in message_read:
                waiting = self._waiting.pop(message_read["id"])
                if not waiting.done():
                    waiting.set_result(message_read)
                continue
            self._heard(message_read["method"], message_read["params"])

    def _heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.errors.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
        elif method == "Network.loadingFinished":
            self.weight[params["requestId"]] = int(params["encodedDataLength"])

    async def send(self, method: str, **params: Any) -> Any:
        """One command; its result."""
        self._n += 1
        waiting = self._waiting[self._n] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._n, "method": method, "params": params})
        async with asyncio.timeout(WAIT_S):
            reply = await waiting
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    async def prepare(self) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)

    async def go(self, url: str) -> None:
        """Open an address and wait until it is loaded."""
        self.weight.clear()
        self._loaded.clear()
        await self.send("Page.navigate", url=url)
        await self.loaded()

    async def loaded(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self._loaded.wait()
        self._loaded.clear()

    async def run(self, script: str) -> Any:
        """What an expression comes to on the page."""
        result = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(WAIT_S):
            while not await self.run(script):  # noqa: ASYNC110 - a page tells nobody; polling is plainest
                await asyncio.sleep(0.05)

    async def text(self, selector: str = "body") -> str:
        return str(await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def place(self) -> str:
        return str(await self.run("location.pathname + location.search"))

    async def click(self, selector: str, *, leads_on: bool = True) -> None:
        """Click the first thing that fits; then, as a rule, another page is loaded."""
        self._loaded.clear()
        there = f"document.querySelector({json.dumps(selector)})"
        assert await self.run(f"{there} !== null"), f"{selector} is not on {await self.place()}"
        await self.run(f"{there}.click()")
        if leads_on:
            await self.loaded()

    async def press(self, key: str, *, leads_on: bool = False) -> None:
        """Press one key, as the person at the keyboard does."""
        self._loaded.clear()
        name, code, text = KEYS.get(key, (key, ord(key[0].upper()), key))
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=name, text=text, windowsVirtualKeyCode=code)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)
        if leads_on:
            await self.loaded()

    async def write(self, text: str) -> None:
        """Type into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def look(self, *, width: int, height: int, dark: bool, phone: bool = False) -> None:
        """Have a screen of that size, light or dark."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self, *, most_height: int = 1_600) -> bytes:
        """The page as a PNG, from its top."""
        size = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most_height), "scale": 1}
        reply = await self.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(reply["data"])

    async def screenshot(self) -> bytes:
        """What the screen shows now, as a PNG."""
        return base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])

    async def complaints(self) -> list[str]:
        """Everything that should not have happened on this page."""
        return [*await self.run("window.complaints"), *self.errors, *self.dialogs]

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


@asynccontextmanager
async def tab(*options: str, headless: bool = True) -> AsyncIterator[Tab]:
    """A page of a fresh browser, started with these options."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(  # noqa: ASYNC220 - once; the protocol is what is asynchronous
            [
                PROGRAM,
                *(["--headless=new"] if headless else []),
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                *options,
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(folder) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as got:
                    pages = [one for one in await got.json() if one["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=64 * 2**20) as socket:
                    made = Tab(socket)
                    await made.prepare()
                    yield made
                    await made.close()
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


async def _port(file: Path) -> int:
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
                return int(file.read_text().splitlines()[0])  # noqa: ASYNC240 - some bytes
            await asyncio.sleep(0.05)
