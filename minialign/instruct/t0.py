r"""T0: an encoder-decoder that has been asked many tasks in many wordings, and can be asked one that it never saw.

    L = −Σₜ log π(yₜ | prompt in the words of a template, y₍<t₎) / T          Sanh et al. 2022 (T0), §3 and §5

It is T5 (t5.py) with one change: each example comes in the words of one of its task's templates, drawn anew, in place
of one fixed prefix. Details that matter:
    1. Whole clusters of tasks are never trained on (mixture.py, test_no_cluster_stands_on_both_sides).
    2. The model starts from span corruption with an LM adaptation after it, since T5 alone has only ever filled gaps
       (pretrain/span_corruption.py; Lester et al. 2021, §3.1).
    3. The end token is taught (test_the_end_token_is_taught_and_no_prompt_token_is).

Read next: flan.py (the same with a decoder). Try it:  python -m minialign instruct --style t0
"""

import functools

from minialign.batching import Batches, Interleaved
from minialign.heads import LanguageModel
from minialign.instruct.flan import Conversations, conversation_rows, question_rows
from minialign.instruct.fresh import FreshMixture, FreshRows
from minialign.instruct.mixture import question_ids
from minialign.pretrain.causal_lm import LabelledRows, next_token_loss
from minialign.pretrain.pretrain import train_and_validate
from minialign.pretrain.span_corruption import TextToTextRows, text_to_text_loss
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.templates import Question

T0 = TrainingConfig(steps=1200, batch=24, learning_rate=5e-4, warmup=0.03, final=0.05, weight_decay=0.05, beta2=0.98,
                    validate_every=500)


def tune_on_questions(model: LanguageModel, tokenizer: Tokenizer, questions: list[Question] | FreshMixture,
                      valid: list[Question], config: TrainingConfig, run: RunFolder, skip_long: bool = False,
                      pretraining: Batches | None = None, every: int = 6) -> dict[str, float]:
    """Teach a model to answer questions: an encoder-decoder, as T5 and T0 are, or a decoder, as FLAN is.

    Args:
        model: pretrained, trained in place and saved in the run folder.
        questions: from `mixture.draw_training_and_validation`, or fresh ones without end.
        valid: the model is chosen on them where the configuration stops early.
        config: how; run: where; skip_long: leave out what does not fit, as is always done with fresh ones.
        pretraining: what the base learned from, shown every so many steps, so that nothing of it is forgotten.
    Returns:
        {"validation": nats per target token, "perplexity": its exponential, "steps": how many, "skipped": questions
        left out of a list}.
    """
    decoder = model.config.kind == "decoder"
    rows_of, data_of, loss = ((question_rows, LabelledRows, next_token_loss) if decoder else
                              (question_ids, TextToTextRows, text_to_text_loss))
    held_out, _ = rows_of(tokenizer, valid, model.config.context, skip_long)
    check, skipped = data_of(held_out, min(config.batch, len(held_out)), 0), 0
    if isinstance(questions, FreshMixture):
        asked, data_of = (conversation_rows, Conversations) if decoder else (first_questions, data_of)
        encode = functools.partial(asked, tokenizer, context=model.config.context)
        data = FreshRows(questions, encode, lambda rows: data_of(rows, config.batch, config.seed), config.batch)
    else:
        rows, skipped = rows_of(tokenizer, questions, model.config.context, skip_long)
        data = data_of(rows, config.batch, config.seed)
    if pretraining:
        data = Interleaved(data, pretraining, every)
    return train_and_validate(model, data, check, loss, config, run, "instruction tuning") | {"skipped": skipped}


def first_questions(tokenizer: Tokenizer, conversations: list[list[Question]],
                    context: int) -> tuple[list[tuple[list[int], list[int]]], int]:
    """What conversations begin with, as an encoder-decoder reads and writes it, and how many do not fit."""
    return question_ids(tokenizer, [turns[0] for turns in conversations], context, skip_long=True)
