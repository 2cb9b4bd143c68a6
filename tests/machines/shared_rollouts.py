"""PPO or GRPO on a few prompts, in as many processes as the environment says: python shared_rollouts.py KIND FOLDER."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import build

from minialign.heads import ScalarModel
from minialign.rlhf.grpo import GRPOConfig, train_grpo
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.runs.processes import leave_processes
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import train_tokenizer

PROMPTS = [[1, 30, 31, 32], [1, 40], [1, 50, 51, 52, 53, 54], [1, 60, 61]] * 3
SHORT = {"updates": 6, "prompts": 4, "completions": 2, "minibatch": 4, "new_tokens": 6, "learning_rate": 1e-3}



def ends_soon():
    """A policy that ends one completion in five at each token, so that the processes' shares are of different sizes."""
    policy = build(seed=2)
    with torch.no_grad():
        vector = policy.body(torch.randint(20, 320, (8, 8), generator=torch.Generator().manual_seed(0))).mean((0, 1))
        policy.body.token_embedding.weight[2] = vector * 4.5 / vector.dot(vector)
    return policy


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    policy, run = ends_soon(), RunFolder(folder)
    if kind == "ppo":
        reward = ScalarModel(build(seed=3).body, seed=4)
        train_ppo(policy, reward, PROMPTS, PPOConfig(**SHORT, epochs=2), run)
    else:
        tokenizer = train_tokenizer(["Mira lost the kite. Tom found it. yes no"] * 4, 300)
        how = GRPOConfig(**SHORT, average=kind.partition("-")[2] or "answer", drop_even=True)
        train_grpo(policy, tokenizer, [{"prompt": ""}] * len(PROMPTS), PROMPTS,
                   lambda example, text: len(text) % 3, how, run)
    leave_processes()
