"""People say which of two answers is better: in the browser (page.py) or in the terminal (terminal.py); store.py keeps
every label."""
