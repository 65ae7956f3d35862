"""`ulorl data clean`: sources in, step after step, and out: what stays, what went and why, and the counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ulorl.cleaning import contamination, duplicates, length_and_language, model_steps, reference_answers
from ulorl.cleaning.cleaning_config import CleaningConfig
from ulorl.cleaning.items import Drop, Dropped, Item, Step, StepReport, per_item
from ulorl.cleaning.normalise_step import normalise
from ulorl.cleaning.question_shapes import Shape
from ulorl.cleaning.result_files import Fields, ResultFiles, prepare_folder, write_result
from ulorl.cleaning.sources import Source, Unreadable, read_source, sources
from ulorl.clients.client import CachedClient, make_client, model_identity
from ulorl.clients.output_cache import OutputCache
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.errors import UserError, listing
from ulorl.rewards.rules import MathReward

CACHE = "cache.sqlite"


@dataclass
class CleaningResult:
    """What a run of the pipeline came to."""

    kept: list[Item]
    dropped: list[Dropped]
    steps: list[StepReport]
    sources: dict[str, int] = field(default_factory=dict)  # records of each
    fields: dict[str, Fields] = field(default_factory=dict)  # of each
    models: dict[str, CachedClient] = field(default_factory=dict)


def clean(
    paths: Sequence[str],
    out: Path,
    settings: CleaningConfig,
    *,
    overwrite: bool = False,
    bars: ProgressBars = SILENT,
) -> tuple[CleaningResult, ResultFiles]:
    """Clean the problems of `paths` (files, glob patterns, hub names, names of [sources]) into the folder `out`.

    The same input and settings give the same bytes. Model outputs are kept in `out`/cache.sqlite, so that an
    interrupted run goes on. Raises UserError naming the file and record, the key, or the model that is wrong.
    """
    todo = sources(paths, settings.sources)
    prepare_folder(out, overwrite=overwrite, ours=CACHE)
    with closing(OutputCache(out / CACHE)) as cache:
        models = {
            name: CachedClient(model_identity(m), partial(make_client, f"models.{name}", m), cache)
            for name, m in settings.models.items()
        }
        evaluation = [item for path in settings.contamination.against for item in _evaluation(path, settings)]
        plan = list(steps(settings, models, evaluation, bars))  # missing packages are told before anything is read
        items, result = _read(todo, settings, bars)
        for name, step in plan:
            items = _take(name, step, items, result, settings.examples, bars)
        result.kept, result.models = items, models
    return result, write_result(
        result.kept, result.dropped, result.steps, (result.sources, result.fields), settings, out, _asked(models)
    )


def steps(
    settings: CleaningConfig, models: dict[str, CachedClient], evaluation: Sequence[Item], bars: ProgressBars
) -> Iterator[tuple[str, Step]]:
    """The steps that are switched on, in their order: cheap ones before dear ones, and whatever changes a question
    before duplicates are looked for. Raises UserError when one lacks its package."""
    reward = MathReward()
    same = model_steps.SameAnswer(reward)
    writer = models.get(settings.convert.model)
    if settings.normalise.enabled:
        yield "normalise", per_item(normalise)
    if settings.answers.enabled:
        yield "answers", per_item(reference_answers.shorten_answer)
    for shape in Shape:
        if getattr(settings, shape.value).enabled:
            yes_no = settings.true_false.plain == "yes_no"
            yield shape.value, model_steps.converting(shape, yes_no=yes_no, model=writer, bars=bars)
    if settings.short_answers.enabled:
        yield "short_answers", reference_answers.check_short(settings.short_answers)
    if settings.lengths.enabled:
        yield "lengths", length_and_language.check_length(settings.lengths)
    if settings.language.enabled:
        yield "language", length_and_language.check_language(settings.language)
    if settings.duplicates.enabled:
        yield "duplicates", duplicates.drop_duplicates(settings.duplicates, same)
    if settings.contamination.enabled and evaluation:
        yield "contamination", contamination.drop_contaminated(settings.contamination, evaluation)
    if settings.wrong_references.models:
        judges = [models[name] for name in settings.wrong_references.models]
        yield "wrong_references", model_steps.drop_wrong_references(settings.wrong_references, judges, same, bars)
    if settings.too_easy.model:
        starting = models[settings.too_easy.model]
        yield "too_easy", model_steps.drop_too_easy(settings.too_easy, starting, reward, bars)


def _take(
    name: str, step: Step, items: Sequence[Item], result: CleaningResult, examples: int, bars: ProgressBars
) -> list[Item]:
    """One step over all items: those that stay, with the rest and the counts put into `result`."""
    report, kept, bar = StepReport(name, before=len(items)), list[Item](), bars.add(name, len(items))
    for item, outcome in zip(items, step(items), strict=True):
        if isinstance(outcome, Drop):
            result.dropped.append(Dropped(item, name, outcome))
            report.dropped[outcome.reason] = report.dropped.get(outcome.reason, 0) + 1
            _example(report, outcome.reason, item, outcome.detail, examples)
        else:
            kept.append(outcome)
            if outcome.changed_by != item.changed_by:
                report.changed += 1
                _example(report, "changed", item, f"{outcome.question}\n=> {outcome.answer}", examples)
            if outcome.undecided_by != item.undecided_by:
                report.undecided += 1
                _example(report, "undecided", item, "", examples)
        bar.advance()
    report.after = len(kept)
    result.steps.append(report)
    return kept


def _example(report: StepReport, kind: str, item: Item, detail: str, most: int) -> None:
    shown = report.examples.setdefault(kind, [])
    if len(shown) < most:
        shown.append({"id": item.id, "question": item.question, "answer": item.answer, "detail": detail})


def _read(todo: Sequence[Source], settings: CleaningConfig, bars: ProgressBars) -> tuple[list[Item], CleaningResult]:
    """Every record of every source; those that cannot be read stop the run, or are dropped."""
    items: list[Item] = []
    bad: list[Unreadable] = []
    result = CleaningResult([], [], [])
    report, bar = StepReport("read"), bars.add("read")
    for source in todo:
        for record in read_source(source):
            result.sources[source.name] = result.sources.get(source.name, 0) + 1
            bar.advance()
            if isinstance(record, Item):
                items.append(record)
                report.changed += bool(record.changed_by)
                for key, name in zip(("question", "answer"), record.read_from, strict=True):
                    used = result.fields.setdefault(source.name, {}).setdefault(key, {})
                    used[name] = used.get(name, 0) + 1
                continue
            bad.append(record)
            lost = Item(f"{record.source}/unreadable-{record.number}", "", "", record.source, record.message, "", "")
            result.dropped.append(Dropped(lost, "read", Drop("unreadable", record.message)))
            _example(report, "unreadable", lost, record.message, settings.examples)
    if bad and settings.unreadable == "refuse":
        told = listing([record.message for record in bad])
        raise UserError(
            f"{len(bad)} records cannot be read; mend them, or leave them out with unreadable=drop:\n{told}"
        )
    report.before, report.after = len(items) + len(bad), len(items)
    report.dropped = {"unreadable": len(bad)} if bad else {}
    result.steps.append(report)
    return items, result


def _evaluation(path: str, settings: CleaningConfig) -> Iterator[Item]:
    """The problems of evaluation sets; here every record must be readable, or it would not be kept apart."""
    for source in sources([path], {name: s for name, s in settings.sources.items() if name in (path, Path(path).stem)}):
        for record in read_source(source, with_answers=False):
            if isinstance(record, Unreadable):
                raise UserError(f"contamination.against: {record.message}")
            yield record


def _asked(models: dict[str, CachedClient]) -> dict[str, dict[str, int]]:
    """Outputs of each model, however many of them came from the cache: a run that went on reports as one in one go."""
    return {
        name: {"outputs": model.hits + model.asked, "failed": model.failed}
        for name, model in models.items()
        if model.hits + model.asked
    }
