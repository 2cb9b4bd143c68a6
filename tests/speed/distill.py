r"""What a step of distillation costs beside what it cannot do without, and beside the same step written with the
transformers library.

    overhead = median(step) / (median(the student's own step) + median(the teacher's pass)) − 1      reach: at most 10 %
    ratio    = median(the library's step) / median(step)                                               reach: at least 1
    cached   = median(step with a warm cache) / median(the student's own step)                       reach: at most 1.05

Teacher of 6 layers, student of 2, width 256, 4 heads, 4096 words, 16 × 128 tokens, fp32; soft targets with labels (T =
2), and all three parts of DistilGPT-2. Both sides clip the gradient and step the same fused AdamW; the library's side
is the usual one: logits of both models, kl_div, cross_entropy, with its fastest settings (peer_huggingface.py). Both
see the same numbers of weights. Rounds in turn, the first thrown away, disturbed samples thrown away; see bench.py.
--cpu-time counts the seconds that the processor worked for us in place of those of the clock, for machines that have a
neighbour: with one thread it is nearly the time of a quiet machine.

Run it:  python tests/speed/distill.py [--rounds 9] [--threads 2] [--vocabulary 4096] [--cpu-time] [--json FILE]
"""

# ruff: noqa: E402, I001    the imports' order decides how threads wait
from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minialign.runs.process import prepare_process

prepare_process()
import torch
import torch.nn.functional as F

from bench import THREADS, machine, measure
from rivals import LEARNING_RATE, Sampler, Size, our_step, text_batch, weights
from minialign.distill.distilgpt2 import DISTILGPT2
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.heads import LanguageModel
from minialign.lab.teacher_cache import CacheConfig, CachedSoftTargets
from minialign.training import TrainingConfig, adamw, gradient_step

SOFT = SoftTargetConfig(temperature=2.0, soft=1.0, hard=1.0)
STUDENT, TEACHER = "the student's own step", "the teacher's pass"
STEP, FULL, LIBRARY = "soft targets and labels", "all of DistilGPT-2", "soft targets and labels, transformers"
FILLING = "soft targets and labels, filling the cache"
CACHED, TOP = "soft targets and labels, cached", "soft targets and labels, cached top 32"


def shape(layers: int, vocabulary: int) -> Size:
    """A model and the batch that it reads."""
    return Size(layers, 256, 4, vocabulary, 16, 128, 1)


def timed(work: Callable[[], object], clock: Callable[[], float]) -> Sampler:
    """A sampler of one piece of work."""

    def sample() -> float:
        began = clock()
        work()
        return clock() - began

    return sample


def their_step(teacher, student, batch, temperature: float) -> Callable[[], None]:
    """The step as one writes it with the library."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1,
                                  fused=True)
    student.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            theirs = teacher(batch.tokens, use_cache=False).logits.flatten(0, 1)
        ours = student(batch.tokens, use_cache=False).logits.flatten(0, 1)
        soft = F.kl_div((ours / temperature).log_softmax(-1), (theirs / temperature).softmax(-1),
                        reduction="batchmean") * temperature**2
        (soft + F.cross_entropy(ours, batch.labels.flatten())).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    return step


def rivals(vocabulary: int, folder: Path, clock: Callable[[], float]) -> tuple[dict[str, Sampler], dict[str, int]]:
    """All pieces of work, and the bytes of each cache."""
    large, small = shape(6, vocabulary), shape(2, vocabulary)
    teacher, batch, config = LanguageModel(large.config(128), 0).eval(), text_batch(small), TrainingConfig()
    def new():
        return LanguageModel(small.config(128), 1)

    def ours(recipe: SoftTargets) -> Sampler:
        student = new()
        recipe.begin(student)
        optimizer = adamw(student, LEARNING_RATE, 0.1)
        return timed(lambda: gradient_step(student, optimizer, [batch], recipe, config, batch.count), clock)

    @torch.inference_mode()
    def read() -> None:
        teacher(batch.tokens)

    caches = {CACHED: CacheConfig(str(folder)), TOP: CacheConfig(str(folder), top_k=32)}
    recipes = {name: CachedSoftTargets(teacher, SOFT, cache) for name, cache in caches.items()}
    found = {STUDENT: timed(our_step(new(), small, batch), clock), TEACHER: timed(read, clock)}
    found |= {STEP: ours(SoftTargets(teacher, SOFT)), FULL: ours(SoftTargets(teacher, DISTILGPT2))}
    found |= {name: ours(recipe) for name, recipe in recipes.items()}
    forgetful = CachedSoftTargets(teacher, SOFT, CacheConfig(str(folder / "filled")))
    step = ours(forgetful)

    def filling() -> float:
        forgetful.cache.rows.clear()
        return step()

    found[FILLING] = filling
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("trl"):
        from peer_huggingface import gpt2

        models = [gpt2(model.config, "gelu") for model in (teacher, new())]
        assert [weights(model) for model in models] == [weights(model) for model in (teacher, new())]
        found[LIBRARY] = timed(their_step(*models, batch, SOFT.temperature), clock)
    else:
        print("transformers is missing, its step is left out: pip install -r tests/parity/requirements.txt")
    for recipe in recipes.values():
        recipe(new(), batch)  # fills the cache
    return found, {name: recipe.cache.bytes for name, recipe in recipes.items()}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="what is measured, and how, stands at "
                                     "the top of this file")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each after the warm-up (9); at least 5 for a "
                        "figure that counts")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"threads of all ({THREADS})")
    parser.add_argument("--vocabulary", type=int, default=4096, help="words (4096)")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's seconds in place of the clock's")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; it must be at least 1")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    about = machine() | {"vocabulary": options.vocabulary, "seconds": "of the processor" if options.cpu_time
                         else "of the clock"}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    with tempfile.TemporaryDirectory() as folder:
        samplers, sizes = rivals(options.vocabulary, Path(folder), time.process_time if options.cpu_time
                                 else time.perf_counter)
        found = measure(samplers, options.rounds)
    print(f"{'work':<40} {'ms':>8} {'quiet':>7}")
    for name, (seconds, quiet) in found.items():
        print(f"{name:<40} {seconds * 1000:>8.1f} {quiet:>4}/{options.rounds}")
    times = {name: seconds for name, (seconds, _) in found.items()}
    needed = times[STUDENT] + times[TEACHER]
    ratios = {f"{name}: more than student and teacher alone": times[name] / needed - 1
              for name in (STEP, FULL, FILLING)}
    ratios |= {f"{name}: times the student's own step": times[name] / times[STUDENT] for name in (CACHED, TOP)}
    ratios |= {f"{name}: times faster than without": times[STEP] / times[name] for name in (CACHED, TOP)}
    if LIBRARY in times:
        ratios["the library's step: times ours"] = times[LIBRARY] / times[STEP]
    for name, value in ratios.items():
        print(f"{name:<75} {value:+.1%}" if "more than" in name else f"{name:<75} {value:.2f}")
    for name, size in sizes.items():
        print(f"{name:<75} {size / (16 * 128):.0f} bytes a token")
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "times": times, "ratios": ratios, "bytes": sizes},
                                           indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
