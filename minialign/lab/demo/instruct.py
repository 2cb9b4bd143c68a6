r"""The chapter on instruction tuning, from bases that can read (data/bases):

    encoder-decoder → LM adaptation →  T5+LM  →  mixture in many words      → T0
                                              →  mixture, one prefix a task → T5
    decoder                                   →  mixture in many words      → FLAN
    decoder of at least four times the parameters, as it is                 → GPT-3

Questions are fresh: the simulator writes a passage whenever one is needed. Every so many steps show what the base
learned from, so that tuning does not unlearn it.

Try it:  python -m minialign instruct
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from minialign.batching import Batches, Interleaved
from minialign.heads import LanguageModel, describe_model, load_model
from minialign.instruct.fresh import FreshMixture
from minialign.instruct.mixture import MixtureConfig, Templates, chosen, draw_training_and_validation, split_by_cluster
from minialign.instruct.t0 import T0, tune_on_questions
from minialign.instruct.t5 import prefix_templates
from minialign.lab.bases.gaps import ContinuedDocuments
from minialign.lab.bases.make import BASES, load_base
from minialign.lab.bases.texts import UNREAD, MarkedRows, encode_chunk
from minialign.lab.stages import stage_run
from minialign.pretrain.pretrain import train_and_validate
from minialign.pretrain.span_corruption import LMAdaptation
from minialign.runs.errors import UserError
from minialign.runs.files import fingerprint
from minialign.runs.run_folder import TOKENIZER, RunFolder
from minialign.runs.settings import check_ranges
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.datasets import CLUSTERS, DATASETS, HELD_OUT, PROMPTS, examples
from minialign.world.manners import instructions, split_instructions
from minialign.world.reading_corpus import EASY, reading_documents
from minialign.world.templates import Question, texts

STYLES = {"t0": "encoder-decoder-0.4m", "t5": "encoder-decoder-0.4m", "flan": "decoder-0.4m"}  # and its base
LARGER = "decoder-2m"  # GPT-3's part
# training clusters in which the base has to be shown only what is asked: those of which it learns .8 by itself in 100
# steps. The others teach such a small model nothing in the time, and cost it what it can do (measured on training tasks
# alone, data/claims/flan-clusters/notes.md)
TAUGHT = ("questions", "yes-no", "sentiment", "topic", "paraphrase", "summaries", "rewriting", "comparing")
ADAPTED, TUNED = "1-lm-adaptation", "2-instructed"
EXAMINED = 1_000_003  # seed of the held-out examples: the same for every seed of a model
VALID = 10**9  # number of the first question that a model is chosen on
ADAPTING = 0.6  # learning rate of LM adaptation over that of tuning; what more costs is in t0-unseen-tasks/notes.md
REREAD = 2  # number of the chunk of reading text that tuning shows again, behind the held-out ones
QUICK = {"steps": 60, "batch": 16, "validate_every": 30}


@dataclass(frozen=True)
class InstructConfig:
    """How the chapter's models are tuned and examined."""

    tuning: TrainingConfig = T0  # on the mixture
    fixed: int = 0  # examples of each dataset that come again and again; 0: every question is a new one
    turns: int = 6  # most questions on one passage that a decoder is asked in a row
    reread: int = 4  # every so many steps show reading text; 0: none does
    adapt_steps: int = 300  # of LM adaptation, every other one on reading text; 0 leaves it out
    examined: int = 100  # examples of each held-out dataset

    def __post_init__(self):
        check_ranges(self, {"fixed": (0, 10**6), "turns": (1, 100), "reread": (0, 10**6), "adapt_steps": (0, 10**8),
                            "examined": (1, 10**6)})


FAST = InstructConfig(replace(T0, **QUICK), adapt_steps=12, examined=20)


@functools.lru_cache(maxsize=4)
def held_out_examples(count: int, held_out: tuple[str, ...] = HELD_OUT) -> dict[str, list[dict]]:
    """The examples that are examined, read and never changed."""
    return examples([name for name in DATASETS if DATASETS[name].cluster in held_out], count, EXAMINED)


@functools.lru_cache(maxsize=4)
def every_instruction(held_out: tuple[str, ...] = HELD_OUT) -> tuple[Templates, Templates]:
    """The instructions of all training tasks: those that are trained, and those that nobody trains on."""
    one = {task: found[0] for task, found in examples(DATASETS, 1, EXAMINED).items()}
    trained = [task for name, tasks in CLUSTERS.items() if name not in held_out for task in tasks]
    return split_instructions(instructions({task: PROMPTS[task] for task in trained}, one))


def trained_on(config: MixtureConfig, clusters: tuple[str, ...] | None = None,
               held_out: tuple[str, ...] = HELD_OUT) -> Templates:
    """The instructions of a mixture: of the clusters that are taught, or of the named ones. Raises UserError where all
    of these are held out."""
    clusters = TAUGHT if clusters is None else clusters
    found = {task: [each for each in made if config.manners or not each.manner and each.name == each.asked_as]
             for task, made in every_instruction(held_out)[0].items()
             if DATASETS[task].cluster in clusters}
    if not found:
        raise UserError(f"every cluster that is trained on is held out; leave one of {', '.join(clusters)}")
    return chosen(found, {}, replace(config, manners=False))  # they are in it already


def adapt(config: InstructConfig, seed: int, folder: Path, base: Path = BASES / STYLES["t0"]) -> Path:
    """T5+LM: the encoder-decoder after LM adaptation, in `folder`; one that is there is not made again."""
    if config.adapt_steps == 0:
        return base
    model, tokenizer, _ = load_base(base)
    objective, rate = LMAdaptation(packed=False), ADAPTING * config.tuning.learning_rate
    how = replace(config.tuning, steps=config.adapt_steps, learning_rate=rate, seed=seed)
    about = describe_model(model) | {"stage": "lm-adaptation", "training": how, "base": model}
    with stage_run(RunFolder(folder), tokenizer, **about) as run:
        if not run.finished:
            count = how.steps * how.batch + 64
            read = [document.text for document in reading_documents(count, f"adapt {seed}", EASY)]  # in all forms
            data = objective.batches(tokenizer, read[64:], model.config, how)
            valid = objective.batches(tokenizer, read[:64], model.config, replace(how, seed=0))
            data = Interleaved(data, reading_text(model, tokenizer, how, 2, seed, folder), 2)
            train_and_validate(model, data, valid, objective.loss, how, run, objective.name)
    return folder


def tune(config: InstructConfig, style: str, base: Path, templates: Templates, seed: int, folder: Path,
         held_out: tuple[str, ...] = HELD_OUT) -> Path:
    """A model tuned on the world's tasks, in `folder`; one that is there is not made again.

    Args:
        style: t5, t0 or flan; base: folder of what it starts from; templates: the instructions of each task.
        held_out: clusters that are examined; no passage of their examples is learned from.
    """
    model, tokenizer = load_model(base, "language-model")
    how = replace(config.tuning, seed=seed)
    if style == "t5":
        templates = prefix_templates(examples(templates, 1, EXAMINED))
    asked = [[task, each.name] for task, found in templates.items() for each in found]
    about = describe_model(model) | {"stage": style, "instruct": replace(config, tuning=how), "base": model,
                                     "instructions": len(asked), "which": fingerprint(asked)}
    about |= {} if held_out == HELD_OUT else {"held_out": held_out}  # not said in runs of earlier versions
    with stage_run(RunFolder(folder), tokenizer, **about) as run:
        if not run.finished:
            learned, valid = questions(config, model.config.kind, templates, seed, held_out)
            reread = reading_text(model, tokenizer, how, config.reread, seed, folder) if config.reread else None
            tune_on_questions(model, tokenizer, learned, valid, how, run, True, reread, config.reread)
    return folder


def questions(config: InstructConfig, kind: str, templates: Templates, seed: int,
              held_out: tuple[str, ...] = HELD_OUT) -> tuple[FreshMixture | list[Question], list[Question]]:
    """What is learned, and what a model is chosen on; neither has a passage of an example that is examined."""
    asked = held_out_examples(config.examined, held_out)
    told = set().union(*(texts(each) for found in asked.values() for each in found))
    if not config.fixed:
        fresh = FreshMixture(templates, seed, told, config.turns if kind == "decoder" else 1)
        return fresh, [fresh.question(VALID + number) for number in range(256)]
    found = split_by_cluster(examples(templates, config.fixed, seed, told), (), seed=seed)
    drawn = MixtureConfig(questions=config.tuning.steps * config.tuning.batch, cap=config.fixed, letters=True,
                          seed=seed)
    return draw_training_and_validation(found, templates, drawn)


def reading_text(model: LanguageModel, tokenizer: Tokenizer, how: TrainingConfig, every: int, seed: int,
                 folder: Path) -> Batches:
    """Documents such as the base learned from, for every so many steps: to a decoder as it learned from them, to an
    encoder-decoder up to an answer, from which it goes on. Through gaps it kept reading, and was not asked so."""
    count = how.batch * (how.steps // every + 1)
    chunk = encode_chunk(UNREAD + REREAD + seed, 0, (count, 0), str(folder / TOKENIZER))
    shown = MarkedRows if model.config.kind == "decoder" else ContinuedDocuments
    data = shown([chunk], tokenizer, model.config.context, how.batch, seed)
    data.clean = 0
    return data


def unseen_words() -> Templates:
    """Wordings of the tasks that are taught that nobody trains on."""
    kept = {task: [each for each in found if each.asks_for_the_answer and not each.manner
                   and each.name == each.asked_as]
            for task, found in every_instruction()[1].items() if DATASETS[task].cluster in TAUGHT}
    return {task: found for task, found in kept.items() if found}
