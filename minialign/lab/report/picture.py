r"""The picture of the README: the pipeline of the main job as the report draws it, and below it what every one of its
models can go on to.

The boxes name the files that a reader opens. The picture carries a fingerprint of what it was drawn from, so that a
test can say whether the committed one is fresh (test_the_picture_of_the_readme_is_what_the_code_draws).

Read next: pipeline.py. Try it:  python -m minialign.lab.report.picture data/pipeline.png
"""

import inspect
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from minialign.lab.plotting import FAINT, INK, STYLES, as_png
from minialign.lab.report.pipeline import GAP, HEIGHT, WIDTH, Box, Plan, plan
from minialign.runs.files import fingerprint, write_atomic

MARK = "Drawn-from"  # name of the fingerprint in the file
SOFT = "#56606a"
EDGES = {"data": (FAINT, 1.2, "-"), "model": (STYLES[0][0], 1.4, "-"), "people": (STYLES[1][0], 1.7, (0, (4, 2))),
         "measure": (STYLES[2][0], 2.6, "-")}
# kind of line -> how far down, size …
TEXTS = {"kind": (18, 8.2, SOFT, "normal"), "name": (40, 12.0, INK, "bold"), "file": (58, 8.4, SOFT, "normal")}
STATIONS = {
    "corpus": Box("data", "Dirty corpus", "world/corpus.py", ("stories, some of them", "false, rude or cut off")),
    "tokenizer": Box("model", "Tokenizer", "tokenizer.py", ("byte-level BPE",)),
    "pretrain": Box("model", "Pretraining", "pretrain/causal_lm.py", ("next token; also masked", "tokens, and gaps")),
    "demos": Box("data", "Demonstrations", "world/tasks.py", ("clean answers",)),
    "sft": Box("model", "Instruction tuning", "instruct/sft.py", ("loss on completions only",)),
    "pairs": Box("data", "Pairs of summaries", "rlhf/comparisons.py", ("of models, and the", "story's reference")),
    "people": Box("people", "People choose", "lab/labelling/page.py", ("you, in the browser,",
    "or simulated annotators")),
    "reward": Box("model", "Reward model", "rlhf/reward_model.py", ("loss −log σ(r₁ − r₂)",)),
    "ppo": Box("model", "PPO", "rlhf/ppo.py", ("reward r − β log π/π_ref",)),
    "evaluate": Box("measure", "Evaluation", "lab/demo/evaluation.py", ("gold score, win rates by", "other people")),
}
FURTHER = (
    Box("model", "Many tasks", "instruct/t0.py", ("T5, T0, FLAN: asked for", "in words never seen")),
    Box("model", "Cheap fine-tuning", "peft/lora.py", ("LoRA, BitFit, adapters,", "tuned prompts")),
    Box("model", "Fewer bits", "quant/llm_int8.py", ("absmax, zero-point, QAT,", "LLM.int8(), 16 bits")),
    Box("model", "Distillation", "distill/soft_targets.py", ("DistilBERT, TinyBERT,", "MiniLM, DistilGPT-2")),
    Box("measure", "Claims", "lab/claims/runner.py", ("what the notes say,", "measured")),
)


def whole_plan() -> Plan:
    """The pipeline's plan with a third row, which a line across feeds."""
    above, across = plan(STATIONS), WIDTH + GAP
    line, top = above.height + 40, above.height + 70
    boxes = above.boxes + [(box, i * across + 2, top) for i, box in enumerate(FURTHER)]
    arrows = above.arrows + [(((i * across + 2 + WIDTH / 2, line), (i * across + 2 + WIDTH / 2, top)), "")
                             for i in range(5)]
    arrows.append((((2 + WIDTH / 2, line), (4 * across + 2 + WIDTH / 2, line)), "line"))
    note = (1.5 * across + 2, line - 12, "a model from above, or a real one read from its files, can go on to")
    return Plan(above.width, top + HEIGHT + 2, boxes, arrows, [*above.notes, note])


def draw(drawing: Plan) -> Figure:
    """The plan as a figure: one unit is a hundredth of an inch."""
    fig = Figure(figsize=((drawing.width + 12) / 100, (drawing.height + 12) / 100))
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set_xlim(-6, drawing.width + 6)
    axes.set_ylim(drawing.height + 6, -6)
    axes.axis("off")
    for box, x, y in drawing.boxes:
        colour, width, style = EDGES[box.kind]
        face = (*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.05)
        shape = "round,pad=0,rounding_size=10"
        axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, shape, facecolor=face, edgecolor=colour, linewidth=width,
                                      linestyle=style))
        for line, words in (("kind", box.kind), ("name", box.name), ("file", box.file)):
            down, size, ink, weight = TEXTS[line]
            axes.text(x + 13, y + down, words, size=size, color=ink, weight=weight,
                      family="monospace" if line == "file" else None)
        for number, fact in enumerate(box.facts):
            axes.text(x + 13, y + 81 + 17 * number, fact, size=9.4)
    for points, kind in drawing.arrows:
        axes.plot(*zip(*points), color=INK, linewidth=1.2, linestyle="--" if kind == "frozen" else "-")
        if kind != "line":
            (a, b), (c, d) = points[-2:]
            right, down = (c > a) - (c < a), (d > b) - (d < b)
            head = [(c, d), (c - 9 * right + 5 * down, d - 9 * down + 5 * right),
                    (c - 9 * right - 5 * down, d - 9 * down - 5 * right)]
            axes.add_patch(Polygon(head, facecolor=INK, edgecolor="none"))
    for x, y, words in drawing.notes:
        axes.text(x, y, words, size=9.4, style="italic", color=SOFT)
    return fig


def drawn_from() -> str:
    """Fingerprint of all that decides how the picture looks."""
    return fingerprint([repr(whole_plan()), inspect.getsource(sys.modules[__name__])])


def write_picture(path: Path) -> None:
    """Draw the picture into a PNG file."""
    write_atomic(path, as_png(draw(whole_plan()), dpi=130, notes={MARK: drawn_from()}))


if __name__ == "__main__":
    write_picture(Path(sys.argv[1] if len(sys.argv) > 1 else "data/pipeline.png"))
