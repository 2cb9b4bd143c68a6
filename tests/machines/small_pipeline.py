"""Every stage once, at the size of a few numbers, on any device: what tests of devices run and compare."""

import copy
import dataclasses

import torch
from conftest import build

from minialign.classification import LabelledTexts, class_loss, examine_classes
from minialign.distill.minilm import MINILM, MiniLM
from minialign.distill.on_policy import OnPolicy, OnPolicyConfig
from minialign.distill.recipe import distil
from minialign.distill.sequence_level import WritingConfig, write
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.speculative import speculate
from minialign.distill.tinybert import TINYBERT, TinyBERT
from minialign.generation import SamplingConfig, generate
from minialign.heads import Classifier
from minialign.instruct.sft import fine_tune
from minialign.peft.methods import METHODS
from minialign.pretrain.causal_lm import LabelledRows, next_token_loss
from minialign.pretrain.masked_lm import MaskedLM
from minialign.pretrain.pretrain import NEXT_TOKEN, pretrain
from minialign.pretrain.span_corruption import SpanCorruption
from minialign.quant.ptq import quantize
from minialign.quant.qat import convert, prepare
from minialign.quant.scheme import SCHEMES
from minialign.ranking import option_logprobs
from minialign.rlhf.dpo import DPO, DPOConfig, train_dpo
from minialign.rlhf.grpo import GRPOConfig, train_grpo
from minialign.rlhf.kto import Judged, KTOConfig, train_kto
from minialign.rlhf.ppo import PPOConfig, train_ppo
from minialign.rlhf.pretraining_mix import MixConfig, PretrainingMix
from minialign.rlhf.ranked import Ranked
from minialign.rlhf.reward_model import Ensemble, train_reward_model
from minialign.runs.run_folder import RunFolder
from minialign.runs.tensors import tensors_of
from minialign.training import TrainingConfig, train

TRAINING = TrainingConfig(steps=2, batch=4, learning_rate=1e-3, validate_every=2, checkpoint_every=1, accumulation=2)
PROMPTS = [[1, 30, 31, 32], [1, 40], [1, 50, 51, 52, 53, 54], [1, 60, 61]]
ROWS = [([*prompt, 70 + i, 71, 2], len(prompt)) for i, prompt in enumerate(PROMPTS * 2)]
RANKED = [Ranked(prompt, [[80, 81, 2], [82, 2], [83, 84, 2]], [(0, 1), (2, 1)]) for prompt in PROMPTS]
ROWS_OF_THE_REFERENCE = [(prompt, [90 + i, 91, 2]) for i, prompt in enumerate(PROMPTS)]
JUDGED = [Judged(prompt, [100 + i, 2], i % 2 == 0) for i, prompt in enumerate(PROMPTS)]


def stages(tokenizer, texts, folder, device):
    """Runs everything on a device; what each stage measured, by name."""
    found = {}

    def run(name):
        return RunFolder(folder / name)

    def model(**changes):
        return build(short_convolution=2, fused_attention=False, **changes).to(device)

    for kind, objective in (("decoder", NEXT_TOKEN), ("encoder", MaskedLM()), ("encoder-decoder", SpanCorruption())):
        learner = model(kind=kind)
        found[f"pretrain {kind}"] = pretrain(learner, tokenizer, texts[:40], texts[40:], TRAINING, run(kind), objective)
        if kind != "encoder":
            found[f"sample {kind}"] = written(learner)
            found[f"rank {kind}"] = [row.tolist() for row in option_logprobs(learner, PROMPTS[:2], [[[5], [6, 7]]] * 2)]
    base = model()
    found["sft"] = fine_tune(base, ROWS, ROWS[:2], TRAINING, run("sft"))
    rewards = []
    for read in ("end", "mean"):
        reward, found[f"reward {read}"] = train_reward_model(base, RANKED, RANKED[:2], ROWS_OF_THE_REFERENCE, TRAINING,
                                                             run(f"reward-{read}"), read)
        rewards.append(reward)
    short = {"updates": 2, "prompts": 4, "minibatch": 4, "new_tokens": 6}
    text = PretrainingMix(torch.tensor([row[0][:5] for row in ROWS]), MixConfig())
    ppo = PPOConfig(**short, completions=2)
    found["ppo"] = train_ppo(base, Ensemble(rewards, 0.5), PROMPTS, ppo, run("ppo"), mix=text)[1]
    found["grpo"] = train_grpo(base, tokenizer, [{"prompt": ""}] * 4, PROMPTS, lambda example, text: float(len(text)),
                               GRPOConfig(**short, completions=2), run("grpo"))[1]
    for loss in ("sigmoid", "ipo"):
        found[f"dpo {loss}"] = train_dpo(base, RANKED, RANKED[:2], DPOConfig(loss=loss), quick(DPO), run(loss))[1]
    found["kto"] = train_kto(base, JUDGED, JUDGED, KTOConfig(), TRAINING, run("kto"))[1]
    found |= tuned(base, run) | rounded(base, run) | distilled(base, run)
    return found


def quick(training):
    return dataclasses.replace(training, steps=2, batch=2, validate_every=1)


def written(model):
    """What a model writes."""
    said = generate(model, PROMPTS, SamplingConfig(8, 0.9, 50, 0.95), torch.Generator().manual_seed(3), completions=2)
    return said.ids()


def tuned(base, run):
    """Every way of fine-tuning, on labels."""
    found, data = {}, LabelledTexts(PROMPTS * 2, [0, 1] * 4, 4, 0)
    for name, method in METHODS.items():
        if name != "feature-based":
            model = method.wrap(Classifier(copy.deepcopy(base.body), 2), None)
            found[name] = train(model, data, class_loss, TRAINING, run(name), lambda m: examine_classes(m, data))
    return found


def rounded(base, run):
    """Training with the rounding in the loop, and every scheme of rounding afterwards."""
    found, learned = {}, LabelledRows(ROWS, 4, 0)
    tokens = torch.tensor([PROMPTS[2]] * 4).to(next(base.parameters()).device)
    for scheme in ("weights", "vector-wise", "static"):
        model = prepare(copy.deepcopy(base), SCHEMES[scheme], [tokens], learned_step=True)
        train(model, learned, next_token_loss, TRAINING, run(f"qat-{scheme}"))
        found[f"qat {scheme}"] = convert(model)(tokens).sum(dim=-1).tolist()
    observers = {name: dataclasses.replace(SCHEMES["static"], observer=name) for name in ("percentile", "mse")}
    for name, scheme in (SCHEMES | observers).items():
        found[f"int8 {name}"] = quantize(copy.deepcopy(base), scheme, [tokens])[0](tokens).sum(dim=-1).tolist()
    return found


def distilled(base, run):
    """A student of soft targets, one of its own texts, a teacher that writes, and two that guess."""
    found, data = {}, LabelledRows(ROWS, 4, 0)
    student = build(seed=4, short_convolution=2, layers=1).to(next(base.parameters()).device)
    recipe = SoftTargets(base, SoftTargetConfig(hard=0.5, cosine=0.5))
    found["soft targets"] = distil(student, recipe, data, data.first(2), TRAINING, run("soft"))
    for name, inside in {"TinyBERT": TinyBERT(base, TINYBERT), "MiniLM": MiniLM(base, MINILM)}.items():
        found[name] = distil(copy.deepcopy(student), inside, data, data.first(2), TRAINING, run(name))
    own = OnPolicy(base, OnPolicyConfig(forward=0.5, shannon=0.5, hard=0.1, new_tokens=4), torch.Generator())
    found["on-policy"] = distil(student, own, data, data.first(2), TRAINING, run("own"))
    found["beams"] = write(base, PROMPTS, WritingConfig(beams=2, new_tokens=4), 0)
    found["guessed"] = speculate(base, student, PROMPTS[0], SamplingConfig(8), torch.Generator().manual_seed(1)).ids
    found["weights"] = {name: float(tensor.sum()) for name, tensor in tensors_of(student).items()}
    return found
