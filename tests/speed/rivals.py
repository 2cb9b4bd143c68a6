"""The rivals: each kind of work once ours and once the peers', with the same shapes and the same number of weights.

Every function here takes a size and gives samplers, ours first; bench.py lets them take turns. The peers' libraries are
imported only where they are needed.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from peer_gpt import PeerGPT, peer_adamw, peer_step

from minialign.batching import Batch
from minialign.generation import SamplingConfig, generate
from minialign.heads import LanguageModel, ScalarModel
from minialign.pretrain.causal_lm import next_token_loss
from minialign.rlhf.ppo import Learner, PPOConfig, collect, estimate_advantages, ppo_update, rollout_metrics
from minialign.tokenizer import END
from minialign.training import TrainingConfig, adamw, gradient_step
from minialign.transformer import TransformerConfig

LEARNING_RATE = 1e-5  # small: what is timed must not drift while it is timed

Sampler = Callable[[], float]  # does the work once more and returns its seconds


@dataclass(frozen=True)
class Size:
    """Shape of a model and of its training batch."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    batch: int  # B of a training step
    context: int  # T of a training step
    repeats: int  # pieces of work in one sample, so that no sample is shorter than some tenths of a second
    # of transformers' and TRL's models: gelu (as ours, the fastest) | gelu_new (GPT-2's default there)
    gelu: str = "gelu"

    def config(self, context: int) -> TransformerConfig:
        """Our model of this size: GPT-2's architecture."""
        return TransformerConfig(self.vocabulary, context, self.width, self.layers, self.heads, positions="learned")


SIZES = {"S": Size(2, 64, 4, 512, 64, 64, 6), "M": Size(4, 128, 4, 1024, 32, 128, 2),
         "L": Size(6, 384, 6, 4096, 8, 256, 1)}


@dataclass(frozen=True)
class Part:
    """One kind of work."""

    work: str  # its name in the table
    rivals: Callable[[Size], dict[str, Sampler]]  # ours first
    reach: dict[str, float]  # the ratio to the first peer that is to be reached at each size
    sizes: str  # those at which it is measured
    needs: tuple[str, ...] = ()  # libraries of the peers


def timed(work: Callable[[], object], repeats: int) -> Sampler:
    """A sampler of the mean time of `repeats` pieces of work."""

    def sample() -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - began) / repeats

    return sample


def text_batch(size: Size) -> Batch:
    """Random text."""
    rows = torch.randint(4, size.vocabulary, (size.batch, size.context + 1))
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), torch.ones(size.batch, size.context,
        dtype=torch.bool), list(range(size.batch)))


def our_step(model: LanguageModel, size: Size, batch: Batch, bf16: bool = False) -> Sampler:
    """A sampler of our training step."""
    optimizer, config = adamw(model, LEARNING_RATE, 0.1), TrainingConfig(bf16=bf16)
    return timed(lambda: gradient_step(model, optimizer, [batch], next_token_loss, config, batch.count), size.repeats)


def training_step(size: Size) -> dict[str, Sampler]:
    """Our training step and the peer's, which begin with the same weights."""
    model, batch = LanguageModel(size.config(size.context)), text_batch(size)
    peer = PeerGPT(model)
    assert weights(model) == weights(peer)
    torch.testing.assert_close(next_token_loss(model, batch) / batch.count, peer(batch.tokens, batch.labels), atol=1e-5,
                               rtol=1e-5)
    optimizer = peer_adamw(peer, LEARNING_RATE)
    return {"minialign": our_step(model, size, batch), "nanoGPT": timed(lambda: peer_step(peer, optimizer, batch.tokens,
        batch.labels), size.repeats)}


def half_precision_step(size: Size) -> dict[str, Sampler]:
    """Our training step in bfloat16 and in fp32."""
    model, batch = LanguageModel(size.config(size.context)), text_batch(size)
    return {"minialign": our_step(copy.deepcopy(model), size, batch, bf16=True),
            "itself in fp32": our_step(model, size, batch)}


def sampling(size: Size) -> dict[str, Sampler]:
    """64 × (32 + 32) tokens: ours and transformers'."""
    from peer_huggingface import gpt2, sample

    model = LanguageModel(size.config(64)).eval()
    peer = gpt2(model.config, size.gelu)
    assert weights(model) == weights(peer)
    prompts, chance, config = torch.randint(4, size.vocabulary,
                                            (64, 32)), torch.Generator().manual_seed(0), SamplingConfig(32)
    answers, logprobs = sample(peer, prompts, 32)
    assert answers.shape == logprobs.shape == (64, 32)
    rows = prompts.tolist()
    ours = timed(lambda: generate(model, rows, config, chance, stop_early=False), size.repeats)
    return {"minialign": ours, "transformers": timed(lambda: sample(peer, prompts, 32), size.repeats)}


def ppo(size: Size) -> dict[str, Sampler]:
    """One PPO update, 64 × (16 + 24) tokens: ours, TRL's, and TRL's without gc.collect."""
    from peer_huggingface import trl_update

    policy, prompts = endless(LanguageModel(size.config(40))), torch.randint(4, size.vocabulary, (64, 16))
    reference, reward = copy.deepcopy(policy).eval(), ScalarModel(copy.deepcopy(policy.body)).eval()
    config = PPOConfig(prompts=64, new_tokens=24, epochs=4, minibatch=16, learning_rate=LEARNING_RATE,
                       value_learning_rate=LEARNING_RATE, beta=0.05)
    learner = Learner(policy, ScalarModel(copy.deepcopy(policy.body), head_std=0.0), config)
    rows, chance = prompts.tolist(), torch.Generator().manual_seed(0)

    def update() -> None:
        rollout = collect(learner.policy, reference, learner.value, reward, rows, config, chance)
        assert rollout.mask.all() and rollout.mask.shape == (64, 24)
        rollout_metrics(rollout, config.beta)
        estimate_advantages(rollout, config.beta, config)
        ppo_update(learner, rollout, chance)

    theirs = trl_update(policy.config, size.gelu, prompts, 24, 4, 16, LEARNING_RATE)

    def theirs_without_collection() -> float:
        with mock.patch.object(gc, "collect", lambda *_: 0):
            return theirs()

    return {"minialign": timed(update, 1), "TRL": theirs, "TRL without gc.collect": theirs_without_collection}


def weights(model: torch.nn.Module) -> int:
    """How many numbers a model has; a shared table counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def endless(model: LanguageModel) -> LanguageModel:
    """The model, its end token made as unlikely as e⁻¹⁰⁰: the last norm's first output is always 1, and the end token's
    vector −100 there."""
    with torch.no_grad():
        model.body.norm.weight[0], model.body.norm.bias[0] = 0.0, 1.0
        model.body.token_embedding.weight[END, 0] = -100.0
    return model


PARTS = {
    "train": Part("training step, fp32", training_step, {"S": 1.0, "M": 1.0, "L": 1.0}, "SML"),
    "bf16": Part("training step, bf16", half_precision_step, {"L": 1.6}, "SML"),
    "sample": Part("sampling 64 × (32 + 32)", sampling, {"S": 1.9, "M": 1.4, "L": 1.25}, "SML",
                   ("transformers", "trl", "datasets", "accelerate")),
    "ppo": Part("PPO update 64 × (16 + 24)", ppo, {"S": 2.5, "M": 1.5}, "SM",
                ("transformers", "trl", "datasets", "accelerate")),
}
