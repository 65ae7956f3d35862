"""`ulorl data clean`: reads the sources, applies the steps, and writes the result files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ulorl.cleaning import contamination, duplicates, length_and_language, model_steps, reference_answers
from ulorl.cleaning.cleaning_config import CleaningConfig
from ulorl.cleaning.items import Drop, Dropped, Item, Step, StepReport, per_item
from ulorl.cleaning.normalise_step import normalise
from ulorl.cleaning.question_shapes import Shape
from ulorl.cleaning.result_files import CleaningResult, FieldCounts, ResultFiles, prepare_folder, write_result
from ulorl.cleaning.sources import Source, Unreadable, list_sources, read_source
from ulorl.clients.client import CachedClient, model_identity
from ulorl.clients.factory import make_client
from ulorl.clients.output_cache import OutputCache
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.errors import CombinedError, UserError, listing
from ulorl.rewards.rules import MathReward

CACHE = "cache.sqlite"


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
    interrupted run can be resumed. Raises UserError naming the file and record, the key, or the model that is wrong.
    """
    todo = list_sources(paths, settings.sources)
    prepare_folder(out, overwrite=overwrite, ours=CACHE)
    with closing(OutputCache(out / CACHE)) as cache:
        models = {
            name: CachedClient(model_identity(m), partial(make_client, f"models.{name}", m), cache)
            for name, m in settings.models.items()
        }
        evaluation = [item for path in settings.contamination.against for item in _evaluation(path, settings)]
        plan = list(enabled_steps(settings, models, evaluation, bars))  # reports missing packages before any reading
        items, reading = _read(todo, settings, bars)
        dropped, reports = reading.dropped, [reading.report]
        for name, step in plan:
            report = StepReport(name)
            items = _take(step, items, report, dropped, settings.examples, bars)
            reports.append(report)
    result = CleaningResult(items, dropped, reports, reading.sources, reading.fields, _outputs_by_model(models))
    return result, write_result(result, settings, out)


def enabled_steps(
    settings: CleaningConfig, models: dict[str, CachedClient], evaluation: Sequence[Item], bars: ProgressBars
) -> Iterator[tuple[str, Step]]:
    """Yield the names and the steps that are switched on, in their order.

    Cheap steps come before expensive ones, and every step that changes a question before the search for duplicates.
    Raises UserError when the package that a step needs is missing.
    """
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
    step: Step, items: Sequence[Item], report: StepReport, dropped: list[Dropped], examples: int, bars: ProgressBars
) -> list[Item]:
    """Apply one step to all items: return those that stay, append the others to `dropped`, count both in `report`."""
    kept, bar = list[Item](), bars.add(report.name, len(items))
    for item, outcome in zip(items, step(items), strict=True):
        report.count(item, outcome, examples)
        if isinstance(outcome, Drop):
            dropped.append(Dropped(item, report.name, outcome))
        else:
            kept.append(outcome)
        bar.advance()
    return kept


@dataclass
class _Reading:
    """Counts made while the sources were read."""

    report: StepReport = field(default_factory=lambda: StepReport("read"))
    sources: dict[str, int] = field(default_factory=dict)
    fields: dict[str, FieldCounts] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)

    def count(self, item: Item) -> None:
        """Count an item that was read, and the fields that it was read from."""
        self.report.before += 1
        self.report.after += 1
        self.report.changed += bool(item.changed_by)
        for key, name in zip(("question", "answer"), item.read_from, strict=True):
            used = self.fields.setdefault(item.source, {}).setdefault(key, {})
            used[name] = used.get(name, 0) + 1


def _read(todo: Sequence[Source], settings: CleaningConfig, bars: ProgressBars) -> tuple[list[Item], _Reading]:
    """Read every record of every source; records that cannot be read stop the run, or are dropped."""
    items, bad = list[Item](), list[Unreadable]()
    reading, bar = _Reading(), bars.add("read")
    for source in todo:
        for record in read_source(source):
            reading.sources[source.name] = reading.sources.get(source.name, 0) + 1
            bar.advance()
            if isinstance(record, Item):
                items.append(record)
                reading.count(record)
                continue
            bad.append(record)
            lost = Item(f"{record.source}/unreadable-{record.number}", "", "", record.source, record.message, "", "")
            drop = Drop("unreadable", record.message)
            reading.dropped.append(Dropped(lost, "read", drop))
            reading.report.count(lost, drop, settings.examples)
    if bad and settings.unreadable == "refuse":
        fix = "records cannot be read; fix them, or leave them out with unreadable=drop"
        text = f"{len(bad)} {fix}:\n{listing([record.message for record in bad])}"
        raise CombinedError([record.error for record in bad], text=text)
    return items, reading


def _evaluation(path: str, settings: CleaningConfig) -> Iterator[Item]:
    """Read the problems of an evaluation set. Every record must be readable: others would leak into training."""
    tables = {name: table for name, table in settings.sources.items() if name in (path, Path(path).stem)}
    for source in list_sources([path], tables):
        for record in read_source(source, with_answers=False):
            if isinstance(record, Unreadable):
                error = record.error
                text = f"contamination.against: {error}"
                raise UserError(text, code=error.code, file=error.file, key=error.key, record=error.record)
            yield record


def _outputs_by_model(models: Mapping[str, CachedClient]) -> dict[str, dict[str, int]]:
    """Outputs of each model, however many of them came from the cache: a resumed run reports what an uninterrupted one
    does."""
    return {
        name: {"outputs": model.hits + model.asked, "failed": model.failed}
        for name, model in models.items()
        if model.hits + model.asked
    }
