"""A browser without a screen for the tests: Debian's chromium, driven over its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import websocket

CHROMIUM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions",
    "--hide-scrollbars", "--window-size=1300,1000", "--remote-debugging-port=0",
)  # fmt: skip


class Browser:
    """One page of a browser that notes errors on its console and every address that it asks for.

    Errors: RuntimeError where chromium does not start, TimeoutError where a condition does not come.
    """

    def __init__(self, home: Path) -> None:
        self.errors: list[str] = []
        self.asked: list[str] = []
        self._count = 0
        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._socket = websocket.create_connection(
            self._address(home), suppress_origin=True, timeout=60
        )
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setFocusEmulationEnabled", enabled=True
        )  # JupyterLab waits for a focus

    def _address(self, home: Path) -> str:
        told = home / "DevToolsActivePort"
        for _ in range(300):
            if told.exists() and told.read_text().strip():
                port = told.read_text().split()[0]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
                    pages = [p for p in json.load(reply) if p["type"] == "page"]
                if pages:
                    return pages[0]["webSocketDebuggerUrl"]
            time.sleep(0.1)
        self._process.kill()
        raise RuntimeError(f"{CHROMIUM} did not start within 30 s")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def send(self, method: str, **given: Any) -> dict[str, Any]:
        """Return the reply to a command; what the page told meanwhile is noted."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": given}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:2000])
        elif event == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.errors.append(json.dumps(told["args"])[:2000])
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])

    def open(self, url: str) -> None:
        """Load an address and wait until the page is complete."""
        self.send("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href !== 'about:blank' && "
                  f"location.href.startsWith({json.dumps(url.split(':')[0])})")  # fmt: skip

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page; a promise is awaited."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Return an expression's value once it is true; TimeoutError names what never came."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.value(script):
                return found
            time.sleep(0.2)
        raise TimeoutError(f"not true within {seconds} s: {script}; errors: {self.errors}")

    def press(self, key: str) -> None:
        """Press and release a key where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode={"ArrowLeft": 37}[key])  # fmt: skip

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
