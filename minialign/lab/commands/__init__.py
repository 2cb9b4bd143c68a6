"""Each stage as a command on anybody's files: read them, call the stage, say what to do next. One file a command; they
share inputs.py, judged.py (comparisons) and options.py. A command with many options gets them as one `args`, besides
its configurations."""
