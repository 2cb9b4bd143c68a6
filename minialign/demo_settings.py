"""The main job's settings, and the quick ones of `--fast`."""

from __future__ import annotations

from dataclasses import dataclass

from minialign.errors import UserError


@dataclass(frozen=True)
class DemoConfig:
    """The main job's settings."""

    documents: int = 8000  # dirty documents to pretrain on
    false: float = 0.3  # share of documents that say something false
    rude: float = 0.2  # share of documents with rude words
    repetitive: float = 0.1  # share of documents that repeat themselves
    cut_off: float = 0.1  # share of documents that end in mid-sentence
    demonstrations: int = 8000  # clean answers to learn instructions from
    summaries: float = 0.75  # share of summaries among them; the rest are questions
    judged: int = 2500  # stories whose summaries annotators compare
    answers: int = 4  # summaries of each such story, every two of which are compared
    prompts: int = 1600  # stories that PPO practises on
    evaluated: int = 1000  # stories that nothing trained on
    width: int = 96  # D of the decoder
    layers: int = 3  # N of the decoder
    heads: int = 3  # H of the decoder
    pretrain_steps: int = 900  # of 16 documents
    sft_steps: int = 2400  # of 16 demonstrations
    reward_steps: int = 280  # of 16 stories
    ppo_updates: int = 50  # of 128 answers, four to a prompt
    beta: float = 0.1  # price of one nat of KL, in deviations of the reward
    seed: int = 0  # of everything

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, int) and name != "seed" and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")

    def seed_of(self, stage: int) -> int:
        """A seed of its own for each stage, so that no two of them draw the same stories."""
        return self.seed * 100 + stage


FAST = {
    "documents": 1500,
    "demonstrations": 1200,
    "judged": 96,
    "prompts": 256,
    "evaluated": 48,
    "width": 64,
    "heads": 2,
    "pretrain_steps": 120,
    "sft_steps": 100,
    "reward_steps": 12,
    "ppo_updates": 4,
}
