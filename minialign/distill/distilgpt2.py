r"""DistilGPT-2: a decoder of half the layers, begun as every second layer of its teacher, taught by its probabilities.

    L = 5 T² KL(teacher ‖ student) + 2 CE(next token) + 1 (1 − cos(h_student, h_teacher)),   T = 2          Sanh et al. 2019, §2 (as for DistilBERT)

It is soft_targets.py with three parts and a start. Details that matter:
    1. Half the layers, all of the width: only so can blocks be copied and hidden vectors compared (student.py).
    2. The weights of the three parts are DistilBERT's, with next-token prediction in place of masked tokens.
DEVIATION: the released DistilGPT-2 was trained with the loss of the released script, whose weights for it were never
published.

Read next: distilbert.py, the same for an encoder.
Try it:  python -m minialign distill --teacher RUN --recipe distilgpt2 --text FILES
"""

from __future__ import annotations

from minialign.distill.recipe import distil
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.student import start_from, student_config
from minialign.distill.teacher_cache import CacheConfig
from minialign.heads import LanguageModel
from minialign.runs.run_folder import RunFolder
from minialign.training import Data, TrainingConfig

DISTILGPT2 = SoftTargetConfig(temperature=2.0, soft=5.0, hard=2.0, cosine=1.0)


def distil_gpt2(
    teacher: LanguageModel,
    data: Data,
    held_out: list,
    training: TrainingConfig,
    run: RunFolder,
    layers: int = 0,
    config: SoftTargetConfig = DISTILGPT2,
    from_teacher: bool = True,
    cache: CacheConfig | None = None,
) -> tuple[LanguageModel, dict[str, float]]:
    """Make and teach a student of a decoder.

    Args:
        layers: of the student; half the teacher's without it.
        config: what is copied; from_teacher: whether it begins as layers of the teacher or at random.
        cache: where the teacher's opinions are kept between epochs.
        The others as for `distil`.
    Returns:
        the student, and what `distil` returns.
    """
    student = LanguageModel(student_config(teacher.config, layers or max(1, teacher.config.layers // 2)), training.seed)
    if from_teacher:
        start_from(student, teacher)
    return student, distil(student, SoftTargets(teacher, config, cache), data, held_out, training, run)
