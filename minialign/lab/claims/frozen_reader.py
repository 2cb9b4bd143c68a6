r"""A reward model on a real language model that stays as it is: SmolLM2 reads a text once, and a linear score of what
one of its blocks says is learned from comparisons.

    r(y) = v · h(y),   h(y) = mean over the tokens of y but the first of what block l left        v: width numbers
    v = argmin  mean over pairs of −log σ(r(chosen) − r(rejected))  +  λ/2 ‖v‖²               Bradley & Terry 1952

The loss is convex, so there is one v, and nothing to draw but the comparisons. The first token is left out because
attention rests on it (notebook 08). Block and λ are chosen on validation comparisons, never on those that are judged.

Read next: reward_scaling.py.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minialign.batching import pad
from minialign.distill.recording import recorded
from minialign.lab.claims import Bench
from minialign.lab.pretrained.smollm2 import load_smollm2
from minialign.rlhf.reward_model import bradley_terry_loss, pair_accuracy
from minialign.runs.files import write_atomic
from minialign.runs.tensors import read_tensors, tensor_file

BLOCKS, DECAYS = (6, 10, 14, 18, 22, 26, 30), (0.1, 0.3, 1.0)  # what is tried
PARAMETERS = 134_515_008  # SmolLM2's
LONGEST, BATCH, FILE = 128, 32, "vectors.safetensors"
Pairs = list[dict]  # {"chosen", "rejected"}, texts


def vectors(bench: Bench, texts: Sequence[str]) -> dict[int, Tensor]:
    """Block -> (n, D) what it says of each text, read once and kept. Raises UserError when SmolLM2 cannot be had."""

    def make(folder: Path) -> None:
        model, tokenizer = load_smollm2()
        rows = [tokenizer.encode(text)[:LONGEST] for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = {block: torch.zeros(len(rows), model.config.width) for block in BLOCKS}
        with torch.inference_mode(), recorded(model.body) as recording:
            for start in range(0, len(order), BATCH):
                names = order[start : start + BATCH]
                tokens, mask = pad([rows[i] for i in names])
                model.body(tokens, mask)
                read = (mask & (mask.cumsum(1) > 1))[:, :, None]  # (B, T, 1)   all real tokens but the first
                for block in BLOCKS:
                    found[block][names] = (recording.hidden[block] * read).sum(1) / read.sum(1).clamp(min=1)
        write_atomic(folder / FILE, tensor_file({str(block): said for block, said in found.items()}))

    folder = bench.cached("smollm2-reads", [list(texts), BLOCKS, LONGEST], make)
    found = read_tensors(folder / FILE)[0]
    return {block: found[str(block)] for block in BLOCKS}


class FrozenReader:
    """Texts as a frozen SmolLM2 reads them, each of the D numbers shifted and scaled to mean 0 and deviation 1 over the
    texts that are learned from.

    Args:
        bench: where what it reads is kept; learned, others: lists of pairs, all whose texts will be asked for.
    """

    def __init__(self, bench: Bench, learned: Pairs, *others: Pairs):
        known, *more = ({pair[side] for pair in pairs for side in ("chosen", "rejected")}
                        for pairs in (learned, *others))
        texts = sorted(known.union(*more))
        self.place = {text: i for i, text in enumerate(texts)}
        rows = [self.place[text] for text in sorted(known)]
        self.said = {block: (said - said[rows].mean(0)) / said[rows].std(0).clamp(min=1e-6)
                     for block, said in vectors(bench, texts).items()}

    def sides(self, pairs: Pairs, block: int) -> tuple[Tensor, Tensor]:
        """(P, D) of the chosen texts, and of the rejected ones."""
        return tuple(self.said[block][[self.place[pair[side]] for pair in pairs]] for side in ("chosen", "rejected"))

    def learn(self, pairs: Pairs, block: int, decay: float) -> Tensor:
        """(D,) v of these pairs, from what a block says, with λ = `decay`."""
        chosen, rejected = self.sides(pairs, block)
        v = torch.zeros(chosen.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([v], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = bradley_terry_loss(chosen @ v, rejected @ v).mean() + decay / 2 * v.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return v.detach()

    def accuracy(self, v: Tensor, pairs: Pairs, block: int) -> float:
        """Share of pairs in which the chosen text scores higher."""
        return pair_accuracy(*(side @ v for side in self.sides(pairs, block)))

    def search(self, pairs: Pairs, valid: Pairs) -> tuple[int, float]:
        """The block and the decay that order the validation comparisons best."""
        tried = {(block, decay): self.accuracy(self.learn(pairs, block, decay), valid, block)
                 for block in BLOCKS for decay in DECAYS}
        return max(tried, key=tried.get)


def drawn_again(pairs: Pairs, count: int, seed: int) -> Pairs:
    """So many of the pairs, with replacement: all there are would give one v whatever the seed."""
    return random.Random(seed).choices(pairs, k=count)
