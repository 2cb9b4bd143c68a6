"""The student that `distill` teaches: a new one of the shape that the options describe, or a run that is there."""

from __future__ import annotations

from pathlib import Path

from minialign.distill.recipes import Named, make_student
from minialign.heads import LanguageModel, load_model, same_tokenizer
from minialign.runs.errors import UserError
from minialign.tokenizer import Tokenizer


def layer_list(text: str) -> list[int] | None:
    """Numbers between commas; None for an empty text."""
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError:
        raise UserError(f"--layers-from is {text!r}; it must be numbers of layers between commas, such as 0,2,4") from None


def new_student(teacher: LanguageModel, named: Named, shape: dict, assistant: bool, recipe: str,
                seed: int) -> LanguageModel:
    """The student that the options describe, untrained."""
    if assistant and (not recipe.startswith("minilm") or shape["heads"] or shape["start"] == "teacher"
                      or shape["layers_from"]):
        raise UserError("--assistant is for minilm and minilm-v2, and its student starts at random with the teacher's "
                        "heads; leave the other option out")
    from_teacher = named.from_teacher if shape["start"] is None else shape["start"] == "teacher"
    if shape["layers_from"] is not None and not from_teacher:
        raise UserError(f"--layers-from is for a student that begins as layers of its teacher, and {recipe} starts at "
                        f"random; add --start teacher")
    return make_student(teacher, shape["layers"], shape["width"], shape["heads"], from_teacher, shape["layers_from"],
                        seed)


def old_student(folder: Path, teacher: tuple[Path, Tokenizer]) -> LanguageModel:
    """A run's model. Raises UserError when it does not read the teacher's tokens."""
    model, tokenizer = load_model(folder, "language-model")
    same_tokenizer((folder, tokenizer), teacher)
    return model
