r"""TinyBERT: the student copies the teacher layer by layer, embeddings, attention and hidden vectors, and at last what
it predicts.

    L_emb = MSE(E_s Wₑ, E_t)    L_attn = MSE(A_s, A_t)    L_hid = MSE(H_s Wₕ, H_t)    L_pred = KL(p_teacher ‖ p_student)
                                                                                        Jiao et al. 2020, Eq. 7 to 10

Student layer m of M learns from teacher layer g(m) = m N / M of N. Two stages: general (text, no prediction), then the
task (layers first, prediction last), on more texts than there are labels for. Details that matter:
    1. A are the scores *before* the softmax. Masked places are 0 on both sides, since −∞ or −10,000 would drown the
       rest (test_masked_scores_count_as_equal).
    2. Hidden state 0 is the embedding, attention 0 that of the first block: the two lists are shifted by one
       (test_the_layer_map_counts_from_one).
    3. Wₑ and Wₕ (one for all layers) train with the student and are gone from its file
       (test_projections_train_and_are_not_in_the_file).
    4. More texts are made by exchanging words for one of the 15 that a masked language model finds likeliest there,
       with chance 0.4 (test_augmented_texts_differ_in_some_words_and_keep_special_tokens).
    DEVIATION: the paper's Eq. 10 is the soft cross-entropy, without T²; at T = 1 the gradients are the same. DEVIATION:
    the published code shares one matrix among embeddings and layers (the equations have two), and divides the attention
    loss by masked positions too. DEVIATION: the paper exchanges whole words, some by GloVe neighbours; here tokens.

Read next: minilm.py, which needs neither a map of layers nor projections.
Try it:  python -m minialign distill --teacher RUN --recipe tinybert --layers 2 --width 64 --text FILES
Then:  python -m minialign distill --teacher RUN --tuned FOLDER --student runs/distill --task FILE.jsonl --out runs/task
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minialign.batching import Batches, pad
from minialign.classification import LabelledTexts, examine_classes
from minialign.distill.fast_soft_targets import fast_soft_target_loss
from minialign.distill.recipe import Recipe, check_weights, distil, read, same_kind
from minialign.distill.recording import may_look, recorded
from minialign.heads import Classifier, LanguageModel, evaluating
from minialign.logprobs import masked_mean
from minialign.pretrain.masked_lm import MASK
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.runs.run_folder import MODEL, RunFolder
from minialign.runs.settings import check_ranges
from minialign.runs.tensors import load_into, read_tensors
from minialign.tokenizer import SPECIAL
from minialign.training import TrainingConfig


@dataclass(frozen=True)
class TinyBERTConfig:
    """What the student copies, and how much of each."""

    embedding: float = 1.0  # weight of the token vectors, through Wₑ
    attention: float = 1.0  # weight of the attention scores (needs as many heads as the teacher)
    hidden: float = 1.0  # weight of what each block leaves, through Wₕ
    prediction: float = 0.0  # weight of the soft targets: of words in a language model, of classes in a classifier
    temperature: float = 1.0  # T of the soft targets

    def __post_init__(self):
        check_weights(self, ("embedding", "attention", "hidden", "prediction"), temperature=(1e-3, 1e3))


TINYBERT = TinyBERTConfig()
PREDICTION = TinyBERTConfig(embedding=0.0, attention=0.0, hidden=0.0, prediction=1.0)


@dataclass(frozen=True)
class AugmentationConfig:
    """How texts are made from texts."""

    copies: int = 20  # new texts made from each one, which stays
    chance: float = 0.4  # chance that a token of theirs is another one
    candidates: int = 15  # how many likeliest tokens that one is drawn from

    def __post_init__(self):
        check_ranges(self, {"copies": (0, 1000), "chance": (0, 1), "candidates": (1, 10_000)})


def layer_of(m: int, student_layers: int, teacher_layers: int) -> int:
    """g(m): which of the teacher's layers 1…N student layer m of 1…M learns from; layer 0 are the embeddings."""
    return m * teacher_layers // student_layers


def hidden_mse_loss(student: Tensor, teacher: Tensor, mask: Tensor, projection: Tensor | None = None) -> Tensor:
    """Mean squared difference of (B, T, d) and (B, T, D) hidden vectors over real tokens and dimensions (Eq. 8, 9).

    projection: W, (d, D), learned with the student; None where the widths are equal.
    """
    mapped = student if projection is None else student @ projection  # (B, T, D)
    return masked_mean(((mapped - teacher) ** 2).mean(dim=-1), mask)


def attention_score_loss(student: Tensor, teacher: Tensor, allowed: Tensor) -> Tensor:
    """Mean squared difference of attention scores before the softmax, over all places that count (Eq. 7).

    Args:
        student, teacher: (B, H, T, S) Q Kᵀ / √d, of equally many heads, otherwise UserError.
        allowed: bool, broadcastable to them, true where a real query may look.
    """
    check_heads(student.shape[1], teacher.shape[1])
    allowed = allowed.expand_as(student)
    difference = (student - teacher).masked_fill(~allowed, 0.0)
    return (difference**2).sum() / allowed.sum().clamp(min=1)


def check_heads(student: int, teacher: int) -> None:
    """Raise UserError for numbers of heads that differ."""
    if student != teacher:
        raise UserError(f"the student has {student} heads, the teacher {teacher}; give it {teacher}, set the weight of "
                        f"attention to 0, or use minilm-v2")


class TinyBERT(Recipe):
    """The teacher's layers, copied one by one; teacher and student are language models, or classifiers, both."""

    def begin(self, student: nn.Module) -> None:
        """Give the student its projections. Raises UserError for another kind, or heads that cannot be compared."""
        same_kind(student, self.teacher, one_stack=True)
        ours, theirs = student.config, self.teacher.config
        if self.config.attention:
            check_heads(ours.heads, theirs.heads)
        if ours.layers > theirs.layers:
            raise UserError(f"a student of {ours.layers} layers cannot learn from a teacher of {theirs.layers}; give "
                            f"it 1 to {theirs.layers}")
        names = [name for name in ("embedding", "hidden") if getattr(self.config, name)]
        maps = {name: nn.Linear(ours.width, theirs.width, bias=False) for name in names}
        student.projections = nn.ModuleDict(maps).to(device_of(student))
        for projection in student.projections.values():
            nn.init.eye_(projection.weight)  # where the widths are equal, the student starts as it is

    def end(self, student: nn.Module) -> None:
        """Remove the projections."""
        del student.projections

    def parts(self, student: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Each part, a mean over the layers that are compared."""
        with torch.no_grad(), recorded(self.teacher.body) as theirs:
            their_logits = self.predict(self.teacher, batch)
        with recorded(student.body) as ours:
            logits = self.predict(student, batch)
        M, N, parts = student.config.layers, self.teacher.config.layers, {}
        pairs = [(m, layer_of(m, M, N)) for m in range(1, M + 1)]

        def hidden_loss(m: int, n: int, name: str) -> Tensor:
            return hidden_mse_loss(ours.hidden[m], theirs.hidden[n], batch.mask, student.projections[name].weight.T)

        if self.config.embedding:
            parts["embedding"] = hidden_loss(0, 0, "embedding")
        if self.config.attention:
            allowed = may_look(student, batch) & batch.mask[:, None, :, None]  # pads do not ask either
            losses = [attention_score_loss(ours.scores(m - 1), theirs.scores(n - 1), allowed) for m, n in pairs]
            parts["attention"] = sum(losses) / M
        if self.config.hidden:
            parts["hidden"] = sum(hidden_loss(m, n, "hidden") for m, n in pairs) / M
        if self.config.prediction:
            parts["prediction"] = fast_soft_target_loss(logits, their_logits, self.config.temperature)
        return parts

    def predict(self, model: nn.Module, batch: Any) -> Tensor | None:
        """Logits (M, V) of words at real tokens (None where they are not compared), or (B, C) of classes."""
        if isinstance(model, Classifier):
            return model(batch.tokens, batch.mask)
        hidden = read(model, batch)
        return model.logits(hidden[batch.mask]) if self.config.prediction else None


def distil_task(
    student: Classifier, teacher: Classifier, data: Batches, held_out: LabelledTexts, training: TrainingConfig,
    run: RunFolder, config: TinyBERTConfig = TINYBERT
) -> dict[str, float]:
    """The second stage: teach a classifier whose body went through the first one by a classifier that knows the task.

    Args:
        data: texts, augmented ones too; their labels are not looked at; held_out: texts with labels to examine on.
        training: of each half: the layers (the weights of `config`), then the prediction; run: `layers` and
            `prediction` go there.
    Returns:
        {"validation": loss, nats, "accuracy", "steps"}.
    """

    def examine(model: Classifier) -> dict[str, float]:
        return examine_classes(model, held_out)

    for name, how in (("layers", config), ("prediction", replace(PREDICTION, temperature=config.temperature))):
        part = RunFolder(run.path / name)
        if part.finished:  # a task that was stopped goes on with its second half
            load_into(student, read_tensors(part.path / MODEL)[0], part.path / MODEL)
        else:
            distil(student, TinyBERT(teacher, how), data, [], training, part, examine)
    return part.facts()


@torch.inference_mode()
def augment(rows: Sequence[Sequence[int]], model: LanguageModel, config: AugmentationConfig,
            seed: int) -> list[list[int]]:
    """`copies` texts for each row of ids, in the rows' order, in which some words were exchanged for others that an
    encoder finds likely there; special tokens never are."""
    chance, made = random.Random(seed), []
    for row in rows:
        with evaluating(model):
            likely = likely_words(row, model, config.candidates)
        for _ in range(config.copies):
            made.append([chance.choice(likely[i]) if i in likely and chance.random() < config.chance else token
                         for i, token in enumerate(row)])
    return made


def likely_words(row: Sequence[int], model: LanguageModel, candidates: int) -> dict[int, list[int]]:
    """Place of each token that is not special -> the likeliest tokens there, the place alone hidden."""
    places, likely = [place for place, token in enumerate(row) if token >= len(SPECIAL)], {}
    for start in range(0, len(places), 256):
        here = torch.tensor(places[start : start + 256], device=device_of(model))  # (P,)
        tokens, mask = pad([[*row[:place], MASK, *row[place + 1 :]] for place in here.tolist()], device=here.device)
        logits = model.logits(model.body(tokens, mask)[torch.arange(len(here), device=here.device), here])  # (P, V)
        logits[:, : len(SPECIAL)] = -torch.inf
        best = logits.topk(min(candidates, logits.shape[1] - len(SPECIAL))).indices
        likely |= dict(zip(here.tolist(), best.tolist()))
    return likely
