r"""A student of a sentence encoder: fewer layers, and texts keep the vectors, or only the similarities, that the
teacher gave them.

    vectors        L = mean over texts of 1 − v·v'  (= |v − v'|² / 2, both of length 1)      Reimers & Gurevych 2020, §2
    similarities   L = mean over pairs of texts of (vᵢ·vⱼ − v'ᵢ·v'ⱼ)²                        after Tung & Mori 2019, §3
                   v the student's, v' the teacher's

No label and no word is asked for: any text teaches. Details that matter:
    1. The teacher reads each text that will be shown once, before the first step, and not once an epoch
       (test_the_teacher_reads_each_text_once).
    2. Similarities are a table of texts by texts, so the student may have another width; vectors need the same
       (test_a_narrow_student_learns_similarities_and_is_told_that_it_cannot_learn_vectors).
    3. A student that begins as layers of its teacher keeps the teacher's table of token vectors as it is: half of its
       numbers, most of them of words that the texts never show (test_frozen_words_are_the_teacher_s_at_the_end).
    4. What is kept is measured on texts that neither training nor the choice of when to stop has seen, over all their
       pairs; a student that is cut off and not trained is the measure of what training brings
       (test_training_brings_a_cut_student_closer_to_its_teacher).

Read next: minilm.py (how the teacher itself was made).
Try it:  python -m minialign distill --teacher minilm --layers 3 --text FILES
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minialign.batching import Batches, ExampleBatch, pad
from minialign.distill.recipe import Recipe, check_weights, distil
from minialign.distill.student import COPIED, choose_layers, copy_layers, student_config
from minialign.lab.pretrained.bert import Bert, BertConfig, mean_pool, row_vectors
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.training import TrainingConfig


@dataclass(frozen=True)
class SentenceConfig:
    """What the student keeps, and how much of each."""

    vectors: float = 1.0  # weight of the angle between the two vectors of a text, for students as wide as their teacher
    similarities: float = 1.0  # weight of the squared difference of similarities, over the pairs of a batch
    # leave the table of token vectors as it is, for students that begin as layers of their teacher
    frozen_words: bool = True

    def __post_init__(self):
        check_weights(self, ("vectors", "similarities"))


@dataclass
class SentenceBatch(ExampleBatch):
    """Texts with the teacher's vectors. B texts, T tokens, D the teacher's width."""

    tokens: Tensor  # (B, T)
    mask: Tensor  # (B, T) true at real tokens
    vectors: Tensor  # (B, D) of length 1
    rows: list[int]  # (B,) which texts they are


class Sentences(Batches):
    """Texts and what the teacher makes of them, as training data; similarities are compared inside of a micro-batch.

    Args:
        rows: ids of each text; vectors: (n, D) the teacher's; batch: texts a step; seed: of their order.
    """

    def __init__(self, rows: Sequence[Sequence[int]], vectors: Tensor, batch: int, seed: int):
        super().__init__([len(row) for row in rows], batch, seed)
        self.rows, self.vectors = rows, vectors

    def batch(self, names: list[int], step: int = 0) -> SentenceBatch:
        """The named texts, the same at every step."""
        return SentenceBatch(*pad([self.rows[i] for i in names], value=Bert.special.pad), self.vectors[names], names)


def vector_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 − v·v' over texts; (B, D) each, of length 1. In [0, 2]."""
    return (1 - (student * teacher).sum(dim=-1)).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of similarities over the pairs of different texts; (B, d) and (B, D), of length 1. 0 for
    a single text."""
    difference = (student @ student.T - teacher @ teacher.T).fill_diagonal_(0.0)  # (B, B)
    B = len(student)
    return (difference**2).sum() / max(1, B * (B - 1))


class SentenceVectors(Recipe):
    """The teacher's vectors and similarities; teacher and student are BERTs with the same tokens."""

    def begin(self, student: Bert) -> None:
        """Raises UserError for another vocabulary, or for vectors of another width."""
        ours, theirs = student.config, self.teacher.config
        if ours.vocabulary != theirs.vocabulary:
            sizes = f"the student's vocabulary has {ours.vocabulary} tokens, the teacher's {theirs.vocabulary}"
            raise UserError(f"{sizes}; make the student from the teacher's configuration, so that both read the same "
                            f"tokens")
        if self.config.vectors and ours.width != theirs.width:
            raise UserError(f"the student's width is {ours.width}, the teacher's {theirs.width}; set the weight of "
                            f"vectors to 0: similarities need no width")
        student.body.token_embedding.requires_grad_(not self.config.frozen_words)

    def end(self, student: Bert) -> None:
        """Let the token vectors be trained again by whoever comes next."""
        student.requires_grad_(True)

    def parts(self, student: Bert, batch: Any) -> dict[str, Tensor]:
        """Each part, a mean over texts or pairs of texts."""
        vectors, found = mean_pool(student.body(batch.tokens, batch.mask), batch.mask), {}
        if self.config.vectors:
            found["vectors"] = vector_loss(vectors, batch.vectors)
        if self.config.similarities:
            found["similarities"] = similarity_loss(vectors, batch.vectors)
        return found


def sentence_student(teacher: Bert, layers: int = 0, width: int = 0, heads: int = 0,
                     layers_from: Sequence[int] | None = None) -> Bert:
    """A BERT that begins as some of the teacher's layers, spread evenly without `layers_from`. Raises UserError for
    another width, or no such layer."""
    student = Bert(sentence_config(teacher.config, layers, width, heads))
    if student.config.width != teacher.config.width or student.config.heads != teacher.config.heads:
        raise UserError("a student that begins as layers of its teacher has its width and its heads; begin at random, "
                        "or leave --width and --heads out")
    layers_from = choose_layers(layers_from, student.config, teacher.config)
    copy_layers(student.body, teacher.body, layers_from, (*COPIED, "segment_embedding"))
    return student


def sentence_config(teacher: BertConfig, layers: int, width: int = 0, heads: int = 0) -> BertConfig:
    """The teacher's shape with fewer layers, and another width where it is given; the feed-forward layer shrinks with
    it."""
    shape = student_config(teacher, layers, width, heads)
    return dataclasses.replace(shape, inner=max(1, teacher.inner * shape.width // teacher.width))


def random_student(config: BertConfig, seed: int) -> Bert:
    """A BERT that knows nothing: N(0, 0.02²), zero biases, norms of 1 (Devlin et al. 2019, released code)."""
    student, generator = Bert(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return student


def ranks(values: Tensor) -> Tensor:
    """(n,) rank of each number, 0 first, those that are equal share the mean of theirs."""
    _, which, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0)  # one past the last rank of each distinct number
    return (last - (count + 1) / 2).double()[which]


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's r of two lists of numbers (n,), in [−1, 1]."""
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def kept(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """How much of the teacher's similarities a student keeps, over all pairs of n texts.

    Args:
        student: (n, d), teacher: (n, D) vectors of length 1.
    Returns:
        validation: mean squared difference; pearson and spearman: correlation of the similarities and of their ranks,
            in [-1, 1];
        nearest: share of texts whose most similar other text is the teacher's.
    """
    n = len(teacher)
    ours, theirs = student @ student.T, teacher @ teacher.T  # (n, n)
    upper = torch.ones(n, n, dtype=torch.bool, device=ours.device).triu(1)
    a, b = ours[upper].double(), theirs[upper].double()  # (n (n − 1) / 2,)
    nearest = [table.fill_diagonal_(-torch.inf).argmax(dim=1) for table in (ours, theirs)]
    return {"validation": float(((a - b) ** 2).mean()), "pearson": correlation(a, b),
            "spearman": correlation(ranks(a), ranks(b)), "nearest": float((nearest[0] == nearest[1]).double().mean())}


def distil_sentences(
    student: Bert, teacher: Bert, rows: list[list[int]], valid: list[list[int]], training: TrainingConfig,
    run: RunFolder, config: SentenceConfig
) -> dict[str, float]:
    """Teach a student the teacher's vectors of texts.

    Args:
        student: trained in place and saved in the run folder; teacher: reads the same ids.
        rows: ids of the texts to learn from (`bert.sentence_rows`); valid: of those that it is looked at with
            meanwhile.
        training: how; run: where; config: what is kept.
    Returns:
        what `kept` says of the texts in `valid`, and "steps".
    """
    data = Sentences(rows, torch.zeros(len(rows), teacher.config.width), min(training.batch, len(rows)), training.seed)
    shown = sorted({row for step in range(training.steps) for row in data.order(step)})
    data.vectors[shown] = row_vectors(teacher, [rows[i] for i in shown]).cpu()
    goal = row_vectors(teacher, valid)

    def validate(model: nn.Module) -> dict[str, float]:
        return kept(row_vectors(model, valid), goal)

    return distil(student, SentenceVectors(teacher, config), data, [], training, run, validate)
