r"""Supervised fine-tuning on demonstrations: show the model what a good completion looks like.

    L = −Σ log π(yₜ | x, y₍<t₎) / Σ |y|           over a step's completions y, each token with the same weight;
                                                  the prompt x is read but not taught
                                                  Ouyang et al. 2022 (InstructGPT), §3.5; Stiennon et al. 2020, §3.4

The loss is that of pretraining (pretrain/causal_lm.py); the text is another, and the loss looks at a part of it:

    row      <begin>  Who  lost  the  kite?   Mira   <end>         x = "Who lost the kite?", y = "Mira", start = 5
    taught                                    Mira   <end>

Details that matter:
    1. No loss on the prompt (test_no_loss_falls_on_the_prompt).
    2. The end token is taught, or the model talks on for ever (test_the_last_label_is_the_end_token).
    3. A demonstration that does not fit the context is an error, or, on request, left out and counted: cutting it would
       cut the completion (test_on_request_what_is_too_long_is_left_out_and_counted_never_cut).

Read next: mixture.py. Try it:  python -m minialign sft --base RUN --demonstrations FILE.jsonl
"""

from minialign.batching import demonstration_row
from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import LabelledRows, next_token_loss
from minialign.pretrain.pretrain import train_and_validate
from minialign.runs.errors import UserError
from minialign.runs.files import place_of
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig

SFT = TrainingConfig(steps=600, batch=32, learning_rate=1e-3, weight_decay=0.05)
Row = tuple[list[int], int]  # ids of begin, prompt, completion and end; the place where the completion starts


def demonstration_rows(
    tokenizer: Tokenizer, demonstrations: list[dict], context: int, skip_long: bool = False, file: object = None
) -> tuple[list[Row], int]:
    """Demonstrations as rows of ids, and how many were left out.

    Args:
        demonstrations: {"prompt", "completion"}, as `read_jsonl` gives them if they come from a file.
        context: tokens that the model can read.
        skip_long: leave out what does not fit instead of raising; file: named in errors.
    Raises:
        UserError: an empty completion, or a demonstration that does not fit.
    """
    prompts = tokenizer.encode_many([d["prompt"] for d in demonstrations])
    completions = tokenizer.encode_many([d["completion"] for d in demonstrations])
    rows, skipped = [], 0
    for demonstration, prompt, completion in zip(demonstrations, prompts, completions):
        place = file, place_of(demonstration)[1]
        if not completion:
            raise UserError("the completion is empty; there is nothing to learn from it", *place)
        row, start = demonstration_row(tokenizer, prompt, completion)
        if len(row) - 1 <= context:
            rows.append((row, start))
        elif skip_long:
            skipped += 1
        else:
            raise UserError(f"{len(row)} tokens do not fit the model's context of {context}; shorten it, or leave such "
                            f"lines out with --skip-long", *place)
    return rows, skipped


def fine_tune(model: LanguageModel, rows: list[Row], valid: list[Row], config: TrainingConfig,
              run: RunFolder) -> dict[str, float]:
    """Teach a decoder the completions of demonstrations.

    Args:
        model: a pretrained decoder, trained in place and saved in the run folder.
        rows, valid: from `demonstration_rows`; config: how; run: where.
    Returns:
        {"validation": nats per taught token, "perplexity": its exponential, "steps": how many}.
    """
    data = LabelledRows(rows, config.batch, config.seed)
    held_out = LabelledRows(valid, min(config.batch, len(valid)), 0)
    return train_and_validate(model, data, held_out, next_token_loss, config, run, "instruction tuning")
