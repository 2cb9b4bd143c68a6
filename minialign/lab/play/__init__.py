r"""play.html: the course's story in one page that computes in the reader's browser, from the weights of a run.

    weights.py      int8 with one absmax scale a row, and back
    material.py     what the page shows of a run
    page.py         the one file that holds it all
    serving.py      the same on this computer's own address
    play.html       the page around the panels, in the report's look (play.css adds what can be touched)
    story.html      the first panel, which reports embed, too
    transformer.js  the decoder, to be read beside transformer.py
    weights.js      beside weights.py and quant/mappings.py
    world.js        the judge, beside world/parse.py and world/gold.py
    story.js        the first panel
    panels.js       the others
"""
