r"""Log-probabilities of what was said, and averages that look at real tokens only.

    log π(y|x) = Σₜ log π(yₜ | x, y₍<t₎)                   the chain rule; every method from SFT to PPO stands on it

Who predicts whom is said twice: batching.py shifts the labels of whole rows, and `predicting_vectors` begins with the
prompt's last token, which predicts the completion's first. Everything else takes logits aligned with their tokens.

Read next: generation.py.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.batching import IGNORE, pad
from minialign.cache import Cache
from minialign.heads import LanguageModel, read_completions
from minialign.runs.devices import device_of


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """(...) log π(token), nats, of ids `tokens` (...) under the logits (..., V) that predict them. What was sampled at
    a temperature must be scored at it (test_the_logprob_is_that_of_the_distribution_sampled_from)."""
    logits = logits / temperature if temperature != 1.0 else logits
    return -F.cross_entropy(logits.flatten(0, -2).float(), tokens.flatten(), reduction="none").view(tokens.shape)


def predicting_vectors(body: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]],
                       of: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A decoder's vectors from which each completion token is predicted: the prompt's last one for the first, and so
    on.

    Args:
        body: a decoder's stack.
        prompts: B lists of at least one id, read once for all their completions; completions: N lists of at least one
            id.
        of: (N,) which prompt each completion goes on from.
    Returns:
        (N, T, D) vectors, and mask (N, T), true at real tokens.
    """
    read = [[prompts[p][-1], *completion[:-1]] for p, completion in zip(of, completions)]
    return read_completions(body, [prompt[:-1] for prompt in prompts], read, of)


def encoder_decoder_vectors(model: LanguageModel, prompts: Sequence[Sequence[int]],
                            completions: Sequence[Sequence[int]], of: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The same of an encoder-decoder: the encoder reads each prompt once, the decoder its begin token once, and then
    every completion."""
    device = device_of(model)
    tokens, mask = pad(completions, device=device)  # (N, T)
    of = torch.as_tensor(of, device=device)
    inputs, input_mask = pad(prompts, device=device)  # (B, S)
    cache = Cache(model.config, len(prompts), tokens.shape[1], device=device)
    memory = model.body.encoder(inputs, input_mask)
    begin = torch.full((len(prompts), 1), model.special.begin, device=device)
    first = model.body.decoder(begin, None, cache, memory, input_mask)  # (B, 1, D)
    cache.repeat(of)
    first = first.index_select(0, of)  # (N, 1, D)
    if tokens.shape[1] == 1:  # the begin token alone predicts it
        return first, mask
    rest = model.body.decoder(tokens[:, :-1], mask[:, :-1], cache, memory, input_mask[of])  # (N, T − 1, D)
    return torch.cat([first, rest], dim=1), mask


def completion_logprobs(model: LanguageModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]],
                        of: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(N, T) log π of each completion token, nats, 0 at padding; and mask (N, T). Arguments as in
    `predicting_vectors`."""
    if model.config.kind == "encoder-decoder":
        hidden, mask = encoder_decoder_vectors(model, prompts, completions, of)
    else:
        hidden, mask = predicting_vectors(model.body, prompts, completions, of)
    # (M,) all completions in one line
    said = torch.tensor([token for completion in completions for token in completion], device=mask.device)
    found = torch.zeros(mask.shape, device=mask.device)
    return found.masked_scatter(mask, token_logprobs(model.logits(hidden[mask]), said)), mask


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over all labels of −log π(label), nats; (..., V) logits, (...) labels, IGNORE counts nothing."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")


def sequence_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) Σₜ log π(labelₜ) of each row: logits (B, T, V), labels (B, T) with IGNORE where nothing counts."""
    counted = labels != IGNORE
    return token_logprobs(logits, labels.clamp(min=0)).masked_fill(~counted, 0.0).sum(dim=1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(...) −Σ p log p of each distribution in logits (..., V), nats; in [0, log V]."""
    return torch.special.entr((logits / temperature).softmax(dim=-1)).sum(dim=-1)  # −p log p, 0 at p = 0


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is true; what stands elsewhere, NaN included, has no influence. 0 for an empty mask."""
    return x.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of x where mask is true (divided by n, as OpenAI's released code does; TRL's by n − 1)."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Variance 1, and mean 0 unless `shift_mean` is off (rewards keep theirs), over the real tokens; 0 elsewhere.

    `eps` is added to the variance. Source: Ziegler et al. 2019, released code; "whitening" of rewards and advantages.
    """
    mean = masked_mean(x, mask)
    whitened = (x - mean) * torch.rsqrt(masked_variance(x, mask) + eps)
    return (whitened if shift_mean else whitened + mean).masked_fill(~mask, 0.0)
