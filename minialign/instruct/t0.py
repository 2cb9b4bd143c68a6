r"""T0: an encoder-decoder that has been asked many tasks in many wordings, and can be asked one that it never saw.

    L = −Σₜ log π(yₜ | prompt in the words of a template, y₍<t₎) / T          Sanh et al. 2022 (T0), §3 and §5

It is T5 (t5.py) with one change: each example comes in the words of one of its task's templates, drawn anew, in place
of one fixed prefix.
Details that matter:
    1. Whole clusters of tasks are never trained on (mixture.py, test_no_cluster_stands_on_both_sides).
    2. The model starts from span corruption with an LM adaptation after it, since T5 alone has only ever filled gaps
       (pretrain/span_corruption.py; Lester et al. 2021, §3.1).
    3. The end token is taught (test_the_end_token_is_taught_and_no_prompt_token_is).

Read next: flan.py (the same with a decoder), zero_shot.py (how it is examined).
Try it:  python -m minialign instruct --style t0
"""

from __future__ import annotations

from dataclasses import replace

from minialign.heads import LanguageModel
from minialign.instruct.mixture import MixtureConfig, Split, draw, ids_of
from minialign.pretrain.pretrain import train_and_validate
from minialign.pretrain.span_corruption import TextToTextRows, text_to_text_loss
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.templates import Question, Template

T0 = TrainingConfig(steps=1500, batch=32, learning_rate=1e-3, weight_decay=0.05)


def validation_of(config: MixtureConfig) -> MixtureConfig:
    """How the validation questions of a mixture are drawn: a fortieth as many, at least 64, by another seed."""
    return replace(config, questions=max(64, config.questions // 40), seed=config.seed + 1)


def t0_questions(split: Split, templates: dict[str, list[Template]], config: MixtureConfig) -> tuple[list[Question],
        list[Question]]:
    """Training and validation questions, both of the training clusters."""
    return draw(split.train, templates, config), draw(split.validation, templates, validation_of(config))


def tune_t0(
    model: LanguageModel,
    tokenizer: Tokenizer,
    questions: list[Question],
    valid: list[Question],
    config: TrainingConfig,
    run: RunFolder,
    skip_long: bool = False,
) -> dict[str, float]:
    """Teach an encoder-decoder to answer questions.

    Args:
        model: pretrained by span corruption, trained in place and saved in the run folder.
        questions, valid: from `t0_questions`; the model is chosen on `valid` where the configuration stops early.
        config: how; run: where; skip_long: leave out what does not fit.
    Returns:
        {"validation": nats per target token, "perplexity": its exponential, "steps": how many, "skipped": questions
        left out}.
    """
    (pairs, skipped), (held, _) = (ids_of(tokenizer, part, model.config.context, skip_long)
                                   for part in (questions, valid))
    data, checked = TextToTextRows(pairs, config.batch, config.seed), TextToTextRows(held, min(config.batch, len(held)),
        0)
    result = train_and_validate(model, data, checked, text_to_text_loss, config, run, "T0")
    return result | {"skipped": skipped}
