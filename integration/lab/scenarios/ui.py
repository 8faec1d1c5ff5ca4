"""The dashboard in headless Chromium, by way of `outcall ui`: what an operator sees and does, and hostile text."""

import json
import os
import random
import signal
import time

import sh
from browser import DESKTOP, PHONE, Browser, installed
from daemon import UnixConnection
from harness import *
from played import Played
from scenarios.agents import agent, ask, rule_file, submit

VIEWS = {"overview": "Overview", "decisions": "Decisions", "networks": "Networks", "rules": "Rules", "requests": "Requests", "grants": "Grants and cache"}
# Where pictures for the documentation go, if they are wanted: `OUTCALL_SCREENSHOTS=vendor-docs/screenshots`.
PICTURES = os.environ.get("OUTCALL_SCREENSHOTS")

# What agents write where the page shows it: markup, script, directions, colours of terminals, and size.
HOSTILE = [
    "<script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", "\"><svg onload=window.pwned=1>",
    "javascript:window.pwned=1", "safe\u202egnp.exe", "a\u200bb\ufeffc", "\x1b[31mred\x1b[0m\x07", "{{constructor}}${1+1}",
    "x" * 20000, "\u0301" * 200, "</pre></bdi></code>'\"`&lt;", "\ud83d\ude00\u0000end", "__proto__", "line\nbreak\r\n\ttab",
]
# In the page: the lowest contrast of its texts with what they stand on, and where.
CONTRAST = """
const number = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((part) => part / 255).map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
let worst = [99, ''];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
  if (element.closest('.hidden, .skip, :disabled, option')) continue;
  let ground = element;
  while (ground && number(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
  const svg = element instanceof SVGElement;
  const ink = light(number(svg ? getComputedStyle(element).fill : getComputedStyle(element).color));
  const paper = light(number(getComputedStyle(ground ?? document.body).backgroundColor));
  const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  if (ratio < worst[0]) worst = [ratio, element.className + ': ' + walker.currentNode.data.slice(0, 60)];
}
return worst;
"""


class Dashboard:
    """`outcall ui` on a socket, and a browser at its address."""

    def __init__(self, lab, socket_path):
        if not installed():
            skip("chromium or chromedriver is not installed")
        command = [*lab.space.enter(), binary("outcall"), "--socket", socket_path, "--json", "ui", "--no-open"]
        self.bridge = sh.start(command, stdout=-1, log=lab.path("ui.log"))
        lab.undo(lambda: sh.stop(self.bridge, grace=5))
        self.url = json.loads(self.bridge.stdout.readline())["url"]
        home = lab.path("chromium")
        os.makedirs(home, exist_ok=True)
        self.browser = Browser(lab.space, home)
        lab.undo(self.browser.close)

    def open(self):
        """The page; gives the browser."""
        self.browser.go(self.url)
        self.browser.sees("Bridge and table")
        return self.browser

    def view(self, name):
        """Goes to a view by its link."""
        self.browser.click(f'nav a[href="#/{name}"]')
        sh.wait_for(lambda: self.browser.js("return document.querySelector('main').dataset.view") == name, name, 5)


def clean(browser, *expected):
    """Nothing came from elsewhere, and the console has nothing but what was `expected`."""
    asked = browser.js("return performance.getEntriesByType('resource').map((one) => new URL(one.name).origin).filter((one) => one !== location.origin)")
    check(asked == [], asked)
    words = [line for line in browser.complaints() if not any(part in line for part in expected)]
    check(words == [], words)


def fits(browser, view):
    """Nothing is wider than the window."""
    over = browser.js("return document.documentElement.scrollWidth - innerWidth")
    wide = over > 0 and browser.js("""return [...document.querySelectorAll('body *')]
        .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
        .map((one) => `${one.tagName}.${one.className} ${one.textContent.slice(0, 40)}`).slice(-8)""")
    check(over <= 0, (view, over, wide))


def picture(browser, name, dark):
    """A picture for the documentation, of a size that fits a page."""
    if PICTURES:
        os.makedirs(PICTURES, exist_ok=True)
        if "wide" in name:
            browser.look(1120, 700, dark)
            time.sleep(0.3)
        browser.picture(os.path.join(PICTURES, f"{name}.png"))


def played(lab, daemon, answers):
    """A socket that answers as the real daemon but for `answers`."""
    one = Played(lab.path("played.sock"), answers, lambda: UnixConnection(daemon.socket))
    lab.undo(one.end)
    return one


def stamp(seconds_ago=0):
    """RFC 3339."""
    at = time.time() - seconds_ago
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03}Z"


def decision(seq, **fields):
    """A decision as vendor-docs/events.md describes it."""
    return {"ts": stamp(), "seq": seq, "layer": "proxy", "verdict": "block", "container": "alpha-1", "agent": "alpha",
            "reason": "no rule allows it", "host": "denied.example.net", "method": "GET", "path": "/", **fields}


@scenario(deadline=150)
def the_operator_sees_and_decides(lab):
    """The real daemon: every view, a denial, an approval, a rejection, a failed reload, a crash and the way back."""
    daemon = lab.daemon([*allow("example.com"), rule("git", 'dns.query == "git.example.com"', egress={"mode": "direct_ip", "ports": [7000]})],
                        flags=["--on-exit", "keep"])
    lab.internet.names.set("git.example.com", "5.40.0.1")
    alpha = agent(lab, daemon, "alpha-1")
    first = submit(alpha, rule_file(*allow("github.com")))
    second = submit(alpha, rule_file(*allow("gitlab.com")))
    check(alpha.curl("http://before.example.net/").status == 403)
    dashboard = Dashboard(lab, daemon.socket)
    browser = dashboard.open()
    check(alpha.curl("http://example.com/").status == 200)
    check(alpha.curl("http://denied.example.net/").status == 403)
    check(alpha.dig("git.example.com").addresses == ["5.40.0.1"])
    check(alpha.connects("5.40.0.1", 7000) == "connected")

    for text in ("as planned", "every thread answers", "9.9.9.9:53", "Live"):
        browser.sees(text)
    dashboard.view("networks")
    browser.sees("alpha-1")
    browser.sees(alpha.ip)
    dashboard.view("decisions")
    browser.sees("denied.example.net")
    browser.sees("before.example.net")
    browser.choose("#f-verdict", "allow")
    browser.lacks("denied.example.net")
    browser.sees("example.com")
    dashboard.view("rules")
    browser.sees("allow-example.com")
    browser.click("button.link", "allow-example.com")
    browser.sees("Condition, definitions expanded")
    browser.click("dialog button", "Close")
    dashboard.view("grants")
    browser.sees("git.example.com")
    browser.click("button", "Flush cache")
    browser.click("dialog button", "Flush cache")
    browser.sees("cached answers forgotten")
    browser.sees("5.40.0.1")
    browser.click("button", "Flush grants")
    browser.click("dialog button", "Flush grants")
    browser.sees("1 grant removed")

    dashboard.view("requests")
    browser.sees(f"agent-{first}.yaml")
    installs = {one["id"]: one["installs"] for one in daemon.api("GET", "/api/v1/requests/rules").data}
    shown = browser.js("return [...document.querySelectorAll('pre.bytes')].map((one) => one.textContent)")
    check(sorted(shown) == sorted(installs.values()), shown)
    browser.click(f'button[data-key="approve-{first}"]')
    browser.sees("For the container alpha-1 alone.")
    check(browser.js("return document.querySelector('dialog pre').textContent") == installs[first])
    browser.click("dialog button", "Cancel")
    check(alpha.curl("http://github.com/").status == 403)
    browser.click(f'button[data-key="approve-{first}"]')
    browser.click("dialog button", "Approve")
    browser.sees(f"Approved {first}")
    check(open(f"{daemon.rules_dir}/agent-{first}.yaml").read() == installs[first])
    check(alpha.curl("http://github.com/").status == 200)
    browser.click(f'button[data-key="reject-{second}"]')
    browser.write("dialog textarea", "too <b>broad</b>")
    browser.click("dialog button", "Reject")
    browser.sees(f"Rejected {second}")
    check(ask(alpha, f"/v1/requests/rules/{second}").json["reason"] == "too <b>broad</b>")
    browser.sees("No rule request waits.")

    daemon.write_rules("version: '1'\nrules: [\n", name="broken.yaml")
    dashboard.view("rules")
    browser.click("#reload")
    browser.sees("the old rules stay in force")
    browser.sees("broken.yaml")
    os.remove(f"{daemon.rules_dir}/broken.yaml")
    browser.click("#reload")
    browser.sees("files in force.")

    daemon.kill()
    browser.sees("outcalld does not answer.", 20)
    daemon.start()
    browser.lacks("outcalld does not answer.", 30)
    browser.sees("Live")
    dashboard.view("decisions")
    check(alpha.curl("http://after.example.net/").status == 403)
    browser.sees("after.example.net")
    clean(browser, "502", "404", "422")
    dashboard.bridge.send_signal(signal.SIGINT)
    sh.wait_for(lambda: dashboard.bridge.poll() == 0, "outcall ui to end on ^C", 5)


@scenario(deadline=120)
def ten_thousand_decisions_and_hostile_texts(lab):
    """Bounded rows and nodes, text that stays text in every field of every view."""
    daemon = lab.daemon(allow("example.com"))
    bad = HOSTILE
    fake = played(lab, daemon, {})
    dashboard = Dashboard(lab, fake.path)
    browser = dashboard.open()
    dashboard.view("decisions")
    sh.wait_for(lambda: fake.readers == 1, "the page to follow", 10)

    for start in range(0, 12000, 500):
        fake.say(*(decision(n, host=f"host-{n}.example.net", verdict="allow" if n % 3 else "block") for n in range(start + 1, start + 501)))
    browser.sees("10,000 shown of 10,000 kept", 30)
    check(browser.count("[role=row]") < 120, browser.count("[role=row]"))
    browser.sees("host-12000.example.net")
    browser.js("document.querySelector('[role=grid]').focus()")
    browser.press("End")
    browser.sees("host-2001.example.net")
    check(browser.count("[role=row]") < 120)
    fake.say(decision(12001, host="while-reading.example.net"))
    time.sleep(0.5)
    browser.sees("host-2002.example.net")
    browser.write("#f-text", "host-2999.example")
    browser.sees("1 shown of 10,000 kept")
    browser.write("#f-text", "")
    browser.sees("10,000 shown")

    fields = ("container", "agent", "host", "ip", "path", "method", "rule", "file", "reason", "layer", "protocol", "flow", "container_id", "verdict")
    fake.say(*(decision(13000 + n, **{field: text}) for n, (text, field) in enumerate((text, field) for text in bad for field in fields)))
    for words, seen in (("gnp.exe", "safe\\u{202e}gnp.exe"), ("onerror", "<img src=x onerror=window.pwned=1>"), ("[31m", "\\u{1b}[31mred\\u{1b}[0m\\u{7}"), ("xxxxxx", "xxx…")):
        browser.write("#f-text", words)
        browser.sees(seen)
        browser.js("document.querySelector('[role=grid] .v-space [role=row]').click()")
        browser.sees("by proxy")
        browser.click("dialog button", "Close")
    browser.write("#f-text", "")
    pending = [{"id": f"rr-{n}", "container_id": text, "container": text, "rule_file": text, "installs": f"version: '1'\n# {text}\n", "status": text, "submitted_at": text, "lint": [text]} for n, text in enumerate(bad)]
    rules = [{"id": text, "file": text, "action": text, "condition_preview": text, "description": text, "priority": 1, "hits": n, "errors": n, "last_hit": text} for n, text in enumerate(bad)]
    networks = [{"exists": True, "network_id": text, "name": text, "subnet": text, "gateway": text, "bridge": text, "containers": [{"name": text, "ipv4_address": text}]} for text in bad]
    fake.answers.update({
        "GET requests/rules": pending, "GET requests/rules?all_agents=true": pending, "GET rules": rules, "GET networks": networks,
        "GET containers": [{"container_id": text, "name": text, "image": text, "state": text, "network": text, "created_at": text} for text in bad],
        "GET rules/active": [{"container": text, "destination": text, "port": 1, "protocol": text, "expires_in_secs": 5, "packets": 1, "bytes": 2} for text in bad],
        "GET dns/cache?entries=true": {"stats": {"entries": 1, "max_entries": 2, "hits": 3, "misses": 4, "evictions": 5}, "entries": [{"hostname": text, "record_type": text, "ttl_remaining_secs": 9, "cached_at": text} for text in bad]},
        "GET ready": (503, "not ready: " + bad[0], {"data": {"ready": False, "parts": {bad[1]: {"ok": False, "reason": bad[2]}}, "warnings": bad}}),
        "GET bridge": (500, bad[1]), "GET dns": (503, bad[4]),
    })
    for width in (DESKTOP, PHONE):
        browser.look(*width)
        for view in VIEWS:
            dashboard.view(view)
            browser.sees("<script>window.pwned=1</script>" if view != "decisions" else "kept")
            fits(browser, view)
            check(browser.js("return window.pwned") is None, view)
            check(browser.count("script") == 1 and browser.count("main img, main iframe, main style, main [onerror], main [onload]") == 0, view)
            check(not any(sign in browser.text for sign in "\u202e\x1b\u200b\x07"), view)
    browser.look(*DESKTOP)
    dashboard.view("requests")
    browser.click('button[data-key="all-rr-6"]')
    browser.sees("For all agents.")
    check("\\u{1b}[31mred" in browser.js("return document.querySelector('dialog pre').textContent"))
    browser.click("dialog button", "Cancel")
    clean(browser, "500", "503", "404")


@scenario(deadline=120)
def keyboard_narrow_dark_and_degraded(lab):
    """No mouse, no width, no light, and an API that is not all there."""
    daemon = lab.daemon(allow("example.com", "pypi.org"))
    waiting = [{"id": "rr-1", "container_id": "ab" * 32, "container": "alpha-1", "rule_file": "", "status": "pending", "submitted_at": stamp(200),
                "installs": "version: \"1\"\nrules:\n  - id: rr-1-docs\n    description: \"Papers\"\n    condition: 'agent.container == \"alpha-1\" && (http.host == \"arxiv.org\")'\n    action: allow\n",
                "lint": ["rule rr-1-docs: allows every method and path of arxiv.org"]}]
    answers = {"GET requests/rules": waiting, "GET requests/rules?all_agents=true": waiting, "POST requests/rules/rr-1/approve": {"id": "rr-1", "rules_loaded": 3}}
    answers["GET rules/active"] = [{"container": "builder-1", "destination": "140.82.121.4", "port": 22, "protocol": "tcp", "nft_handle": 7, "inserted_at": stamp(20), "expires_in_secs": 284, "packets": 1822, "bytes": 1430022}]
    fake = played(lab, daemon, answers)
    dashboard = Dashboard(lab, fake.path)
    browser = dashboard.open()

    browser.js("document.activeElement.blur(); scrollTo(0, 0)")
    browser.tab_to("Skip to content", 3)
    check(browser.js("return document.activeElement.getBoundingClientRect().top") >= 0)
    browser.press("Enter")
    check(browser.js("return document.activeElement.id") == "main")
    browser.js("document.activeElement.blur()")
    browser.tab_to("Requests")
    check(browser.js("return getComputedStyle(document.activeElement).outlineStyle") != "none")
    browser.press("Enter")
    browser.sees("Waiting for you")
    check(browser.focus == "Requests", browser.focus)
    browser.tab_to("Approve…")
    browser.press("Enter")
    browser.sees("For the container alpha-1 alone.")
    browser.press("Escape")
    sh.wait_for(lambda: browser.count("dialog") == 0, "Escape to close", 5)
    check(browser.focus == "Approve…", browser.focus)
    browser.press("Enter")
    browser.sees("Approve?")
    browser.tab_to("Approve", 6)
    browser.press("Enter")
    browser.sees("Approved rr-1. 3 rules in force.")
    check(("POST", "requests/rules/rr-1/approve", '{"all_agents":false}') in fake.asked, fake.asked[-9:])

    sh.wait_for(lambda: fake.readers, "the page to follow", 10)
    names = ("github.com", "api.github.com", "pypi.org", "files.pythonhosted.org", "telemetry.example.net", "arxiv.org")
    dice = random.Random(5)
    ages = sorted((dice.choice((dice.uniform(0, 870), dice.gauss(700, 40), dice.gauss(330, 70), dice.gauss(120, 25))) for _ in range(1400)), reverse=True)
    for n in range(1400):
        name = dice.choices(names, (9, 6, 5, 4, 3, 1))[0]
        good = name not in names[4:]
        who = dice.choice(("research-1", "builder-1", "builder-1", "builder-2"))
        dns = n % 3 == 0
        more = {"record_type": "A", "method": None, "path": None} if dns else {"port": 443, "method": "CONNECT" if n % 2 else "GET"}
        event = decision(n + 1, ts=stamp(max(0, ages[n])), layer="dns" if dns else "proxy", verdict="allow" if good else "block",
                         container=who, agent=who[:-2], host=name, flow=f"{n // 2:x}", duration_us=90 + n % 200, **more)
        if good:
            event |= {"rule": f"allow-{name}", "file": "rules.yaml", "reason": "allowed by rule"}
        fake.say({key: value for key, value in event.items() if value is not None})
    dashboard.view("decisions")
    browser.sees("1,400 kept", 20)
    browser.tab_to("Decisions, newest first")
    browser.press("Down", "Down", "Enter")
    browser.sees("Same flow")
    browser.press("Escape")

    for dark in (False, True):
        for width, label in ((DESKTOP, "wide"), (PHONE, "phone")):
            browser.look(*width, dark=dark)
            for view in VIEWS:
                dashboard.view(view)
                browser.sees({"overview": "every thread answers", "decisions": "kept", "networks": "outcall-default", "rules": "allow-pypi.org", "requests": "arxiv.org", "grants": "140.82.121.4"}[view])
                fits(browser, view)
                ratio, where = browser.js(CONTRAST)
                check(ratio >= 4.5, (view, label, dark, ratio, where))
                if (view, label, dark) in (("overview", "wide", False), ("decisions", "wide", True), ("requests", "wide", False), ("requests", "phone", True)):
                    picture(browser, f"{view}-{label}-{'dark' if dark else 'light'}", dark)
                    browser.look(*width, dark=dark)
    browser.look(*DESKTOP)
    browser.click("#theme")
    browser.sees("Theme: light")
    browser.click("#theme")
    browser.sees("Theme: dark")
    check(browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(14, 20, 27)")

    # Parts that are missing or busy say so, and the others go on; what is lost comes back.
    dashboard.view("overview")
    fake.answers |= {"GET dns": (503, "dns is busy: its mailbox is full; try again"), "GET events": (404, "no such resource: /api/v1/events")}
    browser.sees("its mailbox is full")
    browser.sees("every thread answers")
    browser.click("button", "Retry")
    del fake.answers["GET dns"]
    browser.lacks("its mailbox is full")
    fake.cut()
    dashboard.view("decisions")
    browser.sees("This daemon does not offer it.")
    del fake.answers["GET events"]
    sh.wait_for(lambda: fake.readers, "the stream to be asked for again", 15)
    fake.say(decision(5000, host="back-again.example.net"))
    browser.sees("back-again.example.net")
    browser.lacks("This daemon does not offer it.")
    clean(browser, "503", "404")
