r"""DistilGPT-2: a decoder of half the layers, begun as every second layer of its teacher, taught by its probabilities.

    L = 5 T² KL(teacher ‖ student) + 2 CE(next token) + (1 − cos(h_student, h_teacher)), T = 2   Sanh et al. 2019, §2

It is soft_targets.py with three parts and a start (student.py):

    student = start_from(LanguageModel(student_config(teacher.config)), teacher)
    distil(student, SoftTargets(teacher, DISTILGPT2), data, held_out, training, run)

Details that matter:
    1. Half the layers, all of the width: only so can blocks be copied and hidden vectors be compared.
    2. The weights of the three parts are DistilBERT's, with next-token prediction in place of masked tokens.
DEVIATION: the released DistilGPT-2 was trained with the released script's loss, whose weights were never published.

Read next: distilbert.py, the same for an encoder.
Try it:  python -m minialign distill --teacher RUN --recipe distilgpt2 --text FILES
"""

from minialign.distill.soft_targets import SoftTargetConfig

DISTILGPT2 = SoftTargetConfig(temperature=2.0, soft=5.0, hard=2.0, cosine=1.0)
