r"""Sequence-level distillation: the student learns what the teacher writes, word for word, as if it were the text.

    L = −log p_student(ŷ | x),    ŷ ≈ argmax over y of p_teacher(y | x), by beam search            Kim & Rush 2016, §3.2

A student that has not room for all that its teacher may say learns its teacher's one best answer instead, which is an
easier thing to learn than people's texts: one text for each prompt, and always said in the same way. Details that
matter:
    1. The loss falls on what the teacher wrote and not on the prompt, its end token included; nothing stands after it
       (test_the_student_is_taught_what_the_teacher_wrote_and_no_more).
    2. The teacher writes once, before the first step, in a file that people can read; the same teacher, prompts and
       settings read it back, any other writes anew
       (test_written_texts_are_used_again_only_for_the_same_teacher_prompts_and_settings).
    3. The teacher's probabilities may be learned on these texts as well (weight `soft`): the paper's best, Seq-KD +
       Word-KD (its Table 1).
    4. A temperature above 0 draws the texts from the teacher instead: what it may say rather than what it finds best.
    DEVIATION: no interpolation (the hypothesis nearest to the people's text, §3.3): many of our prompts come without
    one.

Read next: on_policy.py, where the student writes.
Try it:  python -m minialign distill --teacher RUN --recipe sequence-level --text FILES
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minialign.distill.beam_search import beam_search
from minialign.distill.recipe import distil
from minialign.distill.soft_targets import SoftTargetConfig, SoftTargets
from minialign.distill.student import start_from, student_config
from minialign.distill.teacher_cache import identity
from minialign.generation import SamplingConfig, generate
from minialign.heads import LanguageModel
from minialign.pretrain.causal_lm import LabelledRows
from minialign.runs.files import fingerprint, read_jsonl, write_jsonl
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import check_ranges, to_dict
from minialign.training import TrainingConfig

SEQUENCE_LEVEL = SoftTargetConfig(temperature=1.0, soft=0.0, hard=1.0)
WRITTEN = "written.jsonl"  # what the teacher wrote, in the run folder


@dataclass(frozen=True)
class WritingConfig:
    """How the teacher writes."""

    beams: int = 5  # hypotheses that it keeps; 1 is greedy
    drawn_at: float = 0.0  # 0 searches; above 0 the texts are drawn at this temperature, and beams has no say
    new_tokens: int = 48  # most tokens after a prompt, the end token included
    together: int = 64  # prompts that are answered together

    def __post_init__(self):
        check_ranges(self, {"beams": (1, 1000), "drawn_at": (0, 100), "new_tokens": (1, 10**6), "together": (1, 10**5)})


def write(teacher: LanguageModel, prompts: Sequence[Sequence[int]], config: WritingConfig,
          seed: int) -> list[tuple[list[int], int]]:
    """The teacher's answer to each prompt as rows to learn from.

    Args:
        teacher: a decoder; prompts: lists of ids that begin with the begin token; config: how; seed: of what is drawn.
    Returns:
        for each prompt (ids of prompt and answer up to its end token, length of the prompt), as LabelledRows takes
        them.
    """
    chance, order = torch.Generator().manual_seed(seed), sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rows: list[tuple[list[int], int]] = [([], 0)] * len(prompts)
    for start in range(0, len(order), config.together):
        chosen = order[start : start + config.together]
        asked = [prompts[i] for i in chosen]
        if config.drawn_at > 0:
            written = generate(teacher, asked, SamplingConfig(config.new_tokens, config.drawn_at), chance)
        else:
            written = beam_search(teacher, asked, config.new_tokens, config.beams)
        for i, row, keep in zip(chosen, written.response, written.mask):
            rows[i] = ([*prompts[i], *row[keep].tolist()], len(prompts[i]))
    return rows


def written_once(teacher: LanguageModel, prompts: Sequence[Sequence[int]], config: WritingConfig, seed: int,
                 path: Path) -> list[tuple[list[int], int]]:
    """The same as `write`, kept in a file: its first line says for whom, the others hold a prompt and an answer each,
    in ids."""
    made_for = fingerprint([identity(teacher), list(map(list, prompts)), to_dict(config), seed])
    if path.exists():
        first, *lines = read_jsonl(path)
        if first.get("made for") == made_for:
            return [([*line["prompt"], *line["answer"]], len(line["prompt"])) for line in lines]
    rows = write(teacher, prompts, config, seed)
    write_jsonl(path, [{"made for": made_for}, *({"prompt": ids[:start], "answer": ids[start:]} for ids,
                                                 start in rows)])
    return rows


def distil_sequences(
    teacher: LanguageModel,
    prompts: Sequence[Sequence[int]],
    held_out: list,
    training: TrainingConfig,
    run: RunFolder,
    layers: int = 0,
    config: SoftTargetConfig = SEQUENCE_LEVEL,
    writing: WritingConfig | None = None,
    from_teacher: bool = True,
) -> tuple[LanguageModel, dict[str, float]]:
    """Let the teacher write, and teach a student what it wrote.

    Args:
        prompts: lists of ids that begin with the begin token; that alone lets the teacher write whatever it likes.
        layers: of the student; half the teacher's without it.
        config: how much of the words and of their probabilities is copied; writing: how the teacher writes.
        from_teacher: whether the student begins as layers of the teacher or at random.
        The others as for `distil`.
    Returns:
        the student, and what `distil` returns.
    """
    student = LanguageModel(student_config(teacher.config, layers or max(1, teacher.config.layers // 2)), training.seed)
    if from_teacher:
        start_from(student, teacher)
    rows = written_once(teacher, prompts, writing or WritingConfig(), training.seed, run.path / WRITTEN)
    data = LabelledRows(rows, min(training.batch, len(rows)), training.seed)
    return student, distil(student, SoftTargets(teacher, config), data, held_out, training, run)
