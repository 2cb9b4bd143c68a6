r"""FLAN: instruction tuning of a decoder. The prompt is read, the completion alone is taught.

    L = −Σₜ log π(yₜ | x, y₍<t₎) / |y|          x in the words of a template, y ends with the end token
                                                                                Wei et al. 2021 (FLAN), §2

Mixture, templates, held-out clusters and training (`t0.tune_on_questions`) are those of T0. The model is another, and
reads prompt and answer in one row, as in sft.py. Details that matter:
    1. No loss on the prompt, and the end token is taught (test_the_end_token_is_taught_and_no_prompt_token_is).
    2. The paper saw tuning *harm* unseen tasks at 8 billion parameters and below (Fig. 7): small models may have
       nothing to spare for them.

Read next: zero_shot.py. Try it:  python -m minialign instruct --style flan
"""

import math

from minialign.batching import IGNORE, Batch, demonstration_row, next_token_batch, pad
from minialign.instruct.mixture import question_ids
from minialign.instruct.sft import Row
from minialign.pretrain.causal_lm import LabelledRows
from minialign.runs.errors import UserError
from minialign.tokenizer import Tokenizer
from minialign.world.templates import Question


def question_rows(tokenizer: Tokenizer, questions: list[Question], context: int,
                  skip_long: bool = False) -> tuple[list[Row], int]:
    """Questions as rows of ids, each with the place where its completion starts, and how many were left out.

    Raises:
        UserError: prompt and answer do not fit the context.
    """
    pairs, skipped = question_ids(tokenizer, questions, context, skip_long, "decoder")
    rows = [demonstration_row(tokenizer, prompt[1:], target) for prompt, target in pairs]
    fitting = [row for row in rows if len(row[0]) - 1 <= context]
    if len(fitting) < len(rows) and not skip_long:
        longest = max(len(row) for row, _ in rows)
        raise UserError(f"prompt and answer have up to {longest} tokens, and the model's context is {context}; leave "
                        f"such questions out with --skip-long")
    return fitting, skipped + len(rows) - len(fitting)


def conversation_rows(tokenizer: Tokenizer, conversations: list[list[Question]],
                      context: int) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Conversations as (ids, labels) of each: begin token, question, answer, end token, question, answer, end token …
    Every answer and its end token is taught. Questions from the first one on that does not fit are left out, and
    conversations of which nothing is left are counted."""
    rows = []
    for turns in conversations:
        ids, labels = [tokenizer.begin], [IGNORE]
        for prompt, target in question_ids(tokenizer, turns, math.inf, kind="decoder")[0]:  # whether they fit: below
            taught = [*target, tokenizer.end]
            if len(ids) + len(prompt) - 1 + len(taught) > context + 1:
                break
            ids += prompt[1:] + taught
            labels += [IGNORE] * (len(prompt) - 1) + taught
        if len(ids) > 1:
            rows.append((ids, labels))
    return rows, len(conversations) - len(rows)


class Conversations(LabelledRows):
    """Rows of `conversation_rows` as training data."""

    def batch(self, names: list[int], step: int = 0) -> Batch:
        """The named rows, the same at every step."""
        batch = next_token_batch([self.rows[i][0] for i in names], names=names)
        batch.labels = pad([self.rows[i][1][1:] for i in names], value=IGNORE)[0]
        return batch
