"""The steps that ask models: rewriting of what no rule converts, wrong references, problems that are too easy.

A missing output, or one that cannot be read, decides nothing: the item is kept and marked undecided.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from ulorl.answers.extraction import extract
from ulorl.answers.normalisation import comparable_answer
from ulorl.cleaning.cleaning_config import TooEasyConfig, WrongReferencesConfig
from ulorl.cleaning.conversion_rules import Pending, convert
from ulorl.cleaning.items import Drop, Item, Outcome, Step
from ulorl.cleaning.question_shapes import Shape, question_shape
from ulorl.clients.client import CachedClient, Prompt
from ulorl.common.progress import ProgressBars
from ulorl.data.record_files import decimal, is_number
from ulorl.rewards.reward import Reward, RewardError
from ulorl.types import Problem

SOLVE = "{question}\n\nReason step by step, and put the final answer within \\boxed{{}}."
REWRITE = """\
Rewrite the question below as one with a single short answer that can be checked automatically: a number, an \
expression or a few words that nobody gets right by guessing between a few given ones. Keep every condition. Do not \
give the answer away, do not offer options, do not ask for a proof or for yes or no. Its answer must follow from the \
question and the reference answer below. If that is not possible, the value of "question" is null.

Question:
{question}

Reference answer:
{answer}

Answer with one JSON object and nothing else: {{"question": "...", "answer": "..."}}"""
_THINKING = re.compile(r"^.*</think>", re.S)


def converting(of: Shape, *, yes_no: bool, model: CachedClient | None, bars: ProgressBars) -> Step:
    """Return the step for the questions of one shape: first the rules, then the model.

    Without a model, what no rule converts is dropped. yes_no: true/false questions ask for Yes or No.
    """
    return partial(_convert_all, of=of, yes_no=yes_no, model=model, bars=bars)


def _convert_all(
    items: Sequence[Item], *, of: Shape, yes_no: bool, model: CachedClient | None, bars: ProgressBars
) -> Iterable[Outcome]:
    ruled = [
        convert(item, of, yes_no=yes_no) if question_shape(item.question, item.answer) is of else item for item in items
    ]
    waiting = [index for index, outcome in enumerate(ruled) if isinstance(outcome, Pending)]
    rewritten: dict[int, Outcome] = {}
    if model and waiting:
        asked = [items[i] for i in waiting]
        prompts = [(REWRITE.format(question=item.question, answer=item.answer), 0) for item in asked]
        outputs = model.complete(prompts, bars.add(f"{of}: rewriting", len(prompts)).advance)
        rewritten = {i: _rewritten(items[i], of, text) for i, text in zip(waiting, outputs, strict=True)}
    for index, outcome in enumerate(ruled):
        if isinstance(outcome, Pending):
            yield rewritten.get(index) or Drop(outcome.reason)
        else:
            yield outcome


def _rewritten(item: Item, of: Shape, output: str | None) -> Outcome:
    """Return the model's rewriting, if it is one question of no such shape, with an answer."""
    match output is not None and _json(output):
        case {"question": None}:
            return Drop("model finds no short-answer form", f"a {of} question")
        case {"question": str(question), "answer": answer} if isinstance(answer, str) or is_number(answer):
            question, answer = question.strip(), answer.strip() if isinstance(answer, str) else decimal(answer)
            if question and answer and "\0" not in question + answer and question_shape(question, answer) is None:
                return item.with_changes(of, question=question, answer=answer)
    return item.marked_undecided(of)


def _json(output: str) -> object:
    """Return the JSON object in an output, with or without a fence or reasoning around it; None when there is none."""
    said = _THINKING.sub("", output)
    try:
        value: object = json.loads(said[said.find("{") : said.rfind("}") + 1])
        json.dumps(value, ensure_ascii=False).encode()  # no half of a surrogate pair
    except (ValueError, RecursionError):
        return None
    return value


class SameAnswer:
    """Decides by math-verify whether two answers are equal; None when it fails. Each pair is decided once."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self._known: dict[tuple[str, str], bool | None] = {}

    def __call__(self, reference: str, answer: str) -> bool | None:
        pair = (reference, answer)
        if pair not in self._known:
            try:
                score = self._reward(Problem("", "", reference), f"\\boxed{{{answer}}}").reward
                self._known[pair] = comparable_answer(reference) == comparable_answer(answer) or score == 1.0
            except RewardError:
                self._known[pair] = None
        return self._known[pair]


def drop_wrong_references(
    settings: WrongReferencesConfig, models: Sequence[CachedClient], same: SameAnswer, bars: ProgressBars
) -> Step:
    """Return the step that drops problems whose reference several models contradict with the same answer.

    At least `agreement` of all answers are the same, at least one of each model among them, and it is not the
    reference.
    """
    return partial(_wrong_references, settings=settings, models=models, same=same, bars=bars)


@dataclass
class _AnswerGroup:
    """Equal answers: their number, and the models that gave them."""

    answer: str
    count: int = 0
    models: set[int] = field(default_factory=set)


def _wrong_references(
    items: Sequence[Item],
    *,
    settings: WrongReferencesConfig,
    models: Sequence[CachedClient],
    same: SameAnswer,
    bars: ProgressBars,
) -> Iterator[Outcome]:
    prompts = [p for item in items for p in _solutions(item, settings.samples)]
    bar = bars.add("wrong_references: solving", len(prompts) * len(models))
    outputs = [model.complete(prompts, bar.advance) for model in models]
    for index, item in enumerate(items):
        span = slice(index * settings.samples, (index + 1) * settings.samples)
        yield _judged(item, [texts[span] for texts in outputs], settings.agreement, same)


def _judged(item: Item, by_model: Sequence[Sequence[str | None]], agreement: float, same: SameAnswer) -> Outcome:
    """Decide about one item. by_model: the outputs of each model.

    Answers that are missing or cannot be compared could have been any answer: if they could change the decision, the
    item is undecided.
    """
    groups: list[_AnswerGroup] = []
    total, unknown = sum(map(len, by_model)), 0
    for number, outputs in enumerate(by_model):
        for output in outputs:
            answer = extract(output, find=("boxed",)) if output else None
            equal = [(group, same(group.answer, answer)) for group in groups] if answer else []
            if not answer or any(same_answer is None for _, same_answer in equal):
                unknown += 1
                continue
            group = next((group for group, same_answer in equal if same_answer), None)
            if group is None:
                groups.append(group := _AnswerGroup(answer))
            group.count += 1
            group.models.add(number)
    against = [(group, same(item.answer, group.answer)) for group in groups]
    largest = max((g for g, equal in against if equal is False), key=lambda g: g.count, default=_AnswerGroup(""))
    if largest.count >= agreement * total and len(largest.models) == len(by_model):
        answers = f"reference {item.answer}, models {largest.answer} ({largest.count} of {total})"
        return Drop("wrong reference", answers)
    doubtful = largest.count + unknown + sum(g.count for g, equal in against if equal is None)
    if doubtful >= agreement * total and doubtful > largest.count:
        return item.marked_undecided("wrong_references")
    return item


def drop_too_easy(settings: TooEasyConfig, model: CachedClient, reward: Reward, bars: ProgressBars) -> Step:
    """Return the step that drops problems that the model solves in all `samples` attempts.

    In section 3.4 of the paper these are 8 of 8 by the model that training starts from.
    """
    return partial(_too_easy, samples=settings.samples, model=model, reward=reward, bars=bars)


def _too_easy(
    items: Sequence[Item], *, samples: int, model: CachedClient, reward: Reward, bars: ProgressBars
) -> Iterator[Outcome]:
    prompts = [p for item in items for p in _solutions(item, samples)]
    outputs = model.complete(prompts, bars.add("too_easy: solving", len(prompts)).advance)
    for index, item in enumerate(items):
        verdicts = [_verdict(item, text, reward) for text in outputs[index * samples : (index + 1) * samples]]
        if all(verdicts):
            yield Drop("too easy", f"{samples} of {samples} right")
        else:
            yield item if False in verdicts else item.marked_undecided("too_easy")


def _verdict(item: Item, output: str | None, reward: Reward) -> bool | None:
    if not output:
        return None if output is None else False  # cut at the length limit: wrong, as in training
    try:
        return reward(Problem(item.id, item.question, item.answer), output).reward == 1.0
    except RewardError:
        return None


def _solutions(item: Item, samples: int) -> list[Prompt]:
    return [(SOLVE.format(question=item.question), sample) for sample in range(samples)]
