r"""Does a graphics card compute what the CPU does, and how fast? One table and one JSON line, in at most four minutes.

    logits, loss, gradient    of each architecture, the device beside the CPU: fp32 within 1e-4, bf16 within 2e-2
    ppo, grpo                 two updates from the same lots: metrics within 1e-3
    int8                      our integer products, exact; LLM.int8() beside bitsandbytes where it is installed
    speed                     a training step of a 124M GPT-2 shape in bf16 beside nanoGPT's model
                              (tests/speed/peer_gpt.py), eager and compiled; the share of the card's peak
    lora                      a Llama folder of 1.1 billion random numbers: tokens a second, the memory that was said
                              and the memory that was taken; beside PEFT where it is installed
    nccl                      two processes learn what one does, where there are two cards

Run it:  python tests/device/check.py [--device cuda] [--fast] [--only PART …]
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "speed"), str(HERE.parents[1])]
import torch
from conftest import build
from llama_folder import SHAPES, make
from peer_gpt import PeerGPT
from torch import Tensor, nn

from minialign.heads import LanguageModel, ScalarModel
from minialign.lab.interchange.published import load_published
from minialign.lab.memory import GIB, training_need
from minialign.lab.pretrained.bert import Bert, BertConfig
from minialign.lab.pretrained.llama import Llama
from minialign.peft import lora
from minialign.quant.fast_products import by_reference, int8_matmul
from minialign.quant.ptq import quantize
from minialign.quant.scheme import SCHEMES
from minialign.rlhf.grpo import GRPOConfig, train_grpo
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.runs.devices import choose_device, describe_device, in_half
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import train_tokenizer
from minialign.training import adamw
from minialign.transformer import TransformerConfig

Row = tuple[str, float | str, str, bool | None]  # what, measured, aim, whether it is met; None: there is no aim
PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L4": 121e12, "T4": 65e12, "4090": 165e12}  # bf16 products/s
GPT2 = TransformerConfig(50_304, 1024, 768, 12, 12, positions="learned")
PROMPTS = [[1, 30, 31, 32], [1, 40], [1, 50, 51, 52, 53, 54], [1, 60, 61]]
SHORT = {"updates": 2, "prompts": 4, "completions": 2, "minibatch": 4, "new_tokens": 6}


def within(name: str, found: float, most: float) -> Row:
    """A difference and how large it may be."""
    return name, found, f"at most {most:g}", bool(found <= most)


def at_least(name: str, found: float, least: float | None) -> Row:
    """A ratio and how small it may be."""
    return name, found, "" if least is None else f"at least {least:g}", None if least is None else bool(found >= least)


def architectures() -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Each model, tiny, with what it reads."""
    tokens = torch.randint(20, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for kind in ("decoder", "encoder", "encoder-decoder"):
        given = {"decoder": (tokens,), "encoder": (tokens, mask), "encoder-decoder": (tokens, tokens)}[kind]
        yield kind, build(kind=kind, short_convolution=2), given
    torch.manual_seed(0)
    llama = Llama(SHAPES["tiny"])
    for weight in llama.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, 0.0, 0.1)
    yield "llama", llama, (tokens,)
    bert = Bert(BertConfig(320, context=24, width=16, layers=2, heads=2, inner=32), masked_words=True).eval()
    yield "bert", bert, (tokens, mask)


def computed(model: nn.Module, given: tuple[Tensor, ...], device: torch.device, half: bool) -> list[Tensor]:
    """Logits, loss and gradient on a device, on the CPU afterwards."""
    model, given = copy.deepcopy(model).to(device), tuple(x.to(device) for x in given)
    with in_half(device, half):
        logits = model(*given)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), given[0].flatten())
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return [x.detach().float().cpu() for x in (logits, loss, gradient)]


def check_architectures(device: torch.device, fast: bool) -> Iterator[Row]:
    """The device beside the CPU in fp32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, model, given in architectures():
        exact = computed(model, given, torch.device("cpu"), False)
        for half, most in ((False, 1e-4), (True, 2e-2)):
            for what, theirs, ours in zip(("logits", "loss", "gradient"), exact, computed(model, given, device, half)):
                far = float((ours - theirs).norm() / theirs.norm())
                yield within(f"{name}, {what}, {'bf16' if half else 'fp32'}", far, most)


def check_feedback(device: torch.device, fast: bool) -> Iterator[Row]:
    """Two updates of PPO and of GRPO on both."""
    tokenizer = train_tokenizer(["Mira lost the kite. Tom found it. yes no"] * 4, 300)
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for place in (torch.device("cpu"), device):
            side = len(found.get("ppo", []))  # both may be the CPU
            policy, runs = build(seed=2).to(place), [RunFolder(Path(folder) / f"{side}-{i}") for i in (0, 1)]
            reward = ScalarModel(build(seed=3).to(place).body, seed=4)
            train_ppo(policy, reward, PROMPTS, PPOConfig(**SHORT), runs[0])
            train_grpo(policy, tokenizer, [{"prompt": ""}] * 4, PROMPTS, lambda line, said: float(len(said)),
                       GRPOConfig(**SHORT), runs[1])
            for name, run in zip(("ppo", "grpo"), runs):
                found.setdefault(name, []).append(run.metrics()[-1])
    for name, (here, there) in found.items():
        far = max(abs(here[key] - there[key]) / max(1.0, abs(here[key])) for key in here)
        yield within(f"{name}, second update", far, 1e-3)


def check_integers(device: torch.device, fast: bool) -> Iterator[Row]:
    """Integer products of shapes that the kernel takes and of some that it does not."""
    for T, K, N in ((1, 64, 64), (17, 100, 30), (64, 512, 512)):
        a, b = (torch.randint(-127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(1))
                for shape in ((T, K), (N, K)))
        same = torch.equal(int8_matmul(a.to(device), b.to(device)).cpu(), by_reference(a, b))
        yield f"int8 product {T}×{K}×{N}", float(same), "exact", same
    linear = nn.Linear(512, 512)
    with torch.no_grad():
        x = torch.randn(64, 512, generator=torch.Generator().manual_seed(2)).to(device)
        x[:, :6] *= 20
        exact = linear.to(device)(x)
        ours = quantize(nn.Sequential(copy.deepcopy(linear)), SCHEMES["llm-int8"])[0](x)
        yield within("LLM.int8(), error", float((ours - exact).norm() / exact.norm()), 0.02)
        if device.type == "cuda" and importlib.util.find_spec("bitsandbytes"):
            import bitsandbytes

            theirs = bitsandbytes.nn.Linear8bitLt(512, 512, has_fp16_weights=False, threshold=6.0)
            theirs.load_state_dict(linear.cpu().state_dict())
            said = theirs.to(device).eval()(x.half()).float()
            yield within("LLM.int8() beside bitsandbytes", float((ours - said).norm() / exact.norm()), 0.02)
        else:
            yield "LLM.int8() beside bitsandbytes", "not installed, or no cuda", "", None


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of a piece of work, after two that warm up."""
    times = []
    for number in range(rounds + 2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times += [time.perf_counter() - began] if number > 1 else []
    return median(times)


def check_speed(device: torch.device, fast: bool) -> Iterator[Row]:
    """A training step beside nanoGPT's model, in turns."""
    shape = TransformerConfig(300, 32, 32, 2, 2, positions="learned") if fast else GPT2
    batch = 2 if fast else 12
    tokens = torch.randint(20, shape.vocabulary, (batch, shape.context + 1)).to(device)
    reads, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    ours = LanguageModel(shape).to(device)
    theirs = PeerGPT(copy.deepcopy(ours).cpu()).to(device)
    losses = {"ours": lambda: nn.functional.cross_entropy(ours(reads).flatten(0, 1), labels.flatten()),
              "theirs": lambda: theirs(reads, labels)}
    optimizers = {"ours": adamw(ours, 1e-4, 0.1), "theirs": adamw(theirs, 1e-4, 0.1)}

    def step(name: str) -> None:
        with in_half(device):
            loss = losses[name]()
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)

    numbers = sum(p.numel() for p in ours.parameters())
    products = 6 * numbers * reads.numel() + 12 * shape.layers * shape.width * shape.context * reads.numel()
    peak = next((p for card, p in PEAK.items() if card in describe_device(device)), None)
    for way in ("eager",) if fast else ("eager", "compiled"):
        if way == "compiled":
            ours.body.compile()
            theirs.compile()
        took = {name: seconds(lambda name=name: step(name), device, 3 if fast else 10) for name in losses}
        yield at_least(f"{way}: steps beside nanoGPT's", took["theirs"] / took["ours"],
                       None if fast else 0.95 if way == "compiled" else 0.9)
        yield f"{way}: tokens a second", round(reads.numel() / took["ours"]), "", None
        if peak:
            yield f"{way}: share of the card's peak", products / took["ours"] / peak, "", None


def check_lora(device: torch.device, fast: bool) -> Iterator[Row]:
    """LoRA on a Llama folder: what memory was said, and what was taken."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = load_published(make(Path(folder) / "llama", SHAPES["tiny" if fast else "1.1b"]))
    lora.wrap(model)
    model.body.checkpoints = True
    length, batch = (32, 2) if fast else (512, 4)
    need = training_need(model, length, half=device.type != "cpu", checkpoints=True).of(batch)
    for parameter in model.parameters() if device.type != "cpu" else ():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    model.to(device).train()
    optimizer, tokens = adamw(model, 1e-4, 0.0), torch.randint(3, 200, (batch, length)).to(device)

    def step(learner: nn.Module) -> None:
        with in_half(device):
            hidden = learner.body(tokens[:, :-1])
            loss = nn.functional.cross_entropy(learner.logits(hidden).float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield "LoRA: tokens a second", round(tokens.numel() / seconds(lambda: step(model), device, 3)), "", None
    if device.type == "cuda":
        took = torch.cuda.max_memory_allocated(device)
        yield "LoRA: GiB that were said", need / GIB, "", None
        yield within("LoRA: GiB taken, in those said", took / need, 1.1)
    yield "LoRA beside PEFT", "not measured here" if importlib.util.find_spec("peft") else "not installed", "", None


def check_nccl(device: torch.device, fast: bool) -> Iterator[Row]:
    """Two processes with a card each learn what one does."""
    if torch.cuda.device_count() < 2:
        yield "two processes with nccl", "needs two cards", "", None
        return
    with tempfile.TemporaryDirectory() as folder:
        text, losses = Path(folder) / "text.txt", []
        text.write_text("\n\n".join(f"Mira lost the kite number {i}." for i in range(400)), encoding="utf-8")
        for count in (1, 2):
            out = Path(folder) / str(count)
            subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "-m",
                            "minialign", "pretrain", "--text", text, "--split", "paragraphs", "--vocabulary", "300",
                            "--steps", "50", "--batch", "8", "--context", "48", "--out", out], check=True,
                           env=os.environ | {"PYTHONPATH": str(HERE.parents[1])}, capture_output=True)
            losses.append([line["loss"] for line in RunFolder(out).metrics()])
    yield within("two processes with nccl, loss", max(abs(a - b) for a, b in zip(*losses)), 1e-4)


PARTS = {"architectures": check_architectures, "feedback": check_feedback, "int8": check_integers,
         "speed": check_speed, "lora": check_lora, "nccl": check_nccl}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and the JSON line; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fast", action="store_true", help="tiny sizes: that the script works, not how fast it is")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    asked = parser.parse_args(arguments)
    device, began = choose_device(asked.device), time.perf_counter()
    rows = [row for part in asked.only for row in PARTS[part](device, asked.fast)]
    print(f"| {describe_device(device)}, torch {torch.__version__} | measured | aim | |\n| --- | ---: | --- | --- |")
    for name, found, aim, met in rows:
        value = found if isinstance(found, str) else f"{found:,}" if isinstance(found, int) else f"{found:.3g}"
        print(f"| {name} | {value} | {aim} | {'' if met is None else 'met' if met else 'missed'} |")
    took = time.perf_counter() - began
    print(json.dumps({"device": describe_device(device), "torch": torch.__version__, "seconds": round(took, 1),
                      "rows": {name: [found, met] for name, found, _, met in rows}}))
    return int(any(met is False for *_, met in rows))


if __name__ == "__main__":
    sys.exit(main())
