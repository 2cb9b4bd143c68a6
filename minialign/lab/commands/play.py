"""`python -m minialign play [RUN]`"""

import webbrowser
from pathlib import Path

import click

from minialign.lab.commands import options as cli
from minialign.lab.play.material import collect
from minialign.lab.play.page import SHIPPED, read_page, render
from minialign.runs.files import write_atomic


@click.command(cls=cli.Command)
@click.argument("run", type=click.Path(path_type=Path), required=False)
@cli.file_option("--out", "Where the page goes.", default="play.html")
@cli.flag("--serve", text="Serve the page on this computer, too, and open it in the browser; Ctrl-C ends it.")
@cli.count_option("--port", 0, 0, 65535, "Port of the page on this computer.", show_default="any free one")
@cli.option("--open/--no-open", "show", default=True, text="Open the page in the browser, with --serve.")
def command(run, out, serve, port, show):
    """The models of a run in one page that computes in the browser: nothing to install, no request leaves it.

    RUN is a run of the main job, finished or not, or the folder of one decoder; without it the page shows the models
    that are shipped with the project (data/play.html).

    \b
    Example:  python -m minialign play runs/demo
    Then:     open play.html
    """
    material = read_page(SHIPPED) if run is None else collect(run)
    content = render(material)
    write_atomic(out, content)
    click.echo(f"{out}: {len(content.encode()) / 1e6:.2f} MB, of which {len(material.packed) / 1e6:.2f} MB are "
               f"{len(material.facts['models'])} models in eight bits; open it in a browser")
    if serve:
        # not before it is needed: the file alone does without a web framework
        from minialign.lab.play.serving import PlayPage

        page = PlayPage(content, port)
        click.echo(f"{page.url}\nOpen this address in a browser on this computer. Ctrl-C ends.")
        if show:
            webbrowser.open(page.url)
        page.wait()
