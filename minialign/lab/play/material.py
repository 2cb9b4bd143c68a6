r"""What the page shows of a run: its models in eight bits, stories, pairs that were judged, prices, one update.

A run that was stopped, or that is a single model's folder, has less: the page says what is missing, in a sentence.

Read next: page.py (how it becomes one file).
"""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minialign.generation import continue_texts, prompt_ids
from minialign.heads import LanguageModel, ScalarModel, load_model
from minialign.lab.demo.pipeline import COMPARED, INSTRUCTED, PRETRAINED, REWARD, RLHF, SAMPLING
from minialign.lab.play.weights import pack, unpack
from minialign.rlhf.best_of_n import sample_and_score
from minialign.rlhf.comparisons import read_comparisons, split_by_prompt
from minialign.rlhf.kl import sampled_kl
from minialign.rlhf.reward_model import completion_rows, score_rows
from minialign.runs.errors import UserError
from minialign.runs.files import read_jsonl
from minialign.tokenizer import Tokenizer
from minialign.world import parse, wordings
from minialign.world.annotators import TRAINING_PANEL
from minialign.world.gold import score
from minialign.world.stories import Story
from minialign.world.tasks import demonstrations

CPU = torch.device("cpu")  # where numpy packs the weights, and their eight bits are compared with them
STAGES = {"pretrained": PRETRAINED, "sft": INSTRUCTED, "rlhf": RLHF, "reward": REWARD}
STORIES, PAIRS, PRICED, COMPLETIONS, READ_ALOUD, COMPARED_LOGITS = 200, 10, 40, 32, 4, 50
MISSING = {"pretrained": "This run has no pretrained model.", "sft": "This run has no instruction-tuned model.",
           "rlhf": "This run has no RLHF model: the main job, python -m minialign, trains one.",
           "reward": "This run has no reward model: the main job, python -m minialign, trains one."}


@dataclass(frozen=True)
class Material:
    """All that one page holds."""

    facts: dict[str, Any]  # plain values, for JSON
    packed: bytes  # the weights, see weights.py


def read_models(run: Path) -> tuple[dict[str, nn.Module], Tokenizer]:
    """The finished stages of a main job, in their order; or the decoder of a single run folder as "pretrained".

    Raises:
        UserError: there is no finished stage, a model is not a decoder, or is of a kind that the page cannot compute.
    """
    if (run / "config.json").exists():
        model, tokenizer = load_model(run, "decoder", CPU)
        models = {"pretrained": model}
    else:
        there = {name: run / folder for name, folder in STAGES.items() if (run / folder / "model.safetensors").exists()}
        if not there:
            raise UserError("holds no finished stage of the main job; make one with `python -m minialign`, or leave "
                            "RUN out for the shipped page", run)
        loaded = {name: load_model(folder, device=CPU) for name, folder in there.items()}
        models, tokenizer = {name: model for name, (model, _) in loaded.items()}, next(iter(loaded.values()))[1]
    if not any(isinstance(model, LanguageModel) for model in models.values()):
        raise UserError("holds a reward model and no model that writes; copy the other stages of the run, too", run)
    for name, model in models.items():
        if model.config.kind != "decoder":
            raise UserError(f"its {name} model is no decoder, and the page computes only such", run)
    return models, tokenizer


def collect(run: Path, stories: int = STORIES, all_panels: bool = True) -> Material:
    """Read a run and compute what the page shows of it.

    Args:
        run: folder of a main job, finished or not, or of one decoder.
        stories: how many are shipped at most.
        all_panels: False leaves out what only the panels behind the first need.
    """
    models, tokenizer = read_models(run)
    packed, layout = pack(models)
    small = unpack(packed, layout)
    tests = run / "data" / "tests.jsonl"
    asked = read_jsonl(tests, ("prompt", "completion")) if tests.exists() else demonstrations(stories, 5, 1.0)
    asked = [test for test in asked if test.get("task", "summary") == "summary" and isinstance(test.get("story"), dict)]
    asked = those_that_fit(asked, models, tokenizer)
    if not asked:
        raise UserError("no story of the toy world fits the context of its models", run)
    asked = asked[:stories]
    facts = {"models": layout, "tokenizer": tokenizer_facts(tokenizer), "world": world_facts(),
             "start": first_that_differs(small, tokenizer, asked),
             "missing": {name: said for name, said in MISSING.items() if name not in models}, **told(asked),
             "bytes": {"float32": 4 * sum(x.numel() for m in models.values() for x in m.state_dict().values()),
                       "packed": len(packed)},
             "error": logits_error(models, small, tokenizer, asked[:COMPARED_LOGITS])}
    if all_panels:
        facts |= {"references": [test["completion"] for test in asked[:READ_ALOUD]],
                  "pairs": judged_pairs(run, small, tokenizer), "prices": prices(small, tokenizer, asked[:PRICED]),
                  "update": update(models)}
    return Material(facts, packed)


def those_that_fit(asked: list[dict], models: dict[str, nn.Module], tokenizer: Tokenizer) -> list[dict]:
    """Those whose prompts leave every model room for a summary."""
    room = min(model.config.context for model in models.values()) - SAMPLING.new_tokens
    return [test for test, ids in zip(asked, prompt_ids(tokenizer, [test["prompt"] for test in asked]))
            if len(ids) <= room]


def told(asked: list[dict]) -> dict[str, Any]:
    """The stories with their facts, and the templates that make prompts of them."""
    templates, stories = {}, []
    for test in asked:
        story = Story.from_dict(test["story"])
        before, _, after = test["prompt"].partition(story.text)
        place = templates.setdefault((before, after), len(templates))
        stories.append({"text": story.text, "template": place, "events": [e.to_dict() for e in story.events],
                        "weights": list(story.weights)})
    return {"stories": stories, "templates": [list(template) for template in templates]}


def tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of the 256 bytes, merges as triples of ids, special ids."""
    model = json.loads(tokenizer.to_json())["model"]
    ids = model["vocab"]
    # ByteLevel writes a byte as a letter that can be printed: itself, or the next free one from 256 on
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return {"bytes": [ids[letter] for letter in letters],
            "merges": [[ids[first], ids[second], ids[first + second]] for first, second in pairs],
            "special": {"begin": tokenizer.begin, "end": tokenizer.end}}


def world_facts() -> dict[str, Any]:
    """What a judge of the world's language has to know: the tables of parse.py and wordings.py."""
    return {"shapes": {shape: [kind, list(said), meaning] for shape, (kind, said, meaning) in parse.SHAPES.items()},
            "people": wordings.PRONOUNS, "places": list(wordings.PLACES), "nouns": sorted(parse.NOUNS),
            "colours": sorted(parse.COLOURS), "openers": [list(opener) for opener in parse.OPENERS],
            "articles": sorted(parse.ARTICLES), "prepositions": sorted(parse.PREPOSITIONS),
            "classes": {word: list(found) for word, found in parse.CLASSES.items()},
            "rude": list(wordings.RUDE_WORDS), "remarks": sorted(parse.REMARKS),
            "symmetric": list(wordings.SYMMETRIC), "implies": wordings.IMPLIES, "entitySymbols": sorted(parse.ENTITIES)}


def first_that_differs(small: dict[str, nn.Module], tokenizer: Tokenizer, asked: list[dict], most: int = 20) -> int:
    """The first story on which all language models write something else; 0 if there is none among the first ones."""
    prompts, likeliest = [test["prompt"] for test in asked[:most]], replace(SAMPLING, temperature=0)
    written = [continue_texts(model, tokenizer, prompts, likeliest, torch.Generator()) for model in small.values()
               if isinstance(model, LanguageModel)]
    return next((i for i, texts in enumerate(zip(*written)) if len(set(texts)) == len(texts)), 0)


@torch.no_grad()
def logits_error(models: dict[str, nn.Module], small: dict[str, nn.Module], tokenizer: Tokenizer,
                 asked: list[dict]) -> dict[str, float]:
    """How far eight bits move the logits of the last language model, over all tokens of some prompts."""
    name = [name for name, model in models.items() if isinstance(model, LanguageModel)][-1]
    differences = []
    for ids in prompt_ids(tokenizer, [test["prompt"] for test in asked]):
        tokens = torch.tensor([ids[: models[name].config.context]])
        whole, rounded = models[name](tokens), small[name](tokens)
        differences.append(torch.stack([(rounded - whole).abs().max(), (rounded - whole).pow(2).mean().sqrt(),
                                        whole.std()]))
    largest, typical, spread = torch.stack(differences).unbind(dim=1)
    return {"largest": round(float(largest.max()), 4), "typical": round(float(typical.mean()), 4),
            "spread": round(float(spread.mean()), 3), "prompts": len(asked)}


def judged_pairs(run: Path, small: dict[str, nn.Module], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Ten pairs that the reward model did not learn from: who of the panel prefers which, and what the model says."""
    path, judged = run / COMPARED / "comparisons.jsonl", run / "data" / "judged.jsonl"
    if not (path.exists() and judged.exists() and "reward" in small):
        return []
    rng, pairs, seen = random.Random(0), [], set()
    stories = read_jsonl(judged, ("prompt",))
    for comparison in split_by_prompt(read_comparisons(path)[0])[1]:
        if comparison["prompt"] in seen or "reference" in (comparison["chosen_policy"], comparison["rejected_policy"]):
            continue
        seen.add(comparison["prompt"])
        texts = [comparison["chosen"], comparison["rejected"]]
        rng.shuffle(texts)
        story = Story.from_dict(stories[comparison["index"]]["story"])
        votes = [person.compare(story, *texts, rng).winner for person in TRAINING_PANEL]
        rows = completion_rows(tokenizer, [comparison["prompt"]] * 2, texts, small["reward"].config.context)
        first, second = score_rows(small["reward"], rows).tolist()
        pairs.append({"story": told([stories[comparison["index"]]])["stories"][0], "texts": [t.strip() for t in texts],
                      "votes": [votes.count("first"), votes.count("second")], "people": len(votes),
                      "rewards": [round(first, 2), round(second, 2)]})
        if len(pairs) == PAIRS:
            break
    return pairs


@torch.no_grad()
def prices(small: dict[str, nn.Module], tokenizer: Tokenizer, asked: list[dict]) -> dict[str, Any] | None:
    """Proxy and gold of many completions of the instruction-tuned model to each story, and where PPO's policy is."""
    if not {"sft", "rlhf", "reward"} <= set(small):
        return None
    prompts, stories = [test["prompt"] for test in asked], [Story.from_dict(test["story"]) for test in asked]

    def measured(model: LanguageModel, count: int) -> tuple[list[list[float]], list[list[float]]]:
        reward: ScalarModel = small["reward"]
        texts, scores = sample_and_score(model, reward, tokenizer, prompts, count, SAMPLING,
                                         torch.Generator().manual_seed(0))
        golds = [[round(score(story, text).gold, 3) for text in row] for story, row in zip(stories, texts)]
        return [[round(x, 2) for x in row] for row in scores.tolist()], golds

    proxy, gold = measured(small["sft"], COMPLETIONS)
    own_proxy, own_gold = measured(small["rlhf"], 4)
    moved = sampled_kl(small["rlhf"], small["sft"], prompt_ids(tokenizer, prompts * 4), SAMPLING,
                       torch.Generator().manual_seed(1))
    own = {"kl": float(moved.mean()), "proxy": mean(own_proxy), "gold": mean(own_gold)}
    return {"proxy": proxy, "gold": gold, "rlhf": {name: round(value, 3) for name, value in own.items()}}


def mean(rows: list[list[float]]) -> float:
    """Of all numbers in some rows of equal length."""
    return sum(map(sum, rows)) / sum(map(len, rows))


def update(models: dict[str, nn.Module]) -> dict[str, Any] | None:
    """What instruction tuning added to one square matrix, ΔW = U Σ Vᵀ: its name and Σ, the largest first."""
    if not {"pretrained", "sft"} <= set(models):
        return None
    layer = models["sft"].config.layers // 2
    name = f"body.blocks.{layer}.attention.value.weight"
    sizes = torch.linalg.svdvals(models["sft"].state_dict()[name] - models["pretrained"].state_dict()[name])
    return {"name": name.removeprefix("body."), "sizes": [float(f"{size:.4g}") for size in sizes.tolist()]}
