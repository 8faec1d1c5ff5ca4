"""Headless Chromium inside the lab, driven over plain WebDriver (W3C) with chromedriver.

Owns: one chromedriver, one browser with a directory of its own, and what a person does with it: look, click, type.
Chromium's own services are switched off, and its network is the lab's: nothing it asks leaves.
"""

import base64
import http.client
import json
import os
import shutil
import socket

import sh

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Down": "\ue015", "Up": "\ue013", "End": "\ue010",
        "Home": "\ue011", "PageDown": "\ue00f", "Shift": "\ue008", "Space": " "}
BACKSPACE = "\ue003"
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--disable-domain-reliability", "--disable-dev-shm-usage", "--no-default-browser-check",
    "--metrics-recording-only", "--no-proxy-server", "--lang=en", "--hide-scrollbars",
    "--disable-features=OptimizationHints,MediaRouter,Translate,InterestFeedContentSuggestions",
]
PORT = 9515
# A page of this machine is drawn in milliseconds; a loaded test machine takes its time.
PATIENCE = 15
DESKTOP, PHONE = (1280, 860), (375, 812)


class WebDriverError(Exception):
    """chromedriver said no; carries its words."""


class _Inside(http.client.HTTPConnection):
    """HTTP to a port of the lab's loopback."""

    def __init__(self, space, port):
        super().__init__("127.0.0.1", port, timeout=60)
        self._space = space

    def connect(self):
        """Connects from inside the namespace."""
        self.sock = self._space.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect((self.host, self.port))


def installed():
    """Whether chromium and its driver are there."""
    return shutil.which("chromium") and shutil.which("chromedriver")


class Browser:
    """One window."""

    def __init__(self, space, directory, port=PORT):
        self._space = space
        self._port = port
        self._session = None
        self.profile = os.path.join(directory, "profile")
        home = {**os.environ, "HOME": directory, "TMPDIR": directory, "XDG_CONFIG_HOME": directory,
                "XDG_CACHE_HOME": directory, "LANG": "C.UTF-8"}
        self._driver = sh.start([*space.enter(), "chromedriver", f"--port={port}"],
                                log=os.path.join(directory, "chromedriver.log"), env=home)
        sh.wait_for(self._up, "chromedriver", PATIENCE)
        options = {"args": [*ARGUMENTS, f"--user-data-dir={self.profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"
        self.look(*DESKTOP)

    def _up(self):
        try:
            return self._ask("GET", "/status")["ready"]
        except OSError:
            return False

    def _ask(self, method, path, body=None):
        connection = _Inside(self._space, self._port)
        try:
            text = None if method == "GET" else json.dumps(body or {})
            connection.request(method, path, body=text, headers={"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise WebDriverError(f"{path}: {answer['error']}: {answer.get('message', '')[:600]}")
        return answer

    def _do(self, method, path, body=None):
        return self._ask(method, self._session + path, body)

    def close(self):
        """Ends browser and driver."""
        if self._session:
            try:
                self._do("DELETE", "")
            except (OSError, WebDriverError):
                pass
        sh.stop(self._driver, grace=5)

    # ---- looking

    def look(self, width, height, dark=False):
        """The size of the window, and what the system prefers."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                      mobile=False)
        self.devtools("Emulation.setEmulatedMedia",
                      features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def devtools(self, command, **parameters):
        """A command of the DevTools protocol."""
        return self._do("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def go(self, url):
        """Opens an address."""
        self._do("POST", "/url", {"url": url})

    def js(self, script, *arguments):
        """Runs a function body in the page; gives what it returns."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    @property
    def text(self):
        """What the page shows, as text."""
        return self.js("return document.body.innerText")

    def sees(self, text, seconds=PATIENCE):
        """Waits until the page shows a text."""
        try:
            sh.wait_for(lambda: text in self.text, f"the page to show {text!r}", seconds, 0.05)
        except sh.Timeout as late:
            raise AssertionError(f"{late}; it shows: {self.text[:3000]}") from late

    def lacks(self, text, seconds=PATIENCE):
        """Waits until the page does not show a text any more."""
        sh.wait_for(lambda: text not in self.text, f"the page not to show {text!r}", seconds, 0.05)

    def count(self, selector):
        """How many elements match."""
        return self.js("return document.querySelectorAll(arguments[0]).length", selector)

    def picture(self, path):
        """A PNG of the window."""
        with open(path, "wb") as file:
            file.write(base64.b64decode(self._do("GET", "/screenshot")))

    def complaints(self):
        """What the console holds: errors and refusals of the content security policy."""
        return [entry["message"] for entry in self._do("POST", "/se/log", {"type": "browser"})
                if entry["level"] in ("SEVERE", "WARNING")]

    # ---- doing

    def _find(self, selector, text=None):
        found = self.js("""
            const [selector, text] = arguments;
            const within = document.querySelector('dialog[open]') ?? document;
            return [...within.querySelectorAll(selector)].find((one) =>
                one.checkVisibility() && (text === null || one.textContent.trim() === text)) ?? null;""", selector, text)
        return found and found[ELEMENT]

    def click(self, selector, text=None):
        """Clicks the first visible element that matches (and has exactly this text), in the open dialog if there is one."""
        element = sh.wait_for(lambda: self._find(selector, text), f"something to click: {selector} {text or ''}", PATIENCE)
        self._do("POST", f"/element/{element}/click")

    def write(self, selector, text):
        """Replaces what a field holds."""
        element = sh.wait_for(lambda: self._find(selector), f"a field: {selector}", PATIENCE)
        self.js("arguments[0].focus(); arguments[0].select()", {ELEMENT: element})
        self._do("POST", f"/element/{element}/value", {"text": text or BACKSPACE})

    def choose(self, selector, value):
        """Chooses an option of a select."""
        self.js("const box = document.querySelector(arguments[0]); box.value = arguments[1];"
                "box.dispatchEvent(new Event('change', {bubbles: true}))", selector, value)

    def press(self, *keys):
        """Presses keys one after the other; `Shift+Tab` holds."""
        actions = []
        for key in keys:
            *held, last = key.split("+") if len(key) > 1 else [key]
            held, last = [KEYS[name] for name in held], KEYS.get(last, last)
            actions += [{"type": "keyDown", "value": name} for name in [*held, last]]
            actions += [{"type": "keyUp", "value": name} for name in [last, *held]]
        self._do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    @property
    def focus(self):
        """What has the focus: its words."""
        return self.js("""const one = document.activeElement;
            return (one.getAttribute('aria-label') ?? one.labels?.[0]?.textContent ?? one.textContent).trim()""")

    def tab_to(self, words, limit=60):
        """Presses Tab until the focus is on something with these words, as a person without a mouse does."""
        for _ in range(limit):
            self.press("Tab")
            if self.focus.startswith(words):
                return
        raise AssertionError(f"no way by keyboard to {words!r}; the focus is on {self.focus!r}")
