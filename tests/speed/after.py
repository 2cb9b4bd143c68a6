r"""What the methods after the notes cost beside those that they follow: ratios in one run, for a person to read.

    grpo     time of a GRPO update over that of a PPO update, rollout included: 16 prompts × 8 answers of at most 24
             tokens, one pass, minibatches of 64; the shipped decoder
    qlora    time of a LoRA step on SmolLM2-135M in NF4 over that in float, 1 × 128 tokens, rank 8; the bytes of its
             weights; and the resident memory of a process of either after two steps
    cache    KL of SmolLM2's next token with keys and values of few bits, nats, in the beginning of Macbeth, 2 × 192
             tokens; and with its first token's keys and values left as they are

Run it:  python tests/speed/after.py [--rounds 7]
"""

# ruff: noqa: E402, I001    the imports' order decides how threads wait
from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minialign.runs.process import prepare_process

prepare_process()
import torch
from torch import nn

from minialign.generation import prompt_ids
from minialign.heads import ScalarModel
from minialign.lab.claims import time_ratio
from minialign.lab.claims.grpo_verifiable import TASK, Checked, right
from minialign.lab.claims.qlora import REAL
from minialign.lab.claims.shipped import base, macbeth, questions
from minialign.peft.lora import wrap
from minialign.quant.cache import QuantizedCache, kl_of_cache
from minialign.quant.ptq import module_bytes, quantize
from minialign.quant.scheme import SCHEMES
from minialign.rlhf import grpo, ppo
from minialign.runs.errors import UserError
from minialign.training import adamw


def grpo_over_ppo(rounds: int) -> float:
    """Median ratio of the times of two updates with the same samples."""
    policy, tokenizer = base()
    lines = questions(TASK, 16, 0)
    ids = prompt_ids(tokenizer, [line["prompt"] for line in lines])
    reference, value = copy.deepcopy(policy), ScalarModel(copy.deepcopy(policy.body), head_std=0.0)
    same = {"prompts": 16, "completions": 8, "new_tokens": 24, "minibatch": 64, "epochs": 1}
    relative, proximal = grpo.GRPOConfig(**same), ppo.PPOConfig(**same)
    optimizer = adamw(policy, 1e-9, 0.0)
    learner, check = ppo.Learner(copy.deepcopy(policy), value, proximal), Checked(reference.body, tokenizer, lines, ids)
    chance = torch.Generator().manual_seed(0)

    def by_group() -> None:
        rollout = grpo.collect(policy, reference, tokenizer, lines, ids, right, relative, chance)
        grpo.grpo_update(policy, optimizer, rollout, relative, chance)

    def by_value() -> None:
        learner.set_learning_rates(proximal.updates)  # at the end, 0: both stay what they are
        rollout = ppo.collect(learner.policy, reference, value, check, ids, proximal, chance)
        ppo.estimate_advantages(rollout, proximal.beta, proximal)
        ppo.ppo_update(learner, rollout, chance)

    return time_ratio(by_group, by_value, rounds, alternate=True)


def qlora_over_lora(rounds: int) -> tuple[float, float]:
    """Median ratio of the times of two steps on SmolLM2, and of the bytes of its weights."""
    model, ids = macbeth()
    row, steps, weights = torch.tensor(ids[:128]), {}, {}
    for name in ("lora", "qlora"):
        changed = copy.deepcopy(model)
        changed = quantize(changed, SCHEMES["nf4"])[0] if name == "qlora" else changed
        weights[name] = module_bytes(changed)
        wrapped = wrap(changed, REAL)
        optimizer = adamw(wrapped, 1e-4, 0.0)

        def step(wrapped=wrapped, optimizer=optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(wrapped(row[None, :-1])[0], row[1:]).backward()
            optimizer.step()

        steps[name] = step
    return time_ratio(steps["qlora"], steps["lora"], rounds, alternate=True), weights["qlora"] / weights["lora"]


def resident(name: str) -> float:
    """MiB that a process holds after two LoRA steps on SmolLM2."""
    model, ids = macbeth()
    wrapped = wrap(quantize(model, SCHEMES["nf4"])[0] if name == "qlora" else model, REAL)
    row, optimizer = torch.tensor(ids[:128]), adamw(wrapped, 1e-4, 0.0)
    for _ in range(2):
        nn.functional.cross_entropy(wrapped(row[None, :-1])[0], row[1:]).backward()
        optimizer.step()
    with open("/proc/self/status", encoding="ascii") as status:
        now = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return now / 1024


class FirstInFloat(QuantizedCache):
    """A quantized cache that leaves the first token as it was."""

    def extend(self, layer, key, value):
        """Keys and values read back, the first one's as they came."""
        if self.length == 0:
            self.first = getattr(self, "first", {}) | {layer: (key[:, :, :1], value[:, :, :1])}
        keys, values = super().extend(layer, key, value)
        return tuple(torch.cat([first, rest[:, :, 1:]], dim=2)
                     for first, rest in zip(self.first[layer], (keys, values)))


def cache_table() -> None:
    """Print KL and bytes of each cache."""
    model, ids = macbeth()
    rows = torch.tensor(ids[: 2 * 192]).view(2, 192)
    for kind, bits, by in ((QuantizedCache, 8, "channel"), (QuantizedCache, 4, "channel"), (QuantizedCache, 4, "token"),
                           (FirstInFloat, 4, "channel"), (QuantizedCache, 2, "channel"), (FirstInFloat, 2, "channel")):
        cache = kind(model.config, *rows.shape, bits, 32, by)
        kl = kl_of_cache(model, rows, cache)
        name = f"cache, {bits} bits, keys by {by}{', the first token in float' if kind is FirstInFloat else ''}"
        print(f"{name}: KL {kl[:, 32:96].mean():.4f} at 32 to 96 tokens, {kl[:, 128:].mean():.4f} from 128 on; "
              f"{cache.bytes:,.0f} bytes")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="that the median is taken of (default 7)")
    parser.add_argument("--resident", choices=("lora", "qlora"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.resident:
        print(resident(given.resident))
        return
    rounds = given.rounds
    print(f"GRPO update / PPO update, time: {grpo_over_ppo(rounds):.2f}")
    try:
        time, memory = qlora_over_lora(rounds)
    except UserError as error:
        print(f"QLoRA on SmolLM2: left out ({error})")
        return
    print(f"QLoRA step / LoRA step on SmolLM2, time: {time:.2f}; bytes of the weights: {memory:.2f}")
    memory = {name: float(subprocess.check_output([sys.executable, __file__, "--resident", name]).split()[-1])
                for name in ("lora", "qlora")}
    print("resident memory after two steps, MiB: " + ", ".join(f"{name} {mib:,.0f}" for name, mib in memory.items()))
    cache_table()


if __name__ == "__main__":
    main()
