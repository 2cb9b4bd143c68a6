r"""Speculative decoding: a small draft guesses ahead, and the text is exactly the large model's, in fewer passes of it.

Leviathan et al. 2023, Appendix A.1 (the distribution), Eq. 1 (tokens a pass) and Table 2 (the speed).

The test. The target is the shipped decoder; the draft a student of two of its three layers, which began as two of the
target's and was taught its soft targets for 1,500 steps, half on documents and half on summaries. Summaries of unseen
stories, 40 tokens at most, 4 guesses a pass.

    1. greedy text is the target's own, token for token, for every story
    2. sampled text has the target's distribution: the first two tokens of 2,000 samples against their exact
       probabilities, chi-squared, p > 0.001 in every seed, while accepting every guess is found out (p < 0.001)
    3. tokens a pass are within a tenth of Eq. 1's (1 − αᵞ⁺¹) / (1 − α), α the mean of Σ min(p, q) on the target's text
    4. greedy text takes at most 1 / 1.3 of the time that plain decoding of one story after the other takes

3 and 4 are over seeds, 95 %. Taken for granted: the draft's first choice is the target's in 0.8 of the places.
"""

from collections import Counter
from pathlib import Path

import torch

from minialign.distill.recipe import distil
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.speculative import AHEAD, probabilities, speculate
from minialign.distill.student import start_from, student_config
from minialign.generation import SamplingConfig, generate, prompt_ids
from minialign.heads import LanguageModel, describe_model, load_model
from minialign.lab.claims import Bench, Claim, Rows, Table, Verdict, column, control, over_seeds, point, time_ratio
from minialign.lab.claims.shipped import base, documents
from minialign.lab.plotting import Figure, figure, finish, lines_with_intervals, reference_line
from minialign.pretrain.causal_lm import LabelledRows, encode_documents
from minialign.runs.run_folder import RunFolder
from minialign.training import TrainingConfig
from minialign.world.tasks import demonstrations

CLAIM = Claim("speculative-exact", "A draft that guesses ahead saves passes and changes nothing of what is said.",
              "Leviathan et al. 2023, Eq. 1 and Table 2")
AGREE, P, FASTER = 0.8, 0.001, 1.3
GREEDY, SAMPLED = SamplingConfig(40, 0.0), SamplingConfig(40, 1.0)
GUESSES = (1, 2, 4, 8)


def measure(bench: Bench) -> Rows:
    """One draft a seed, and all that is asked of it."""
    target, tokenizer = base()
    for seed in range(bench.seeds):
        model, chance = load_model(draft(bench, seed))[0], torch.Generator().manual_seed(seed)
        told = demonstrations(4 if bench.fast else 40, 90_000 + seed, 1.0)
        prompts = prompt_ids(tokenizer, [each["prompt"] for each in told])
        plain = [generate(target, [prompt], GREEDY, chance).ids()[0] for prompt in prompts]
        for ahead in GUESSES:
            found = [speculate(target, model, prompt, GREEDY, chance, ahead) for prompt in prompts]
            yield {"seed": seed, "guesses": ahead, "same": float([each.ids for each in found] == plain),
                   "tokens a pass": sum(len(each.ids) for each in found) / sum(each.passes for each in found),
                   "times as fast": faster(target, model, prompts[:4], ahead)}
        said = generate(target, prompts, SAMPLED, chance).ids()
        overlap, agreement = nearness(target, model, prompts, said)
        yield control("the draft's first choice is the target's", agreement, AGREE, seed)
        found = [speculate(target, model, prompt, SAMPLED, chance) for prompt in prompts]
        passes = sum(each.passes for each in found)
        yield {"seed": seed, "alpha": overlap,
               "sampled tokens a pass": 1 + sum(each.accepted for each in found) / passes,
               "by Eq. 1": (1 - overlap ** (AHEAD + 1)) / (1 - overlap)}
        yield {"seed": seed} | first_two(target, model, prompts[0], 50 if bench.fast else 2000, chance)


def draft(bench: Bench, seed: int) -> Path:
    """The folder of a student of the base, two layers of its width."""
    steps = 5 if bench.fast else 1500
    how = TrainingConfig(steps, 16, 2e-3, weight_decay=0.05, validate_every=steps, checkpoint_every=steps, seed=seed)

    def make(folder: Path) -> None:
        (teacher, tokenizer), run = base(), RunFolder(folder)
        student = start_from(LanguageModel(student_config(teacher.config, 2), seed), teacher)
        count = 100 if bench.fast else 6000
        told = demonstrations(count, 95_000 + seed, 1.0)
        summaries = [each["prompt"] + each["completion"] for each in told]
        texts = [text for pair in zip(documents(seed, count), summaries) for text in pair]
        rows = [(ids[: teacher.config.context], 1) for ids in encode_documents(tokenizer, texts)]
        data, held_out = (LabelledRows(part, 16, seed) for part in (rows[64:], rows[:64]))
        run.begin({**describe_model(student), "stage": "distil", "seed": seed}, tokenizer)
        if not run.finished:
            distil(student, SoftTargets(teacher, SoftTargetConfig(temperature=1.0)), data, held_out.first(), how, run)

    return bench.cached("draft", [seed, steps], make)


def faster(target: LanguageModel, model: LanguageModel, prompts: list[list[int]], ahead: int) -> float:
    """Time of plain greedy decoding, one prompt after the other, over that with a draft."""
    chance = torch.Generator()
    return time_ratio(lambda: [generate(target, [prompt], GREEDY, chance) for prompt in prompts],
                      lambda: [speculate(target, model, prompt, GREEDY, chance, ahead) for prompt in prompts], 5)


@torch.no_grad()
def nearness(target: LanguageModel, model: LanguageModel, prompts: list[list[int]],
             said: list[list[int]]) -> tuple[float, float]:
    """Mean Σ min(p, q) over the places of completions, and the share where both have the same first choice."""
    overlaps, same = [], []
    for prompt, completion in zip(prompts, said):
        rows = torch.tensor([[*prompt, *completion[:-1]]])
        p, q = (probabilities(each(rows)[0, len(prompt) - 1 :], SAMPLED) for each in (target, model))  # (R, V)
        overlaps.append(torch.minimum(p, q).sum(dim=-1))
        same.append(p.argmax(dim=-1) == q.argmax(dim=-1))
    return float(torch.cat(overlaps).mean()), float(torch.cat(same).float().mean())


@torch.no_grad()
def first_two(target: LanguageModel, model: LanguageModel, prompt: list[int], count: int,
              chance: torch.Generator) -> dict[str, float]:
    """p-values of the first two tokens after one prompt against the target's own probabilities: with speculative
    decoding, and where every guess of the draft is taken."""
    two = SamplingConfig(2, 1.0)
    first = probabilities(target(torch.tensor([prompt]))[:, -1], two)[0]  # (V,)
    likely = (first * count >= 5).nonzero().flatten()
    second = probabilities(target(torch.tensor([[*prompt, token] for token in likely.tolist()]))[:, -1], two)
    expected = {(a, b): float(first[a] * second[i, b]) * count for i, a in enumerate(likely.tolist())
                for b in (first[a] * second[i] * count >= 5).nonzero().flatten().tolist()}
    ways = {"exact": [speculate(target, model, prompt, two, chance, 2).ids for _ in range(count)],
            "every guess": generate(model, [prompt], two, chance, completions=count).ids()}
    found = {}
    for name, texts in ways.items():
        pairs = Counter(tuple(ids[:2]) for ids in texts)
        observed = [pairs[pair] for pair in expected]
        rest = count - sum(expected.values())
        cells = [*zip(observed, expected.values()), *([(count - sum(observed), rest)] if rest >= 5 else [])]
        squared = sum((seen - due) ** 2 / due for seen, due in cells)
        found[name] = float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(squared / 2)))
    return found | {"cells": len(cells)}


def judge(table: Table) -> Verdict:
    """The four statements, and the numbers that decide."""
    exact, wrong = column(table, "exact"), column(table, "every guess")
    passes, predicted = column(table, "sampled tokens a pass"), column(table, "by Eq. 1")
    ratio = over_seeds([a / b for a, b in zip(passes, predicted)])
    fast = {ahead: over_seeds(column(table, "times as fast", guesses=ahead)) for ahead in GUESSES}
    checks = {
        "greedy text is the target's own": all(column(table, "same")),
        "sampled text has the target's distribution": min(exact) > P and max(wrong) < P,
        "tokens a pass are as Eq. 1 says": ratio.low > 0.9 and ratio.high < 1.1,
        "faster than plain decoding": fast[AHEAD].low > FASTER,
    }
    said = ", ".join(f"{ahead} guesses {time}" for ahead, time in fast.items())
    return checks, (f"p of the samples' first two tokens {min(exact):.3f} to {max(exact):.3f}, and at most "
                    f"{max(wrong):.1e} where every guess is taken; {over_seeds(passes)} tokens a pass, {ratio} of what "
                    f"Eq. 1 says at α = {over_seeds(column(table, 'alpha'))}; greedy text, times as fast: {said}")


def draw(table: Table) -> Figure:
    """Tokens a pass and real speed against guesses a pass."""
    _, axes = figure("guesses a pass", "times plain greedy decoding", 5.4, 3.5)
    lines_with_intervals(axes, GUESSES, {name: [point(table, what, guesses=ahead) for ahead in GUESSES] for name, what
                                         in (("tokens a pass", "tokens a pass"), ("speed", "times as fast"))})
    reference_line(axes, 1.0, "plain decoding")
    return finish(axes, doublings=GUESSES)
