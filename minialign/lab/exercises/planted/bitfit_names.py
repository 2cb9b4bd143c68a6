r"""The choice of what BitFit trains, with one bug."""


def bitfit_names(model):
    """model: a module. Returns the sorted names of all its biases, as named_parameters() gives them."""
    return sorted(name for name, _ in model.named_parameters() if "bias" in name)
