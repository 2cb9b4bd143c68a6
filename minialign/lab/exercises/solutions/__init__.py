r"""One way to solve each exercise, a file for each notebook. A prediction is a function without arguments that works
the number out."""
