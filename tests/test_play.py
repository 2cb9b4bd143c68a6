"""The page that computes in the browser: its JavaScript gives the numbers of the Python beside it, and whatever is
typed stays text. In node and in Chromium without a window; left out where they are not."""

import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from chromium import CHROMIUM, Chromium

import minialign.lab.play as package
from minialign.generation import SamplingConfig, generate, prompt_ids
from minialign.lab.play.page import SHIPPED, read_page, render
from minialign.lab.play.weights import unpack
from minialign.rlhf.kl import exact_kl
from minialign.rlhf.reward_model import score_rows
from minialign.tokenizer import Tokenizer
from minialign.world.corpus import corrupted_summary
from minialign.world.gold import score
from minialign.world.stories import Story, write_story
from minialign.world.tasks import reference_summary

NODE = shutil.which("node")
HERE = Path(package.__file__).parent
ENGINES = [pytest.param("node", marks=pytest.mark.skipif(not NODE, reason="there is no node to run the page's code")),
           pytest.param("chromium", marks=pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium to open it in"))]
NASTY = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
PROMPTS, FEW = 50, 4


@pytest.fixture(scope="module")
def material():
    return read_page(SHIPPED)


@pytest.fixture(scope="module")
def models(material):
    return unpack(material.packed, material.facts["models"])


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("there is no Chromium to open the page in")
    browser = Chromium()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def opened(browser):
    browser.open(SHIPPED.as_uri())
    browser.until("document.body && document.body.dataset.play === 'ready'")
    return browser


@pytest.fixture(scope="module")
def compute(request):
    """An engine -> a function that computes an expression of the page's own script; `play` is what the page is."""
    page = SHIPPED.read_text(encoding="utf-8")
    blocks = dict(re.findall(r'<script type="text/plain" id="play-(facts|weights)">(.*?)</script>', page, re.S))
    script = re.findall(r"<script>\n(.*?)</script>", page, re.S)[-1]
    setup = f"""(async () => {{ {script}
      const facts = JSON.parse(new TextDecoder().decode(await inflate({json.dumps(blocks["facts"])})));
      const play = new Play(facts, unpackWeights(await inflate({json.dumps(blocks["weights"])}), facts.models));"""

    def compute(engine, expression):
        if engine == "chromium":
            return json.loads(request.getfixturevalue("opened").run(f"JSON.stringify({expression})"))
        code = f"{setup} process.stdout.write(JSON.stringify({expression})); }})()"
        done = subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, encoding="utf-8", check=True)
        return json.loads(done.stdout)

    return compute


def prompts_of(facts, count):
    """The first stories as the page's prompts."""
    pairs = [(facts["templates"][story["template"]], story["text"]) for story in facts["stories"][:count]]
    return [before + text + after for (before, after), text in pairs]


WRITE = """%s.flatMap((name) => play.facts.stories.slice(0, %d).map((story) => {
  const model = play.models[name], { cache, last } = reader(model, play.prompt(story));
  const { ids, logits } = generate(model, last, cache, { newTokens: 40, temperature: 0, end: 2 });
  return { ids, first: Array.from(logits[0]), last: Array.from(logits[logits.length - 1]) };
}))"""


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_and_greedy_continuations_are_those_of_the_same_weights_in_python(engine, compute, material, models,
                                                                                shipped_tokenizer):
    asked = [("rlhf", PROMPTS), ("sft", FEW), ("pretrained", FEW)]
    for name, count in asked:
        found = compute(engine, WRITE % (json.dumps([name]), count))
        for ids, said in zip(prompt_ids(shipped_tokenizer, prompts_of(material.facts, count)), found):
            whole = torch.tensor([[*ids, *said["ids"]]])
            with torch.no_grad():
                logits = models[name](whole)[0, len(ids) - 1 : -1]  # (R, V)
            assert said["ids"] == logits.argmax(dim=1).tolist()
            for mine, place in (("first", 0), ("last", -1)):
                assert (torch.tensor(said[mine]) - logits[place]).abs().max() < 1e-3


@pytest.fixture(scope="module")
def shipped_tokenizer():
    from minialign.lab.bases.make import BASES
    from minialign.tokenizer import load_tokenizer

    return load_tokenizer(BASES / "decoder-0.4m" / "tokenizer.json")
