"""A conflict between keys: which rule is broken, and every key that is involved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.strict_json import NO_VALUE, Problem

Key = tuple[str, ...]


class Conflict(NamedTuple):
    """A broken rule between keys.

    Attributes:
        problem: the key to change, the rule and the value.
        keys: every key that the rule depends on; with an invalid one the rule is not reported.
    """

    problem: Problem
    keys: frozenset[Key]


Check = Callable[[Recipe], Iterator[Conflict]]


def conflict(key: str, rule: str, value: object = NO_VALUE, *, other_keys: str = "") -> Conflict:
    """Make a conflict from dotted keys.

    Args:
        key: the key to change, such as "training.save_steps".
        rule: what is wrong and what to do.
        value: the value of the key, to be shown.
        other_keys: the other keys of the rule, separated by spaces.
    """
    path = tuple(key.split("."))
    others = (tuple(other.split(".")) for other in other_keys.split())
    return Conflict(Problem(path, rule, value), frozenset({path, *others}))
