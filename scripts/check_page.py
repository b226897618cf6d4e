#!/usr/bin/env python3
"""The page of `llmrun serve` in headless Chromium: what somebody does there, and what it shows.

    scripts/check_page.py [--chromium PATH] [--pictures FOLDER]

Each check opens the page of a real server. It fails where the page does not do what it should, and where the browser
tells of an error, of a violated Content-Security-Policy or of a request to another host. tests/server/test_page.py runs
the same. --pictures: what it looks like goes there, light and dark, narrow and wide.

Exit status: 1 where a check failed.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "server")]

from serving import Server, serving  # noqa: E402
from waiting import HANGS_S, until  # noqa: E402

SAID = "Hello! I am tiny, the demo model of llmrun."
KEY = "a-key-of-the-check"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--no-sandbox"),  # root has no sandbox
)


def chromium() -> str | None:
    """Where it is installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


# -- a browser ---------------------------------------------------------------------------------------------------------


class Browser:
    """Chromium, by its DevTools protocol over a pipe: documents of JSON, each ended by a zero byte."""

    def __init__(self, program: str, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # It reads from 3 and writes to 4. Numbers from ten on are none of both.
        high = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (theirs_in, theirs_out)]
        profile = f"--user-data-dir={folder}"
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "browser", program),
                *_FLAGS,
                profile,
                "about:blank",
            ],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for each in (theirs_in, theirs_out, *high):
            os.close(each)
        self._number, self._replies = 0, dict[int, dict[str, Any]]()
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with os.fdopen(self._in, "rb", buffering=0) as pipe:
            held = b""
            while data := pipe.read(1 << 20):
                *documents, held = (held + data).split(b"\0")
                each: dict[str, Any]
                for each in map(json.loads, documents):
                    if "id" in each:
                        self._replies[each["id"]] = each
                    else:
                        self.events.append(each)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number, to = self._number, {"sessionId": session} if session else {}
        document = json.dumps({"id": number, "method": method, "params": parameters, **to})
        os.write(self._out, document.encode() + b"\0")
        reply = until(lambda: self._replies.pop(number, None), method)
        assert reply and "error" not in reply, f"{method}: {reply}"
        return cast(dict[str, Any], reply["result"])

    def close(self) -> None:
        os.close(self._out)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(HANGS_S)
        self._reader.join(HANGS_S)

    @contextmanager
    def page(self, server: Server, *, allowed: tuple[str, ...] = ()) -> Iterator[Page]:
        """The page of a server. At the end nothing may have been wrong but what has one of these texts in it."""
        context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, server.address)
        try:
            yield page
            wrong = [each for each in page.wrong() if not any(text in each for text in allowed)]
            assert not wrong, wrong
        finally:
            self.ask("Target.disposeBrowserContext", browserContextId=context)


class Page:
    def __init__(self, browser: Browser, session: str, address: str) -> None:
        self._browser, self._session, self._address = browser, session, address
        for domain in ("Runtime", "Log", "Network", "Page", "Audits"):
            self._ask(f"{domain}.enable")
        self._ask("Page.navigate", url=address)
        until(lambda: self.js("document.readyState") == "complete", "the page")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **parameters)

    def wrong(self) -> list[str]:
        """What the browser tells of, and who else was asked."""
        found = []
        for event in [each for each in self._browser.events if each.get("sessionId") == self._session]:
            method, told = event["method"], event["params"]
            if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
                found.append(f"console: {told['args']}")
            elif method == "Runtime.exceptionThrown":
                found.append(f"exception: {told['exceptionDetails']}")
            elif method == "Log.entryAdded" and told["entry"]["level"] != "info":
                found.append(f"log: {told['entry']['text']} {told['entry'].get('url')}")
            elif method == "Audits.issueAdded":
                found.append(f"issue: {told['issue']['code']} {told['issue']['details']}")
            elif method == "Network.requestWillBeSent":
                url = urlsplit(told["request"]["url"])
                if url.scheme != "data" and url.netloc != urlsplit(self._address).netloc:
                    found.append(f"asked {told['request']['url']}")
        return found

    def js(self, expression: str) -> Any:
        done = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, f"{expression}: {done['exceptionDetails']}"
        return done["result"].get("value")

    def text(self, selector: str) -> str:
        """Of the last one; "" where there is none."""
        return str(self.js(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1)?.innerText ?? ''"))

    def wait_for(self, selector: str, text: str = "") -> str:
        until(lambda: self.js(f"!!document.querySelector({json.dumps(selector)})"), selector)
        return until(lambda: found if text in (found := self.text(selector)) else "", f"{text!r} in {selector}")

    def type(self, selector: str, text: str) -> None:
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        self._ask("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        more: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": 13, "modifiers": modifiers}
        self._ask("Input.dispatchKeyEvent", type="keyDown", text="\r", **more)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **more)

    def click(self, selector: str) -> None:
        """By the mouse, in its middle: what lies under something else is not reached."""
        where = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.js(f"(() => {{ const r = {where}; return [r.x + r.width / 2, r.y + r.height / 2] }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def ask_model(self, text: str) -> None:
        self.type("#text", text)
        self.press("Enter")

    def choose(self, model: str) -> None:
        self.js(
            f"(() => {{ const s = document.querySelector('#model'); s.value = {json.dumps(model)};"
            " s.dispatchEvent(new Event('change')) })()"
        )

    def picture(self, path: Path, width: int, height: int, scheme: str) -> None:
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))


# -- checks ------------------------------------------------------------------------------------------------------------


def long_model(folder: Path) -> Path:
    """Noise that goes on for long, so that there is time to do something meanwhile."""
    from llmrun.gguf import synth

    path = folder / "noise.gguf"
    synth.write(path, replace(synth.SHAPES["micro"], n_ctx_train=65536), "Q8_0")
    return path


@contextmanager
def two_models(folder: Path) -> Iterator[Server]:
    """A server of tiny and of noise."""
    arguments = ("tiny", str(long_model(folder)), "--temp", "0", "--no-tune")
    with serving(*arguments, home=folder / "home") as server:
        yield server.ready()


@contextmanager
def with_key(folder: Path) -> Iterator[Server]:
    with serving("tiny", "--temp", "0", env={"LLMRUN_API_KEY": KEY}, home=folder / "home") as server:
        yield server.ready()


def noise_of(page: Page) -> str:
    """Chooses the model that goes on, asks it and waits for a part of its answer; its name."""
    names = "[...document.querySelectorAll('#model option')].map((option) => option.value)"
    name = until(lambda: page.js(names)[1:], "a second model")[0]
    page.choose(name)
    page.ask_model("Go on")
    until(lambda: len(page.text("article.assistant")) > 200, "a part of an answer")
    return str(name)


def answers_as_it_comes(browser: Browser, server: Server) -> None:
    """A question by the keyboard; the answer grows, and its rate is under it. A second one knows of the first."""
    with browser.page(server) as page:
        page.wait_for("#model", "tiny")
        page.js(
            "window.grown = []; new MutationObserver(() => grown.push(document.querySelector('article.assistant')"
            "?.innerText.length ?? 0)).observe(document.querySelector('#chat'),"
            " {subtree: true, childList: true, characterData: true})"
        )
        page.ask_model("Hi")
        page.wait_for("article.assistant footer", "t/s")
        assert page.text("article.user") == "Hi" and page.text("article.assistant div").startswith(SAID)
        grown = page.js("[...new Set(window.grown)]")
        assert len(grown) > 1 and grown == sorted(grown), grown
        until(lambda: page.text("#send") == "Send", "the end")
        page.type("#text", "Two")
        page.press("Enter", modifiers=8)  # Shift: a line
        page.type("#text", "lines")
        page.click("#send")
        until(lambda: page.js("document.querySelectorAll('article.assistant footer').length") == 2, "an answer")
        assert page.text("article.user") == "Two\nlines"
        page.click("#clear")
        assert page.js("document.querySelector('#chat').childElementCount") == 0


def meter_is_the_server_s(browser: Browser, server: Server) -> None:
    """What the meter shows is what /events says of the model that is chosen, while it answers and after."""
    names = ["tps", "active", "waiting", "reads", "ram", "vram"]
    with browser.page(server) as page:
        page.wait_for("#ram", "iB")
        model = noise_of(page)
        until(lambda: page.text("#active").startswith("1 of") and float(page.text("#tps").replace("–", "0")) > 0)
        page.click("#send")
        until(lambda: page.text("#active").startswith("0 of"), "the end in the meter")

        def same() -> bool:
            shown = {name: page.text(f"#{name}") for name in names}
            told = {each["model"]: each["shown"] for each in first_event(server)["models"]}
            return bool(shown == told[model])

        until(same, "the figures of /events")


def first_event(server: Server) -> Any:
    from urllib.request import ProxyHandler, build_opener

    with build_opener(ProxyHandler({})).open(f"{server.address}/events", timeout=HANGS_S) as stream:
        return json.loads(stream.readline().removeprefix(b"data: "))


def stops(browser: Browser, server: Server) -> None:
    """The button ends an answer in the page and in the engine; what was said stays."""
    with browser.page(server) as page:
        model = noise_of(page)
        assert page.text("#send") == "Stop"
        page.click("#send")
        until(lambda: page.text("#send") == "Send", "the end")
        assert len(page.text("article.assistant")) > 200 and not page.text("article.error")

        def is_idle() -> bool:
            return all(each["n_active"] == 0 for each in server.get("/props")[1]["models"] if each["model"] == model)

        until(is_idle, "the end in the engine")


def asks_for_the_key(browser: Browser, server: Server) -> None:
    """Once more where it was the wrong one; no address or lasting storage gets it."""
    with browser.page(server, allowed=("401",)) as page:
        for key, is_hidden in (("wrong", "true"), (KEY, "false")):
            asks = f"find('key').open && find('refused').hidden === {is_hidden}"
            until(partial(page.js, asks), "the question")
            page.type("#secret", key)
            page.press("Enter")
        page.wait_for("#model", "tiny")
        page.ask_model("Hi")
        page.wait_for("article.assistant footer", "t/s")
        kept = page.js("location.href + JSON.stringify(localStorage)")
        assert KEY not in kept


def tells_of_a_dead_engine(browser: Browser, server: Server) -> None:
    """In the middle of an answer; the next question is answered by a new one."""
    with browser.page(server) as page:
        noise_of(page)
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        assert page.wait_for("article.error")
        until(lambda: page.text("#send") == "Send", "the end")
        page.click("#clear")
        page.choose("tiny")
        page.ask_model("Hi")
        page.wait_for("article.assistant footer", "t/s")
        assert SAID in page.text("article.assistant div")


CHECKS: dict[str, tuple[Callable[[Path], Any], Callable[[Browser, Server], None]]] = {
    check.__name__: (of, check)
    for of, checks in (
        (two_models, (answers_as_it_comes, meter_is_the_server_s, stops, tells_of_a_dead_engine)),
        (with_key, (asks_for_the_key,)),
    )
    for check in checks
}


def pictures(browser: Browser, server: Server, folder: Path) -> None:
    with browser.page(server) as page:
        page.wait_for("#ram", "iB")
        page.ask_model("Hi")
        page.wait_for("article.assistant footer", "t/s")
        until(lambda: page.text("#send") == "Send", "the end")
        noise_of(page)
        for scheme in ("light", "dark"):
            for name, width, height in (("wide", 1200, 800), ("narrow", 360, 740)):
                page.picture(folder / f"{scheme}-{name}.png", width, height, scheme)
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        page.wait_for("article.error")
        for scheme in ("light", "dark"):
            page.picture(folder / f"{scheme}-error.png", 360, 740, scheme)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--chromium", default=chromium())
    options.add_argument("--pictures", type=Path)
    asked = options.parse_args()
    if asked.chromium is None:
        raise SystemExit("there is no Chromium; install it with: apt install chromium")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="llmrun-page-") as scratch:
        browser = Browser(asked.chromium, Path(scratch) / "browser")
        try:
            for name, (of, check) in CHECKS.items():
                folder = Path(tempfile.mkdtemp(dir=scratch))
                with of(folder) as server:
                    try:
                        check(browser, server)
                        print(f"{name}: all right", flush=True)
                    except AssertionError:
                        failed += 1
                        print(f"{name}:", traceback.format_exc(), flush=True)
            if asked.pictures is not None:
                asked.pictures.mkdir(parents=True, exist_ok=True)
                with two_models(Path(tempfile.mkdtemp(dir=scratch))) as server:
                    pictures(browser, server, asked.pictures)
        finally:
            browser.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
