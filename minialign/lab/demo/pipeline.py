r"""The main job: the three-step recipe, from dirty text to an aligned model, on a world that can be checked.

    dirty corpus → tokenizer → pretrained decoder → instruction-tuned on clean demonstrations → pairs of completions →
    annotators choose → reward model → PPO against the frozen instruction-tuned reference → evaluation by the gold score
    and by people who labelled nothing

(Stiennon et al. 2020, Fig. 2; Ouyang et al. 2022, Fig. 2.) Every arrow is a file in the run folder that a person can
open. A stage whose result is there is not done again, so a run that was stopped goes on where it was, to the same bits.
Nothing that trains ever sees the gold score; the annotators of the win rates did not train the reward model.

Read next: the files of each stage, in the order above. Try it:  python -m minialign
"""

import copy
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minialign.generation import SamplingConfig, continue_texts, prompt_ids
from minialign.heads import LanguageModel, ScalarModel, describe_model, load_model
from minialign.instruct.sft import demonstration_rows, fine_tune
from minialign.lab.bases.make import BASES, CARD, load_base
from minialign.lab.demo.evaluation import EvaluationConfig, evaluate, gold_score_watcher, judge_pairs
from minialign.lab.demo.settings import NO_BASE, DemoConfig
from minialign.lab.stages import stage_run
from minialign.pretrain.causal_lm import NextToken
from minialign.pretrain.pretrain import pretrain
from minialign.rlhf.comparisons import Candidate, sample_pairs, split_by_prompt
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.rlhf.pretraining_mix import PretrainingMix
from minialign.rlhf.ranked import ranked_rows
from minialign.rlhf.reward_model import completion_rows, train_reward_model
from minialign.runs.devices import default_device
from minialign.runs.files import read_json, read_jsonl, write_atomic, write_json, write_jsonl
from minialign.runs.process import give_back_memory
from minialign.runs.processes import two_workers
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from minialign.training import TrainingConfig
from minialign.world.corpus import documents
from minialign.world.tasks import demonstrations

PRETRAINED, INSTRUCTED, COMPARED, REWARD, RLHF = "1-pretrained", "2-instructed", "3-comparisons", "4-reward", "5-rlhf"
SHOWN = 200  # documents of the kind that a base has read, to look at
SAMPLING = SamplingConfig(new_tokens=40, temperature=0.7)  # of every stage; 0.7 as Stiennon et al. 2020, in PPO, too


def ppo_settings(updates: int, prompts: int, beta: float, seed: int, gentle: bool = False,
                 asked: int = 32, passes: int = 2) -> PPOConfig:
    """PPO for short completions whose only reward stands at their end: with λ = 1 all of it reaches the first token.

    A policy that can read is sure of its words, and long steps carry it off; `gentle` are four short ones a pass, and
    shorter still where there are few updates: a value function that has just begun to learn makes noisy steps.
    """
    asked = min(asked, prompts)  # prompts a rollout
    rate, minibatch = (1.5e-4 * min(1, updates / 12), 4 * max(1, asked // 4)) if gentle else (8e-4, 4 * asked)
    warmup = max(updates // 10, gentle)  # a value function that knows nothing makes the first step a blind one
    return PPOConfig(updates, asked, 4, SAMPLING.new_tokens, SAMPLING.temperature, passes, minibatch, beta=beta,
                     seed=seed, learning_rate=rate, value_learning_rate=2e-3, value_warmup=warmup, lam=1.0)


@dataclass
class FirstHalf:
    """What the first half of the main job leaves to the second."""

    tokenizer: Tokenizer
    pretrained: LanguageModel
    instructed: LanguageModel
    judged: list[dict]  # demonstrations whose stories were compared
    comparisons: list[dict]  # pairs of summaries of them, with the annotators' choices
    practice: list[dict]  # demonstrations whose prompts PPO practises on
    tests: list[dict]  # demonstrations of stories that nothing trains on


class Demo:
    """The stages, each with its folder, its settings and its seed; `say` is told one line at the start of each."""

    def __init__(self, folder: Path, config: DemoConfig, say: Callable[[str], None] = print, bases: Path = BASES):
        self.folder, self.config, self.say, self.bases = Path(folder), config, say, bases

    @contextmanager
    def stage(self, name: str, what: str):
        """Announce a stage and add its seconds to those of earlier tries."""
        self.say(what)
        give_back_memory()
        started = time.perf_counter()
        try:
            yield
        finally:
            path = self.folder / "seconds.json"
            seconds = read_json(path) if path.exists() else {}
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)
            write_json(path, seconds)

    def run(self) -> dict[str, Any]:
        """All stages, one after the other; returns what summary.json holds, but for the seconds."""
        half = self.run_first_half()
        with self.stage("reward", "4 learning what they like"):
            reward = self.train_reward(half.tokenizer, half.instructed, half.comparisons)
        with self.stage("ppo", "5 optimising against it, at a price for every nat of KL"):
            policy = self.train_policy(half.tokenizer, half.instructed, reward, half.practice)
        with self.stage("evaluate", "6 asking people who labelled nothing"):
            summary = self.evaluate(half, reward, policy)
        return summary | {"parameters": sum(p.numel() for p in policy.parameters()), "seed": self.config.seed,
                          "settings": to_dict(self.config)}

    def run_first_half(self) -> FirstHalf:
        """All that a reward model and PPO need. Claims start from here, too."""
        with self.stage("world", "writing stories, true and false"):
            corpus, demos, judged, practice, tests = self.write_texts()
        tokenizer, pretrained = self.start([document["text"] for document in corpus])
        with self.stage("sft", "2 instruction tuning on clean demonstrations"):
            instructed = self.instruct(tokenizer, pretrained, demos)
        with self.stage("compare", "3 sampling pairs, annotators choose"):
            comparisons = self.read_or_make(f"{COMPARED}/comparisons.jsonl",
                                            lambda: self.compare(tokenizer, pretrained, instructed, judged))
        return FirstHalf(tokenizer, pretrained, instructed, judged, comparisons, practice, tests)

    def read_or_make(self, name: str, make: Callable[[], list[dict]]) -> list[dict]:
        """Records of a JSONL file of the run, made and written when they are not there yet."""
        if not (path := self.folder / name).exists():
            write_jsonl(path, make())
        return read_jsonl(path)

    def write_texts(self) -> list[list[dict]]:
        """Corpus, demonstrations and the later stages' stories, each from its own seed, by two processes side by side.
        """
        c = self.config
        jobs = {
            "documents": (documents, c.documents if c.base == NO_BASE else SHOWN, c.seed_of(1), c.dirt),
            "demonstrations": (demonstrations, c.demonstrations, c.seed_of(2), c.summaries),
            "judged": (demonstrations, c.judged, c.seed_of(3), 1.0),
            "prompts": (demonstrations, c.prompts, c.seed_of(4), 1.0),
            "tests": (demonstrations, c.evaluated, c.seed_of(5), 1.0),
        }
        with two_workers() as pool:
            missing = {name: pool.submit(*job) for name, job in jobs.items()
                       if not (self.folder / "data" / f"{name}.jsonl").exists()}
            return [self.read_or_make(f"data/{name}.jsonl", lambda name=name: missing[name].result()) for name in jobs]

    def start(self, texts: list[str]) -> tuple[Tokenizer, LanguageModel]:
        """Tokenizer and pretrained model: those of the base, or learned here from the texts."""
        if self.config.base == NO_BASE:
            with self.stage("tokenizer", "learning a vocabulary"):
                tokenizer = self.tokenizer(texts)
            with self.stage("pretrain", "1 pretraining on all of it"):
                return tokenizer, self.pretrain(tokenizer, texts)
        with self.stage("pretrain", f"1 starting from {self.config.base}, which has read it"):
            return self.take_base()

    def take_base(self) -> tuple[Tokenizer, LanguageModel]:
        """The base, kept in the run as its first stage, with its card."""
        model, tokenizer, card = load_base(self.bases / self.config.base)

        def keep(run: RunFolder) -> None:
            write_json(self.folder / CARD, card)
            run.forget_after(0)
            for look in card["curve"]:
                run.log({name: look[name] for name in ("step", "loss", "validation")})
            run.finish(model)

        about = {"base": self.config.base, "digest": card["digest"]}
        return tokenizer, self.train_once(PRETRAINED, model, tokenizer, about, keep)

    def tokenizer(self, texts: list[str]) -> Tokenizer:
        """Learned once, then read."""
        path = self.folder / "tokenizer.json"
        if not path.exists():
            write_atomic(path, train_tokenizer(texts[:4000], 1024).to_json())
        return load_tokenizer(path)

    def train_once(self, name: str, model: LanguageModel, tokenizer: Tokenizer, settings: Any,
                   train: Callable[[RunFolder], Any]) -> LanguageModel | ScalarModel:
        """A stage's model: trained in its run folder, or read from it when it is finished."""
        about = describe_model(model) | {"stage": name, "settings": settings}
        with stage_run(RunFolder(self.folder / name), tokenizer, **about) as run:
            if not run.finished:
                train(run)
        return load_model(run.path)[0]

    def settings(self, stage: int, steps: int, learning_rate: float, every: int, **more: Any) -> TrainingConfig:
        """How a stage is trained: in batches of 16, looked at and saved every so many steps."""
        return TrainingConfig(steps, 16, learning_rate, validate_every=every, checkpoint_every=every,
                              seed=self.config.seed_of(stage), **more)

    def pretrain(self, tokenizer: Tokenizer, texts: list[str]) -> LanguageModel:
        """A decoder that has read the dirty corpus."""
        model = LanguageModel(self.config.shape(tokenizer.size), self.config.seed_of(1)).to(default_device())
        settings = self.settings(1, self.config.pretrain_steps, 5e-3, 200)
        split = -max(1, len(texts) // 50)

        def train(run: RunFolder) -> None:
            pretrain(model, tokenizer, texts[:split], texts[split:], settings, run, NextToken(packed=False))

        return self.train_once(PRETRAINED, model, tokenizer, settings, train)

    def instruct(self, tokenizer: Tokenizer, pretrained: LanguageModel, demos: list[dict]) -> LanguageModel:
        """The same decoder after clean demonstrations."""
        model = copy.deepcopy(pretrained)
        rows, _ = demonstration_rows(tokenizer, demos, model.config.context)
        split = -max(32, len(rows) // 50)
        settings = self.settings(2, self.config.sft_steps, self.config.rates[0], 100, final=0.02, weight_decay=0.05)

        def train(run: RunFolder) -> None:
            fine_tune(model, rows[:split], rows[split:], settings, run)

        return self.train_once(INSTRUCTED, model, tokenizer, settings, train)

    def compare(self, tokenizer: Tokenizer, pretrained: LanguageModel, instructed: LanguageModel,
                judged: list[dict]) -> list[dict]:
        """Pairs of summaries from several policies and the references, and which an annotator preferred."""
        candidates = [
            Candidate("sft", instructed, temperature=SAMPLING.temperature),
            Candidate("sft-hot", instructed, temperature=1.0),
            Candidate("pretrained", pretrained, temperature=SAMPLING.temperature),
            Candidate("reference", texts=tuple(d["completion"] for d in judged)),
        ]
        seed, prompts = self.config.seed_of(3), [d["prompt"] for d in judged]
        pairs, _ = sample_pairs(candidates, tokenizer, prompts, SAMPLING, seed, self.config.completions)
        return judge_pairs(pairs, judged, seed)

    def train_reward(self, tokenizer: Tokenizer, instructed: LanguageModel, comparisons: list[dict]) -> ScalarModel:
        """The reward model, normalised on completions of the instruction-tuned model."""
        context, (learned, held_out) = instructed.config.context, split_by_prompt(comparisons)
        ranked, valid = (ranked_rows(tokenizer, part, context)[0] for part in (learned, held_out))
        settings = self.settings(4, self.config.reward_steps, self.config.rates[1], 40, weight_decay=0.01)
        prompts = [d["prompt"] for d in learned[:256]]

        def train(run: RunFolder) -> None:
            generator = torch.Generator().manual_seed(self.config.seed_of(4))
            completions = continue_texts(instructed, tokenizer, prompts, SAMPLING, generator)
            references = completion_rows(tokenizer, prompts, completions, context)
            train_reward_model(instructed, ranked, valid, references, settings, run, self.config.read)

        return self.train_once(REWARD, ScalarModel(instructed.body, read=self.config.read), tokenizer, settings, train)

    def train_policy(self, tokenizer: Tokenizer, instructed: LanguageModel, reward: ScalarModel, practice: list[dict],
                     mix: PretrainingMix | None = None) -> LanguageModel:
        """The policy after PPO, on stories that no other stage has seen, with pretraining text mixed in or without."""
        c, prompts = self.config, prompt_ids(tokenizer, [d["prompt"] for d in practice])
        passes = 2 if c.ppo_updates > 16 else 1  # in a short run sixteen rollouts teach more than eight gone over twice
        settings = ppo_settings(c.ppo_updates, len(prompts), c.beta, c.seed_of(5), c.from_base, passes=passes)

        watch = gold_score_watcher(tokenizer, practice)

        def look(*seen: Any) -> dict[str, float]:
            give_back_memory()  # the tables of each rollout have sizes of their own
            return watch(*seen)

        def train(run: RunFolder) -> None:
            train_ppo(instructed, reward, prompts, settings, run, watch=look, mix=mix)

        return self.train_once(RLHF, instructed, tokenizer, settings, train)

    @property
    def unit(self) -> float:
        """Log-odds that one point of the reward model stands for: what its scores were divided by."""
        return RunFolder(self.folder / REWARD).facts()["reference_deviation"]

    def evaluate(self, half: FirstHalf, reward: ScalarModel, policy: LanguageModel) -> dict[str, Any]:
        """What `evaluation.evaluate` says of the three models."""
        models = {"pretrained": half.pretrained, "sft": half.instructed, "rlhf": policy}
        config = EvaluationConfig(self.unit, SAMPLING, self.config.seed_of(6), self.config.rivals)
        return evaluate(self.folder, half.tokenizer, models, reward, half.comparisons, half.tests, config)
