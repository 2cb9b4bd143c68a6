"""A model before and after quantization, side by side: bytes, what it predicts, and how fast it reads and writes.

Read next: fidelity.py. Try it:  python -m minialign quantize RUN --text FILE --bench
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from minialign.generation import SamplingConfig, generate
from minialign.lab.fidelity import fidelity
from minialign.quant.fast_products import fastest_kernel, has_integer_products
from minialign.quant.linear import QuantizedLinear
from minialign.quant.ptq import module_bytes
from minialign.quant.saving import save_quantized
from minialign.runs.devices import device_of
from minialign.runs.tensors import tensor_file, tensors_of

WINDOW = 512  # most tokens that are read together


def measure(before: nn.Module, after: nn.Module, rows: Tensor | None, seed: int, rounds: int, new_tokens: int) -> dict:
    """Bytes in memory and on the disk, what is predicted, and tokens a second, of both models."""
    result = {"memory": [module_bytes(before), module_bytes(after)], "disk": on_disk(before, after)}
    if rows is not None:
        result["text"] = fidelity(before, after, rows).to_dict()
    vocabulary, context = before.config.vocabulary, before.config.context
    prompt = torch.randint(vocabulary // 2, vocabulary, (min(WINDOW, context),),
                           generator=torch.Generator().manual_seed(seed)).tolist()
    if before.config.kind == "decoder":
        greedy = SamplingConfig(min(new_tokens, context - 1), temperature=0.0)

        def write(model: nn.Module) -> None:
            generate(model, [prompt[:1]], greedy, torch.Generator().manual_seed(seed), stop_early=False)

        result["writing"] = [greedy.new_tokens / seconds for seconds in in_turns(write, before, after, rounds)]
    times = in_turns(lambda model: model(torch.tensor([prompt], device=device_of(model))), before, after, rounds)
    return result | {"reading": [len(prompt) / seconds for seconds in times]}


def on_disk(before: nn.Module, after: nn.Module) -> list[int]:
    """Sizes of the two models' files."""
    with tempfile.TemporaryDirectory() as folder:
        return [len(tensor_file(tensors_of(before))), save_quantized(after, Path(folder) / "after.safetensors")]


@torch.inference_mode()
def in_turns(work: Callable, before, after, rounds: int) -> list[float]:
    """Median seconds of the same work on two things, in turn, after one round that warms up."""
    times = ([], [])
    for round in range(rounds + 1):
        for kept, thing in zip(times, (before, after)):
            began = time.perf_counter()
            work(thing)
            if round > 0:
                kept.append(time.perf_counter() - began)
    return [median(kept) for kept in times]


def table(result: dict) -> str:
    """Before and after, side by side."""
    lines = [f"{'':<30}{'before':>14}{'after':>14}"]
    if "text" in result:
        text = result["text"]
        lines += [f"{'perplexity, a token':<30}{text['before']:>14.3f}{text['after']:>14.3f}   on {text['tokens']:,} "
                  f"tokens", f"{'KL from before, nats a token':<30}{'':>14}{text['kl']:>14.4f}",
                  f"{'same first choice':<30}{'':>14}{text['agreement']:>14.1%}"]
    for name, key in (("bytes on the disk", "disk"), ("bytes in memory", "memory")):
        a, b = result[key]
        lines.append(f"{name:<30}{a:>14,}{b:>14,}   {b / a:.0%}")
    for name, key in (("tokens a second, writing one", "writing"), ("tokens a second, reading", "reading")):
        if key in result:
            a, b = result[key]
            lines.append(f"{name:<30}{a:>14,.0f}{b:>14,.0f}   {pace(b / a)}")
    return "\n".join(lines)


def pace(ratio: float) -> str:
    """A ratio of speeds in words."""
    return f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times slower"


def layer_times(before: nn.Module, after: nn.Module) -> str:
    """Each shape of quantized layer against the fp32 layer in whose place it stands, for 1, 64 and 512 tokens."""
    lines, seen = ["layer against fp32         1 token             64 tokens            512 tokens"], set()
    for name, layer in after.named_modules():
        shape = (getattr(layer, "in_features", 0), getattr(layer, "out_features", 0))
        if not isinstance(layer, QuantizedLinear) or shape in seen:
            continue
        seen.add(shape)
        paces = []
        for T in (1, 64, 512):
            x = torch.randn(T, shape[0], generator=torch.Generator().manual_seed(0)).to(device_of(layer))
            plain, ours = in_turns(lambda module, x=x: module(x), before.get_submodule(name), layer, 9)
            paces.append(pace(plain / ours))
        lines.append(f"{shape[0]:>6} -> {shape[1]:<6}" + "".join(f"{p:>21}" for p in paces))
    return "\n".join(lines)


def kernel_note(model: nn.Module) -> str:
    """How the integer products were computed."""
    shapes = [(layer.in_features, layer.out_features) for layer in model.modules()
              if isinstance(layer, QuantizedLinear) and layer.activation is not None]
    if not shapes:
        return "products in floating point: integers save memory here, not arithmetic"
    if not has_integer_products():
        return ("this processor has no integer products (VNNI): the exact sums are computed by its float unit, and "
                "int8 costs time instead of saving it")
    kernels = {fastest_kernel("cpu", 512, K, N) for K, N in shapes}
    return f"integer products by {' and '.join(sorted(kernels))}, the faster way for each shape"
