"""The models of the run in the report itself: they write in the reader's browser. See minialign/lab/play."""

from pathlib import Path

from minialign.lab.report.run import escape
from minialign.runs.errors import UserError

SHIPPED = 40  # stories
SECTION = """<section id="play" aria-labelledby="h-play">
<h2 id="h-play">Let them write</h2>
<p>The run’s own models, in eight bits with one absmax scale a row: they compute in this page, on your computer.</p>
"""


def touch(folder: Path | None) -> dict[str, str]:
    """What page.html is given: section, link to it and style; nothing where there is no folder. Models that the page
    cannot compute are a sentence in the section."""
    if folder is None:
        return {"play": "", "play_link": "", "play_style": ""}
    # not before it is needed: the report is written without reading any model
    from minialign.lab.play.material import collect
    from minialign.lab.play.page import asset, embedded

    try:
        panel = embedded(collect(folder, SHIPPED, all_panels=False))
    except UserError as error:
        panel = f'<p class="card">They cannot be shown here: {escape(error)}.</p>'
    link = '<li><a href="#play">Let them write</a></li>'
    return {"play": f"{SECTION}{panel}</section>\n", "play_link": link, "play_style": asset("play.css")}
