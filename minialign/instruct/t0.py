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

from __future__ import annotations

from minialign.heads import LanguageModel
from minialign.instruct.flan import question_rows
from minialign.instruct.mixture import question_ids
from minialign.instruct.sft import fine_tune
from minialign.pretrain.pretrain import train_and_validate
from minialign.pretrain.span_corruption import TextToTextRows, text_to_text_loss
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.templates import Question

T0 = TrainingConfig(steps=1500, batch=32, learning_rate=1e-3, weight_decay=0.05)


def tune_on_questions(model: LanguageModel, tokenizer: Tokenizer, questions: list[Question], valid: list[Question],
                      config: TrainingConfig, run: RunFolder, skip_long: bool = False) -> dict[str, float]:
    """Teach a model to answer questions: an encoder-decoder, as T5 and T0 are, or a decoder, as FLAN is.

    Args:
        model: pretrained, trained in place and saved in the run folder.
        questions, valid: from `mixture.draw_training_and_validation`; the model is chosen on `valid` where the
            configuration stops early.
        config: how; run: where; skip_long: leave out what does not fit.
    Returns:
        {"validation": nats per target token, "perplexity": its exponential, "steps": how many, "skipped": questions
        left out}.
    """
    decoder = model.config.kind == "decoder"
    encode = question_rows if decoder else question_ids
    (rows, skipped), (held_out, _) = (encode(tokenizer, part, model.config.context, skip_long)
                                      for part in (questions, valid))
    if decoder:
        return fine_tune(model, rows, held_out, config, run) | {"skipped": skipped}
    data = TextToTextRows(rows, config.batch, config.seed)
    check = TextToTextRows(held_out, min(config.batch, len(held_out)), 0)
    return train_and_validate(model, data, check, text_to_text_loss, config, run, "T0") | {"skipped": skipped}
