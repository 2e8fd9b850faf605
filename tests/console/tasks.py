"""Twelve tasks of a person at the console, each from the first page, with its clicks counted.

The tests run them, `tests.console.walkthrough` shows them with a caption each, and `docs/console/README.md` lists them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from suffice.settings import Settings
from suffice.store.database.presence import switch_reason
from suffice.store.people.audit_view import AuditEntry, entries
from suffice.wiring.keys import kill_file
from tests.console.chromium import Tab

ROUTE: Final = "math"
MOST_CLICKS: Final = 3  # to the answer, or to the form that makes the change
TO_ROUTE: Final = f'table a[href^="/console/route?"][href*="route={ROUTE}"]'


async def _nothing(_: Person) -> None:
    """A test has nobody to show it to."""


@dataclass(kw_only=True)
class Person:
    """Somebody at the first page, whose clicks are counted until the task's answer or form is there."""

    page: Tab
    url: str
    settings: Settings
    log: Path
    n_clicks: int = 0
    is_there: bool = False  # at the answer or the form: what follows is filling in and sending
    spent_s: float = 0.0  # on a task that is measured
    before_click: Callable[[str], Awaitable[Any]] | None = None  # with the selector
    on_arrival: Callable[[Person], Awaitable[None]] = field(default=_nothing)

    async def start(self) -> None:
        self.n_clicks, self.is_there = 0, False
        await self.page.go(f"{self.url}/console")

    async def click(self, selector: str, *, leads_on: bool = True) -> None:
        self._count(selector)
        assert await self.page.run(f"document.querySelector({selector!r})?.getClientRects().length > 0"), selector
        if self.before_click is not None:
            await self.before_click(selector)
        await self.page.click(selector, leads_on=leads_on)

    def _count(self, what: str) -> None:
        if not self.is_there:
            self.n_clicks += 1
            assert self.n_clicks <= MOST_CLICKS, f"{what} would be click {self.n_clicks}"

    async def choose(self, name: str, value: str) -> None:
        """Choose in the bar, which is a click, too."""
        self._count(name)
        self.page._loaded.clear()
        await self.page.run(
            f"(() => {{ const one = document.querySelector('form.scope [name={name}]'); one.value = {value!r};"
            " one.dispatchEvent(new Event('change', { bubbles: true })); })()"
        )
        await self.page.loaded()

    async def fill(self, **fields: str) -> None:
        """Write into the fields of a form, which is no click."""
        for name, value in fields.items():
            await self.page.run(f"document.getElementById('field-{name}').value = {value!r}")

    async def say_why(self, inside: str, reason: str) -> None:
        await self.page.run(f"document.querySelector('{inside} textarea').focus()")
        await self.page.write(reason)

    async def arrive(self, selector: str) -> None:
        """The answer or the form is there, in this element; no click counts any more."""
        place = f"document.querySelector({selector!r})"
        assert await self.page.run(f"{place}?.getClientRects().length > 0"), f"{selector} is not shown"
        await self.page.run(f"{place}.scrollIntoView({{ block: 'nearest' }})")
        self.is_there = True
        await self.on_arrival(self)

    def latest(self, kind: str) -> AuditEntry:
        """The newest row of the audit log of that kind."""
        return max(entries(self.log, kind=kind), key=lambda one: one.seq)


Do: TypeAlias = Callable[[Person], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    title: str
    caption: str  # what is to be seen
    n_clicks: int  # to the answer or the form
    do: Do

    @property
    def name(self) -> str:
        return self.do.__name__.replace("_", "-")


TASKS: Final[list[Task]] = []


def task(title: str, caption: str, n_clicks: int) -> Callable[[Do], Do]:
    def add(do: Do) -> Do:
        TASKS.append(Task(title=title, caption=caption, n_clicks=n_clicks, do=do))
        return do

    return add


# ---- that only read


@task("Find the class that lost most last week", "The class that lost most comes first; below: what differs there.", 3)
async def find_worst_class(person: Person) -> None:
    await person.choose("days", "7")
    await person.click(TO_ROUTE)
    first = (await person.page.text("#loses tbody tr th")).strip()
    await person.click('#loses a[href*="class="][href$="#loses"]')
    place = await person.page.place()
    assert "days=7" in place
    assert f"class={first}" in place
    await person.page.until("!document.body.innerText.includes('Reading audits')")
    await person.arrive("#loses .shown")
    assert f"audits of {first}" in await person.page.text("#loses h3")
    assert "kept" in await person.page.text("#loses .shown")


@task("Find out why a run stopped, by its id", "One sentence says at which step it stopped, and why.", 2)
async def find_why_a_run_stopped(person: Person) -> None:
    run = await _stopped_run(person)
    await person.click('.side a[href^="/console/runs"]')
    await person.page.press("/")
    await person.page.write(run)
    await person.page.press("Enter")
    await person.page.until("document.querySelector('#runs .plain-list a') !== null")
    await person.click(f'#runs a[href="/console/runs/{run}"]')
    await person.arrive(".verdict")
    assert "Stopped at step" in await person.page.text(".verdict")


async def _stopped_run(person: Person) -> str:
    """An id that somebody was sent; the first page has none."""
    await person.page.go(f"{person.url}/console/runs?route={ROUTE}&end=stopped")
    first = "document.querySelector('#runs table a[href^=\"/console/runs/\"]')"
    await person.page.until(f"{first} !== null")
    run = await person.page.run(f"{first}.getAttribute('href').split('/').pop()")
    await person.page.go(f"{person.url}/console")
    return str(run)


@task("Review ten runs by keyboard", "Two answers in random order; one key is a verdict, and brings the next.", 0)
async def review_ten(person: Person) -> None:
    page = person.page
    await page.press("5", leads_on=True)
    assert await page.place() == "/console/review"
    began_s, loads = time.monotonic(), await page.run("performance.timeOrigin")
    await page.press("Enter")
    tops = set[float]()
    for number in range(10):
        await page.until("document.querySelector('[name=item]') !== null")
        item = await page.run("document.querySelector('[name=item]').value")
        text = await page.text("#desk > .card")
        assert "full run" not in text, "which is which is not said"
        assert "early" not in text, "which is which is not said"
        if number == 0:
            displayed_s = time.monotonic()
            await person.arrive(".verdict-bar")
            began_s += time.monotonic() - displayed_s  # showing it is no reviewing
        tops.add(await page.run("Math.round(document.querySelector('.verdict-bar').getBoundingClientRect().top)"))
        keys = await page.run(
            "[...document.querySelectorAll('.verdict-bar [name=verdict]')].map((one) => one.dataset.key)"
        )
        await page.press(keys[number % len(keys)])
        await page.until(f"document.querySelector('[name=item]')?.value !== {item!r}")
    person.spent_s = time.monotonic() - began_s
    assert await page.run("performance.timeOrigin") == loads, "no page was loaded"
    assert len(tops) == 1, f"the bar of verdicts moved: {tops}"
    assert "was the early stop's answer" in await page.text(".last")
    await page.until("document.querySelector('.last').innerText.includes('verdicts of the last hour')")
    await page.press("z")
    await page.until(f"document.querySelector('[name=item]')?.value === {item!r}")


@task("Find who changed a threshold", "The timeline, narrowed to thresholds: who, what, why.", 2)
async def find_who_changed_a_threshold(person: Person) -> None:
    await person.click('.side a[href^="/console/changes"]')
    await person.click('.chips a[href*="group=thresholds"]')
    await person.arrive("#changes")
    text = await person.page.text("#changes")
    made = person.latest("policy_published")
    assert "policy published" in text
    assert made.who in text
    assert made.why in text


@task("Compare two policies", "What each saved and lost on its audits, side by side.", 2)
async def compare_two_policies(person: Person) -> None:
    await person.click(TO_ROUTE)
    await person.click("#compare button")
    await person.arrive('[aria-label="Two policies beside each other"]')
    text = await person.page.text("#policies")
    assert "Publication" in text
    assert "Saved on its audits" in text


@task("Export a month", "The month's report, ready to print; its runs are a CSV file.", 1)
async def export_a_month(person: Person) -> None:
    await person.click('.tabs a[href^="/console/report"]')
    await person.arrive("[data-print]")
    assert "Report of" in await person.page.text("h1")
    await person.page.run("window.print = () => { window.printed = true; }")
    await person.click("[data-print]", leads_on=False)
    assert await person.page.run("window.printed")


# ---- that change something


@task(
    "Roll back a policy", "Only what could serve again and is another policy offers it; the form shows its effect.", 3
)
async def roll_back_a_policy(person: Person) -> None:
    await person.click(TO_ROUTE)
    await person.click('.top a[href="#policies"]', leads_on=False)
    assert "serves now" in await person.page.text("#policies")
    to = '#policies td a[href*="kind=pin"]'
    names = f"[...document.querySelectorAll('{to}')].map((one) => one.closest('tr').querySelector('th').innerText)"
    ways = await person.page.run(names)
    assert len(ways) == len(set(ways)) > 0, "an earlier one could serve again, and each policy is offered once"
    await person.click(to)
    assert (await _form(person))["kind"] == "pin"
    await _send(person, "the new one is slower to prove")
    assert person.latest("override_set").why == "the new one is slower to prove"


@task("Change the EM budget", "A smaller max_em_drop, from the route's page, with its effect before it is made.", 2)
async def change_the_em_budget(person: Person) -> None:
    await person.click(TO_ROUTE)
    await person.click("#budget")
    form = await _form(person)
    assert (form["route"], form["kind"]) == (ROUTE, "budget")
    await _send(person, "a launch this week")
    assert person.latest("override_set").why == "a launch this week"


async def _form(person: Person) -> dict[str, str]:
    await person.arrive("main form.card")
    fields = "Object.fromEntries([...document.querySelectorAll('main [name]')].map((one) => [one.name, one.value]))"
    return dict(await person.page.run(fields))


async def _send(person: Person, reason: str) -> None:
    await person.fill(reason=reason)
    await person.click("main form button.main:not([name])")


@task("Create an alert, and test it", "A rule with a limit; the preview says how often it would have fired.", 3)
async def create_and_test_an_alert(person: Person) -> None:
    await person.click('.side a[href^="/console/changes"]')
    await person.click('main a[href^="/console/alerts"]')
    await person.click('main a[href="/console/change/alerts/rules/set"]')
    await person.fill(name="drop", measure="em_drop", limit="0.01", reason="a drill")
    person.is_there = True
    await person.click("main form button[name=preview]")
    await person.arrive(".preview")
    assert "In the last 14 days it would have been broken in" in await person.page.text(".preview")
    await person.click("main form button.main")
    assert await person.page.place() == "/console/alerts"
    assert "drop" in await person.page.text("main")


@task("Create an experiment", "Hypothesis, arms, which units take part, when it ends: one form in four steps.", 3)
async def create_an_experiment(person: Person) -> None:
    await person.click('.side a[href^="/console/changes"]')
    await person.click('main a[href^="/console/experiments"]')
    await person.click('main a[href="/console/change/experiments/create"]')
    assert await person.page.run("document.querySelectorAll('main form h2').length") == 4, "four steps"
    fields = {"name": "cap-two", "hypothesis": "Level 2 is enough.", "treatment_value": "2", "route": ROUTE}
    await person.fill(**fields, reason="a drill")
    await person.arrive("main form")
    await person.click("main form button.main")
    assert await person.page.place() == "/console/experiments"
    assert "cap-two" in await person.page.text("main")


@task("Pause a route", "Every request of the route runs in full within a second, until somebody resumes it.", 2)
async def pause_a_route(person: Person) -> None:
    await person.click(TO_ROUTE)
    await person.click("#pause summary", leads_on=False)
    await person.say_why("#pause", "answers look wrong")
    await person.arrive("#pause form")
    await person.click("#pause button")
    assert "paused" in await person.page.text(".lead")
    made = person.latest("enforcement_paused")
    assert (made.who, made.why) == ("admin", "answers look wrong")


@task("Stop all stopping", "On every page: every request of every route runs in full within a second.", 1)
async def stop_all_stopping(person: Person) -> None:
    await person.click("details.stop summary", leads_on=False)
    await person.say_why("details.stop", "a bad deployment")
    await person.arrive("details.stop form")
    await person.click("details.stop button")
    assert "Stopping is off" in await person.page.text("details.stop summary")
    assert switch_reason(kill_file(person.settings)) == "a bad deployment (admin)"
