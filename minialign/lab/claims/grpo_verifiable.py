r"""GRPO: a policy learns from answers that can be checked, without a reward model and without a value function.

Shao et al. 2024 (DeepSeekMath), §4 and Fig. 7: on questions whose answers are checked the policy's own samples, judged
against each other, lift the share that one answer solves; Yue et al. 2025: what eight answers solve between them gains
less, since the policy is made surer of what it could say already.

The test. The shipped decoder is shown 300 demonstrations of one task ("which came first?", the answer written out of
two to four) for 60 steps. From there 60 updates of 16 questions with 8 answers each, reward 1 for the right answer; PPO
with the same samples, its reward the same check; and GRPO with a reward that is always 1. Judged on 200 unseen
questions, 16 answers each, temperature 1.

    1. one answer solves at least 0.10 more than before, and the intervals before and after are apart
    2. one answer gains more than eight do: sharpened, not only taught
    3. GRPO is at most 0.03 behind PPO
    4. a reward that is always the same teaches nothing: every group is even, and no weight changes

1, 2 and 3 are over seeds, 95 %. Taken for granted: before, one answer solves at least 0.3 of the questions and leaves
at least 0.3 of them unsolved.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from minialign.generation import prompt_ids
from minialign.heads import LanguageModel, describe_model, load_model
from minialign.instruct.sft import demonstration_rows, fine_tune
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, control, difference, over_seeds, point
from minialign.lab.claims.shipped import base, questions
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals
from minialign.rlhf.grpo import GRPOConfig, collect, pass_at_k, train_grpo
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.runs.files import read_json, write_json
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig

CLAIM = Claim("grpo-verifiable", "Answers that can be checked teach a policy without a reward model (GRPO).",
              "Shao et al. 2024, §4; Yue et al. 2025")
TASK, NEW_TOKENS, JUDGED = "came_first", 24, 16
WAYS = {"start": "before", "grpo": "GRPO", "ppo": "PPO", "constant": "GRPO, constant reward"}
START, LEFT = 0.3, 0.3  # what one answer must solve, and leave unsolved, before


def right(line: dict, said: str) -> float:
    """1 for the answer and nothing else."""
    return float(said == line["answer"])


class Checked(nn.Module):
    """The check in the place of PPO's reward model; the value function begins as the policy's own stack."""

    def __init__(self, body: nn.Module, tokenizer: Tokenizer, lines: list[dict], ids: list[list[int]]):
        super().__init__()
        self.body, self.config, self.tokenizer = body, body.config, tokenizer
        self.line_of = {tuple(prompt): line for prompt, line in zip(ids, lines)}

    def score_completions(self, prompts: list, completions: list, of: list[int]) -> Tensor:
        """(N,) what the check says of completions, lists of ids."""
        texts = [self.tokenizer.decode(ids).strip() for ids in completions]
        return torch.tensor([right(self.line_of[tuple(prompts[i])], said) for i, said in zip(of, texts)])


def measure(bench: Bench) -> Rows:
    """Each way of each seed, before and after."""
    for seed in range(bench.seeds):
        start = starting(bench, seed)
        before = solved(load_model(start)[0], seed, bench)
        yield {"way": "start", "seed": seed} | before
        yield control("one answer solves some questions before", before["pass_1"], START, seed)
        yield control("one answer leaves some unsolved before", 1 - before["pass_1"], LEFT, seed)
        for way in WAYS:
            if way != "start":
                folder = trained(bench, start, way, seed)
                row = {"way": way, "seed": seed} | read_json(folder / "found.json")
                yield row | solved(load_model(folder)[0], seed, bench)


def starting(bench: Bench, seed: int) -> Path:
    """The folder of the base after some demonstrations of the task."""
    steps = 5 if bench.fast else 60
    how = TrainingConfig(steps, 16, 3e-4, validate_every=steps, checkpoint_every=steps, weight_decay=0.01, seed=seed)

    def make(folder: Path) -> None:
        (model, tokenizer), run = base(), RunFolder(folder)
        rows, _ = demonstration_rows(tokenizer, questions(TASK, 300, 1000 + seed), model.config.context)
        run.begin({**describe_model(model), "stage": "sft", "seed": seed}, tokenizer)
        if not run.finished:
            fine_tune(model, rows, rows[:32], how, run)

    return bench.cached("ordering", [TASK, seed, steps], make)


def trained(bench: Bench, start: Path, way: str, seed: int) -> Path:
    """The folder of a policy that began at `start`, with the seconds that it took and whether anything changed."""
    updates = 3 if bench.fast else 60
    settings = {"updates": updates, "prompts": 16, "completions": 8, "new_tokens": NEW_TOKENS, "minibatch": 64,
                "learning_rate": 2e-4, "beta": 0.04, "seed": seed}
    ppo = PPOConfig(**settings, epochs=1, lam=1.0, value_learning_rate=2e-3, missing_end_score=0.0)

    def make(folder: Path) -> None:
        (model, tokenizer), run = load_model(start), RunFolder(folder)
        lines = questions(TASK, 1500, 2000 + seed)
        ids = prompt_ids(tokenizer, [line["prompt"] for line in lines])
        run.begin({**describe_model(model), "way": way, "settings": settings}, tokenizer)
        if not run.finished and way == "ppo":
            train_ppo(model, Checked(model.body, tokenizer, lines, ids), ids, ppo, run)
        elif not run.finished:
            check = right if way == "grpo" else lambda line, said: 1.0
            train_grpo(model, tokenizer, lines, ids, check, GRPOConfig(**settings), run)
        metrics, after = run.metrics(), load_model(folder)[0]
        moved = max(float((a - b).detach().abs().max()) for a, b in zip(after.parameters(), model.parameters()))
        even = [each["even_groups"] for each in metrics if "even_groups" in each]
        write_json(folder / "found.json", {"moved": moved, "even groups": sum(even) / max(1, len(even)),
                                           "kl": metrics[-1]["kl"]})

    return bench.cached("verifiable", [way, start.name, settings], make)


def solved(model: LanguageModel, seed: int, bench: Bench) -> dict[str, float]:
    """pass@1, pass@8 and the share of ended answers on unseen questions."""
    _, tokenizer = base()
    lines = questions(TASK, 20 if bench.fast else 200, 3000 + seed)
    config = GRPOConfig(prompts=len(lines), completions=JUDGED, minibatch=JUDGED, new_tokens=NEW_TOKENS)
    ids = prompt_ids(tokenizer, [line["prompt"] for line in lines])
    said = collect(model, model, tokenizer, lines, ids, right, config, torch.Generator().manual_seed(seed))
    rewards = said.scores.view(len(lines), -1)
    return {f"pass_{k}": pass_at_k(rewards, k) for k in (1, 2, 4, 8)}


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    one, eight = ({way: column(table, name, way=way) for way in WAYS} for name in ("pass_1", "pass_8"))
    before, after = (over_seeds(one[way], 0.0, 1.0) for way in ("start", "grpo"))
    rise, wide = (difference(found["grpo"], found["start"]) for found in (one, eight))
    sharper = difference([a - b for a, b in zip(one["grpo"], one["start"])],
                         [a - b for a, b in zip(eight["grpo"], eight["start"])])
    behind = difference(one["ppo"], one["grpo"])
    even, moved, drift = (column(table, what, way="constant") for what in ("even groups", "moved", "kl"))
    checks = {
        "one answer solves a tenth more": rise.mean >= 0.1 and after.low > before.high,
        "sharpened, not only taught": sharper.low > 0,
        "no worse than PPO at equal samples": behind.high < 0.03,
        "a constant reward teaches nothing": min(even) == 1 and max(moved) == 0,
    }
    return checks, (f"one answer solves {before} before and {after} after GRPO ({rise}); of eight one solves "
                    f"{over_seeds(eight['start'])} before and {over_seeds(eight['grpo'])} after ({wide}); PPO is ahead "
                    f"by {behind}; a constant reward leaves {over_seeds(even)} of the groups even, and weights moved "
                    f"by up to {max(moved):.1e}, KL {over_seeds(drift)} nats")


def draw(table: Table) -> Figure:
    """Share of questions solved by the best of k answers."""
    _, axes = figure("answers to a question, k", "share of unseen questions solved", 5.6, 3.6)
    tries = (1, 2, 4, 8)
    lines_with_intervals(axes, tries, {name: [point(table, f"pass_{k}", way=way) for k in tries]
                                       for way, name in WAYS.items()})
    return finish(axes, doublings=tries, ylim=(0, 1.02))
