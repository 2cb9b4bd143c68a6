"""The main job's settings, and the quick ones of `--fast`."""

from dataclasses import dataclass

from minialign.runs.errors import UserError
from minialign.transformer import TransformerConfig
from minialign.world.corpus import DirtConfig

NO_BASE = "none"


@dataclass(frozen=True)
class DemoConfig:
    """The main job's settings."""

    base: str = "decoder-0.4m"  # of data/bases, which has read enough; "none": a small one that reads `documents` first
    documents: int = 8000  # dirty documents that a model without a base reads
    false: float = 0.3  # share of documents that say something false
    rude: float = 0.2  # share of documents with rude words
    demonstrations: int = 13000  # clean completions to learn instructions from
    summaries: float = 0.75  # share of summaries among them; the rest are questions
    judged: int = 4000  # stories whose summaries annotators compare
    completions: int = 3  # summaries of each such story, every two of which are compared
    prompts: int = 960  # stories that PPO practises on
    evaluated: int = 500  # stories that nothing trained on
    rivals: int = 150  # of them, on which PPO is compared with best of 4 and of 16; 0: none
    width: int = 96  # D of a decoder without a base
    layers: int = 3  # its N
    heads: int = 3  # its H
    pretrain_steps: int = 800  # of 16 documents, without a base
    sft_steps: int = 800  # of 16 demonstrations, each about once
    reward_steps: int = 230  # of 16 stories: one pass, as Stiennon et al. 2020 took
    ppo_updates: int = 30  # of 128 completions, four to a prompt
    beta: float = 0.1  # price of one nat of KL, in stds of the reward
    seed: int = 0  # of everything

    def __post_init__(self):
        fewest = {"documents": 50, "demonstrations": 64, "judged": 64, "completions": 2, "prompts": 4, "evaluated": 2,
                  "rivals": 0}
        for name, value in vars(self).items():
            if isinstance(value, int) and name != "seed" and value < fewest.get(name, 1):
                raise UserError(f"{name} is {value}; it must be at least {fewest.get(name, 1)}")
        if self.rivals == 1:
            raise UserError("rivals is 1, and one story gives no interval; use at least 2, or 0 for none")
        if self.completions > 9 or not 0 <= self.summaries <= 1 or not 0 <= self.beta < 1e6:
            raise UserError(f"completions {self.completions} (2 to 9), summaries {self.summaries} (0 to 1) or beta "
                            f"{self.beta} (at least 0) is out of range")
        self.dirt, self.shape(1024)  # both complain about what they cannot use

    @property
    def from_base(self) -> bool:
        """Whether it starts from a base, which can read."""
        return self.base != NO_BASE

    @property
    def rates(self) -> tuple[float, float]:
        """Peaks of the learning rates of instruction tuning and of the reward model: at those of a model that learns
        from nothing, a base that reads forgets how to compare."""
        return (1e-3, 4e-4) if self.from_base else (4e-3, 1.5e-3)

    @property
    def read(self) -> str:
        """Where the reward model's score is read: a model that reads can judge each sentence where it stands."""
        return "mean" if self.from_base else "end"

    @property
    def dirt(self) -> DirtConfig:
        """The corpus's dirt."""
        return DirtConfig(self.false, self.rude)

    def shape(self, vocabulary: int) -> TransformerConfig:
        """That of a decoder without a base; short convolutions and large initial weights let it learn to copy."""
        return TransformerConfig(vocabulary, 160, self.width, self.layers, self.heads, activation="relu",
                                 initial_std=0.1, short_convolution=4)

    def seed_of(self, stage: int) -> int:
        """A seed of its own for each stage, so that no two of them draw the same stories."""
        return self.seed * 100 + stage


# Half as many judged stories and reward steps let PPO move gold by .02, however long it went on; with these it is .04.
FAST = {"documents": 1500, "demonstrations": 1200, "judged": 800, "prompts": 480, "evaluated": 300, "rivals": 0,
        "sft_steps": 90, "reward_steps": 80, "ppo_updates": 14}
