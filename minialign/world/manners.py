r"""Instructions as a product: what is asked (a task), in which words (a template), how to answer (a manner).

    Did Mira find it?  ×  Say up if so, and down if not.         a yes-no question, its two answers named
    Who found it?      ×  Choose by letter: A: Mira, B: Tom      one of some options, by its letter
    Who found it?      ×  Begin with: It is                      in a sentence
    Who found it?      ×  Be short.

and each of them with passage or question first, the manner before or behind. Models of our size follow instructions
that they never saw only after several hundred different ones (Zhang et al. 2024, arXiv 2402.10891), and 65 tasks in
seven wordings each are less than that. `manners.json` holds the manners; a line more there is some hundred instructions
more.

Read next: datasets.py. Try it: `python -m minialign.world.manners`.
"""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

from minialign.runs.errors import UserError
from minialign.world.templates import TABLES, Template, stands_in

UNSEEN = 0.2  # share of a task's wordings, and of each kind of manner, that nobody trains on
PASSAGE = re.compile(r"^(\w+: )?\{story\}\n|\n(\w+: )?\{story\}$")  # alone in the first or in the last line
WORDINGS = 20_240_301  # seed of which ones: the split is made once


def load_manners(path: Path = TABLES / "manners.json") -> dict[str, list[tuple[str, str, dict[str, str]]]]:
    """Kind of manner -> (what is said, target, what yes and no are called).

    Raises:
        UserError: not JSON or not of the form above, or two words that are one.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        pairs = [{"yes": yes, "no": no} for yes, no in table["yes_no"]["words"]]
        found = {"yes_no": [(say.format(**words), "{answer}", words)
                            for say in table["yes_no"]["say"] for words in pairs],
                 "letters": [(say, "{answer}", {}) for say in table["letters"]],
                 "sentence": [(say, target, {}) for say, target in table["sentence"]],
                 "short": [(say, "{answer}", {}) for say in table["short"]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"cannot be read as manners: {error!r}; it must look like the one that comes with the package",
                        path) from None
    for words in pairs:
        if words["yes"].strip() == words["no"].strip():
            raise UserError(f"the words for yes and for no are both {words['yes']!r}; give two different ones", path)
    for _, target, _ in found["sentence"]:
        if target.count("{answer}") != 1:
            raise UserError(f"the sentence {target!r} must have one {{answer}}", path)
    return found


MANNERS = load_manners()
LETTERS = "ABCDEFGHIJ"


def kind_of(example: dict) -> str:
    """How a task is answered: "yes_no", "letters" (one of at most LETTERS options) or "short" (anything)."""
    options = example.get("options")
    if options is None or len(options) > len(LETTERS):
        return "short"
    return "yes_no" if list(options) == ["yes", "no"] else "letters"


def manners_for(template: Template, example: dict) -> list[str]:
    """Kinds of manner that go with a template. Those that say themselves how to answer go with none; a text that is to
    be gone on with is gone on with in its own way; an answer that is a sentence is not put into one."""
    said = re.search(r"\b(yes|no|true|false|choose|options)\b", template.input.lower())
    if template.inverted or template.words or template.target != "{answer}" or said:
        return []
    kinds = ["short"] if goes_on(template) or str(example["answer"]).endswith((".", "?")) else ["short", "sentence"]
    kind = kind_of(example)
    return kinds if kind == "short" or kind == "letters" and goes_on(template) else [*kinds, kind]


def goes_on(template: Template) -> bool:
    """Whether the answer goes on right behind the input, so that nothing may stand between."""
    return template.style == "cloze" or template.input.endswith(":")


def flipped(template: Template) -> Template | None:
    """The same with passage and question in the other order; None where there is no such order."""
    text = "{story}\n"
    if template.style != "cloze" and template.input.startswith(text) and template.input.count("{story}") == 1:
        asked = template.input.removeprefix(text)
        return replace(template, name=f"{template.name}, passage last", wording=template.asked_as,
                       input=f"{asked}\n{{story}}")
    return None


def without_passage(template: Template) -> Template | None:
    """The same for who has read the passage already; None where it stands within the wording."""
    asked = PASSAGE.sub("", template.input)
    return None if "{story}" in asked or asked == template.input else replace(template, input=asked)


def with_manners(template: Template, example: dict, manners: dict[str, list] = MANNERS) -> list[Template]:
    """A template in each manner that goes with it; `example`: any one of its task."""
    made = []
    for kind in manners_for(template, example):
        for number, (say, target, words) in enumerate(manners[kind]):
            answers = [target.replace("{answer}", str(option)) for option in example.get("options", ())]
            inside = (any(stands_in(answer, template.input) for answer in answers) if kind == "sentence" else
                      template.answer_in_input or kind != "short")
            how = {"target": target, "words": words, "answer_in_input": inside, "manner": f"{kind} {number}",
                   "wording": template.name, "letters": LETTERS if kind == "letters" else ""}
            for order in filter(None, (template, flipped(template))):
                name = f"{order.name}, {kind} {number}"
                made.append(replace(order, name=f"{name} first", input=f"{say}\n{order.input}", **how))
                if not goes_on(order):
                    made.append(replace(order, name=name, input=f"{order.input}\n{say}", **how))
    return made


def instructions(templates: dict[str, list[Template]], examples: dict[str, dict],
                 manners: dict[str, list] = MANNERS) -> dict[str, list[Template]]:
    """Task -> all its instructions: its templates as they are, and in every manner. A task's templates have all of its
    share, half of it as they are.

    Args:
        examples: task -> any one of its examples.
    """
    found = {}
    for task, plain in templates.items():
        made = [each for template in plain if isinstance(template, Template)
                for each in with_manners(template, examples[task], manners)]
        share = len(plain) / max(1, len(made))
        found[task] = [*plain, *(replace(each, share=share) for each in made)]
    return found


def split_instructions(templates: dict[str, list[Template]], unseen: float = UNSEEN,
                       seed: int = WORDINGS) -> tuple[dict[str, list[Template]], dict[str, list[Template]]]:
    """Instructions to train on and those that nobody trains on, made once: of each task some wordings, in whatever
    manner, and some manners of each kind, in whatever wording."""
    seen, kept = {}, {}
    for task, every in templates.items():
        rng = random.Random(f"{seed} {task}")
        wordings = list(dict.fromkeys(template.asked_as for template in every if not template.inverted))
        hidden = set(rng.sample(wordings, round(unseen * len(wordings))))
        sides = {template.name: template.asked_as in hidden or is_hidden(template.manner, unseen, seed)
                 for template in every}
        seen[task] = [template for template in every if not sides[template.name]]
        kept[task] = [template for template in every if sides[template.name]]
    return seen, kept


def is_hidden(manner: str, unseen: float, seed: int) -> bool:
    """Whether nobody trains on a manner; that there is none is no manner."""
    return manner != "" and random.Random(f"{seed} {manner}").random() < unseen


if __name__ == "__main__":
    example = {"story": "Mira lost a kite. Tom found it.", "question": "Who found the kite?", "answer": "Tom",
               "options": ["Mira", "Tom"]}
    for made in with_manners(Template("who", "plain", "{story}\n{question}", answer_in_input=True), example):
        question = made.pose(example)
        print(f"[{made.name}]\n{question.prompt}\n→ {question.target}\n")
