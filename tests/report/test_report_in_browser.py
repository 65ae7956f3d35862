"""The report in a browser: what it shows, what it does with hostile text, keyboard, phone, and a run that goes on.

The tests need Chromium (`make setup-browser`). Without it they are skipped, and pytest says so.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from browser import Page
from report_page import IN_A_BROWSER, axe_violations, legend, newest, set_control
from report_runs import METRICS, add_overflowing, add_timeline, make_run, sample
from ulorl.report.html_report import write_report
from ulorl.report.watch_server import WatchServer

pytestmark = IN_A_BROWSER

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
PARTS = [{"version": 0, "tokens": 2, "chars": 10}, {"version": 1, "tokens": 1, "chars": 1}]
TOKENS = {"chars": [5, 5, 1], "logprob": [-0.1, -2.5, 0], "entropy": [0.25, 1.5, 0], "masked": [0, 0, 1]}
SAMPLES = {
    1: [
        sample(0, "first <b>right</b>", 1, [18], [0]),
        sample(1, "first wrong", 0, [11], [0], tokens=3, segments=PARTS, token_values=TOKENS),
    ],
    2: [
        sample(2, HOSTILE, 0, [40, len(HOSTILE) - 40], [0, 1], prompt=HOSTILE, answer=HOSTILE, status="truncated"),
        sample(3, "none", None, [4], [1], error=f"the reward failed: {HOSTILE}"),  # type: ignore[arg-type]
    ],
}


@pytest.fixture(scope="module")
def report(tab: Page, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a small run, opened."""
    run_dir = make_run(tmp_path_factory.mktemp("report") / f"run {HOSTILE.replace('/', '')}", samples=SAMPLES)
    add_timeline(run_dir)
    tab.open(write_report([run_dir]).as_uri())
    return tab


def test_the_values_at_a_step_are_those_of_the_metrics(report: Page) -> None:
    for step in (2, 1):
        set_control(report, "#step", str(step), "input")
        shown = {metric: found for (metric, _), found in legend(report).items()}
        assert shown.keys() >= {"eval/accuracy", "reward/mean", "entropy/mean", "rollout/finished", "time/eval"}
        for name, found in shown.items():
            if not name.startswith(("computed/", "length/", "rollout/tokens_per_second")):
                assert found[:2] == newest(METRICS, name, step), (step, name)
    assert (
        report.run("[...document.querySelectorAll('#metrics-table [data-metric=\"reward/mean\"] td')][0].textContent")
        == "0.2"
    )
    assert not report.problems


def test_every_chart_with_values_is_drawn_and_described(report: Page) -> None:
    cards = report.run(
        "[...document.querySelectorAll('.card:not([hidden])')].map(c => [c.querySelector('h3').textContent,"
        " c.querySelectorAll('svg path').length, c.querySelector('[role=img]').getAttribute('aria-label')])"
    )
    described = {title: label for title, _, label in cards}
    assert all(paths > 0 for _, paths, _ in cards)
    assert described["Reward"] == "Reward. reward: 0.2 at step 1, 0.6 at step 2, lowest 0.2, highest 0.6"
    assert "Mismatch" not in described  # the run has no such metric
    assert "1 of 2 shown samples were written by more than one version" in report.run(
        "document.querySelector('.timeline').getAttribute('aria-label')"
    )


def hover(page: Page, share: float) -> None:
    """Move the pointer over the chart of the reward, to a share of its axis."""
    x, y = page.run(
        "(() => { const b = [...document.querySelectorAll('.card')].find(c => c.querySelector('h3').textContent"
        " === 'Reward').querySelector('.chart'); b.scrollIntoView({block: 'center'}); const r ="
        f" b.getBoundingClientRect(); return [r.left + 52 + {share} * (r.width - 66), r.top + 80]; }})()"
    )
    page.move(x, y)


def test_moving_over_a_chart_moves_all_of_them(report: Page) -> None:
    """The pointer at a fifth of the axis from step 0 to 2 is nearest to step 0, at four fifths to step 2."""
    for share, step in ((0.2, 0), (0.8, 2)):
        hover(report, share)
        report.wait(f"document.querySelector('#toolbar output').textContent === '{step}'")
        pointers = "[...document.querySelectorAll('.card:not([hidden]) .pointer')]"
        lines = set(report.run(f"{pointers}.map(p => p.hidden ? null : Math.round(parseFloat(p.style.left)))"))
        assert lines == {52 if step == 0 else report.run(f"Math.round({pointers}[0].parentElement.clientWidth - 14)")}
    assert not report.problems


def test_a_range_of_steps_is_that_of_every_chart(report: Page) -> None:
    drawn = "[...document.querySelectorAll('.card:not([hidden]) svg')].map(svg => svg.innerHTML)"
    before = report.run(drawn)
    set_control(report, "#toolbar [type=number]", "1")
    report.wait("document.querySelector('#toolbar [type=number]').value === '1'")
    report.wait(f"(before => {drawn}.every((now, at) => now !== before[at]))({json.dumps(before)})")
    report.run("[...document.querySelectorAll('#toolbar button')].find(b => b.textContent === 'All steps').click()")
    report.wait("document.querySelector('#toolbar [type=number]').value === '0'")


def test_a_curve_is_hidden_and_shown_by_its_name(report: Page) -> None:
    name = "document.querySelector('.legend [data-metric=\"reward/mean\"]')"
    paths = f"{name}.closest('.card').querySelectorAll('svg path').length"
    whole = report.run(paths)
    report.run(f"{name}.click()")
    assert report.run(f"{name}.getAttribute('aria-pressed')") == "false"
    report.wait(f"{paths} < {whole}")
    report.run(f"{name}.click()")
    report.wait(f"{paths} === {whole}")


def test_a_click_on_a_bar_of_the_timeline_shows_its_sample(report: Page) -> None:
    """Version 1 decoded one segment, of sample 1. A bar keeps its colour under the pointer, and a click is not lost
    when the height of the page changes between press and release."""
    middle = (
        "(() => { document.querySelector('.timeline').scrollIntoView({block: 'center'}); const fill = getComputedStyle("
        "document.documentElement).getPropertyValue('--bar1').trim(); const r = document.querySelector("
        "`.timeline svg path[fill='${fill}']`).getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2];"
        " })()"
    )
    choose = "document.querySelector('[data-key=\"{}\"]').click()"
    height = "document.getElementById('main').getBoundingClientRect().height"
    drawn = f"new Promise(f => requestAnimationFrame(() => requestAnimationFrame(() => f({height}))))"
    report.run(choose.format("2/3"))
    before, (x, y) = report.run(drawn), report.run(middle)
    report.move(x, y)
    report.button("mousePressed", x, y)
    report.run(choose.format("1/0"))
    assert report.run(drawn) != before
    report.button("mouseReleased", x, y)
    report.wait("document.querySelector('.detail h3').textContent.startsWith('Step 1, sample 1')")
    report.move(*report.run(middle))
    report.run(drawn)
    assert report.run(middle)  # found by its colour
    assert not report.problems


def test_charts_have_the_width_of_paper_while_the_page_is_printed(report: Page) -> None:
    widths = "[...document.querySelectorAll('.card:not([hidden]) svg')].map(svg => svg.clientWidth)"
    on_screen = report.run(widths)
    report.run("dispatchEvent(new Event('beforeprint'))")
    assert max(report.run(widths)) <= 350  # two beside each other in 700
    report.run("dispatchEvent(new Event('afterprint'))")
    assert report.run(widths) == on_screen


def test_hostile_text_is_text(report: Page) -> None:
    listed = "[...document.querySelectorAll('.entry')].map(e => e.dataset.key)"
    assert report.run(listed) == ["1/0", "1/1", "2/2", "2/3"]
    report.run("document.querySelector('[data-key=\"2/2\"]').click()")
    assert HOSTILE in report.run("document.querySelector('.prompt').textContent")
    assert report.run("[...document.querySelectorAll('.output .piece')].map(p => p.textContent).join('')") == (
        f"v0{HOSTILE[:40]}v1{HOSTILE[40:]}"
    )
    report.run("document.querySelector('[data-key=\"2/3\"]').click()")
    assert HOSTILE in report.run("document.querySelector('.detail').textContent")
    assert report.run("[window.hacked, document.images.length]") == [None, 0]
    assert not report.problems


def test_samples_are_filtered_and_searched(report: Page) -> None:
    count = "document.querySelectorAll('.entry').length"
    for verdict in ("right", "wrong", "truncated", "unscored"):
        set_control(report, ".samples select", verdict)
        assert report.run(count) == 1, verdict
        assert report.run("document.querySelector('.detail .verdict').textContent") == verdict
    set_control(report, ".samples select", "")
    set_control(report, ".samples input", "FIRST WRONG", "input")
    assert report.run("[...document.querySelectorAll('.entry')].map(e => e.dataset.key)") == ["1/1"]
    set_control(report, ".samples input", "", "input")
    assert report.run(count) == 4


def test_tokens_have_their_values_and_colours(report: Page) -> None:
    report.run("document.querySelector('[data-key=\"1/1\"]').click()")
    colour = ".samples label:last-child select"
    coloured = "[...document.querySelectorAll('.output .token')].map(t => Boolean(t.getAttribute('style')))"
    shades = {"logprob": [True, True, False], "entropy": [True, True, False], "masked": [False, False, True]}
    for colouring, expected in shades.items():
        set_control(report, colour, colouring)
        assert report.run(coloured) == expected, colouring
    set_control(report, colour, "advantage")
    assert "No advantage is stored" in report.run("document.querySelector('.about').textContent")
    report.run("document.querySelector('[data-key=\"1/0\"]').click()")
    for colouring in ("entropy", "version"):
        set_control(report, colour, colouring)
        assert "for 8 trained samples of each step" in report.run("document.querySelector('.about').textContent")
    report.run("document.querySelector('[data-key=\"1/1\"]').click()")
    report.run("document.querySelector('.output').focus()")
    for _ in range(2):
        report.press("ArrowRight")
    assert report.run("document.querySelector('.about').textContent") == (
        "“ wron”: token 2 of 3 · version 0 · log-prob -2.5 (probability 8.2%) · entropy 1.5 nats · in the loss"
    )
    set_control(report, colour, "version")


def test_the_keyboard_reaches_steps_and_samples(report: Page) -> None:
    report.run("document.querySelector('#step').focus()")
    report.press("ArrowLeft")
    before = int(report.run("document.querySelector('#toolbar output').textContent"))
    report.press("ArrowRight")
    assert report.run("document.querySelector('#toolbar output').textContent") == str(before + 1)
    report.run("document.querySelector('[data-key=\"1/1\"]').focus()")
    report.press("Enter")
    assert report.run("document.querySelector('.output').textContent") == "v0first wronv1g"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (360, False)])
def test_nothing_is_wider_than_the_screen(report: Page, width: int, dark: bool) -> None:
    report.open(report.run("location.href"), width=width, dark=dark)
    assert report.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    background = report.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(16, 19, 23)") is dark
    assert not report.problems


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(report: Page, dark: bool) -> None:
    report.open(report.run("location.href"), dark=dark)
    assert axe_violations(report) == []


def test_numbers_that_no_float_can_express_are_shown_as_such(tab: Page, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", METRICS)
    add_overflowing(run_dir, 3)
    tab.open(write_report([run_dir]).as_uri())
    set_control(tab, "#step", "4", "input")
    assert legend(tab)["reward/mean", 0][:2] == (3, -1.79769e308)
    assert legend(tab)["entropy/mean", 0][:2] == (4, -1e308)
    about = "document.querySelector('.about').textContent"
    for key, texts in (
        ("3/0", ["log-prob -0.5 (", "log-prob not a number · entropy 0.25"]),
        ("3/null", []),
        ("3/2", []),
    ):
        tab.run(f"document.querySelector('[data-key=\"{key}\"]').click()")
        tab.run("document.querySelector('.output').focus()")
        for text in texts:
            tab.press("ArrowRight")
            assert text in tab.run(about)
        assert tab.run("document.querySelector('.detail').textContent.includes('NaN')") is False
    assert not tab.problems


def test_a_watched_run_goes_on_by_itself(tab: Page, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", METRICS[:2], {1: SAMPLES[1]})
    server = WatchServer(run_dir, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tab.open(server.url)
        tab.run("window.notReloaded = 1")
        tab.wait("document.querySelector('.live').textContent === 'live · step 1'")
        hover(tab, 0.9)  # nearest to step 1, the newest: the page still follows
        tab.run("document.querySelector('.output').follows = 1")
        (run_dir / "samples" / "step_000002.jsonl").write_text("".join(json.dumps(one) + "\n" for one in SAMPLES[2]))
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(METRICS[2]) + "\n")
        tab.wait("document.querySelector('.live').textContent === 'live · step 2'")
        assert legend(tab)["reward/mean", 0][1] == 0.6
        assert tab.run("[...document.querySelectorAll('.entry')].map(e => e.dataset.key)") == [
            "1/0",
            "1/1",
            "2/2",
            "2/3",
        ]
        assert tab.run("document.querySelector('.big .after').textContent") == "42.0%"
        assert tab.run("[window.notReloaded, window.hacked]") == [1, None]
        assert tab.run("document.querySelector('.output').follows") == 1  # the chosen sample was not drawn again
        assert tab.run("[...document.querySelectorAll('#toolbar [type=number]')].map(e => e.value)") == ["0", "2"]
        set_control(tab, "#step", "0", "input")
        assert legend(tab)["eval/accuracy", 0][1] == 0.3
        tab.run("document.querySelector('#newest').click()")
        assert legend(tab)["reward/mean", 0][1] == 0.6
        (run_dir / "environment.json").write_text('{"torch": "of a new start"}')
        tab.wait("document.querySelector('#environment')?.textContent.includes('of a new start')")
        assert tab.run("window.notReloaded ?? null") is None
        assert not tab.problems
    finally:
        server.shutdown()
        server.server_close()
