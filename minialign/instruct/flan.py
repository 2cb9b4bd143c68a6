r"""FLAN: instruction tuning of a decoder. The prompt is read, the answer alone is taught.

    L = −Σₜ log π(yₜ | x, y₍<t₎) / |y|          x in the words of a template, y ends with the end token        Wei et al. 2021 (FLAN), §2

Mixture, templates and held-out clusters are those of t0.py; what changes is the model, which reads prompt and answer in
one line.
Details that matter:
    1. No loss on the prompt, and the end token is taught (test_the_end_token_is_taught_and_no_prompt_token_is).
    2. The paper saw tuning *harm* unseen tasks at 8 billion parameters and below (Fig. 7): small models may have
       nothing to spare for them.

Read next: zero_shot.py. Try it:  python -m minialign instruct --style flan
"""

from __future__ import annotations

from minialign.batching import demonstration_row
from minialign.heads import LanguageModel
from minialign.instruct.mixture import ids_of
from minialign.instruct.sft import fine_tune
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.templates import Question

FLAN = TrainingConfig(steps=1500, batch=32, learning_rate=1e-3, weight_decay=0.05)


def flan_rows(tokenizer: Tokenizer, questions: list[Question], context: int,
              skip_long: bool = False) -> tuple[list[tuple[list[int], int]], int]:
    """Questions as rows of ids, each with the place where its answer starts, and how many were left out.

    Raises:
        UserError: prompt and answer do not fit the context.
    """
    pairs, skipped = ids_of(tokenizer, questions, context, skip_long)
    rows = [demonstration_row(tokenizer, prompt[1:], target) for prompt, target in pairs]
    fitting = [row for row in rows if len(row[0]) - 1 <= context]
    if len(fitting) < len(rows) and not skip_long:
        longest = max(len(row) for row, _ in rows)
        raise UserError(f"prompt and answer have up to {longest} tokens, and the model's context is {context}; leave "
                        f"such questions out with --skip-long")
    return fitting, skipped + len(rows) - len(fitting)


def tune_flan(
    model: LanguageModel,
    tokenizer: Tokenizer,
    questions: list[Question],
    valid: list[Question],
    config: TrainingConfig,
    run: RunFolder,
    skip_long: bool = False,
) -> dict[str, float]:
    """Teach a decoder to answer questions; arguments and result as for `t0.tune_t0`."""
    (rows, skipped), (held, _) = (flan_rows(tokenizer, part, model.config.context, skip_long)
                                  for part in (questions, valid))
    return fine_tune(model, rows, held, config, run) | {"skipped": skipped}
