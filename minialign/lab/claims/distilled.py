r"""What the claim on distillation is made from: teachers, students of two sizes, the methods that teach them, and what
each student is examined on.

    teachers    the shipped decoder and the shipped encoder of .4 million parameters, three layers, which read
    students    two layers and one of the same width, trained on the same batches of 16 documents, each read again and
                again: the decoder's on 1,200, of labels and soft targets also on as many new ones; the encoder's on 300
    examined    their own loss on documents that nobody trained on; two tasks (tuned.py: near and far), each tuned in
                the same way; bytes

The methods differ in the loss, in whether the student begins as layers of its teacher, and, for two of the decoder's,
in whose texts are read. The temperature of soft targets is the one of TEMPERATURES whose student has the lowest loss on
validation documents, with the first seed. Taken for granted of both families, over six seeds (notes.md says why six):

    the teacher has something to teach    .2 nats less than the student of labels
    that student has settled              the last tenth of its training gains less than .01 nats

Read next: distillation.py.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minialign.batching import next_token_batch
from minialign.classification import LabelledTexts, class_loss, examine_classes
from minialign.distill.distilgpt2 import DISTILGPT2
from minialign.distill.minilm import MINILM, MiniLM
from minialign.distill.on_policy import OnPolicy, OnPolicyConfig
from minialign.distill.recipe import Recipe, distil, own_loss
from minialign.distill.sequence_level import SEQUENCE_LEVEL, WritingConfig
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.student import start_from, student_config
from minialign.distill.tinybert import TINYBERT, TinyBERT
from minialign.evaluation import bytes_on_disk
from minialign.heads import Classifier, LanguageModel, describe_model, load_model
from minialign.lab.bases.make import BASES, load_base
from minialign.lab.claims import Bench
from minialign.lab.claims.shipped import documents
from minialign.lab.claims.tuned import FAR, NEAR, rows_of, task
from minialign.lab.teacher_cache import written_once
from minialign.logprobs import label_loss
from minialign.pretrain.causal_lm import LabelledRows, encode_documents
from minialign.pretrain.masked_lm import MaskedText
from minialign.runs.files import read_json, write_json
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig, train

TAUGHT_BY = {"decoder": "decoder-0.4m", "encoder": "encoder-0.4m"}
SIZES = {"two layers": 2, "one layer": 1}  # of a student
BATCH = 16  # documents a step
PROMPT = 8  # tokens of a prompt that somebody goes on from
NEW = 40  # tokens that a student writes itself, to be corrected or examined
TEMPERATURES = (1.0, 2.0, 4.0)  # that soft targets are tried with
LESS, SETTLED = 0.2, 0.01  # thresholds of the controls, nats a token
FOUND = "found.json"


class BestWord(SoftTargets):
    """The teacher's likeliest word as the label: what it says, and nothing of how sure it is. Arguments as for
    `Recipe`."""

    def parts(self, student: LanguageModel, batch: Any) -> dict[str, Tensor]:
        """The cross-entropy with it, a mean, nats."""
        compared = self.compared(batch)
        best = self.teacher_outputs(batch)["logits"].argmax(dim=-1)
        return {"soft": label_loss(student.logits(student.body(batch.tokens)[compared]), best) / len(best)}


@dataclass(frozen=True)
class Method:
    """How a student is taught."""

    recipe: Callable[..., Recipe]  # (teacher, config) -> its loss
    config: Any
    start: bool = False  # whether it begins as layers of the teacher
    texts: str = "given"  # given | prompts (given ones from some place on) | written (by the teacher)


def without(name: str, method: Method, *parts: str) -> dict[str, Method]:
    """The same method with one part of its loss, or its start, taken away: one for each part."""
    changed = {}
    for part in parts:
        left = {"start": False} if part == "start" else {"config": dataclasses.replace(method.config, **{part: 0.0})}
        changed[f"{name} − {part}"] = dataclasses.replace(method, **left)
    return changed


LABELS = Method(SoftTargets, SoftTargetConfig(soft=0.0, hard=1.0))
SOFT = Method(SoftTargets, SoftTargetConfig(temperature=2.0))
DISTIL = Method(SoftTargets, DISTILGPT2, start=True)  # the weights of DistilBERT as well
MAIN = {  # at both sizes
    "decoder": {
        "labels": LABELS,
        "best word": Method(BestWord, SoftTargetConfig()),
        "soft targets": SOFT,
        "DistilGPT-2": DISTIL,
        "sequence-level": Method(SoftTargets, SEQUENCE_LEVEL, True, "written"),
        "on-policy": Method(OnPolicy, OnPolicyConfig(share=0.5, new_tokens=NEW), True, "prompts"),
    },
    "encoder": {"labels": LABELS, "soft targets": SOFT, "DistilBERT": DISTIL,
                "TinyBERT": Method(TinyBERT, TINYBERT), "MiniLM": Method(MiniLM, MINILM)},
}
ABLATIONS = {  # at the larger size
    "decoder": {"soft, from layers": dataclasses.replace(SOFT, start=True)}
    | without("DistilGPT-2", DISTIL, "soft", "hard", "cosine", "start"),
    "encoder": without("DistilBERT", DISTIL, "soft", "start"),
}


@dataclass(frozen=True)
class Budget:
    """What students of a family read."""

    steps: int  # of BATCH documents
    documents: int  # that they learn from, each again and again
    length: int  # tokens of a document that are read
    rate: float = 2e-3  # peak of the learning rate, where they do not begin as their teacher


BUDGETS = {"decoder": Budget(600, 1200, 64), "encoder": Budget(2000, 300, 48, 3e-3)}


@dataclass
class Teacher:
    """A teacher of a seed and the texts of its students."""

    model: LanguageModel
    tokenizer: Tokenizer
    ids: list[list[int]]  # documents to learn from: as many as the budget says, unless all are asked for
    valid: list[list[int]]  # documents that a temperature is chosen on
    held_out: list[list[int]]  # documents that nobody trained on
    folder: Path  # of its weights
    key: str  # of its weights, for what is made from it
    budget: Budget
    tasks: dict[str, list[LabelledTexts]]  # of each task the texts to tune on and those to test on

    def masked(self, ids: list[list[int]], batch: int, seed: int) -> MaskedText:
        """The beginnings of documents for an encoder."""
        return MaskedText([row[: self.budget.length] for row in ids], batch, seed, self.model.config.vocabulary)

    def batches(self, ids: list[list[int]]) -> list:
        """Batches to judge on, the same for every student."""
        starts = range(0, len(ids), 32)
        if self.model.config.kind == "encoder":
            masked = self.masked(ids, 32, 0)
            return [masked.batch(list(range(i, min(i + 32, len(ids))))) for i in starts]
        return [next_token_batch([row[: self.budget.length + 1] for row in ids[i : i + 32]]) for i in starts]

    def data(self, texts: str, ids: list[list[int]], seed: int, folder: Path) -> Any:
        """What a student reads."""
        rows, batch = [row[: self.budget.length + 1] for row in ids], min(BATCH, len(ids))
        if self.model.config.kind == "encoder":
            return self.masked(rows, batch, seed)
        if texts == "written":
            prompts = [row[:PROMPT] for row in rows[: len(rows) // 2]]
            how = WritingConfig(4, new_tokens=self.budget.length - PROMPT)
            written = written_once(self.model, prompts, how, seed, folder / f"{self.key}-{seed}.jsonl")
            return LabelledRows(written, min(batch, len(prompts)), seed)
        return LabelledRows([(row, PROMPT if texts == "prompts" else 1) for row in rows], batch, seed)

    def examine(self, bench: Bench, folder: Path, seed: int, tasks: bool = True) -> dict[str, float]:
        """What a student, or the teacher, knows and weighs; on request the tasks too. Its own loss means nothing where
        no word was taught: the caller knows."""
        steps = 2 if bench.fast else 100
        how = TrainingConfig(steps, 32, 1e-3, weight_decay=0.01, validate_every=steps, checkpoint_every=steps,
                             seed=seed)

        def make(kept: Path) -> None:
            found = {}
            for name, (learned, tested) in self.tasks.items() if tasks else ():
                classifier = Classifier(load_model(folder)[0].body, 2, seed)
                train(classifier, learned, class_loss, how, RunFolder(kept / name))
                found[name] = examine_classes(classifier.eval(), tested)["accuracy"]
            model = load_model(folder)[0]
            with torch.inference_mode():
                found["loss"] = own_loss(model, self.batches(self.held_out))
                if model.config.kind == "decoder":
                    found["own texts"] = self.own_texts(model, 8 if bench.fast else NEW)
            found |= {"parameters": sum(p.numel() for p in model.parameters()), "bytes": bytes_on_disk(folder / MODEL)}
            write_json(kept / FOUND, found)

        return read_json(bench.cached("asked", [folder.name, self.key, seed, steps, tasks], make) / FOUND)

    def own_texts(self, model: LanguageModel, new_tokens: int) -> float:
        """KL(student ‖ teacher) on texts that the student writes, nats a token."""
        mirror = OnPolicy(self.model, OnPolicyConfig(new_tokens=new_tokens), torch.Generator().manual_seed(0))
        begun = [ids[: PROMPT + 1] for ids in self.held_out]
        prompts = [next_token_batch(begun[i : i + 32], [PROMPT] * 32) for i in range(0, len(begun) - 31, 32)]
        return sum(float(mirror.parts(model, batch)["reverse"]) for batch in prompts) / len(prompts)

    def rare_words(self) -> list[int]:
        """Ten tokens that are whole words, each in nearly 4 % of the documents: rare enough to be left out, frequent
        enough to be known."""
        share, name = torch.zeros(self.tokenizer.size), self.tokenizer.name
        for ids in self.ids:
            share[list(set(ids[: self.budget.length + 1]))] += 1 / len(self.ids)
        whole = [i for i in range(len(share)) if re.fullmatch(r" [a-z]{4,}", name(i)) and share[i] > 0]
        return sorted(whole, key=lambda i: abs(float(share[i]) - 0.04))[:10]

    @torch.inference_mode()
    def mean_probability(self, model: LanguageModel, words: list[int]) -> float:
        """Mean probability of these words where they come next, in documents that nobody trained on."""
        total, places = 0.0, 0
        for batch in self.batches(self.held_out):
            here = torch.isin(batch.labels, torch.tensor(words))
            probabilities = model.logits(model.body(batch.tokens)[here]).softmax(dim=-1)
            total += float(probabilities.gather(1, batch.labels[here][:, None]).sum())
            places += int(here.sum())
        return total / max(1, places)


def load_teacher(bench: Bench, kind: str, seed: int) -> Teacher:
    """The teacher of a kind, and the texts of a seed."""
    budget, judged, counts = BUDGETS[kind], 300, (1000, 400)
    if bench.fast:
        budget, judged, counts = Budget(3, 48, 48), 32, (32, 16)
    folder = BASES / TAUGHT_BY[kind]
    model, tokenizer, card = load_base(folder)
    texts = documents(seed, 2 * judged + (BATCH * budget.steps if kind == "decoder" else budget.documents))
    ids = [row for row in encode_documents(tokenizer, texts) if len(row) > PROMPT + 1]
    tasks = {}
    for name in (NEAR, FAR):
        made = [task(name, count, 1000 * seed + part) for part, count in enumerate(counts)]
        tasks[name] = [rows_of(tokenizer, texts, budget.length, 32, seed) for texts in made]
    judged_on, valid, learned_from = ids[:judged], ids[judged : 2 * judged], ids[2 * judged :]
    return Teacher(model, tokenizer, learned_from, valid, judged_on, folder, card["digest"], budget, tasks)


def warmest(bench: Bench, family: str) -> tuple[float, dict[str, float]]:
    """The temperature of a family's soft targets that was best, and the loss on validation documents at each."""
    teacher = load_teacher(bench, family, 0)
    tried = {T: student(bench, teacher, "soft targets", at_temperature(SOFT, T), "two layers", 0) for T in TEMPERATURES}
    found = {T: RunFolder(folder).metrics()[-1]["validation"] for T, folder in tried.items()}
    return min(found, key=found.get), {f"validation at T = {T:g}": loss for T, loss in found.items()}


def at_temperature(method: Method, temperature: float) -> Method:
    """Soft targets of another temperature."""
    return dataclasses.replace(method, config=dataclasses.replace(method.config, temperature=temperature))


def student(bench: Bench, teacher: Teacher, name: str, method: Method, size: str, seed: int,
            ids: list[list[int]] | None = None) -> Path:
    """The folder of a student taught by one method.

    Args:
        ids: documents to learn from, the first ones of the teacher's without it.
    """
    ids = ids or teacher.ids[: teacher.budget.documents]
    steps, rate = teacher.budget.steps, 1e-3 if method.start else teacher.budget.rate
    how = TrainingConfig(steps, BATCH, rate, weight_decay=0.05, validate_every=max(1, steps // 10),
                         checkpoint_every=steps, seed=seed)

    def make(folder: Path) -> None:
        model = LanguageModel(student_config(teacher.model.config, SIZES[size]), seed + 100)
        recipe, run = method.recipe(teacher.model, method.config), RunFolder(folder)
        if method.start:
            start_from(model, teacher.model)
        data = teacher.data(method.texts, ids, seed, folder.parent / "written")
        facts = {"stage": "distil", "way": name, "training": to_dict(how)}
        run.begin({**describe_model(model), **facts}, teacher.tokenizer)
        if not run.finished:
            distil(model, recipe, data, teacher.batches(teacher.valid), how, run)

    taught = [name, to_dict(method.config), method.start, method.texts, size, to_dict(how), len(ids)]
    return bench.cached("student", [teacher.key, *taught], make)
