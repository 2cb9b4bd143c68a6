r"""The main job: the three-step recipe, from dirty text to an aligned model, on a world in which every statement can be
checked.

    dirty corpus → tokenizer → pretrained decoder → instruction-tuned on clean demonstrations → pairs of answers →
    annotators choose → reward model → PPO against the frozen instruction-tuned reference → evaluation by the gold score
    and by people who labelled nothing

(Stiennon et al. 2020, Fig. 2; Ouyang et al. 2022, Fig. 2.) Every arrow is a file in the run folder that a person can
open. A stage whose result is there is not done again, so a run that was stopped goes on where it was, to the same bits.

Nothing that trains ever sees the gold score; the annotators of the win rates are not those whose choices trained the
reward model.

Read next: the files of each stage, in the order above. Try it:  python -m minialign
"""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from minialign.generation import SamplingConfig, continue_texts, prompt_ids
from minialign.heads import LanguageModel, ScalarModel, describe_model, load_model
from minialign.instruct.sft import demonstration_rows, fine_tune
from minialign.lab.demo.evaluation import evaluate, gold_watch, judge_pairs
from minialign.lab.demo.settings import DemoConfig
from minialign.pretrain.causal_lm import NextToken
from minialign.pretrain.pretrain import pretrain
from minialign.rlhf.comparisons import Candidate, sample_pairs, split_by_prompt
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.rlhf.ranked import ranked_rows
from minialign.rlhf.reward_model import answer_rows, train_reward_model
from minialign.runs.files import read_json, read_jsonl, write_atomic, write_json, write_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from minialign.training import TrainingConfig
from minialign.world.corpus import written_documents
from minialign.world.tasks import demonstrations

PRETRAINED, INSTRUCTED, COMPARED, REWARD, RLHF = "1-pretrained", "2-instructed", "3-comparisons", "4-reward", "5-rlhf"
# how every stage answers; Stiennon et al. 2020 sampled at 0.7 in PPO, too
SAMPLING = SamplingConfig(new_tokens=40, temperature=0.7)


def ppo_settings(updates: int, prompts: int, beta: float, seed: int) -> PPOConfig:
    """PPO for answers of twenty tokens whose only reward stands at their end: with λ = 1 all of it reaches the first
    token."""
    asked, length, temperature = min(32, prompts), SAMPLING.new_tokens, SAMPLING.temperature
    rates = {"learning_rate": 8e-4, "value_learning_rate": 2e-3, "value_warmup": updates // 10, "lam": 1.0}
    return PPOConfig(updates, asked, 4, length, temperature, minibatch=4 * asked, beta=beta, seed=seed, **rates)


@dataclass
class Made:
    """What the first half of the main job leaves to the second."""

    tokenizer: Tokenizer
    pretrained: LanguageModel
    instructed: LanguageModel
    comparisons: list[dict]  # judged pairs
    practice: list[dict]  # demonstrations whose prompts PPO practises on
    tests: list[dict]  # demonstrations of stories that nothing trains on


class Demo:
    """The stages, each with its folder, its settings and its seed.

    Args:
        folder: of the whole run.
        config: its settings.
        say: told one line at the start of each stage.
    """

    def __init__(self, folder: Path, config: DemoConfig, say: Callable[[str], None] = print):
        self.folder, self.config, self.say = Path(folder), config, say

    @contextmanager
    def stage(self, name: str, what: str):
        """Announce a stage and add its seconds to those of earlier tries."""
        self.say(what)
        started = time.perf_counter()
        try:
            yield
        finally:
            path = self.folder / "seconds.json"
            seconds = read_json(path) if path.exists() else {}
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)
            write_json(path, seconds)

    def once(self, name: str, make: Callable[[], list[dict]]) -> list[dict]:
        """Records of a JSONL file of the run, made and written when they are not there yet."""
        if not (path := self.folder / name).exists():
            write_jsonl(path, make())
        return read_jsonl(path)

    def run(self) -> dict[str, Any]:
        """All stages, one after the other; returns what summary.json holds, but for the seconds."""
        made = self.until_comparisons()
        with self.stage("reward", "4 learning what they like"):
            reward = self.rewarded(made.tokenizer, made.instructed, made.comparisons)
        with self.stage("ppo", "5 optimising against it, at a price for every nat of KL"):
            policy = self.optimised(made.tokenizer, made.instructed, reward, made.practice)
        with self.stage("evaluate", "6 asking people who labelled nothing"):
            models = {"pretrained": made.pretrained, "sft": made.instructed, "rlhf": policy}
            summary = evaluate(
                self.folder, made.tokenizer, models, reward, self.unit, made.comparisons, made.tests, SAMPLING,
                self.config.seed_of(6)
            )
        return summary | {"parameters": sum(p.numel() for p in policy.parameters()), "seed": self.config.seed,
                          "settings": to_dict(self.config)}

    def until_comparisons(self) -> Made:
        """The first half: all that a reward model and PPO need. Claims start from here, too."""
        with self.stage("world", "writing stories, true and false"):
            corpus, demos, judged, practice, tests = self.written()
        with self.stage("tokenizer", "learning a vocabulary"):
            tokenizer = self.tokenizer([d["text"] for d in corpus])
        with self.stage("pretrain", "1 pretraining on all of it"):
            pretrained = self.pretrained(tokenizer, [d["text"] for d in corpus])
        with self.stage("sft", "2 instruction tuning on clean demonstrations"):
            instructed = self.instructed(tokenizer, pretrained, demos)
        with self.stage("compare", "3 sampling pairs, annotators choose"):
            comparisons = self.once(f"{COMPARED}/comparisons.jsonl", lambda: self.compared(tokenizer, pretrained,
                instructed, judged))
        return Made(tokenizer, pretrained, instructed, comparisons, practice, tests)

    def written(self) -> list[list[dict]]:
        """Corpus, demonstrations, and the stories of the later stages, each from a seed of its own: two processes write
        them side by side."""
        c = self.config
        jobs = {
            "documents": (written_documents, c.documents, c.seed_of(1), c.dirt),
            "demonstrations": (demonstrations, c.demonstrations, c.seed_of(2), c.summaries),
            "judged": (demonstrations, c.judged, c.seed_of(3), 1.0),
            "prompts": (demonstrations, c.prompts, c.seed_of(4), 1.0),
            "tests": (demonstrations, c.evaluated, c.seed_of(5), 1.0),
        }
        # Ctrl-C is for the one that waits
        ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
        with ProcessPoolExecutor(2, mp_context=get_context("spawn"), **ignore) as pool:
            missing = {name: pool.submit(*job) for name, job in jobs.items()
                       if not (self.folder / "data" / f"{name}.jsonl").exists()}
            return [self.once(f"data/{name}.jsonl", lambda name=name: missing[name].result()) for name in jobs]

    def tokenizer(self, texts: list[str]) -> Tokenizer:
        """Learned once, then read."""
        path = self.folder / "tokenizer.json"
        if not path.exists():
            write_atomic(path, train_tokenizer(texts[:4000], 1024).to_json())
        return load_tokenizer(path)

    def trained(self, name: str, model: LanguageModel, tokenizer: Tokenizer, settings: Any,
                stage: Callable[[RunFolder], Any]) -> LanguageModel | ScalarModel:
        """A stage's model: trained in its run folder, or read from it when it is finished."""
        run = RunFolder(self.folder / name)
        with run.locked():
            run.begin({**describe_model(model), "stage": name, "settings": to_dict(settings)}, tokenizer)
            if not run.finished:
                stage(run)
        return load_model(run.path)[0]

    def pretrained(self, tokenizer: Tokenizer, texts: list[str]) -> LanguageModel:
        """A decoder that has read the dirty corpus."""
        c = self.config
        model = LanguageModel(c.shape(tokenizer.size), c.seed_of(1))
        settings = TrainingConfig(c.pretrain_steps, 16, 5e-3, validate_every=200, checkpoint_every=200,
                                  seed=c.seed_of(1))
        split = -max(1, len(texts) // 50)
        def train(run):
            return pretrain(model, tokenizer, texts[:split], texts[split:], settings, run, NextToken(packed=False))
        return self.trained(PRETRAINED, model, tokenizer, settings, train)

    def instructed(self, tokenizer: Tokenizer, pretrained: LanguageModel, demos: list[dict]) -> LanguageModel:
        """The same decoder after clean demonstrations."""
        c = self.config
        model = copy.deepcopy(pretrained)
        rows, _ = demonstration_rows(tokenizer, demos, model.config.context)
        split = -max(32, len(rows) // 50)
        settings = TrainingConfig(c.sft_steps, 16, 4e-3, final=0.02, weight_decay=0.05, validate_every=100,
                                  checkpoint_every=100, seed=c.seed_of(2))
        def train(run):
            return fine_tune(model, rows[:split], rows[split:], settings, run)
        return self.trained(INSTRUCTED, model, tokenizer, settings, train)

    def compared(self, tokenizer: Tokenizer, pretrained: LanguageModel, instructed: LanguageModel,
                 judged: list[dict]) -> list[dict]:
        """Pairs of summaries from several policies and the references, and which an annotator preferred."""
        candidates = [
            Candidate("sft", instructed, temperature=SAMPLING.temperature),
            Candidate("sft-hot", instructed, temperature=1.0),
            Candidate("pretrained", pretrained, temperature=SAMPLING.temperature),
            Candidate("reference", texts=tuple(d["completion"] for d in judged)),
        ]
        seed = self.config.seed_of(3)
        pairs, _ = sample_pairs(candidates, tokenizer, [d["prompt"] for d in judged], SAMPLING, seed,
                                self.config.answers)
        return judge_pairs(pairs, judged, seed)

    @property
    def unit(self) -> float:
        """Log-odds that one point of the reward model stands for: by what its scores were divided when they were
        normalised."""
        return RunFolder(self.folder / REWARD).facts()["reference_deviation"]

    def rewarded(self, tokenizer: Tokenizer, instructed: LanguageModel, comparisons: list[dict]) -> ScalarModel:
        """The reward model, normalised on answers of the instruction-tuned model."""
        c = self.config
        learned, held_out = split_by_prompt(comparisons)
        ranked, valid = (ranked_rows(tokenizer, part, instructed.config.context)[0] for part in (learned, held_out))
        settings = TrainingConfig(c.reward_steps, 16, 1.5e-3, weight_decay=0.01, validate_every=40, checkpoint_every=40,
                                  seed=c.seed_of(4))
        prompts = [d["prompt"] for d in learned[:256]]

        def train(run: RunFolder) -> None:
            answers = continue_texts(instructed, tokenizer, prompts, SAMPLING,
                                     torch.Generator().manual_seed(c.seed_of(4)))
            train_reward_model(instructed, ranked, valid, answer_rows(tokenizer, prompts, answers,
                instructed.config.context), settings, run)

        return self.trained(REWARD, ScalarModel(instructed.body), tokenizer, settings, train)

    def optimised(self, tokenizer: Tokenizer, instructed: LanguageModel, reward: ScalarModel,
                  practice: list[dict]) -> LanguageModel:
        """The policy after PPO, on stories that no other stage has seen."""
        c = self.config
        prompts = prompt_ids(tokenizer, [d["prompt"] for d in practice])
        settings = ppo_settings(c.ppo_updates, len(prompts), c.beta, c.seed_of(5))
        def train(run):
            return train_ppo(instructed, reward, prompts, settings, run,
                                              watch=gold_watch(tokenizer, practice))
        return self.trained(RLHF, instructed, tokenizer, settings, train)
