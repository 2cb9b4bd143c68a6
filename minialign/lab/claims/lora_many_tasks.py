r"""Many tasks from one base: one small pair of matrices a task, switched per row, with the answers of k separate
models.

Hu et al. 2021, §4.2 (switching tasks), and Sheng et al. 2023 (S-LoRA) for tasks within one batch.

The test: eight tasks of the toy world, each with a LoRA of its own on the shipped decoder. One process serves them all,
a task for each row of a batch; beside it stand eight separate models, LoRA merged in. Taken for granted, fixed before
anything is run: the eight say different things (asked the same, some logit of any two differs by 0.1 or more), so a row
that got another task's matrices would be seen.

    1. the logits of every row are those of its task's separate model, within 1e-4
    2. base and eight LoRAs take less than a quarter of the bytes of eight models
    3. a batch of eight tasks takes at most 1.5 times as long as one of a single task

1 looks at the largest difference over seeds, 3 at the upper end of the 95 % interval over seeds of the ratio of times,
each the median of pairs in a row.
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from minialign.heads import describe_model
from minialign.instruct.sft import demonstration_rows
from minialign.lab.bases.make import digest_of
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, control, over_seeds, time_ratio
from minialign.lab.claims.tuned import SIZES, base_of
from minialign.lab.plotting import Figure, bars_with_intervals, figure
from minialign.peft.lora import LoRAConfig, merged_plain, wrap
from minialign.peft.many_tasks import Serving, serve, stored_bytes
from minialign.peft.saving import load
from minialign.peft.transfer import TunedRun, tune
from minialign.pretrain.causal_lm import LabelledRows, next_token_loss
from minialign.runs.tensors import tensor_file, tensors_of
from minialign.training import TrainingConfig
from minialign.world.datasets import PROMPTS, examples

CLAIM = Claim("lora-many-tasks", "One base serves many tasks, each with one small pair of matrices a layer.",
              "Hu et al. 2021, §4.2")
DIFFERENT = 0.1  # threshold of the control
TASKS = ("who", "where", "what", "feeling", "mood", "title", "place", "kind_of")


def measure(bench: Bench) -> Rows:
    """Tune eight LoRAs, serve them side by side, and compare."""
    for seed in range(bench.seeds):
        model, tokenizer = base_of("middle")
        found = examples(TASKS, 40, seed)
        rows = {task: demonstration_rows(tokenizer, posed(task, found[task]), model.config.context, True)[0]
                for task in TASKS}
        folders = {task: tuned(bench, task, rows[task], seed) for task in TASKS}
        tokens = torch.tensor([(rows[task][0][0] * 40)[:40] for task in TASKS])  # one row a task, of equal length
        server = serve(base_of("middle")[0].eval(), folders)
        with torch.no_grad():
            alone = (merged_plain(load(base_of("middle")[0], folders[task])).eval() for task in TASKS)
            separate = torch.cat([one(row[None]) for one, row in zip(alone, tokens)])
            together = logits(server, TASKS, tokens)
            same = logits(server, TASKS, tokens[:1].expand(len(TASKS), -1)).flatten(1)
            one_task = [TASKS[0]] * len(TASKS)
            ratio = time_ratio(partial(logits, server, TASKS, tokens), partial(logits, server, one_task, tokens),
                               5 if bench.fast else 60)
        apart = min(float((a - b).abs().max()) for a, b in combinations(same, 2))
        yield control("the tasks say different things, least difference of a logit", apart, DIFFERENT, seed)
        whole = len(tensor_file(tensors_of(model)))
        yield {
            "seed": seed,
            "largest difference": float((together - separate).abs().max()),
            "bytes": whole + stored_bytes(folders),
            "bytes of eight models": len(TASKS) * whole,
            "time of eight tasks / one": ratio,
        }


def posed(task: str, found: list[dict]) -> list[dict]:
    """Examples in the first wording of their task, as demonstrations."""
    questions = [PROMPTS[task][0].pose(example) for example in found]
    return [{"prompt": question.prompt, "completion": " " + question.target} for question in questions]


def tuned(bench: Bench, task: str, rows: list, seed: int) -> Path:
    """A LoRA of one task."""
    training = TrainingConfig(4 if bench.fast else 30, min(16, len(rows)), 3e-3, validate_every=1000, seed=seed)

    def make(folder: Path) -> None:
        model, tokenizer = base_of("middle")
        run, data = TunedRun(folder), LabelledRows(rows, training.batch, seed)
        run.begin({**describe_model(model), "task": task}, tokenizer)
        tune(wrap(model, LoRAConfig(4, 8.0, seed=seed)), data, next_token_loss, lambda model: {}, training, run)

    return bench.cached("many", [task, seed, bench.fast, len(rows), digest_of(SIZES["middle"])], make)


def logits(server: Serving, tasks: Sequence[str], tokens: Tensor) -> Tensor:
    """(B, T, V) logits of one pass, a task for each row."""
    with server.rows(tasks) as served:
        return served(tokens)


def judge(table: Table) -> Verdict:
    """The three statements, and the numbers that decide."""
    largest = max(column(table, "largest difference"))
    share = max(row["bytes"] / row["bytes of eight models"] for row in table)
    ratio = over_seeds(column(table, "time of eight tasks / one"))
    checks = {"the same outputs": largest < 1e-4, "a quarter of the bytes": share < 0.25,
              "at most 1.5 times one task": ratio.high <= 1.5}
    return checks, (f"largest difference of a logit {largest:.1e}; {share:.1%} of the bytes of eight models; eight "
                    f"tasks in a batch take {ratio} times one task")


def draw(table: Table) -> Figure:
    """Bytes stored."""
    fig, axes = figure("stored, MB", "", 6.0, 2.4)
    names = {"one base, eight LoRAs": "bytes", "eight models": "bytes of eight models"}
    bars_with_intervals(axes, {name: over_seeds([value / 1e6 for value in column(table, what)])
                               for name, what in names.items()})
    axes.set_xlim(left=0)
    return fig
