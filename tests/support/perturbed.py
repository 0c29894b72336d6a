"""The problem that the tests of perturbations disturb."""

from flab.evaluation.tasks import Problem

PROMPT = '''from typing import List


def helper(numbers):
    """ Not to be touched: numbers """
    return numbers


def count_big(numbers: List[int], limit: int = 3) -> int:
    """ Count the given numbers that are larger than the limit which the caller chose, é.
    The order of the elements has no meaning for this.
    >>> count_big([1, 5], limit=2)
    1

    For example: count_big([5]) == 1, and "numbers like these" count twice
    """
'''
BODY = """    total = 0
    for one in helper(numbers):  # numbers[0] first
        if one > limit:
            total += 1
    text = f"{numbers} {limit!r:>{limit}}"
    return total if text else count_big(numbers, limit=limit)
"""
TEST = (
    "def check(candidate):\n    assert candidate([1, 5, 9], 3) == 2\n    assert candidate(numbers=[4], limit=3) == 1\n"
)
PROBLEM = Problem("T/1", PROMPT, "count_big", TEST, BODY)


def simple(body, header="def f(xs):", test="def check(candidate):\n    pass\n"):
    return Problem("T/2", f'{header}\n    """Do it."""\n', "f", test, body)
