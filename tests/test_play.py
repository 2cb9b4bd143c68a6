"""The page that computes in the browser: its JavaScript gives the numbers of the Python beside it, and whatever is
typed stays text. In Chromium without a window and in node; left out where they are not."""

import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from chromium import CHROMIUM, Chromium
from click.testing import CliRunner
from conftest import build
from test_report import make

import minialign.lab.play as package
from minialign.__main__ import import_command
from minialign.generation import prompt_ids
from minialign.heads import describe_model
from minialign.lab.bases.make import BASES
from minialign.lab.demo.pipeline import SAMPLING
from minialign.lab.play.material import Material, collect
from minialign.lab.play.page import DATA, SHIPPED, embedded, read_page, render
from minialign.lab.play.serving import PlayPage, create_app
from minialign.lab.play.weights import pack, unpack
from minialign.lab.report import write_report
from minialign.lab.report.touch import touch
from minialign.quant.mappings import MappingConfig, quantize_tensor
from minialign.rlhf.best_of_n import best_of_n_kl
from minialign.rlhf.kl import exact_kl
from minialign.rlhf.reward_model import completion_rows, score_rows
from minialign.runs.errors import UserError
from minialign.runs.run_folder import RunFolder
from minialign.tokenizer import load_tokenizer
from minialign.world.corpus import corrupted_summary
from minialign.world.gold import score
from minialign.world.parse import parse
from minialign.world.stories import write_story
from minialign.world.tasks import reference_summary

NODE = shutil.which("node")
HERE = Path(package.__file__).parent
NEEDS_CHROMIUM = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium to open the page in")
NEEDS_NODE = pytest.mark.skipif(not NODE, reason="there is no node to run the page's code")
NASTY = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script> ${1} &amp;"
ODD = ["", " ", "a", "  two  blanks ", "don't we'll", "\n\nMira", "x" * 60, "żółw 🐢 العربية", "12 345,6", "<end><pad>",
       NASTY, "Mira\t\r\nlost", "e\u0301 \u00a0 \u2028"]
PROMPTS, FEW = 50, 2


@pytest.fixture(scope="module")
def material():
    return read_page(SHIPPED)


@pytest.fixture(scope="module")
def models(material):
    return unpack(material.packed, material.facts["models"])


@pytest.fixture(scope="module")
def shipped_tokenizer():
    return load_tokenizer(BASES / "decoder-0.4m" / "tokenizer.json")


@pytest.fixture(scope="module")
def browser():
    browser = Chromium()
    yield browser
    browser.close()


def ready(browser, page):
    """Open a page and wait until its first summaries stand there."""
    browser.open(page.as_uri())
    browser.until("document.body && document.body.dataset.play")
    assert browser.run("document.body.dataset.play") == "ready", browser.run("document.body.innerText")
    return browser


@pytest.fixture(scope="module")
def opened(browser):
    """The shipped page, opened once; `seconds` of its thread's work went into the first summaries."""
    browser.call("Performance.enable", timeDomain="threadTicks")
    ready(browser, SHIPPED)
    metrics = {metric["name"]: metric["value"] for metric in browser.call("Performance.getMetrics")["metrics"]}
    browser.seconds = metrics["TaskDuration"]
    return browser


def on_node(expression, page=SHIPPED):
    """The value of an expression of a page's own script; `play` is what the page is made of."""
    text = page.read_text(encoding="utf-8")
    script, blocks = re.findall(r"<script>\n(.*?)</script>", text, re.S)[-1], dict(DATA.findall(text))
    code = f"""(async () => {{ {script}
      const facts = JSON.parse(new TextDecoder().decode(await inflate({json.dumps(blocks["facts"])})));
      const play = new Play(facts, unpackWeights(await inflate({json.dumps(blocks["weights"])}), facts.models));
      process.stdout.write(JSON.stringify({expression})); }})()"""
    done = subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(done.stdout)


def prompts_of(facts, count):
    """The shortest stories as the page's prompts."""
    stories = sorted(facts["stories"], key=lambda story: len(story["text"]))[:count]
    pairs = [(facts["templates"][story["template"]], story["text"]) for story in stories]
    return [before + text + after for (before, after), text in pairs]


SHORTEST = "[...play.facts.stories].sort((a, b) => a.text.length - b.text.length)"
WRITE = """%s.map(([name, count]) => SHORTEST.slice(0, count).map((story) => {
  const model = play.models[name], { cache, last } = reader(model, play.prompt(story));
  const { ids, logits } = generate(model, last, cache, { newTokens: 40, temperature: 0, end: 2 });
  return { ids, first: Array.from(logits[0]), last: Array.from(logits[logits.length - 1]) };
}))""".replace("SHORTEST", SHORTEST)


def check_writing(asked, found, material, models, tokenizer):
    """Greedy continuations token for token, and the logits of their first and last tokens, as Python computes them."""
    for (name, count), said in zip(asked, found, strict=True):
        assert len(said) == count
        for ids, one in zip(prompt_ids(tokenizer, prompts_of(material.facts, count)), said, strict=True):
            with torch.no_grad():
                logits = models[name](torch.tensor([[*ids, *one["ids"]]]))[0, len(ids) - 1 : -1]  # (R, V)
            assert one["ids"] == logits.argmax(dim=1).tolist() and (len(one["ids"]) == 40 or one["ids"][-1] == 2)
            for mine, place in (("first", 0), ("last", -1)):
                assert (torch.tensor(one[mine]) - logits[place]).abs().max() < 1e-3


# the numbers


@NEEDS_CHROMIUM
def test_fifty_prompts_have_the_logits_and_greedy_continuations_of_the_same_weights_in_python(
        opened, material, models, shipped_tokenizer):
    asked = [["rlhf", PROMPTS], ["sft", FEW], ["pretrained", FEW]]
    found = json.loads(opened.run(f"JSON.stringify({WRITE % json.dumps(asked)})"))
    check_writing(asked, found, material, models, shipped_tokenizer)


@NEEDS_NODE
def test_node_computes_the_same(material, models, shipped_tokenizer):
    asked = [["rlhf", FEW]]
    check_writing(asked, on_node(WRITE % json.dumps(asked)), material, models, shipped_tokenizer)


@NEEDS_NODE
def test_tokens_rewards_and_kl_are_those_of_python(material, models, shipped_tokenizer):
    facts, tokenizer = material.facts, shipped_tokenizer
    prompt, completions = prompts_of(facts, 1)[0], [" Mira lost the kite.", " What a stupid story! 🐢", ""]
    found = on_node(f"""({{ ids: {json.dumps(ODD)}.map((text) => play.tokenizer.encode(text)),
      texts: {json.dumps(ODD)}.map((text) => play.tokenizer.decodeEach(play.tokenizer.encode(text)).join("")),
      ...(() => {{
        const read = Object.fromEntries(Object.entries(play.models).map(([name, model]) =>
          [name, reader(model, play.prompt({SHORTEST}[0]))]));
        const ids = {json.dumps(completions)}.map((text) => play.tokenizer.encode(text));
        const logits = (name) => completionLogits(play.models[name], read[name], [...ids[0], play.end]);
        const reference = logits("sft");
        return {{ rewards: ids.map((each) => play.reward(read.reward, each)),
                 kl: logits("rlhf").map((policy, t) => kl(policy, reference[t])) }};
      }})() }})""")
    assert found["ids"] == tokenizer.encode_many(ODD) and found["texts"] == ODD
    rows = completion_rows(tokenizer, [prompt] * len(completions), completions)
    assert found["rewards"] == pytest.approx(score_rows(models["reward"], rows).tolist(), abs=1e-3)
    whole = torch.tensor([[*rows[0][0], *rows[0][1]]])
    with torch.no_grad():
        policy, reference = (models[name](whole)[0, len(rows[0][0]) - 1 : -1] for name in ("rlhf", "sft"))
    exact = exact_kl(policy / SAMPLING.temperature, reference / SAMPLING.temperature)
    assert found["kl"] == pytest.approx(exact.tolist(), abs=1e-3)


def judged_in_python(story, text):
    gold = score(story, text)
    return {"aspects": [gold.helpful, gold.honest, gold.harmless, gold.gold],
            "statements": [[*s.span, s.verdict] for s in gold.statements], "rude": [list(s) for s in gold.rude_spans]}


@NEEDS_NODE
def test_the_judge_is_the_one_of_the_world():
    rng, cases = random.Random(3), []
    for _ in range(150):
        story = write_story(rng)
        for text in (story.text, corrupted_summary(story, rng), reference_summary(story, rng)):
            cases.append((story, text))
    story = cases[0][0]
    cases += [(story, text) for text in [*ODD, "What a stupid story!", "You idiot!", "the the the",
                                         "She lost it. They had to laugh. He is ugly.", "Mira. lost the kite",
                                         "Constructor lost the toString.", "Mira lost the kite and was sad!?"]]
    asked = json.dumps([[{"events": [e.to_dict() for e in s.events], "weights": s.weights}, text] for s, text in cases])
    found = on_node(f"""{asked}.map(([story, text]) => {{ const s = play.world.score(story, text);
      return {{ aspects: [s.helpful, s.honest, s.harmless, s.gold], statements:
        s.statements.map((one) => [one.start, one.end, one.verdict]), rude: s.rude }}; }})""")
    for (story, text), mine in zip(cases, found, strict=True):
        theirs = judged_in_python(story, text)
        text_in_utf16 = text.encode("utf-16-le")
        assert mine["aspects"] == pytest.approx(theirs["aspects"]), text
        if len(text_in_utf16) == 2 * len(text):  # JavaScript counts a turtle as two
            assert (mine["statements"], mine["rude"]) == (theirs["statements"], theirs["rude"]), text


@NEEDS_NODE
def test_the_facts_of_a_typed_story_are_those_that_its_sentences_say():
    rng = random.Random(5)
    stories = [write_story(rng) for _ in range(100)]
    found = on_node(f"{json.dumps([s.text for s in stories])}.map((text) => play.world.factsOf(text))")
    right = sum([{k: v for k, v in e.items() if v} for e in facts["events"]] == [e.to_dict() for e in story.events]
                for story, facts in zip(stories, found))
    assert right >= 85  # of the others a detail: who "he" is, or what is told out of order
    for story, facts in zip(stories, found):
        assert facts["sentences"] == len(parse(story.text)) and sum(facts["weights"]) == pytest.approx(1)


@NEEDS_NODE
@pytest.mark.parametrize("changes", [{"activation": "gelu", "short_convolution": 0}, {"activation": "gelu_tanh"},
                                     {"positions": "learned", "activation": "relu", "short_convolution": 3}])
def test_other_decoders_compute_the_same(changes, tmp_path, tokenizer, texts):
    opposite, model = build(**changes), build(**changes)
    with torch.no_grad():
        for x in opposite.parameters():
            x.neg_()  # differences as large as they can be
    packed, layout = pack({"pretrained": opposite, "sft": model})
    small, ids = unpack(packed, layout)["sft"], [1, *tokenizer.encode(texts[0])][:40]
    code = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("transformer.js", "weights.js"))
    done = subprocess.run([NODE, "-"], input=f"""{code}
      const bytes = require("zlib").inflateSync(Buffer.from("{packed.hex()}", "hex")), layout = {json.dumps(layout)};
      const model = new Transformer(layout.sft.config, unpackWeights(new Uint8Array(bytes), layout).sft);
      const cache = new Cache(model.config);
      console.log(JSON.stringify(model.read({ids}, cache).map((x) => Array.from(model.logits(x)))))""",
                          capture_output=True, text=True, check=True)
    with torch.no_grad():
        assert (torch.tensor(json.loads(done.stdout)) - small(torch.tensor([ids]))[0]).abs().max() < 1e-3


@NEEDS_NODE
def test_fewer_bits_are_mapped_as_in_mappings():
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) + 0.4
    configs = [MappingConfig(mapping, bits, per) for mapping in ("absmax", "zero-point") for bits in (2, 4, 8)
               for per in ("tensor", "row")]
    found = on_node(f"""{json.dumps([vars(config) for config in configs])}.map((config) => Array.from(quantized(
      {{ rows: 5, columns: 12, values: Float32Array.from({x.flatten().tolist()}) }}, config).values))""")
    for config, values in zip(configs, found, strict=True):
        assert torch.tensor(values).view(5, 12).allclose(quantize_tensor(x, config).dequantize(), atol=1e-5), config


@NEEDS_NODE
def test_best_of_n_the_price_and_bradley_terry_are_what_they_say():
    found = on_node("""(() => { const proxy = [3, 1, 2, 0], gold = [0.1, 0.4, 0.2, 0.3];
      return { best: [1, 2, 4].map((n) => bestOf(n, proxy, gold)), dear: tilted(1e6, proxy, gold),
        cheap: tilted(1e-3, proxy, gold), fit: bradleyTerry([[1, 0, 0], [1, 0, 0.5], [-0.2, 0, 0]]) }; })()""")
    pairs = [(3, 0.1), (3, 0.1), (3, 0.1), (2, 0.2), (1, 0.4), (2, 0.2)]  # the better one of each two
    expected = [[1.5, 0.25], [sum(p) / 6 for p in zip(*pairs)], [3, 0.1]]
    for n, row, means in zip((1, 2, 4), found["best"], expected):
        assert row == pytest.approx([best_of_n_kl(n), *means])
    assert found["dear"] == pytest.approx([0, 1.5, 0.25], abs=1e-4)
    assert found["cheap"] == pytest.approx([torch.tensor(4.0).log().item(), 3, 0.1])
    assert found["fit"]["losses"][0] == pytest.approx(0.6931, abs=1e-4) and found["fit"]["weights"][1] == 0
    assert found["fit"]["losses"] == sorted(found["fit"]["losses"], reverse=True) and found["fit"]["weights"][0] > 1


def test_packed_models_come_back_within_half_a_step_of_their_rows(decoder):
    moved = build()
    with torch.no_grad():
        for name, x in moved.named_parameters():
            x.add_(torch.randn(x.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.01)
    packed, layout = pack({"pretrained": decoder, "sft": moved})
    assert layout["sft"]["from"] == "pretrained"
    for name, model in {"pretrained": decoder, "sft": moved}.items():
        back = unpack(packed, layout)[name].state_dict()
        for key, x in model.state_dict().items():
            step = x.abs().amax(dim=1, keepdim=True) / 127 if x.dim() == 2 else x.abs() / 1000 + 1e-6
            assert ((back[key] - x).abs() <= 0.51 * step + 6.2e-5).all(), key
    assert len(packed) < 2.2 * sum(x.numel() for x in decoder.parameters())


# the page


@NEEDS_CHROMIUM
def test_no_request_leaves_the_page_nothing_goes_wrong_and_it_is_quick(opened):
    assert opened.requests() == [SHIPPED.as_uri()] and opened.trouble() == []
    assert opened.run("document.querySelectorAll('#play-cards .card').length") == 3
    assert 0 < opened.seconds < 1.5
    forty = """(() => {
      const model = play.models.rlhf, { cache, last } = reader(model, play.asked), began = performance.now();
      generate(model, last, cache, { newTokens: 40, temperature: 1, random: randomNumbers(1), end: -1 });
      return performance.now() - began; })()"""
    assert min(opened.run(forty) for _ in range(3)) < 500  # milliseconds
    whole = opened.run("document.body.innerText")
    for word in ("gold 0.", "reward", "KL", "The first is better", "best of 4", "layer 3, head 3", "absmax: 255",
                 "break-even"):
        assert word in whole
    assert "NaN" not in whole and "undefined" not in whole


SIZES = [(width, dark) for width in (360, 768, 1440) for dark in (False, True)]
CUT = """[...document.querySelectorAll("p, li, button, h2, output, select, figcaption")].filter((node) =>
  node.offsetParent && !node.closest(".hear") && node.scrollWidth > node.clientWidth + 1
  && getComputedStyle(node).display !== "inline").map((node) => node.textContent.slice(0, 40))"""
OUTSIDE = """[...document.querySelectorAll("svg.plot text")].filter((node) => {
  const box = node.getBoundingClientRect(), frame = node.closest("svg").getBoundingClientRect();
  return box.left < frame.left - 1 || box.right > frame.right + 1; }).map((node) => node.textContent)"""
SMALL = """[...document.querySelectorAll("button:not(.word), select, input")].filter((node) =>
  node.offsetHeight < 40).map((node) => node.outerHTML)"""


@NEEDS_CHROMIUM
def test_it_fits_every_screen_and_every_control_has_a_name(opened, tmp_path):
    shots = os.environ.get("MINIALIGN_SCREENSHOTS")  # a folder: leave pictures there to look at
    for width, dark in SIZES:
        opened.look(width, 900, dark)
        assert opened.run("document.documentElement.scrollWidth <= innerWidth"), width
        assert [opened.run(script) for script in (CUT, OUTSIDE, SMALL)] == [[], [], []], width
        background = opened.run("getComputedStyle(document.body).backgroundColor")
        assert (int(re.search(r"\d+", background)[0]) < 80) == dark
        if shots:
            opened.picture(Path(shots) / f"play-{width}-{'dark' if dark else 'light'}.png")
    tree = opened.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in tree if not node.get("ignored") and node.get("role", {}).get("value") in
                ("button", "slider", "textbox", "spinbutton", "combobox", "img", "image")]
    assert len(controls) > 20 and all(node.get("name", {}).get("value") for node in controls)
    assert opened.run("document.querySelectorAll('[role=status]').length") >= 6
    opened.look(1200, 900, media="print")
    assert not opened.run("document.getElementById('play-new').offsetParent")
    opened.look(1200, 900)


@NEEDS_CHROMIUM
def test_ten_choices_are_made_with_the_keyboard_and_the_sliders_move_what_they_say(opened):
    opened.run("document.querySelector('#play-annotator button').focus()")
    for number in range(10):
        assert f"Pair {number + 1} of 10" in opened.run("document.getElementById('play-annotator').innerText")
        for kind in ("keyDown", "keyUp"):
            opened.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13,
                        text="\r")
    said = opened.run("document.getElementById('play-annotator').innerText")
    assert "Of 10 choices you agree in" in said and "Choose again" in said
    moves = (("price", 32, "Best of 32"), ("lora", 96, "100\u00a0%"), ("bits", 2, "RLHF, 2 bits"),
             ("bits", 8, "RLHF, 8 bits"))
    for panel, value, expected in moves:
        opened.run(f"""(() => {{ const input = document.querySelector('#play-{panel} input');
          input.value = {value}; input.dispatchEvent(new Event('input')); }})()""")
        opened.until(f"document.getElementById('play-{panel}').innerText.includes('{expected}')")
    before = opened.run("document.querySelector('#play-attention [role=status]').textContent")
    opened.run("document.querySelectorAll('#play-attention .word')[5].focus()")
    assert opened.run("document.querySelector('#play-attention [role=status]').textContent") != before
    assert opened.trouble() == []


def typed(browser, text):
    """Type a story and summarise it; what the page says of it."""
    browser.run(f"""(() => {{ document.getElementById("play-text").value = {json.dumps(text)};
      document.getElementById("play-said").textContent = "Reading …";
      document.getElementById("play-go").click(); }})()""")
    browser.until("document.getElementById('play-said').textContent !== 'Reading …'")
    return browser.run("document.getElementById('play-said').textContent")


@NEEDS_CHROMIUM
def test_whatever_is_typed_is_text_and_bad_input_is_answered_with_a_sentence(opened):
    before = opened.run("document.title")
    for field in ("seed", "text"):
        opened.run(f"document.getElementById('play-{field}').select()")
        opened.call("Input.insertText", text=NASTY)
    for text, answer in {"": "There is no story", " \n ": "There is no story", "x" * 10_000: "That is 10000 letters",
                         "Mira lost a kite. " * 60: "tokens; the models read",
                         f"ولد صغير. Żółw 🐢 lost. {NASTY}": "never read و ل د"}.items():
        assert answer in typed(opened, text), text
    opened.run("document.getElementById('play-temperature').value = 1.4")
    assert "Read and written" in typed(opened, f"Mira lost the kite at the mill. {NASTY} Tom found the kite.")
    opened.until("document.getElementById('play-attention').innerText.includes('img')")
    assert opened.run("document.querySelectorAll('img, iframe, object').length") == 0
    assert opened.run("document.title") == before and opened.trouble() == [] and len(opened.requests()) == 1


@NEEDS_CHROMIUM
def test_an_old_browser_is_told_what_it_lacks(browser, tmp_path):
    old = "<script>delete window.DecompressionStream</script>"
    page = tmp_path / "old.html"
    page.write_text(SHIPPED.read_text(encoding="utf-8").replace("</title>", f"</title>{old}"), encoding="utf-8")
    browser.open(page.as_uri())
    browser.until("document.body && document.readyState === 'complete'")
    assert "lacks: DecompressionStream" in browser.run("document.getElementById('play-missing').textContent")


def test_the_shipped_page_is_what_its_own_data_give_and_the_bounds_hold(material):
    assert render(material) == SHIPPED.read_text(encoding="utf-8"), "run: python -m minialign play --out data/play.html"
    assert SHIPPED.stat().st_size <= 2.5e6 and len(material.facts["stories"]) == 200
    lines = {path.name: path.read_text(encoding="utf-8").count("\n") for suffix in ("js", "css", "html")
             for path in HERE.glob(f"*.{suffix}")}
    assert lines["transformer.js"] <= 250 and sum(lines.values()) <= 900, lines
    page = SHIPPED.read_text(encoding="utf-8")
    assert not re.search(r"\$play|\$rules|\$models", page), "a slot was left open"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert not [word for word in ("innerHTML", "outerHTML", "document.write", "eval(", "fetch(") if word in page]
    facts = {**material.facts, "stories": material.facts["stories"][:40], "pairs": [], "prices": {}}
    assert len(embedded(Material(facts, material.packed))) <= 1.49e6  # what a report grows by, but for 3 kB of style


# runs that have less, and the server


def make_run(folder, tokenizer, **models):
    """The folder of a main job that came as far as its models; returns it."""
    for name, model in models.items():
        run = RunFolder(folder / name.replace("_", "-")[1:])
        run.begin(describe_model(model), tokenizer)
        run.finish(model)
    return folder


@pytest.fixture(scope="module")
def half_a_run(tmp_path_factory, tokenizer):
    return make_run(tmp_path_factory.mktemp("run"), tokenizer, _1_pretrained=build(context=400),
                    _2_instructed=build(1, context=400))


def test_a_run_without_rlhf_gives_a_page_that_says_so(half_a_run, tmp_path, request):
    material = collect(half_a_run, stories=5)
    assert set(material.facts["missing"]) == {"rlhf", "reward"} and len(material.facts["stories"]) == 5
    page = tmp_path / "play.html"
    page.write_text(render(material), encoding="utf-8")
    assert read_page(page).packed == material.packed
    if not CHROMIUM:
        pytest.skip("there is no Chromium to open the page in")
    browser = ready(request.getfixturevalue("browser"), page)
    whole = browser.run("document.body.innerText")
    for sentence in ("This run has no RLHF model", "This run has no judged pairs", "this run has not all of them",
                     "The summary of the instruction-tuned model"):
        assert sentence in whole
    assert browser.trouble() == [] and "undefined" not in whole and "NaN" not in whole


def test_a_single_decoder_is_shown_and_what_the_page_cannot_compute_is_refused(half_a_run, tokenizer, tmp_path):
    assert list(collect(half_a_run / "1-pretrained", stories=2).facts["models"]) == ["pretrained"]
    with pytest.raises(UserError, match="holds no finished stage"):
        collect(tmp_path)
    with pytest.raises(UserError, match="fits the context"):
        collect(make_run(tmp_path / "short", tokenizer, _1_pretrained=build()))
    with pytest.raises(UserError, match="is no decoder"):
        collect(make_run(tmp_path / "old", tokenizer, _1_pretrained=build(context=400, kind="encoder")))


def test_a_report_holds_its_models_unless_that_is_not_wanted(tmp_path, tokenizer, request):
    assert touch(None) == {"play": "", "play_link": "", "play_style": ""}
    short = touch(make_run(tmp_path / "short", tokenizer, _1_pretrained=build()))["play"]
    assert "cannot be shown here: " in short and "fits the context" in short
    page = write_report(make(make_run(tmp_path, tokenizer, _1_pretrained=build(context=400))), play=True)
    assert len(read_page(page).facts["stories"]) == 40
    if CHROMIUM:
        browser = ready(request.getfixturevalue("browser"), page)
        assert "This run has no RLHF model" in browser.run("document.getElementById('play').innerText")
        assert browser.trouble() == [] and len(browser.requests()) == 1


def test_a_damaged_page_is_refused(tmp_path):
    for content in ("<html>", '<script type="text/plain" id="play-facts">AAAA</script>'):
        (tmp_path / "page.html").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="is no page that"):
            read_page(tmp_path / "page.html")


def test_the_page_is_served_to_nobody_but_who_has_its_address():
    client = create_app("<p>page", "secret", 8123).test_client()
    good = {"Host": "127.0.0.1:8123"}
    served = client.get("/?token=secret", headers=good)
    assert served.text == "<p>page" and "default-src 'none'" in served.headers["Content-Security-Policy"]
    for path, headers in (("/", good), ("/?token=wrong", good), ("/?token=secret", {"Host": "evil.example:8123"})):
        assert client.get(path, headers=headers).status_code == 403
    page = PlayPage("<p>page")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+", page.url)
    with pytest.raises(UserError, match="cannot be had"):
        PlayPage("<p>page", page.server.port)
    page.server.server_close()


def test_without_a_run_the_command_makes_the_shipped_page_again(tmp_path):
    done = CliRunner().invoke(import_command("play"), ["--out", str(tmp_path / "play.html")])
    assert done.exit_code == 0 and "4 models in eight bits" in done.output
    assert (tmp_path / "play.html").read_bytes() == SHIPPED.read_bytes()
