r"""play.html: one file that holds models, stories and all that computes with them; its first panel for reports.

The data stand in it twice deflated as base64: `play-weights` are the models, `play-facts` everything else. A page can
be read back, so the shipped one is itself the shipped run: without a run the command makes it anew from its own data.

Read next: play.html, story.html and transformer.js (what is put together here).
"""

import base64
import json
import re
import zlib
from importlib.resources import files
from pathlib import Path
from string import Template

from minialign.lab.play.material import Material
from minialign.lab.report.stories import legend
from minialign.runs.errors import UserError
from minialign.runs.files import read_text

SHIPPED = Path(__file__).parents[3] / "data" / "play.html"
STYLE = re.compile(r"<style>\n(.*?)\$play_style</style>", re.S)
DATA = re.compile(r'<script type="text/plain" id="play-(facts|weights)">([\w+/=\s]*)</script>')
FIRST, OTHERS = ("transformer.js", "weights.js", "world.js", "story.js"), ("panels.js",)
RULES = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"  # no request leaves the page


def asset(name: str, folder: str = "minialign.lab.play") -> str:
    """The text of a file beside this one."""
    return files(folder).joinpath(name).read_text(encoding="utf-8")


def data(material: Material) -> str:
    """Both blocks of data as HTML."""
    facts = json.dumps(material.facts, separators=(",", ":"), sort_keys=False).encode()
    blocks = {"facts": zlib.compress(facts, 9), "weights": material.packed}
    return "\n".join(f'<script type="text/plain" id="play-{name}">{base64.b64encode(content).decode()}</script>'
                     for name, content in blocks.items())


def script(names: tuple[str, ...]) -> str:
    """JavaScript files as one script."""
    return "<script>\n" + "\n".join(asset(name) for name in names) + "</script>"


def render(material: Material) -> str:
    """The whole page."""
    report = STYLE.search(asset("page.html", "minialign.lab.report"))
    style = report.group(1) + asset("play.css")
    sizes, error, prices = (material.facts.get(name) for name in ("bytes", "error", "prices"))
    return Template(asset("play.html")).substitute(
        rules=RULES, style=style, story=first_panel(), data=data(material), script=script(FIRST + OTHERS),
        models=len(material.facts["models"]), float32=f"{sizes['float32'] / 1e6:.2f}",
        packed=f"{sizes['packed'] / 1e6:.2f}", largest=f"{error['largest']:.2f}", typical=f"{error['typical']:.2f}",
        spread=f"{error['spread']:.1f}", prompts=error["prompts"], priced=len(prices["proxy"]) if prices else "no")


def first_panel() -> str:
    """Its HTML."""
    return Template(asset("story.html")).substitute(legend=legend())


def embedded(material: Material) -> str:
    """The first panel with its data and its script, for a page in the report's look that has `asset("play.css")`."""
    return f"{first_panel()}\n{data(material)}\n{script(FIRST)}"


def read_page(path: Path) -> Material:
    """What a page that `render` made holds. Raises UserError for anything else."""
    found = dict(DATA.findall(read_text(path)))
    try:
        facts = json.loads(zlib.decompress(base64.b64decode(found["facts"])))
        return Material(facts, base64.b64decode(found["weights"]))
    except (KeyError, ValueError, zlib.error):
        raise UserError("is no page that `minialign play` made, or is damaged; make it again", path) from None
