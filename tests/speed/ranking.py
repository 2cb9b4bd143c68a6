r"""How much faster rank classification is in one padded pass than one option at a time: a ratio, for a person to read;
no test.

The questions are those of the toy world's held-out tasks, the model is the toy T0's encoder-decoder (and a decoder of
its size) with random weights; the one-by-one loop runs the whole model for each option of each question.

Run it:  python tests/speed/ranking.py [--rounds 5]
"""

# ruff: noqa: E402, I001    the imports' order decides how threads wait
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minialign.runs.process import prepare_process

prepare_process()
import torch

from minialign.batching import next_token_batch, text_to_text_batch
from minialign.heads import LanguageModel
from minialign.lab.bases.make import BASES
from minialign.logprobs import sequence_logprobs
from minialign.ranking import option_logprobs
from minialign.runs.run_folder import TOKENIZER
from minialign.tokenizer import END, load_tokenizer
from minialign.transformer import TransformerConfig
from minialign.world.datasets import DATASETS, HELD_OUT, PROMPTS, examples


@torch.no_grad()
def one_by_one(model: LanguageModel, prompts: list[list[int]], options: list[list[list[int]]]) -> list[float]:
    """The plain loop: a whole pass for each option."""
    found = []
    for prompt, choices in zip(prompts, options):
        for option in choices:
            if model.config.kind == "decoder":
                batch = next_token_batch([[*prompt, *option, END]], [len(prompt)])
                logits = model(batch.tokens)
            else:
                batch = text_to_text_batch([prompt], [option])
                logits = model(batch.tokens, batch.inputs, batch.input_mask)
            found.append(float(sequence_logprobs(logits, batch.labels)))
    return found


def main() -> None:
    """Print the ratio for both architectures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="samples of each after the warm-up (5)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    tokenizer = load_tokenizer(BASES / "decoder-0.1m" / TOKENIZER)
    made = examples([name for name in DATASETS if DATASETS[name].cluster in HELD_OUT], 20, 0)
    questions = [PROMPTS[name][i % 6].pose(example) for name, found in made.items() for i, example in enumerate(found)]
    prompts = [[tokenizer.begin, *tokenizer.encode(q.prompt)] for q in questions]
    options = [[tokenizer.encode(" " + option) for option in q.options] for q in questions]
    for kind in ("encoder-decoder", "decoder"):
        layers = 4 if kind == "encoder-decoder" else 8
        model = LanguageModel(TransformerConfig(tokenizer.size, 384, 64, layers, 4, kind)).eval()
        slow = torch.tensor(one_by_one(model, prompts, options))
        torch.testing.assert_close(torch.cat(option_logprobs(model, prompts, options)), slow, atol=1e-3, rtol=1e-4)
        times: dict[str, list[float]] = {"together": [], "one by one": []}
        for _ in range(rounds + 1):
            for name, work in (("together", option_logprobs), ("one by one", one_by_one)):
                began = time.perf_counter()
                work(model, prompts, options)
                times[name].append(time.perf_counter() - began)
        fast, plain = (median(times[name][1:]) for name in times)
        print(f"{kind:<16} {len(questions)} questions: together {fast * 1000:.0f} ms, one by one {plain * 1000:.0f} "
              f"ms, ratio {plain / fast:.1f}")


if __name__ == "__main__":
    main()
