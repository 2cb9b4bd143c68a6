r"""What the claims on human feedback share: the main job from bases of three sizes, and what is taken for granted.

    small    decoder-0.1m        middle    decoder-0.4m, which is the main job itself        large    decoder-1.3m

Every size has the same stories, demonstrations, steps and updates, and as many comparisons, of summaries of its own.
Each stage is kept. The bases are one each, so seeds are of everything after them. Taken for granted, at the middle
size, and fixed before the first run from bases:

    annotators judge by what the gold score sees       it orders .8 of their choices as they did
    instruction tuning left a model that reads         .95 of what its summaries state is so
    the reward model reads, too                        .8 of minimal pairs: a reference, and one detail of it exchanged

Read next: people_prefer_rlhf.py.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minialign.heads import LanguageModel, ScalarModel, describe_model, load_model
from minialign.lab.claims import Bench, Table, control
from minialign.lab.demo.pipeline import INSTRUCTED, PRETRAINED, REWARD, RLHF, Demo, FirstHalf
from minialign.lab.demo.settings import FAST, DemoConfig
from minialign.rlhf.comparisons import split_by_prompt
from minialign.rlhf.reward_model import Ensemble, completion_rows, pair_accuracy, score_rows, train_reward_model
from minialign.runs.files import read_json
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig
from minialign.world.gold import score
from minialign.world.stories import Story

SIZES = {"small": "decoder-0.1m", "middle": "decoder-0.4m", "large": "decoder-1.3m"}  # and its base
ORDERED, HONEST, PAIRS = 0.8, 0.95, 0.8  # thresholds of the controls


def settings(bench: Bench, size: str, seed: int) -> DemoConfig:
    """The main job's settings for a size and a seed."""
    return DemoConfig(**FAST, base=SIZES["small"], seed=seed) if bench.fast else DemoConfig(SIZES[size], seed=seed)


def job_in(folder: Path, config: DemoConfig) -> Demo:
    """The main job in a folder, silent."""
    return Demo(folder, config, lambda text: None)


def first_half(bench: Bench, config: DemoConfig) -> tuple[Path, FirstHalf]:
    """The first half of the main job, everything up to the comparisons: its folder and what it made."""

    def make(folder: Path) -> None:
        job_in(folder, config).run_first_half()

    folder = bench.cached("compared", to_dict(config), make)
    return folder, job_in(folder, config).run_first_half()


def compared(bench: Bench, size: str, seed: int) -> tuple[Path, FirstHalf, DemoConfig]:
    """The same at a size: its folder, what it made, its settings."""
    config = settings(bench, size, seed)
    return *first_half(bench, config), config


def aligned(bench: Bench, size: str,
            seed: int) -> tuple[dict[str, Any], dict[str, LanguageModel | ScalarModel], FirstHalf]:
    """The whole main job of a size and a seed.

    Returns:
        what `evaluate` measured, the models by name (pretrained, sft, reward, rlhf), and what the first half made.
    """
    base, made, config = compared(bench, size, seed)

    def make(folder: Path) -> None:
        job = job_in(folder, dataclasses.replace(config, rivals=0))
        reward = job.train_reward(made.tokenizer, made.instructed, made.comparisons)
        policy = job.train_policy(made.tokenizer, made.instructed, reward, made.practice)
        job.evaluate(made, reward, policy)

    folder = bench.cached("aligned", [base.name, to_dict(config)], make)
    stages = {"pretrained": base / PRETRAINED, "sft": base / INSTRUCTED, "reward": folder / REWARD}
    stages |= {"rlhf": folder / RLHF}
    models = {name: load_model(path)[0] for name, path in stages.items()}
    return read_json(folder / "evaluation" / "result.json"), models, made


def taken_for_granted(bench: Bench, seed: int) -> Table:
    """The three controls of the main job of a seed, as rows of a table."""
    found, _, made = aligned(bench, "middle", seed)
    stories = {test["prompt"]: Story.from_dict(test["story"]) for test in made.judged}
    held_out = split_by_prompt(made.comparisons)[1]
    golds = ([score(stories[pair["prompt"]], pair[side]).gold for side in ("chosen", "rejected")] for pair in held_out)
    ordered = sum(float(chosen > rejected) for chosen, rejected in golds) / len(held_out)
    honest, pairs = found["stages"]["sft"]["honest"]["mean"], found["reward_model"]["minimal_pairs"]["mean"]
    return [control("the gold score orders annotators' choices", ordered, ORDERED, seed),
            control("honest after instruction tuning", honest, HONEST, seed),
            control("the reward model orders minimal pairs", pairs, PAIRS, seed)]


def share_ordered(reward: ScalarModel | Ensemble, tokenizer: Tokenizer, pairs: list[dict[str, Any]]) -> float:
    """Share of pairs whose chosen answer scores higher; a tie counts half."""
    prompts = [pair["prompt"] for pair in pairs]
    return pair_accuracy(*(score_rows(reward, completion_rows(tokenizer, prompts, [pair[side] for pair in pairs]))
                           for side in ("chosen", "rejected")))


def reward_model(bench: Bench, stage: str, key: list[Any], base: LanguageModel, tokenizer: Tokenizer,
                 config: TrainingConfig, read: str, data: Callable[[], tuple]) -> Path:
    """The folder of a reward model, made once for each key.

    Args:
        read: where its score is read.
        data: () -> comparisons to learn from, those held out, and the rows that its scores are normalised on.
    """

    def make(folder: Path) -> None:
        ranked, valid, rows = data()
        run = RunFolder(folder)
        about = describe_model(ScalarModel(base.body, read=read)) | {"training": to_dict(config)}
        run.begin(about, tokenizer)
        if not run.finished:
            train_reward_model(base, ranked, valid, rows, config, run, read)

    return bench.cached(stage, [*key, read], make)


def with_ends(name: str, interval: dict[str, float]) -> dict[str, float]:
    """The three fields of a table's row that hold an interval: its mean under the name itself."""
    return {name: interval["mean"], f"{name}, low": interval["low"], f"{name}, high": interval["high"]}
