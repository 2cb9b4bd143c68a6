r"""Examining a model on tasks that it was never taught: rank classification in every wording.

    accuracy of a task = median over templates of its share of right answers        Sanh et al. 2022 (T0), §5 and Fig. 4

A model that understands a task answers it in any words; one that has learned a format answers in one. So every template
is tried on the same examples, and the median and the spread (largest minus smallest accuracy, and the quartiles) are
reported beside what guessing gives. Inverted templates ask for a question and have no options: they are left out.

Read next: rlhf/comparisons.py.
Try it:  python -m minialign ask RUN --prompt "…" --options yes,no
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median, quantiles

from minialign.generation import prompt_ids
from minialign.heads import LanguageModel
from minialign.ranking import option_logprobs, rank
from minialign.tokenizer import Tokenizer
from minialign.world.templates import Question, Template, Unfit


@dataclass(frozen=True)
class TaskResult:
    """How well one task was answered in each of its wordings."""

    task: str
    accuracies: dict[str, float]  # template -> share of right answers
    chance: float  # what guessing gives

    @property
    def median(self) -> float:
        """Over templates."""
        return median(self.accuracies.values())

    @property
    def spread(self) -> float:
        """Largest minus smallest accuracy over templates."""
        return max(self.accuracies.values()) - min(self.accuracies.values())

    @property
    def quartile_range(self) -> float:
        """Third minus first quartile over templates, which one odd wording does not move; 0 for a single template."""
        if len(self.accuracies) < 2:
            return 0.0
        low, _, high = quantiles(self.accuracies.values(), n=4, method="inclusive")
        return high - low


def examined(templates: Sequence[Template]) -> list[Template]:
    """The templates that ask for the answer."""
    return [template for template in templates if template.asks_for_the_answer]


def few_shot(question: Question, shown: Sequence[Question]) -> str:
    """A prompt after solved questions, an empty line between two: few-shot prompting (Brown et al. 2020, §2.1)."""
    return "\n\n".join([*(f"{q.prompt} {q.target}" for q in shown), question.prompt])


def ask(model: LanguageModel, tokenizer: Tokenizer, questions: Sequence[Question],
        shown: Sequence[Sequence[Question]] | None = None, mean_logprob: bool = False) -> list[bool]:
    """Whether the model ranks the right option of each question first.

    Args:
        questions: with options; shown: solved questions to put before each of them, for few-shot prompting.
        mean_logprob: rank by the mean over an option's tokens instead of the sum.
    """
    prompts = [few_shot(q, shown[i]) if shown else q.prompt for i, q in enumerate(questions)]
    options = list(dict.fromkeys(option for q in questions for option in q.options))
    ids_of_option = dict(zip(options, tokenizer.encode_many([" " + option for option in options])))
    option_ids = [[ids_of_option[option] for option in q.options] for q in questions]
    scores = option_logprobs(model, prompt_ids(tokenizer, prompts, model.config.kind), option_ids, mean_logprob)
    return [place == q.right for place, q in zip(rank(scores), questions)]


def examine(
    model: LanguageModel, tokenizer: Tokenizer, datasets: dict[str, list[dict]], templates: dict[str, list[Template]],
    shots: int = 0, seed: int = 0, mean_logprob: bool = False, skip_unfit: bool = False,
) -> dict[str, TaskResult]:
    """Accuracy of each task in each wording.

    Args:
        datasets: task -> its examples.
        templates: task -> its templates; those that do not ask for the answer are left out. What can be answered is the
            template's own or the example's (its "options"); questions without any cannot be ranked and are left out,
            and a task that has no others.
        shots: solved examples of the same task and template before each question, fewer where so many do not fit or
            there are no more; seed: of their choice.
        mean_logprob: see `ask`; skip_unfit: see `posed`.
    """
    found = {}
    for task, examples in datasets.items():
        rng = random.Random(f"shots {seed} {task}")
        accuracies, chances = {}, []
        for template in examined(templates[task]):
            questions = [question for question in posed(template, examples, skip_unfit) if question.options]
            if not questions:
                continue
            shown = None
            if shots:
                longest = max(map(len, tokenizer.encode_many([f" {o}" for q in questions for o in q.options])))
                room = model.config.context - longest - 2  # a begin and an end token
                shown = [examples_that_fit(question, questions[:i] + questions[i + 1 :], shots, rng,
                                           lambda text, room=room: len(tokenizer.encode(text)) <= room)
                         for i, question in enumerate(questions)]
            accuracies[template.name] = mean(ask(model, tokenizer, questions, shown, mean_logprob))
            chances += [1 / len(question.options) for question in questions]
        if accuracies:
            found[task] = TaskResult(task, accuracies, mean(chances))
    return found


def examples_that_fit(question: Question, others: Sequence[Question], shots: int, rng: random.Random,
                      fits: Callable[[str], bool]) -> list[Question]:
    """Solved examples to show before a question, drawn until the prompt fits; fewer where twenty draws do not, or there
    are no more."""
    for count in range(min(shots, len(others)), 0, -1):
        for _ in range(20):
            shown = rng.sample(others, count)
            if fits(few_shot(question, shown)):
                return shown
    return []


def posed(template: Template, examples: Sequence[dict], skip_unfit: bool) -> list[Question]:
    """The template's questions; with `skip_unfit` without those that its own conditions leave out."""
    questions = []
    for example in examples:
        try:
            questions.append(template.pose(example))
        except Unfit:
            if not skip_unfit:
                raise
    return questions
