r"""Exercises that check themselves: at the end of each notebook, some to write, to mend, to predict and to beat.

    from minialign.lab.exercises import check, listing, solution, stub, task
    listing()                     what there is
    task("absmax")                what to do, and where to begin
    check("absmax", my_absmax)    right, or a hint: on which small example it went wrong, by how much, and why
    solution("absmax")            one way to do it; try first

Answers are compared with the functions that the project itself uses. A chapter is one file of exercises, such as
quantization.py, and one of words, texts/quantization.md. Read next: exercise.py (what an exercise is), checking.py (how
it is checked).
"""

from minialign.lab.exercises.catalogue import listing, solution, stub, task
from minialign.lab.exercises.checking import Verdict, check

__all__ = ["Verdict", "check", "listing", "solution", "stub", "task"]
