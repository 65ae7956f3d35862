"""Several runs on one another in a browser: the curves of each run with its name, its numbers, and what is its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from browser import Page
from report_page import IN_A_BROWSER, axe_violations, legend, newest, set_control
from report_runs import METRICS, OF_TWO_ENGINES, add_timeline, make_run, sample
from ulorl.report.html_report import write_report

pytestmark = IN_A_BROWSER


def changed(step: int, **values: float) -> dict[str, Any]:
    """Return the metrics of a step with other values."""
    return METRICS[step] | {name.replace("_", "/", 1): value for name, value in values.items()}


RUNS = {  # the first two differ in the seed only; the second ended early, the third has a step more
    "first": METRICS,
    "second": [changed(0, eval_accuracy=0.31), changed(1, reward_mean=0.25)],
    "third": [METRICS[0], changed(1, reward_mean=-1.5), changed(2, reward_mean=1e-7), {"step": 5, "reward/mean": 0.8}],
}


COMPARED = (
    "reward/mean", "entropy/mean", "eval/accuracy", "train/grad_norm", "rollout/multi_segment_fraction",
)  # fmt: skip


@pytest.fixture(scope="module")
def report(tab: Page, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of three runs, opened."""
    folders = []
    for seed, (name, metrics) in enumerate(RUNS.items()):
        samples = {1: [sample(seed, f"written by {name}", 1, [len(f"written by {name}")], [0])]}
        mask = "off" if name == "third" else "dynamic"
        folder = tmp_path_factory.mktemp("runs") / name
        settings = {"seed": seed, "objective": {"mpt": {"mask": mask}}, "engine": {"slots": 2}}
        folders.append(make_run(folder, metrics, samples, settings))
    add_timeline(folders[0], OF_TWO_ENGINES)
    tab.open(write_report(folders).as_uri())
    return tab


@pytest.mark.parametrize("step", [2, 1, 5])
def test_each_curve_has_the_name_of_its_run_and_the_numbers_of_its_metrics(report: Page, step: int) -> None:
    set_control(report, "#step", str(step), "input")
    shown = legend(report)
    for place, (name, metrics) in enumerate(RUNS.items()):
        for metric in COMPARED:
            if any(one.get(metric) is not None for one in metrics):
                found = shown[metric, place]
                assert found[:2] == newest(metrics, metric, step), (name, metric)
                assert found[2].startswith(f"{name} "), (name, metric)
            else:
                assert (metric, place) not in shown
        cell = f"document.querySelectorAll('#metrics-table [data-metric=\"reward/mean\"] td')[{place}]"
        assert report.run(f"Number({cell}.dataset.value)") == newest(metrics, "reward/mean", step)[1]
    assert not report.problems


def test_the_curves_of_a_chart_are_drawn_in_the_colours_of_the_arms(report: Page) -> None:
    """The first two runs differ in the seed only: one colour, and two of three curves of the reward."""
    card = "[...document.querySelectorAll('.card')].find(c => c.querySelector('h3').textContent === 'Reward')"
    strokes = report.run(
        f"(() => {{ const style = getComputedStyle(document.documentElement); const all = [...{card}"
        ".querySelectorAll('svg path')].map(p => p.getAttribute('stroke')); return ['--s0', '--s1', '--s2'].map("
        "name => all.filter(s => s === style.getPropertyValue(name).trim()).length); })()"
    )
    assert strokes == [2, 1, 0]
    assert report.run(f"{card}.querySelector('[role=img]').getAttribute('aria-label')") == (
        "Reward. reward · first: 0.2 at step 1, 0.6 at step 2, lowest 0.2, highest 0.6; "
        "reward · second: 0.25 at step 1, lowest 0.25, highest 0.25; "
        "reward · third: -1.5 at step 1, 0.8 at step 5, lowest -1.5, highest 0.8"
    )
    head = (
        "[...document.querySelectorAll('#head tbody tr')].map(r => [...r.children].slice(0, 3).map(c => c.textContent))"
    )
    assert report.run(head) == [
        ["first", "objective.mpt.mask=dynamic", "30.0% (step 0) → 42.0% (step 2)"],
        ["second", "objective.mpt.mask=dynamic", "31.0% (step 0)"],
        ["third", "objective.mpt.mask=off", "30.0% (step 0) → 42.0% (step 2)"],
    ]


def test_a_list_chooses_the_run_of_what_cannot_be_overlaid(report: Page) -> None:
    output = "document.querySelector('.output .piece').textContent"
    drawn = "!document.querySelector('.timeline').closest('figure').hidden"
    for place, name in [*enumerate(RUNS), (0, "first")]:
        set_control(report, "#main > .controls select", str(place))
        assert report.run(output) == f"v0written by {name}"
        assert report.run(drawn) is (name == "first")  # the others stored no timeline
    assert not report.problems


def test_the_timeline_shows_how_full_each_engine_is(report: Page) -> None:
    """2 + 1 samples in two halves of engine 0, none and then one in a quarter and the rest of engine 1."""
    set_control(report, "#main > .controls select", "0")
    report.wait("!document.querySelector('.timeline').closest('figure').hidden")
    label = report.run("document.querySelector('.timeline').getAttribute('aria-label')")
    assert label.endswith("On average 0.8 to 1.5 samples decode on each of 2 engines.")
    strips = (
        "(() => { document.querySelector('.timeline').scrollIntoView({block: 'center'}); const fill = getComputedStyle("
        "document.documentElement).getPropertyValue('--s0').trim(); return [...document.querySelectorAll("
        "`.timeline svg path[fill='${fill}']`)].map(p => p.getBoundingClientRect()).filter(r => r.height < 12)"
        ".map(r => [r.x + r.width / 2, r.y + r.height / 2]); })()"
    )
    texts = (
        "Engine 0\n2 of 2 slots decode\n0 to 2 seconds", "Engine 0\n1 of 2 slots decode\n2 to 4 seconds",
        "Engine 1\n0 of 2 slots decode\n0 to 1 seconds", "Engine 1\n1 of 2 slots decode\n1 to 4 seconds",
    )  # fmt: skip
    for (x, y), text in zip(report.run(strips), texts, strict=True):
        report.move(x, y)
        report.wait(f"document.querySelector('.timeline b')?.parentElement.innerText === {json.dumps(text)}")
    assert not report.problems


def test_axe_finds_nothing(report: Page) -> None:
    assert axe_violations(report) == []


def test_nothing_is_wider_than_a_phone(report: Page) -> None:
    report.open(report.run("location.href"), width=360)
    assert report.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert not report.problems
