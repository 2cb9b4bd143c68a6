r"""Functions that each have one bug, for the exercises that ask to find it. Nothing imports them; their sources are
shown to the reader."""
