r"""What fine-tuning costs: the LoRA step beside the PEFT library's and beside full fine-tuning, what is kept in memory,
and what serving it costs.

    step       median(full fine-tuning) / median(LoRA)                                               reach: at least 1.2
               median(PEFT's LoRA) / median(LoRA), on the very same model and training step            reach: at least 1
    merged     median(merged model) / median(plain model), reading a batch, and one text                       reach: 1
    mixed      median(a batch that mixes 8 tasks) / median(the same batch for one task)               reach: at most 1.5
    features   median(a step through the frozen body) / median(a step on cached features)
    memory     bytes of AdamW's state; bytes that autograd keeps for the backward pass, also below the lowest
               trained layer (reach: 0)

Size M: 4 layers, width 128, 4 heads, 1024 words, 32 × 128 tokens, fp32; LoRA of rank 8 on queries and values. Details
that matter:
    1. PEFT is given our own model, in which its layers take the place of ours, and our training step: the same 16,384
       numbers train, and before the first step both give the same logits (asserted). What is compared is the LoRA layer
       alone.
    2. PEFT on transformers' GPT-2 is a second peer, as people use it: one matrix c_attn there, so its update covers
       keys as well.
    3. Rounds in turn, the first thrown away, disturbed samples thrown away; see bench.py. --cpu-time counts the
       processor's seconds in place of the clock's, for machines that have a neighbour.
    4. What is kept is counted by saved_tensors_hooks, every storage once, the model's own weights left out.

Run it:  python tests/speed/finetune.py [--rounds 9] [--threads 2] [--only step|merged|mixed|features] [--cpu-time]
[--json FILE]
"""

# ruff: noqa: E402, I001    the imports' order decides how threads wait
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minialign.runs.process import prepare_process

prepare_process()
import torch
import torch.nn.functional as F
from torch import nn

from bench import THREADS, machine, measure
from rivals import LEARNING_RATE, SIZES, Sampler, text_batch, weights
from minialign.classification import LabelledTexts, class_loss
from minialign.heads import Classifier, LanguageModel
from minialign.peft import feature_based, full, lora
from minialign.peft.feature_based import CachedFeatures, feature_loss
from minialign.peft.lora import LoRAConfig
from minialign.peft.many_tasks import serve
from minialign.peft.saving import save
from minialign.peft.trainable import trained
from minialign.pretrain.causal_lm import next_token_loss
from minialign.training import TrainingConfig, adamw, gradient_step

SIZE, UPDATE, TASKS = SIZES["M"], LoRAConfig(rank=8, alpha=16.0), 8
FULL, LORA, PEFT, GPT2 = "full fine-tuning", "LoRA", "LoRA, PEFT on our model", "LoRA, PEFT on transformers' GPT-2"
LIBRARY = {"r": UPDATE.rank, "lora_alpha": UPDATE.alpha}


def base() -> LanguageModel:
    """The model that all begin with."""
    return LanguageModel(SIZE.config(SIZE.context), 0)


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model, random numbers in all that trains, so that no update is 0."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter.data.normal_(0.0, 0.05, generator=generator)
    return model


def timed(work: Callable[[], object], repeats: int, clock: Callable[[], float]) -> Sampler:
    """A sampler of the mean time of `repeats` pieces of work."""

    def sample() -> float:
        began = clock()
        for _ in range(repeats):
            work()
        return (clock() - began) / repeats

    return sample


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's moments, its counters left out."""
    return sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values() if t.dim())


def steps(clock: Callable[[], float]) -> tuple[dict[str, Sampler], dict[str, torch.optim.Optimizer]]:
    """Training steps, next token, and their optimizers."""
    batch, models = text_batch(SIZE), {FULL: full.wrap(base()), LORA: lora.wrap(base(), UPDATE)}
    if importlib.util.find_spec("peft"):
        import peft

        models[PEFT] = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["query", "value"], **LIBRARY),
                                                    base())
        assert len({sum(p.numel() for p in trained(models[name]).values()) for name in (LORA, PEFT)}) == 1
        torch.testing.assert_close(models[PEFT](batch.tokens), models[LORA](batch.tokens))
    else:
        print("peft is missing, its step is left out: pip install -r tests/parity/requirements.txt")
    optimizers = {name: adamw(model, LEARNING_RATE, 0.1) for name, model in models.items()}

    def sampler(name: str) -> Sampler:
        model, optimizer = models[name].train(), optimizers[name]
        return timed(lambda: gradient_step(model, optimizer, [batch], next_token_loss, TrainingConfig(), batch.count),
                     SIZE.repeats, clock)

    found = {name: sampler(name) for name in models}
    if PEFT in models and all(map(importlib.util.find_spec, ("transformers", "trl", "datasets"))):
        found[GPT2] = library_step(batch, clock)
    return found, optimizers


def library_step(batch, clock: Callable[[], float]) -> Sampler:
    """The step as one writes it with transformers and PEFT."""
    import peft
    from peer_huggingface import gpt2

    plain = gpt2(SIZE.config(SIZE.context), SIZE.gelu)
    assert weights(plain) == weights(base())
    model = peft.get_peft_model(plain, peft.LoraConfig(target_modules=["attn.c_attn"], fan_in_fan_out=True,
                                                       **LIBRARY)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE,
                                  betas=(0.9, 0.98), weight_decay=0.1, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=batch.tokens, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return timed(step, SIZE.repeats, clock)


def reading(clock: Callable[[], float]) -> dict[str, Sampler]:
    """A batch, and one text, read by the plain model, by one with LoRA beside the weights, and by one with LoRA merged
    into them."""
    tokens, plain, beside = text_batch(SIZE).tokens, base().eval(), stirred(lora.wrap(base(), UPDATE)).eval()
    merged = lora.merge(stirred(lora.wrap(base(), UPDATE))).eval()
    torch.testing.assert_close(merged(tokens), beside(tokens), atol=1e-4, rtol=1e-4)
    found = {}
    for what, rows, repeats in (("a batch", tokens, SIZE.repeats), ("one text", tokens[:1], 40 * SIZE.repeats)):
        for name, model in (("plain", plain), ("LoRA beside", beside), ("LoRA merged", merged)):

            @torch.inference_mode()
            def read(model=model, rows=rows) -> None:
                model(rows)

            found[f"{what}, {name}"] = timed(read, repeats, clock)
    return found


def tasks(clock: Callable[[], float], folder: Path) -> dict[str, Sampler]:
    """One batch for one task, for eight in turn, and eight tasks one after the other, each with its share of the
    rows."""
    folders = {f"task {i}": save(stirred(lora.wrap(base(), UPDATE), i), folder / str(i)) for i in range(TASKS)}
    serving, tokens, names = serve(base().eval(), folders), text_batch(SIZE).tokens, list(folders)
    mixed = [names[i % TASKS] for i in range(len(tokens))]

    @torch.inference_mode()
    def read(rows: torch.Tensor, for_whom) -> None:
        with serving.rows(for_whom) as model:
            model(rows)

    def in_turn() -> None:
        for i, name in enumerate(names):
            read(tokens[i::TASKS], name)

    work = {"no task": lambda: read(tokens, None), "one task": lambda: read(tokens, names[0])}
    work |= {f"{TASKS} tasks, mixed": lambda: read(tokens, mixed), f"{TASKS} tasks, in turn": in_turn}
    return {name: timed(what, SIZE.repeats, clock) for name, what in work.items()}


def features(clock: Callable[[], float]) -> dict[str, Sampler]:
    """A step of a head on a frozen body, and the same on cached features."""
    tokens = text_batch(SIZE).tokens.tolist()
    texts, found = LabelledTexts(tokens, [i % 2 for i in range(len(tokens))], len(tokens), 0), {}
    for name, repeats in (("through the body", SIZE.repeats), ("on cached features", 100 * SIZE.repeats)):
        model = feature_based.wrap(Classifier(base().body, 2))
        data, loss = (texts, class_loss) if name == "through the body" else (CachedFeatures(model, texts), feature_loss)
        batches, optimizer = data.microbatches(0, 1), adamw(model, LEARNING_RATE, 0.1)

        def step(model=model, optimizer=optimizer, batches=batches, loss=loss) -> None:
            gradient_step(model, optimizer, batches, loss, TrainingConfig(), len(tokens))

        found[name] = timed(step, repeats, clock)
    return found


def kept(model: nn.Module) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of a training step, the weights left out."""
    batch, own, held = text_batch(SIZE), {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is given out twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        next_token_loss(model.train(), batch).backward()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def below_the_lowest() -> int:
    """Bytes kept below a LoRA in the last block: what a deep model keeps more than one of a single block with the same
    LoRA in it."""
    deep, shallow = base(), LanguageModel(replace(SIZE.config(SIZE.context), layers=1), 0)
    lowest, only = (LoRAConfig(8, targets=(name,)) for name in ("blocks.3.attention.query", "query"))
    return kept(lora.wrap(deep, lowest)) - kept(lora.wrap(shallow, only))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="what is measured, and how, stands at "
                                     "the top of this file")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each after the warm-up (9); at least 5 for a "
                        "figure that counts")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"threads of all ({THREADS})")
    parser.add_argument("--only", choices=("step", "merged", "mixed", "features"), help="one kind of work")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds in place of the clock's")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; it must be at least 1")
    return options


RATIOS = {  # what is divided by what, and what is to be reached
    "step": [(FULL, LORA, "at least 1.2"), (PEFT, LORA, "at least 1"), (GPT2, LORA, "")],
    "merged": [(f"{what}, LoRA {how}", f"{what}, plain", reach) for what in ("a batch", "one text") for how,
               reach in (("beside", ""), ("merged", "1"))],
    "mixed": [(f"{TASKS} tasks, mixed", "one task", "at most 1.5"), (f"{TASKS} tasks, in turn", "one task", ""),
              ("one task", "no task", "")],
    "features": [("through the body", "on cached features", "")],
}


def main() -> int:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.simplefilter("ignore", FutureWarning)  # among the peers' libraries
    about = machine() | {"seconds": "of the processor" if options.cpu_time else "of the clock"}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    clock, found, optimizers = time.process_time if options.cpu_time else time.perf_counter, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for part in [options.only] if options.only else RATIOS:
            if part == "step":
                samplers, optimizers = steps(clock)
            else:
                samplers = {"merged": reading, "features": features}[part](clock) if part != "mixed" else tasks(clock,
                    Path(folder))
            found[part] = measure(samplers, options.rounds)
    print(f"{'work':<40} {'ms':>9} {'quiet':>7}")
    for part in found.values():
        for name, (seconds, quiet) in part.items():
            print(f"{name:<40} {seconds * 1000:>9.2f} {quiet:>4}/{options.rounds}")
    ratios = []
    for part, times in found.items():
        ratios += [(a, b, times[a][0] / times[b][0], reach) for a, b, reach in RATIOS[part] if a in times]
    print(f"\n{'ratio of times':<60} {'':>7}  reach")
    for a, b, value, reach in ratios:
        print(f"{a + ' / ' + b:<60} {value:>7.2f}  {reach}")
    sizes = {f"AdamW's state, {name}": state_bytes(optimizer) for name, optimizer in optimizers.items()}
    if optimizers:
        models = {FULL: full.wrap(base()), LORA: lora.wrap(base(), UPDATE)}
        sizes |= {f"kept for the backward pass, {name}": kept(model) for name, model in models.items()}
        sizes["kept below the lowest trained layer, LoRA in the last"] = below_the_lowest()
        print()
    for name, size in sizes.items():
        print(f"{name:<60} {size:>12,} bytes")
    if options.json:
        times = {name: seconds for part in found.values() for name, (seconds, _) in part.items()}
        written = {"machine": about, "times": times, "ratios": {f"{a} / {b}": value for a, b, value, _ in ratios},
                   "bytes": sizes}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
