r"""How it grows: tokens a second, peak memory and the loss after a fixed number of tokens, for decoders of .1 to 12
million parameters and contexts of 128 to 2,048 tokens, on the CPU and, where there is one, on a graphics card.

    reading     a training step (forward, backward, AdamW) of as many rows as make 2,048 tokens, fp32; bf16 on a card
    loss        nats a token of held-out text after --tokens tokens of the toy world's corpus
    peak        of the card, or of the whole process so far: on the CPU it never falls from one size to the next
    ten minutes the largest of these models that reads 20 tokens a parameter in ten minutes: what can be retrained

The table goes between the markers `scaling` of a file (--readme), the two curves into files (--draw).

Run it:  python tests/speed/scaling.py [--sizes .1 .4 1.2 4 12] [--contexts 128 512 2048] [--tokens 200000] [--device
auto] [--readme docs/limits.md] [--draw docs/scaling.png]
"""

# ruff: noqa: E402, I001    the imports' order decides how threads wait
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minialign.runs.process import prepare_process

prepare_process()
import torch

from minialign.batching import pack
from minialign.evaluation import peak_memory_mib
from minialign.heads import LanguageModel
from minialign.lab.claims.page import filled
from minialign.lab.plotting import figure, legend, line, save_png
from minialign.pretrain.causal_lm import PackedText, encode_documents, mean_loss, next_token_loss
from minialign.runs.devices import choose_device, describe_device
from minialign.runs.files import write_atomic
from minialign.tokenizer import train_tokenizer
from minialign.training import TrainingConfig, adamw, gradient_step, learning_rate_at
from minialign.transformer import TransformerConfig
from minialign.world.corpus import documents

SHAPES = {  # millions of parameters -> width, layers, heads
    0.1: (48, 2, 2), 0.4: (96, 3, 3), 1.2: (160, 3, 5), 4.0: (256, 4, 8), 12.0: (384, 6, 6),
}
STEP, WORDS = 2048, 1024  # tokens a step; vocabulary


def rows_of(count: int, context: int, tokenizer) -> tuple[PackedText, PackedText]:
    """The corpus as packed rows, as many as `count` tokens need; and 16 to look at, which come after them."""
    texts, found = [], 0
    for part in range(10_000):
        texts += [document["text"] for document in documents(400, seed=part)]
        found = sum(len(text) for text in texts) // 3
        if found > count + 20 * context:
            break
    rows = pack(encode_documents(tokenizer, texts), context)
    return PackedText(rows[:-16], max(1, STEP // context), 0), PackedText(rows[-16:], 2, 0)


def measure(millions: float, context: int, tokens: int, tokenizer, device: torch.device) -> dict:
    """One decoder, trained on so many tokens: tokens a second, MiB, loss."""
    width, layers, heads = SHAPES[millions]
    model = LanguageModel(TransformerConfig(WORDS, context, width, layers, heads, initial_std=width**-0.5,
                                            activation="relu", short_convolution=4)).to(device)
    data, held_out = rows_of(tokens, context, tokenizer)
    steps = max(4, tokens // (data.order.batch * context))
    config = TrainingConfig(steps=steps, learning_rate=3e-3 * (0.4 / millions) ** 0.5, bf16=device.type != "cpu")
    optimizer, times = adamw(model, config.learning_rate, 0.1), []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        began, batches = time.perf_counter(), data.microbatches(step, 1)
        gradient_step(model, optimizer, batches, next_token_loss, config, sum(batch.count for batch in batches))
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_memory_mib()
    loss = mean_loss(model.eval(), held_out.first())
    return {"parameters": sum(p.numel() for p in model.parameters()), "context": context, "device": str(device.type),
            "tokens_per_second": round(data.order.batch * context / median(times[1:])), "mib": round(peak or 0),
            "loss": round(loss, 3), "tokens": steps * data.order.batch * context}


def in_ten_minutes(found: list[dict]) -> str:
    """What can be retrained in ten minutes, in words."""
    fit = [each for each in found if 600 * each["tokens_per_second"] >= 20 * each["parameters"]]
    if not fit:
        return "None of these reads 20 tokens a parameter in ten minutes."
    best = max(fit, key=lambda each: (each["parameters"], each["context"]))
    return (f"In ten minutes {best['parameters'] / 1e6:.1f} million parameters can be trained on 20 tokens each "
            f"(context {best['context']}, {best['device']}).")


def table(found: list[dict], device: torch.device) -> str:
    """All of it in Markdown."""
    lines = [f"| parameters | context | tokens a second, {describe_device(device)} | peak MiB | loss, nats | tokens |",
             "| ---: | ---: | ---: | ---: | ---: | ---: |"]
    lines += [f"| {each['parameters']:,} | {each['context']} | {each['tokens_per_second']:,} | {each['mib']:,} | "
              f"{each['loss']:.3f} | {each['tokens']:,} |" for each in found]
    return "\n".join([*lines, "", in_ten_minutes(found)])


def draw(found: list[dict], path: Path) -> None:
    """The two curves: speed and loss over the number of parameters, a line for each context."""
    for number, (key, label) in enumerate((("tokens_per_second", "tokens a second"), ("loss", "loss, nats a token"))):
        fig, axes = figure("parameters", label, 6.4, 3.4)
        for i, context in enumerate(sorted({each["context"] for each in found})):
            here = sorted((each["parameters"], each[key]) for each in found if each["context"] == context)
            line(axes, i, *zip(*here), f"context {context}")
        axes.set_xscale("log")
        legend(axes)
        save_png(fig, path.with_name(f"{path.stem}-{('speed', 'loss')[number]}.png"))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=float, choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 512, 2048])
    parser.add_argument("--tokens", type=int, default=200_000, help="that each model reads")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--readme", type=Path, help="the file between whose markers `scaling` the table goes")
    parser.add_argument("--draw", type=Path, help="the figures' names begin so")
    asked = parser.parse_args(arguments)
    device = choose_device(asked.device)
    torch.manual_seed(0)
    tokenizer = train_tokenizer([document["text"] for document in documents(2000, seed=0)], WORDS)
    found = []
    for millions in asked.sizes:
        for context in asked.contexts:
            found.append(measure(millions, context, asked.tokens, tokenizer, device))
            print(json.dumps(found[-1]), flush=True)
    print(table(found, device))
    if asked.draw:
        draw(found, asked.draw)
    if asked.readme:
        write_atomic(asked.readme, filled(asked.readme, {"scaling": table(found, device)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
