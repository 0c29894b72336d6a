"""Which answer each strategy takes of what is known, and which settings are refused."""

from __future__ import annotations

import pytest

from flab.errors import OptionError
from flab.models.engines.protocol import Decoding
from flab.recovery.strategies import GREEDY, STRATEGIES, Answer, Known, Making

WRONG, RIGHT = Answer("self", "wrong", False), Answer("self", "right", True)
LATER = Answer("self", "later", True)
GOLD, FALSE_GOLD = Answer("reference", "gold", True), Answer("reference", "false", False)
SAID, GIVEN = Answer("self", "said", None), Answer("reference", "given", None)
CUT_OFF = Answer("self", "", False)  # what nothing can verify, and no answer came of it

SITUATIONS = {
    "right at once": Known([RIGHT], GOLD, True),
    "right later": Known([WRONG, WRONG, RIGHT], GOLD, True),
    "right twice": Known([RIGHT, LATER], GOLD, True),
    "right, the reference is not": Known([RIGHT], FALSE_GOLD, True),
    "never right": Known([WRONG, WRONG], GOLD, True),
    "never right, the reference neither": Known([WRONG, WRONG], FALSE_GOLD, True),
    "never right, no reference": Known([WRONG, WRONG], None, True),
    "not asked": Known([], GOLD, True),
    "untestable": Known([SAID], GIVEN, False),
    "untestable, no reference": Known([SAID], None, False),
    "untestable, an empty reference": Known([SAID], Answer("reference", "", False), False),
    "untestable, self": Known([SAID], GIVEN, False, "self"),
    "untestable, self, cut off": Known([CUT_OFF], GIVEN, False, "self"),
    "untestable, drop": Known([SAID], GIVEN, False, "drop"),
    "untestable, not asked, self": Known([], GIVEN, False, "self"),
}
TAKEN = {  # verified-self, reference, self, mixed; an answer without text is no target, which ``data.choose`` sees to
    "right at once": ([RIGHT], [GOLD], [RIGHT], [RIGHT, GOLD]),
    "right later": ([RIGHT], [GOLD], [WRONG], [RIGHT, GOLD]),
    "right twice": ([RIGHT], [GOLD], [RIGHT], [RIGHT, GOLD]),
    "right, the reference is not": ([RIGHT], [], [RIGHT], [RIGHT]),
    "never right": ([GOLD], [GOLD], [WRONG], [GOLD]),
    "never right, the reference neither": ([], [], [WRONG], []),
    "never right, no reference": ([], [], [WRONG], []),
    "not asked": ([GOLD], [GOLD], [], [GOLD]),
    "untestable": ([GIVEN], [GIVEN], [SAID], [GIVEN]),
    "untestable, no reference": ([], [], [SAID], []),
    "untestable, an empty reference": ([], [], [SAID], []),
    "untestable, self": ([SAID], [GIVEN], [SAID], [SAID]),
    "untestable, self, cut off": ([CUT_OFF], [GIVEN], [CUT_OFF], [CUT_OFF]),
    "untestable, drop": ([], [GIVEN], [SAID], []),
    "untestable, not asked, self": ([], [GIVEN], [], []),
}


@pytest.mark.parametrize("place", range(4), ids=["verified-self", "reference", "self", "mixed"])
@pytest.mark.parametrize("name", SITUATIONS)
def test_what_each_strategy_takes(name, place):
    chosen = list(STRATEGIES.values())[place].choose(SITUATIONS[name])
    assert chosen == TAKEN[name][place]


def test_the_strategies_are_four_and_say_what_they_need():
    assert {name: (one.asks, one.tries) for name, one in STRATEGIES.items()} == {
        "verified-self": (True, True),
        "reference": (False, False),
        "self": (True, False),
        "mixed": (True, True),
    }


def test_verified_self_is_what_one_gets():
    assert (Making().strategy, Making().untested) == ("verified-self", "reference")


def test_the_first_answer_is_greedy_and_the_others_are_drawn():
    making = Making(temperature=0.7, top_p=0.9, max_new_tokens=5, batch_size=3)
    assert making.decoding(GREEDY) == Decoding(5, 0.0, 1.0, 3)
    assert making.decoding(1) == making.decoding(4) == Decoding(5, 0.7, 0.9, 3)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "best"}, "`strategy`: got 'best', allowed verified-self, reference, self, mixed"),
        ({"strategy": ""}, "`strategy`: got ''"),
        ({"untested": "keep"}, "`untested`: got 'keep', allowed reference, self, drop"),
        ({"tries": -1}, "`tries`: got -1, allowed 0 or more"),
        ({"temperature": 0.0}, "`temperature`: got 0, allowed more than 0"),
        ({"temperature": -1.0}, "`temperature`: got -1"),
        ({"temperature": NAN}, "`temperature`: got nan"),
        ({"temperature": INFINITE}, "`temperature`: got inf"),
        ({"top_p": 0.0}, "`top_p`: got 0.0"),
        ({"top_p": 1.5}, "`top_p`: got 1.5"),
        ({"top_p": NAN}, "`top_p`: got nan"),
        ({"max_new_tokens": 0}, "`max_new_tokens`: got 0"),
        ({"batch_size": 0}, "`batch_size`: got 0"),
        ({"text_share": 0.0}, "`text_share`: got 0"),
        ({"text_share": 1.0}, "`text_share`: got 1"),
        ({"text_share": NAN}, "`text_share`: got nan"),
        ({"mix": (("code", 0.0),)}, "`mix`: got code=0, allowed code, cot, output, chat, instruction, own"),
        ({"mix": (("code", -1.0),)}, "`mix`: got code=-1"),
        ({"mix": (("code", NAN),)}, "`mix`: got code=nan"),
        ({"mix": (("code", INFINITE),)}, "`mix`: got code=inf"),
        ({"mix": (("prose", 1.0),)}, "`mix`: got prose=1"),
        ({"mix": (("text", 1.0),)}, "`mix`: got text=1"),
        ({"mix": (("code", 1.0), ("code", 2.0))}, "`mix`: a kind is named twice"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_before_any_work(changes, words):
    with pytest.raises(OptionError, match=words) as caught:
        Making(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"tries": 0}, {"temperature": 2.0}, {"top_p": 1.0}, {"text_share": 0.99}])
def test_settings_at_the_edge_are_taken(changes):
    making = Making(**changes)
    assert all(getattr(making, name) == value for name, value in changes.items())
