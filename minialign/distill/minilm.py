r"""MiniLM: the student copies how the teacher's last layer looks around, and how its values relate to each other;
nothing else.

    L = KL(A_teacher ‖ A_student) + KL(R_teacher ‖ R_student)          A = softmax(Q Kᵀ / √d)   R = softmax(V Vᵀ / √d)          Wang et al. 2020, §3.1
    v2:  Σ over X in Q, K, V of KL(softmax(X Xᵀ / √d)_teacher ‖ …_student), in any number of relation heads                 Wang et al. 2021, §3.1

Both are tables of tokens by tokens, so the student may have any width and any number of layers: no projection, no map
of layers. Details that matter:
    1. The mean runs over heads and real tokens; √d is that of the heads at hand (losses.py,
       test_relations_are_softmax_of_the_products_of_vectors).
    2. The first version compares attention heads one by one and needs as many; relation heads of the second are cut
       anew from the width (test_minilm_takes_any_width_and_v2_any_heads).
    3. Queries and keys are taken before they are turned by positions: their relations are about content, as in a model
       with learned positions.
    4. No word is predicted, so the student's own loss stays that of chance until it is tuned on a task or on text; it
       is a body, not yet a model (test_minilm_moves_everything_below_the_last_attention_and_nothing_above).
    5. Small students learn better from an assistant with the teacher's layers and their own width                       Wang et al. 2020, §3.3
    DEVIATION: weights are per part, so that each can be left out; the paper adds them with weight 1.

Read next: losses.py (the relations).
Try it:  python -m minialign distill --teacher RUN --recipe minilm --layers 2 --width 64 --text FILES
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minialign.distill.losses import distribution_loss, relation_loss
from minialign.distill.recipe import Recipe, distil, some_weight
from minialign.distill.soft_targets import same_kind
from minialign.distill.student import may_look, read, recorded, student_config
from minialign.heads import LanguageModel, describe_model, load_model
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges, to_dict
from minialign.tokenizer import Tokenizer
from minialign.training import Data, TrainingConfig

WEIGHTS = ("attention", "queries", "keys", "values")


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
        check_ranges(self, dict.fromkeys(WEIGHTS, (0, 1e3)) | {"relation_heads": (0, 4096)})
        some_weight(self, WEIGHTS)


MINILM = MiniLMConfig()
MINILM_V2 = MiniLMConfig(attention=0.0, queries=1.0, keys=1.0)


class MiniLM(Recipe):
    """Attention and relations of one layer of the teacher, copied by the student's last. Arguments as for `Recipe`."""

    weights = WEIGHTS

    @property
    def relation_heads(self) -> int:
        """Parts that vectors are cut into."""
        return self.config.relation_heads or self.teacher.config.heads

    def begin(self, student: LanguageModel) -> None:
        """Raises UserError for another kind, heads that cannot be compared, a width that does not divide, or a layer
        that is not there."""
        same_kind(student, self.teacher)
        ours, theirs = student.config, self.teacher.config
        if self.config.attention and ours.heads != theirs.heads:
            fit = [n for n in range(1, ours.width + 1) if ours.width % n == 0]
            how = (f"give it {theirs.heads} (its width must divide by them), or use minilm-v2, which cuts both into "
                   f"relation heads of their own")
            raise UserError(f"the student has {ours.heads} heads, the teacher {theirs.heads}; {how}; a width of "
                            f"{ours.width} takes {fit}")
        for who, config in (("student", ours), ("teacher", theirs)):
            if config.width % self.relation_heads:
                parts = f"does not divide into {self.relation_heads} relation heads"
                raise UserError(f"the {who}'s width of {config.width} {parts}; choose a divisor of both widths")
        if not -theirs.layers <= self.config.layer < theirs.layers:
            raise UserError(f"layer is {self.config.layer}; the teacher's are 0 to {theirs.layers - 1}, or -1 for the "
                            f"last")

    def parts(self, student: LanguageModel, batch: Any) -> dict[str, Tensor]:
        """Each part, a mean over heads and real tokens, nats."""
        with torch.no_grad(), recorded(self.teacher.body) as theirs:
            read(self.teacher, batch)
        with recorded(student.body) as ours:
            read(student, batch)
        allowed, layer, found = may_look(student, batch), self.config.layer, {}
        if self.config.attention:
            looks = [t.scores(i).masked_fill(~allowed, -torch.inf).log_softmax(dim=-1) for t,
                     i in ((ours, -1), (theirs, layer))]
            found["attention"] = distribution_loss(*looks, batch.mask)
        for name in WEIGHTS[1:]:
            if getattr(self.config, name):
                found[name] = relation_loss(getattr(ours, name)[-1], getattr(theirs, name)[layer], self.relation_heads,
                                            batch.mask)
        return found


def distil_minilm(
    teacher: LanguageModel,
    tokenizer: Tokenizer,
    data: Data,
    held_out: list,
    training: TrainingConfig,
    run: RunFolder,
    layers: int = 0,
    width: int = 0,
    config: MiniLMConfig = MINILM,
    assistant: bool = False,
) -> tuple[LanguageModel, dict[str, float]]:
    """Make and teach a student of any width.

    Args:
        layers, width: of the student; half the teacher's layers and its whole width without them.
        config: what is copied.
        assistant: teach a model of the teacher's layers and the student's width first, kept in the folder `assistant`,
            and let it teach the student.
        The others as for `distil`.
    Returns:
        the student, and what `distil` returns.
    """
    layers = layers or max(1, teacher.config.layers // 2)
    if assistant:
        helper = LanguageModel(student_config(teacher.config, teacher.config.layers, width), training.seed)
        folder = RunFolder(run.path / "assistant")
        folder.begin({**describe_model(helper), "stage": "assistant", "training": to_dict(training)}, tokenizer)
        if not folder.finished:
            distil(helper, MiniLM(teacher, config), data, held_out, training, folder)
        teacher, config = load_model(folder.path, "language-model")[0], replace(config,
            layer=-1)  # the one that learned
    student = LanguageModel(student_config(teacher.config, layers, width), training.seed)
    return student, distil(student, MiniLM(teacher, config), data, held_out, training, run)
