r"""Supervised fine-tuning on demonstrations: show the model what a good answer looks like.

    L = −Σₜ log π(yₜ | x, y₍<t₎) / |y|            over the answer y only, the prompt x is read but not taught
                                                  Ouyang et al. 2022 (InstructGPT), §3.5; Stiennon et al. 2020, §3.4

The loss is that of pretraining (pretrain/causal_lm.py); what changes is the text, and where the loss looks. Details
that matter:
    1. No loss on the prompt (test_no_loss_falls_on_the_prompt).
    2. The end token is taught, or the model talks on for ever (test_the_last_label_is_the_end_token).
    3. Examples that do not fit the context are an error, or, on request, left out and counted: cutting them would cut
       the answer.

Try it:  python -m minialign sft --base RUN --demonstrations FILE.jsonl
"""

from __future__ import annotations

from minialign.batching import demonstration_row
from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import LabelledRows, mean_loss, next_token_loss, perplexity
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, train

SFT = TrainingConfig(steps=600, batch=32, learning_rate=1e-3, weight_decay=0.05)


def demonstration_rows(
    tokenizer: Tokenizer, demonstrations: list[dict], context: int, skip_long: bool = False, file: object = None
) -> tuple[list[tuple[list[int], int]], int]:
    """Demonstrations as rows of ids, each with the place where its completion starts.

    Args:
        demonstrations: {"prompt", "completion"}, and "line" if they come from a file.
        context: tokens that the model can read.
        skip_long: leave out what does not fit instead of raising.
    Returns:
        rows, and how many were left out.
    Raises:
        UserError: an empty completion, or one that does not fit.
    """
    prompts = tokenizer.encode_many([d["prompt"] for d in demonstrations])
    completions = tokenizer.encode_many([d["completion"] for d in demonstrations])
    rows, skipped = [], 0
    for demonstration, prompt, completion in zip(demonstrations, prompts, completions):
        if not completion:
            raise UserError("the completion is empty; there is nothing to learn from it", file,
                            demonstration.get("line"))
        row, start = demonstration_row(tokenizer, prompt, completion)
        if len(row) - 1 > context and not skip_long:
            raise UserError(
                f"{len(row)} tokens do not fit the model's context of {context}; shorten it, or leave such lines out "
                f"with --skip-long",
                file,
                demonstration.get("line"),
            )
        if len(row) - 1 > context:
            skipped += 1
        else:
            rows.append((row, start))
    return rows, skipped


def fine_tune(
    model: LanguageModel, rows: list[tuple[list[int], int]], valid: list[tuple[list[int], int]], config: TrainingConfig,
    run: RunFolder
) -> dict[str, float]:
    """Teach a decoder the completions of demonstrations.

    Args:
        model: a pretrained decoder, trained in place and saved in the run folder.
        rows, valid: from `demonstration_rows`.
        config: how; run: where.
    Returns:
        {"validation": nats per taught token, "perplexity": its exponential, "steps": how many}.
    """
    held_out = LabelledRows(valid, min(config.batch, len(valid)), seed=0)
    batches = [held_out.batch(names) for names in map(held_out.order, range(min(8, held_out.order.steps_in_epoch)))]

    def validate(model: LanguageModel) -> dict[str, float]:
        loss = mean_loss(model, batches)
        return {"validation": loss, "perplexity": perplexity(loss)}

    return train(model, LabelledRows(rows, config.batch, config.seed), next_token_loss, config, run, validate,
                 label="instruction tuning")
