r"""How much a stranger's template may do: Jinja's sandbox keeps it from Python, this keeps it from running for ever.

    {% for a in range(99999) %}{% for b in range(99999) %}…       a loop that a person would have to kill
    {{ "a" * 10 ** 10 }}   {{ "a" | center(10000000000) }}        a text that no memory holds

The limit is a budget of work and no clock, so that a template is refused on every machine or on none. Each operation
pays for what it may have to touch: the product of the sizes of what it is given, where a number counts as itself, since
it may be how often, or how wide. Details that matter:
    1. It is paid before the operation, or the memory would be full before anybody looks
       (test_a_template_that_would_run_or_grow_for_ever_is_refused).
    2. A loop pays its turns times the length of the whole template, which is at least what a turn prints.
    3. A list that holds a list twice that holds a list twice … is as large as what it prints, not as what it stores.

Read next: promptsource.py.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment

from minialign.lab.interchange.promptsource import TooMuch, weight

BUDGET = 100_000_000  # units of work to fill one template with one example; usual ones take some ten thousand
CALL = 1000  # units for a call, of a macro or of anything
PRINTED = 10  # units for a character that is printed
WIDE = re.compile(r"\d{5,}|%[^%a-zA-Z]*\*|\{[^{}]*\{")  # in a text that formats: wider than a line, or as data says


class LimitedEnvironment(SandboxedEnvironment):
    """Jinja's sandbox in which everything pays; `begin` gives the budget back, before each filling."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.left = BUDGET
        self.filters = {name: self.paid(function) for name, function in self.filters.items()}
        self.tests = {name: self.paid(function, numbers=False) for name, function in self.tests.items()}
        self.filters |= {"weighed": self.weighed, "turns": self.turns, "joined": self.joined}

    def begin(self) -> None:
        """A new budget."""
        self.left = BUDGET

    def pay(self, work: int) -> None:
        """Take some work off the budget. Raises TooMuch when it is used up."""
        self.left -= work
        if self.left < 0:
            raise TooMuch(f"it asks for more than {BUDGET:,} units of work; make its loops and its texts shorter")

    def paid(self, function: Callable, numbers: bool = True) -> Callable:
        """A filter or a test that pays for what it is given; `numbers`: one behind the first may be how wide."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # behind what Jinja passes on its own

        @functools.wraps(function)  # with Jinja's own marks on it
        def paying(*arguments: Any, **named: Any) -> Any:
            given = [*arguments[first:], *named.values()]
            if "format" in function.__name__:
                check_width(*given)
                self.pay(weight(given))
            else:
                self.pay(weight(given[:1]) * math.prod(map(weight, given[1:])) if numbers else weight(given))
            return function(*arguments, **named)

        return paying

    def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """A call in a template: a method of a text or a list, a macro, `range`."""
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        given = [*arguments, *named.values()]
        if isinstance(owner, str | bytes) and "format" not in function.__name__:
            self.pay(weight(owner) * math.prod(map(weight, given)))
        else:
            check_width(owner)
            self.pay(CALL + weight(owner) + weight(given))
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator between two values."""
        texts = [isinstance(side, str | list | tuple) for side in (left, right)]
        bits = [side.bit_length() if isinstance(side, int) else 1 for side in (left, right)]
        if operator == "%" and texts[0]:
            check_width(left)
        if operator == "**":
            self.pay(bits[0] * weight(right))
        elif not any(texts):
            self.pay(1 + bits[0] * bits[1])
        else:
            self.pay(weight(left) * weight(right) if operator == "*" else weight([left, right]))
        return super().call_binop(context, operator, left, right)

    def weighed(self, value: Any, each: int = 1) -> Any:
        """What is compared or printed pays for its size."""
        self.pay(each * weight([value]))
        return value

    def turns(self, value: Any, length: int) -> Any:
        """What a loop goes through, which pays for every turn what the template is long."""
        if not hasattr(value, "__len__") and isinstance(value, Iterable):
            value = list(islice(value, BUDGET // length + 1))
        self.pay((len(value) if hasattr(value, "__len__") else 1) * length)
        return value

    def joined(self, items: list) -> str:
        """`a ~ b`: its parts, end to end."""
        self.pay(weight(items))
        return "".join(map(str, items))

    def limited(self, tree: nodes.Template, length: int) -> nodes.Template:
        """A template in which loops, comparisons and `~` pay; `length` is that of its text."""
        def asks(item: nodes.Expr, name: str, *more: nodes.Expr) -> nodes.Filter:
            return nodes.Filter(item, name, list(more), [], None, None, lineno=item.lineno, environment=self)

        def end_to_end(item: Any) -> Any:
            if not isinstance(item, nodes.Concat):
                return item
            return asks(nodes.List(item.nodes, lineno=item.lineno, environment=self), "joined")

        for parent in list(tree.find_all(nodes.Node)):
            for name, value in list(parent.iter_fields()):
                if isinstance(value, list):
                    value[:] = map(end_to_end, value)
                else:
                    setattr(parent, name, end_to_end(value))
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = asks(loop.iter, "turns", nodes.Const(max(1, length), lineno=loop.lineno, environment=self))
        for place in list(tree.find_all((nodes.Compare, nodes.Operand))):
            place.expr = asks(place.expr, "weighed")
        return tree


def check_width(*texts: Any) -> None:
    """Raise TooMuch where a text that formats asks for a width that no line has, or takes it from the data."""
    if any(isinstance(text, str) and WIDE.search(text) for text in texts):
        raise TooMuch("it makes a text wider than any line")
