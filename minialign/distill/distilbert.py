r"""DistilBERT: an encoder of half the layers, begun as layers of its teacher, taught by its probabilities while both
fill in hidden words.

    L = 5 T² KL(teacher ‖ student) + 2 CE(hidden tokens) + (1 − cos(h_student, h_teacher)), T = 2   Sanh et al. 2019, §2

It is distilgpt2.py with masked tokens in place of the next one. Details that matter:
    1. The labels teach at the hidden tokens, the teacher at all real ones (soft_targets.py).
    2. Which layers: the paper says one of two; the released script took 0, 2, 4, 7, 9, 11 of twelve, which is what
       `evenly` gives. `start_from` takes any list (test_distilbert_takes_any_list_of_layers).
    3. Any part's weight may be 0, and the start at random: the paper's ablation (its Table 4).

Read next: recording.py. See also: tinybert.py, which looks inside the layers.
Try it:  python -m minialign distill --teacher RUN --recipe distilbert --text FILES
"""

from minialign.distill.soft_targets import SoftTargetConfig

DISTILBERT = SoftTargetConfig(temperature=2.0, soft=5.0, hard=2.0, cosine=1.0)
