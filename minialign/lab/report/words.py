"""The report's sentences. Each follows from the numbers beside it, so that a run that disappoints says so."""

from __future__ import annotations

import shlex

from minialign.lab.report.run import STAGES, Run, duration, escape, marked_name, percent, table

# stage -> what it started from, what was done
STEPS = {"sft": ("pretrained", "Instruction tuning"), "rlhf": ("sft", "RLHF")}
STAGE_WORDS = {"world": "writing the stories", "tokenizer": "tokenizer", "pretrain": "pretraining",
               "sft": "instruction tuning", "compare": "pairs and choices",
               "reward": "reward model", "ppo": "PPO", "evaluate": "evaluation", "report": "this report"}  # fmt: skip
SIMPLIFIED = (
    "The people are simulated annotators: each has weights, noise and biases of her own, and some only judge at the "
    "end. No human was asked.",
    "The gold score understands only this world’s own sentences; a good paraphrase counts as unclear. It judges "
    "neither order nor style.",
    "The stories are a simulator’s and the model is tiny; what helps or fails here may not at scale.",
    "Intervals are over the test stories of one run. They say nothing about another seed: run some more before you "
    "believe a small difference.",
    "Who writes demonstrations, chooses pairs and draws up instructions decides what “aligned” means; here that is a "
    "table of weights.",
)


def order(lower: dict[str, float], higher: dict[str, float]) -> str:
    """Whether the second interval lies "above" or "below" the first, or they "overlap"."""
    return "above" if higher["low"] > lower["high"] else "below" if higher["high"] < lower["low"] else "overlap"


def title(run: Run) -> str:
    """The heading: what happened to the gold score over the two steps."""
    found = [order(a, b) for a, b in pairs(run)]
    if found[:1] != ["above"]:
        return "From dirty text to a model tuned on feedback"
    gain = {"above": "and feedback made it better", "overlap": "and no measurable gain from feedback",
            "below": "made worse by feedback"}
    return "A model that follows instructions" + "".join(f", {gain[step]}" for step in found[1:])


def pairs(run: Run) -> list[tuple[dict, dict]]:
    """(gold before, gold after) of each step that was measured."""
    both = [(run.interval(start, "gold"), run.interval(stage, "gold")) for stage, (start, _) in STEPS.items()]
    return [(a, b) for a, b in both if a and b]


def verdict(run: Run) -> str:
    """The summary in plain words, as HTML."""
    sentences = [*made(run), *steps(run), *rivals(run), *judge(run)]
    return " ".join(sentence for sentence in sentences if sentence)


def made(run: Run) -> list[str]:
    """What was done, in numbers."""
    documents, false, rude, demonstrations = (run.setting(name) for name in ("documents", "false", "rude",
        "demonstrations"))
    size, choices, total = run.summary.get("parameters"), run.summary.get("reward_model",
        {}).get("comparisons"), run.summary.get("seconds", {}).get("total")
    text = f"A decoder of {size:,} parameters" if size else "A small decoder"
    text += " was pretrained on " + (f"{documents:,} documents" if documents else "dirty text")
    if false is not None and rude is not None:
        text += f", {100 * false:.0f}\u00a0% of which say something false and {100 * rude:.0f}\u00a0% something rude,"
    text += " tuned on " + (f"{demonstrations:,} clean demonstrations" if demonstrations else "clean demonstrations")
    text += ", and tuned again with PPO against a reward model that had learned from " + (f"{choices:,} choices"
        if choices else "choices")
    text += f" of simulated annotators: {duration(total)} in all." if total else " of simulated annotators."
    return [text]


def steps(run: Run) -> list[str]:
    """What each step did to the gold score, and whether the hoped-for order holds."""
    sentences, unsettled = [], []
    for stage, (start, name) in STEPS.items():
        before, after = run.interval(start, "gold"), run.interval(stage, "gold")
        if not before or not after:
            continue
        found, numbers = order(before, after), f"from {before['mean']:.3f} to <b>{after['mean']:.3f}</b>"
        if found == "above":
            sentences.append(f"{name} raised the gold score {numbers}, and the intervals do not touch.")
        elif found == "below":
            sentences.append(f"{name} <b>lowered</b> the gold score {numbers}, and the intervals do not touch: the "
                             f"opposite of what it is for.")
            unsettled.append(f"it is reversed between {STAGES[start]} and {STAGES[stage]}")
        else:
            sentences.append(f"{name} took the gold score {numbers}, but the 95\u00a0% intervals overlap, so this run "
                             f"does not show a difference.")
            unsettled.append(f"{STAGES[start]} and {STAGES[stage]} cannot be told apart")
    hoped = "The order that the recipe promises, pretrained below instruction-tuned below RLHF,"
    if len(sentences) == len(STEPS):
        sentences.append(f"{hoped} <b>does not hold</b> here: {' and '.join(unsettled)}." if unsettled
                         else f"{hoped} holds here.")
    return sentences


def rivals(run: Run) -> list[str]:
    """The last model against the references, by gold score and by people who labelled nothing."""
    gold, reference, wins = run.interval("rlhf", "gold"), run.interval("reference", "gold"), run.interval("rlhf",
        "win_rate")
    sentences = []
    if gold and reference:
        place = {"above": "above", "below": "below", "overlap": "not clearly different from"}[order(reference, gold)]
        sentences.append(f"RLHF’s summaries are {place} the reference summaries’ {reference['mean']:.3f}.")
    if wins:
        how = ("prefer them to the references" if wins["low"] > 0.5 else "still prefer the references"
               if wins["high"] < 0.5 else "do not clearly prefer either")
        sentences.append(f"Annotators who labelled nothing {how}: RLHF wins {percent(wins)}.")
    return sentences


def judge(run: Run) -> list[str]:
    """How far the reward model can be trusted."""
    model = run.summary.get("reward_model", {})
    if "accuracy" not in model:
        return []
    low, high = model.get("low", model["accuracy"]), model.get("high", model["accuracy"])
    blind = max(model.get("length_only", 0.5), model.get("position_only", 0.5), 0.5)
    text = (f"The reward model orders {percent({'mean': model['accuracy'], 'low': low, 'high': high})} of held-out "
            f"choices as people did")
    if low > blind:
        return [text + (", better than a judge that only sees length or position." if "length_only" in model
                        else ", better than guessing.")]
    if low <= 0.5:
        return [text + ", which cannot be told from guessing: PPO may have had little to follow."]
    return [text + f", which cannot be told from a judge that does not read ({percent(blind)})."]


def tiles(run: Run) -> str:
    """The gold score of each stage, large."""
    cards = []
    for stage in run.stages:
        gold = run.interval(stage, "gold")
        if gold:
            number = (f"<b>{gold['mean']:.3f}</b><small>gold <span class='whole'>[{gold['low']:.3f}, "
                      f"{gold['high']:.3f}]</span></small>")
            cards.append(f'<div class="card">{marked_name(stage)}{number}</div>')
    return f'<div class="grid tiles">{"".join(cards)}</div>'


def cost_section(run: Run) -> str:
    """Seconds, memory and seed; what to try next; what is simplified."""
    seconds = {key: value for key, value in run.summary.get("seconds", {}).items() if key != "total"}
    most = max([*seconds.values(), 1e-9])
    rows = [
        [escape(STAGE_WORDS.get(key, key)), duration(value), f'<span class="bar" '
         f'style="width:{100 * value / most:.1f}%" aria-hidden="true"></span>']
        for key, value in seconds.items()
    ]
    total, memory, size, seed = (run.summary.get(name) for name in ("seconds", "peak_memory_mib", "parameters", "seed"))
    facts = [f"{duration(total['total'])} in all" if total and "total" in total else "",
             f"at most {memory:,.0f} MiB of memory" if memory else "",
             f"{size:,} parameters" if size else "", f"seed {seed}" if seed is not None else ""]  # fmt: skip
    head = ", ".join(fact for fact in facts if fact)
    simplified = "".join(f"<li>{text}</li>" for text in SIMPLIFIED)
    times = table("cost", ["stage", "time", "share of the longest"], rows) if rows else ""
    return f"<p>{escape(head)}.</p>{times}<h3>Go on</h3>{commands(run)}<h3>What is simplified</h3><ul>{simplified}</ul>"


def commands(run: Run) -> str:
    """Commands that can be pasted, on this run's folder."""
    folder = run.folder.as_posix()
    def place(name):
        return shlex.quote(f"{folder}/{name}")
    prompt = next((s["prompt"] for s in run.samples if s.get("prompt")),
                  "Summarise the story.\n…\nSummary:").replace("\n", "\\n")
    seed = (run.summary.get("seed") or 0) + 1
    blocks = [
        ("Let the model summarise a story:", f"python -m minialign sample {place('5-rlhf')} --count 3 --prompt "
                                             f"{shlex.quote(prompt)}"),
        ("Optimise it on prompts of your own (one a line) at another price of KL:",
         f"python -m minialign ppo --policy {place('2-instructed')} --reward {place('4-reward')} --prompts "
         f"my-prompts.txt --beta 0.02 --out runs/mine"),
        ("The same main job with another seed, to see what was luck:", f"python -m minialign --seed {seed} --out "
         f"{shlex.quote(f'{folder}-seed{seed}')}"),
    ]  # fmt: skip
    return "".join(f"<p>{text}</p><pre><code>{escape(code)}</code></pre>" for text, code in blocks)
