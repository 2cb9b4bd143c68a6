r"""The loss of PPO's policy, with one bug."""

import torch


def ppo_loss(logprobs, rollout_logprobs, advantages, clip):
    """(N,) log-probabilities now and when sampled, (N,) advantages; clip: ε. Returns the (N,) losses of the tokens, to
    be minimised."""
    ratio = (logprobs - rollout_logprobs).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.minimum(plain, clipped)
