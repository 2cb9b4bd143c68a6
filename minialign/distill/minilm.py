r"""MiniLM: the student copies how the teacher's last layer looks around, and how its values relate to each other;
nothing else.

    L = KL(A_teacher ‖ A_student) + KL(R_teacher ‖ R_student)       A = softmax(Q Kᵀ / √d)   R = softmax(V Vᵀ / √d)
                                                                                     Wang et al. 2020, §3.1 and §3.2
    v2:  Σ over X in Q, K, V of KL(softmax(X Xᵀ / √d)_teacher ‖ …_student), in any number of relation heads
                                                                                         Wang et al. 2021, §3.1

Both are tables of tokens by tokens, so the student may have any width and any number of layers: no projection, no map
of layers. Details that matter:
    1. The mean runs over heads and real tokens; √d is that of the heads at hand
       (test_relations_are_softmax_of_the_products_of_vectors).
    2. The first version compares attention heads one by one and needs as many; relation heads of the second are cut
       anew from the width (test_minilm_takes_any_width_and_v2_any_heads).
    3. Queries and keys are taken before they are rotated by positions: their relations are about content, as in a model
       with learned positions.
    4. No word is predicted, so the student's own loss stays that of chance until it is tuned on a task or on text
       (test_minilm_moves_everything_below_the_last_attention_and_nothing_above).
    5. Small students learn better from an assistant with the teacher's layers and their own width (2020, §3.3).
    DEVIATION: each part has a weight; the paper adds them with weight 1.

Read next: sequence_level.py, where the teacher writes.
Try it:  python -m minialign distill --teacher RUN --recipe minilm --layers 2 --width 64 --text FILES
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minialign.batching import Batches
from minialign.distill.recipe import Recipe, check_weights, distil, read, same_kind
from minialign.distill.recording import may_look, recorded
from minialign.distill.student import student_config
from minialign.heads import LanguageModel, describe_model, load_model
from minialign.logprobs import masked_mean
from minialign.runs.devices import device_of
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import to_dict
from minialign.tokenizer import Tokenizer
from minialign.training import TrainingConfig


@dataclass(frozen=True)
class MiniLMConfig:
    """What the student copies of the teacher's layer, and how much of each."""

    attention: float = 1.0  # weight of the attention distributions (needs as many heads as the teacher)
    queries: float = 0.0  # weight of the relations among queries (v2)
    keys: float = 0.0  # weight of the relations among keys (v2)
    values: float = 1.0  # weight of the relations among values
    relation_heads: int = 0  # parts that vectors are cut into for their relations; 0: the teacher's heads
    layer: int = -1  # which of the teacher's layers, the last by default (v2 takes an earlier one of large teachers)

    def __post_init__(self):
        check_weights(self, ("attention", "queries", "keys", "values"), relation_heads=(0, 4096))


MINILM = MiniLMConfig()
MINILM_V2 = MiniLMConfig(attention=0.0, queries=1.0, keys=1.0)


def relation(vectors: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Log of softmax(X Xᵀ / √d): how each token's vector relates to the others', in each of `heads` parts of the width.

    Args:
        vectors: (B, T, D) values (or queries, or keys) of all heads side by side; mask: (B, T) true at real tokens.
    Returns:
        (B, heads, T, T) log-probabilities; what stands at pads has no meaning. UserError where D does not divide.
    """
    B, T, D = vectors.shape
    if D % heads:
        raise UserError(f"a width of {D} does not divide into {heads} relation heads; choose a divisor of {D}")
    parts = vectors.view(B, T, heads, D // heads).transpose(1, 2)  # (B, heads, T, d)
    scores = parts @ parts.transpose(-2, -1) / math.sqrt(D // heads)
    return scores.float().masked_fill(~mask[:, None, None, :], -torch.inf).log_softmax(dim=-1)


def distribution_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher ‖ student) of attention distributions, mean over heads and real queries (2020, §3.1, Eq. 6).

    Args:
        student, teacher: (B, H, T, S) log-probabilities of equally many heads; −∞ where nothing may be looked at.
        mask: (B, T) true at real queries.
    """
    p = teacher.exp()
    terms = torch.where(p > 0, p * (teacher - student), 0.0)  # 0 log 0 = 0
    return masked_mean(terms.sum(dim=-1), mask[:, None, :].expand(terms.shape[:3]))


def relation_loss(student: Tensor, teacher: Tensor, heads: int, mask: Tensor) -> Tensor:
    """KL(teacher's relation ‖ student's), mean over heads and real tokens; widths may differ (2020, Eq. 9)."""
    return distribution_loss(relation(student, heads, mask), relation(teacher, heads, mask), mask)


class MiniLM(Recipe):
    """Attention and relations of one layer of the teacher, copied by the student's last."""

    @property
    def relation_heads(self) -> int:
        """Parts that vectors are cut into."""
        return self.config.relation_heads or self.teacher.config.heads

    def begin(self, student: LanguageModel) -> None:
        """Raises UserError for another kind, heads that cannot be compared, a width that does not divide, or a layer
        that is not there."""
        same_kind(student, self.teacher, one_stack=True)
        ours, theirs = student.config, self.teacher.config
        if self.config.attention and ours.heads != theirs.heads:
            fit = [n for n in range(1, ours.width + 1) if ours.width % n == 0]
            raise UserError(f"the student has {ours.heads} heads, the teacher {theirs.heads}; give it {theirs.heads} "
                            f"(its width must divide by them), or use minilm-v2, which cuts both into relation heads "
                            f"of their own; a width of {ours.width} takes {fit}")
        for who, config in (("student", ours), ("teacher", theirs)):
            if config.width % self.relation_heads:
                raise UserError(f"the {who}'s width of {config.width} does not divide into {self.relation_heads} "
                                f"relation heads; choose a divisor of both widths")
        if not -theirs.layers <= self.config.layer < theirs.layers:
            raise UserError(f"layer is {self.config.layer}; the teacher's are 0 to {theirs.layers - 1}, or -1 for the "
                            f"last")

    def parts(self, student: LanguageModel, batch: Any) -> dict[str, Tensor]:
        """Each part, a mean over heads and real tokens, nats."""
        with torch.no_grad(), recorded(self.teacher.body) as theirs:
            read(self.teacher, batch)
        with recorded(student.body) as ours:
            read(student, batch)
        allowed, layer, parts = may_look(student, batch), self.config.layer, {}
        if self.config.attention:
            a, b = (scores.masked_fill(~allowed, -torch.inf).log_softmax(dim=-1)
                    for scores in (ours.scores(-1), theirs.scores(layer)))
            parts["attention"] = distribution_loss(a, b, batch.mask)
        for name in ("queries", "keys", "values"):
            if getattr(self.config, name):
                vectors = getattr(ours, name)[-1], getattr(theirs, name)[layer]  # (B, T, D) each, of its own width
                parts[name] = relation_loss(*vectors, self.relation_heads, batch.mask)
        return parts


def train_assistant(
    recipe: MiniLM, width: int, tokenizer: Tokenizer, data: Batches, held_out: list, training: TrainingConfig,
    run: RunFolder
) -> MiniLM:
    """Teach an assistant of the teacher's layers and the student's width, in the folder `assistant` of the student's
    run, and return the recipe by which it teaches the student. A finished one is not taught again."""
    shape = student_config(recipe.teacher.config, recipe.teacher.config.layers, width)
    assistant = LanguageModel(shape, training.seed).to(device_of(recipe.teacher))
    folder = RunFolder(run.path / "assistant")
    folder.begin({**describe_model(assistant), "stage": "assistant", "training": to_dict(training)}, tokenizer)
    if not folder.finished:
        distil(assistant, recipe, data, held_out, training, folder)
    assistant = load_model(folder.path, "language-model", device_of(recipe.teacher))[0]
    return MiniLM(assistant, replace(recipe.config, layer=-1))  # the layer that learned
