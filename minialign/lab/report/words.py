"""The report's sentences. Each follows from the numbers beside it, so that a run that disappoints says so."""

import shlex

from minialign.lab.demo.settings import FAST, DemoConfig
from minialign.lab.report.run import STAGES, Run, duration, escape, marked_name, percent, table

STEPS = {"sft": ("pretrained", "Instruction tuning"), "rlhf": ("sft", "RLHF")}  # stage -> its start, what was done
STAGE_WORDS = {"world": "writing the stories", "tokenizer": "tokenizer", "pretrain": "pretraining",
               "sft": "instruction tuning", "compare": "pairs and choices", "reward": "reward model", "ppo": "PPO",
               "evaluate": "evaluation", "report": "this report"}
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


def steps(run: Run) -> list[tuple[str, str, dict, dict]]:
    """(stage, start, gold before, gold after) of each step that was measured."""
    both = [(stage, start, run.interval(start, "gold"), run.interval(stage, "gold"))
            for stage, (start, _) in STEPS.items()]
    return [step for step in both if step[2] and step[3]]


def title(run: Run) -> str:
    """The heading: what happened to the gold score over the two steps."""
    first, *rest = [order(before, after) for _, _, before, after in steps(run)] or ["overlap"]
    if first != "above":
        return "From dirty text to a model tuned on feedback"
    gain = {"above": "and feedback made it better", "overlap": "and no measurable gain from feedback",
            "below": "made worse by feedback"}
    return "A model that follows instructions" + "".join(f", {gain[step]}" for step in rest)


def verdict(run: Run) -> str:
    """The summary in plain words, as HTML: what was done, what it gave, what people and the reward model say."""
    paragraphs = [what_was_done(run)], what_changed(run), [*beside_the_references(run), *reward_model(run)]
    return "\n".join(f"<p>{' '.join(said)}</p>" for said in paragraphs if said)


def what_was_done(run: Run) -> str:
    """The job in numbers."""
    names = ("documents", "false", "rude", "demonstrations")
    documents, false, rude, demonstrations = (run.setting(name) for name in names)
    size, total = run.summary.get("parameters"), run.summary.get("seconds", {}).get("total")
    choices = run.summary.get("reward_model", {}).get("comparisons")
    dirt = ("" if false is None or rude is None else f", {100 * false:.0f}\u00a0% of which say something false and "
            f"{100 * rude:.0f}\u00a0% something rude,")
    read = f"{f'{documents:,} documents' if documents else 'dirty text'}{dirt}"
    if run.card:
        read = f"{run.card['tokens'] / 1e6:.0f} million tokens, true and false, polite and rude, then"
    return (
        f"{f'A decoder of {size:,} parameters' if size else 'A small decoder'} was pretrained on {read} tuned on "
        f"{f'{demonstrations:,} ' if demonstrations else ''}clean demonstrations, and tuned again with PPO against a "
        f"reward model that had learned from {f'{choices:,} ' if choices else ''}choices of simulated annotators"
        f"{f': {duration(total)} in all' if total else ''}."
    )


def what_changed(run: Run) -> list[str]:
    """What each step did to the gold score, and whether the hoped-for order holds."""
    sentences, unsettled = [], []
    for stage, start, before, after in steps(run):
        name, numbers = STEPS[stage][1], f"the gold score from {before['mean']:.3f} to <b>{after['mean']:.3f}</b>"
        found = order(before, after)
        if found == "above":
            sentences.append(f"{name} raised {numbers}, and the intervals do not touch.")
        elif found == "below":
            sentences.append(f"{name} <b>lowered</b> {numbers}, and the intervals do not touch: the opposite of what "
                             "it is for.")
            unsettled.append(f"it is reversed between {STAGES[start]} and {STAGES[stage]}")
        else:
            sentences.append(f"{name} took {numbers}, but the 95\u00a0% intervals overlap, so this run does not show a "
                             "difference.")
            unsettled.append(f"{STAGES[start]} and {STAGES[stage]} cannot be told apart")
    if len(sentences) == len(STEPS):
        holds = f"<b>does not hold</b> here: {' and '.join(unsettled)}" if unsettled else "holds here"
        sentences.append(f"The order that the recipe promises, pretrained below instruction-tuned below RLHF, {holds}.")
    return sentences


def beside_the_references(run: Run) -> list[str]:
    """The last model against the references, by gold score and by people who labelled nothing."""
    gold, reference = run.interval("rlhf", "gold"), run.interval("reference", "gold")
    wins, sentences = run.interval("rlhf", "win_rate"), []
    if gold and reference:
        found = order(reference, gold).replace("overlap", "not clearly different from")
        sentences.append(f"RLHF’s summaries are {found} the reference summaries’ {reference['mean']:.3f}.")
    if wins:
        how = ("prefer them to the references" if wins["low"] > 0.5 else "still prefer the references"
               if wins["high"] < 0.5 else "do not clearly prefer either")
        sentences.append(f"Annotators who labelled nothing {how}: RLHF wins {percent(wins)}.")
    return sentences


def reward_model(run: Run) -> list[str]:
    """How far the reward model can be trusted."""
    model = run.summary.get("reward_model", {})
    if "accuracy" not in model:
        return []
    found = {"mean": model["accuracy"], "low": model["accuracy"], "high": model["accuracy"]}
    found |= {end: model[end] for end in ("low", "high") if end in model}
    blind = max(model.get("length_only", 0.5), model.get("position_only", 0.5), 0.5)
    if found["low"] > blind:
        rest = "better than " + ("a judge that only sees length or position" if "length_only" in model else "guessing")
    elif found["low"] <= 0.5:
        rest = "which cannot be told from guessing: PPO may have had little to follow"
    else:
        rest = f"which cannot be told from a judge that does not read ({percent(blind)})"
    told = [f"The reward model orders {percent(found)} of held-out choices as people did, {rest}."]
    if pairs := model.get("minimal_pairs"):
        told.append(f"Of a true summary and the same with one detail exchanged it prefers the true one "
                    f"{percent(pairs)} of the time: that is how well it reads.")
    return told


def tiles(run: Run) -> str:
    """The gold score of each stage, large."""
    cards = [f'<div class="card">{marked_name(stage)}<b>{gold["mean"]:.3f}</b><small>gold <span class=\'whole\'>'
             f'[{gold["low"]:.3f}, {gold["high"]:.3f}]</span></small></div>'
             for stage, gold in run.measured("gold").items()]
    return f'<div class="grid tiles">{"".join(cards)}</div>'


def cost_section(run: Run) -> str:
    """Seconds, memory and seed; what to try next; what is simplified."""
    seconds = dict(run.summary.get("seconds", {}))
    total = seconds.pop("total", None)
    memory, size, seed = (run.summary.get(name) for name in ("peak_memory_mib", "parameters", "seed"))
    most = max([*seconds.values(), 1e-9])
    rows = [[escape(STAGE_WORDS.get(key, key)), duration(value),
             f'<span class="bar" style="width:{100 * value / most:.1f}%" aria-hidden="true"></span>']
            for key, value in seconds.items()]
    facts = [f"{duration(total)} in all" if total is not None else "",
             f"at most {memory:,.0f} MiB of memory" if memory else "",
             f"{size:,} parameters" if size else "", f"seed {seed}" if seed is not None else ""]
    head = ", ".join(fact for fact in facts if fact)
    times = table("cost", ["stage", "time", "share of the longest"], rows) if rows else ""
    simplified = "".join(f"<li>{text}</li>" for text in SIMPLIFIED)
    return f"<p>{escape(head)}.</p>{times}<h3>Go on</h3>{commands(run)}<h3>What is simplified</h3><ul>{simplified}</ul>"


def own_settings(run: Run) -> str:
    """The options by which this run differs from the default job, each with a blank behind it."""
    found = {name: run.setting(name) for name in vars(DemoConfig()) if name != "seed"}
    fast = all(found[name] == value for name, value in FAST.items())
    usual = vars(DemoConfig(**(FAST if fast else {})))
    options = [f"--{name.replace('_', '-')} {value} " for name, value in found.items()
               if value not in (None, usual[name])]
    options += ["--from-scratch "] * (run.folder / "0-base").exists()
    return "--fast " * fast + "".join(options)


def commands(run: Run) -> str:
    """Commands that can be pasted, on this run's folder."""
    folder = run.folder.as_posix()
    instructed, reward, policy = (shlex.quote(f"{folder}/{name}") for name in ("2-instructed", "4-reward", "5-rlhf"))
    prompts = [sample["prompt"] for sample in run.samples if sample.get("prompt")]
    prompt = shlex.quote((prompts or ["Summarise the story.\n…\nSummary:"])[0].replace("\n", "\\n"))
    seed = (run.summary.get("seed") or 0) + 1
    blocks = {
        "Let the model summarise a story:": f"sample {policy} --count 3 --prompt {prompt}",
        "Optimise it on prompts of your own (one a line) at another price of KL:":
            f"ppo --policy {instructed} --reward {reward} --prompts my-prompts.txt --beta 0.02 --out runs/mine",
        "The same main job with another seed, to see what was luck:":
            f"{own_settings(run)}--seed {seed} --out {shlex.quote(f'{folder}-seed{seed}')}",
    }
    return "".join(f"<p>{text}</p><pre><code>{escape(f'python -m minialign {code}')}</code></pre>"
                   for text, code in blocks.items())
