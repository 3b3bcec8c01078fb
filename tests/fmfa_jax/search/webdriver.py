# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven over WebDriver (W3C) with the standard library alone."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ENTER, ESCAPE, LEFT, UP, RIGHT, DOWN = "\ue007", "\ue00c", *"\ue012\ue013\ue014\ue015"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
)
ATTEMPTS = 20


def _started() -> tuple[subprocess.Popen, str]:
    """Start a driver; return it with what it said until it listened or ended."""
    command = [DRIVER, "--port=0"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = ""
    while "started successfully" not in said and (line := driver.stdout.readline()):
        said += line
    return driver, said


class Browser:
    """One window; `close` ends it."""

    def __init__(self) -> None:
        for attempt in range(ATTEMPTS):
            self._driver, said = _started()
            if found := re.search(r"started successfully on port (\d+)", said):
                break
            self._driver.wait(10)
            self._driver.stdout.close()  # what is left open fails some later test
            # It finds a free port for IPv6, and it may be taken for IPv4.
            assert "port not available" in said and attempt + 1 < ATTEMPTS, said
        self._url = f"http://127.0.0.1:{found[1]}/session"
        options = {"binary": CHROMIUM, "args": _OPTIONS}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        body = {"capabilities": {"alwaysMatch": wanted}}
        self._url += "/" + self._call("POST", "", body)["sessionId"]

    def close(self) -> None:
        self._call("DELETE", "")
        self._driver.terminate()
        self._driver.stdout.close()
        self._driver.wait(10)

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *values: Any) -> Any:
        """Return what the body of a JavaScript function returns."""
        body = {"script": script, "args": list(values)}
        return self._call("POST", "/execute/sync", body)

    def wait(self, expression: str, seconds: float = 30) -> Any:
        """Wait until a JavaScript expression is true; return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {expression}")):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)
        return value

    def press(self, keys: str) -> None:
        """Press and release keys, wherever the focus is."""
        actions = [
            {"type": kind, "value": key}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self._call("POST", "/actions", {"actions": [source]})

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def type_into(self, selector: str, text: str) -> None:
        """Type into an element; into a file input: choose a file."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def resize(self, width: int, height: int) -> None:
        """Show the page as a screen of this many CSS pixels does."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        values = {**size, "mobile": width < 600}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": values}
        self._call("POST", "/goog/cdp/execute", command)

    def back(self) -> None:
        self._call("POST", "/back", {})

    def complaints(self) -> list[str]:
        """Return the console's errors since the last call: scripts, blocked content."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [each["message"] for each in entries if each["level"] == "SEVERE"]

    def next_complaint(self, seconds: float = 30) -> str:
        """Wait for the console's next errors, which come after their cause."""
        end = time.monotonic() + seconds
        while not (found := self.complaints()):
            assert time.monotonic() < end, "the console stayed silent"
            time.sleep(0.02)
        (complaint,) = found
        return complaint

    def _find(self, selector: str) -> str:
        body = {"using": "css selector", "value": selector}
        return self._call("POST", "/element", body)[_ELEMENT]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
