r"""DistilBERT: an encoder of half the layers, begun as layers of its teacher, taught by its probabilities while both
fill in hidden words.

    L = 5 T² KL(teacher ‖ student) + 2 CE(hidden tokens) + 1 (1 − cos(h_student, h_teacher)),   T = 2          Sanh et al. 2019, §2

It is distilgpt2.py with masked tokens in place of the next one. Details that matter:
    1. The labels teach at the hidden tokens, the teacher at all real ones (soft_targets.py).
    2. Which layers: one of two, spread evenly. The released script took 0, 2, 4, 7, 9, 11 of twelve; `layers_from`
       takes any list (test_distilbert_takes_any_list_of_layers).
    3. Any part's weight may be 0, and the start at random: the paper's ablation (its Table 4).

Read next: tinybert.py, which looks inside the layers.
Try it:  python -m minialign distill --teacher RUN --recipe distilbert --text FILES
"""

from __future__ import annotations

from collections.abc import Sequence

from minialign.distill.recipe import distil
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.student import start_from, student_config
from minialign.heads import LanguageModel
from minialign.runs.run_folder import RunFolder
from minialign.training import Data, TrainingConfig

DISTILBERT = SoftTargetConfig(temperature=2.0, soft=5.0, hard=2.0, cosine=1.0)


def distil_bert(
    teacher: LanguageModel,
    data: Data,
    held_out: list,
    training: TrainingConfig,
    run: RunFolder,
    layers: int = 0,
    config: SoftTargetConfig = DISTILBERT,
    from_teacher: bool = True,
    layers_from: Sequence[int] | None = None,
) -> tuple[LanguageModel, dict[str, float]]:
    """Make and teach a student of an encoder.

    Args:
        layers: of the student; half the teacher's without it.
        config: what is copied; from_teacher: whether it begins as layers of the teacher or at random;
            layers_from: the teacher's layer for each of the student's, evenly spread without it.
        The others as for `distil`.
    Returns:
        the student, and what `distil` returns.
    """
    student = LanguageModel(student_config(teacher.config, layers or max(1, teacher.config.layers // 2)), training.seed)
    if from_teacher:
        start_from(student, teacher, layers_from)
    return student, distil(student, SoftTargets(teacher, config), data, held_out, training, run)
