"""Operations on strings, on lists of words and on single integers."""

from __future__ import annotations

from reference.operations import Operation

VOWELS = "aeiou"

STRING = (
    Operation(
        "upper", "S", "S", lambda x, k: x.upper(), "Turn the text into upper case.",
        ("turn the text into upper case", "convert the text to capital letters", "make every letter upper case"),
        ("{x}.upper()", '"".join(c.upper() for c in {x})'),
    ),
    Operation(
        "flip", "S", "S", lambda x, k: "".join(x[-i - 1] for i in range(len(x))), "Reverse the text.",
        ("reverse the text", "spell the text backwards", "turn the text around"),
        ("{x}[::-1]", '"".join(reversed({x}))', '{y} = ""\nfor c in {x}:\n    {y} = c + {y}'),
    ),
    Operation(
        "drop_vowels", "S", "S", lambda x, k: "".join(c for c in x if VOWELS.find(c) < 0), "Remove the vowels.",
        ("remove the vowels", "drop every vowel from the text", "delete the letters aeiou"),
        ('"".join(c for c in {x} if c not in "aeiou")',
         '{y} = ""\nfor c in {x}:\n    if c not in "aeiou":\n        {y} += c'),
    ),
    Operation(
        "capital", "S", "S", lambda x, k: x[:1].upper() + x[1:].lower(), "Capitalize the text.",
        ("capitalize the text", "make only the first letter upper case"),
        ("{x}.capitalize()", "{x}[:1].upper() + {x}[1:].lower()"),
    ),
    Operation(
        "prefix", "S", "S", lambda x, k: "".join(c for i, c in enumerate(x) if i < k),
        "Keep the first {k} letters.",
        ("keep the first {k} letters", "take the first {k} letters of the text", "cut the text after {k} letters"),
        ("{x}[:{k}]", '"".join({x}[:{k}])'), ks=(2, 3),
    ),
    Operation(
        "behead", "S", "S", lambda x, k: "".join(c for i, c in enumerate(x) if i), "Remove the first letter.",
        ("remove the first letter", "drop the letter at the front of the text", "skip the first letter"),
        ("{x}[1:]", '"".join({x}[1:])'),
    ),
    Operation(
        "twice", "S", "S", lambda x, k: "".join([x, x]), "Repeat the text twice.",
        ("repeat the text twice", "write the text two times in a row", "double the text"),
        ("{x} * 2", '"".join([{x}] * 2)'),
    ),
    Operation(
        "star", "S", "S", lambda x, k: f"{x}!", "Add an exclamation mark.",
        ("add an exclamation mark", "append an exclamation mark to the text", 'put "!" at the end of the text'),
        ('{x} + "!"', '"".join([{x}, "!"])'),
    ),
    Operation(
        "length", "S", "I", lambda x, k: len(x), "Count the letters.",
        ("count the letters", "return the length of the text", "return how many letters the text has"),
        ("len({x})", "sum(1 for c in {x})", "{y} = 0\nfor c in {x}:\n    {y} += 1"),
    ),
    Operation(
        "vowels", "S", "I", lambda x, k: sum(x.count(c) for c in VOWELS), "Count the vowels.",
        ("count the vowels", "return how many vowels the text has"),
        ('sum(1 for c in {x} if c in "aeiou")', 'len([c for c in {x} if c in "aeiou"])',
         '{y} = 0\nfor c in {x}:\n    if c in "aeiou":\n        {y} += 1'),
    ),
    Operation(
        "letters", "S", "W", lambda x, k: [x[i] for i in range(len(x))], "Split the text into letters.",
        ("split the text into letters", "make a list of the letters", "return the letters as a list"),
        ("list({x})", "[c for c in {x}]", "{y} = []\nfor c in {x}:\n    {y}.append(c)"),
    ),
)

WORDS = (
    Operation(
        "sort_words", "W", "W", lambda x, k: sorted(x), "Sort the words in alphabetical order.",
        ("sort the words in alphabetical order", "put the words in alphabetical order",
         "arrange the words from a to z"),
        ("sorted({x})", "{y} = list({x})\n{y}.sort()"),
    ),
    Operation(
        "flip_words", "W", "W", lambda x, k: [x[-i - 1] for i in range(len(x))], "Reverse the order of the words.",
        ("reverse the order of the words", "list the words from last to first"),
        ("{x}[::-1]", "list(reversed({x}))", "{y} = list({x})\n{y}.reverse()"),
    ),
    Operation(
        "upper_words", "W", "W", lambda x, k: [w.upper() for w in x], "Turn every word into upper case.",
        ("turn every word into upper case", "write each word in capital letters"),
        ("[w.upper() for w in {x}]", "list(map(str.upper, {x}))",
         "{y} = []\nfor w in {x}:\n    {y}.append(w.upper())"),
    ),
    Operation(
        "long_words", "W", "W", lambda x, k: [w for w in x if not len(w) <= k],
        "Keep the words longer than {k} letters.",
        ("keep the words longer than {k} letters", "drop the words of {k} letters or fewer"),
        ("[w for w in {x} if len(w) > {k}]", "list(filter(lambda w: len(w) > {k}, {x}))",
         "{y} = []\nfor w in {x}:\n    if len(w) > {k}:\n        {y}.append(w)"),
        ks=(2, 3),
    ),
    Operation(
        "initials", "W", "W", lambda x, k: [w[:1] for w in x], "Take the first letter of every word.",
        ("take the first letter of every word", "replace each word by its initial"),
        ("[w[:1] for w in {x}]", "list(map(lambda w: w[:1], {x}))",
         "{y} = []\nfor w in {x}:\n    {y}.append(w[:1])"),
    ),
    Operation(
        "first_words", "W", "W", lambda x, k: [w for i, w in enumerate(x) if i < k], "Keep the first {k} words.",
        ("keep the first {k} words", "take {k} words from the front"),
        ("{x}[:{k}]", "list({x}[:{k}])"), ks=(2, 3),
    ),
    Operation(
        "join", "W", "S", lambda x, k: "-".join(x), "Join the words with a dash.",
        ("join the words with a dash", 'glue the words together with "-"', "connect the words by dashes"),
        ('"-".join({x})', '"-".join(w for w in {x})'),
    ),
    Operation(
        "first_word", "W", "S", lambda x, k: x[0], "Take the first word.",
        ("take the first word", "pick the word at the front"),
        ("{x}[0]", "list({x})[0]"),
    ),
    Operation(
        "longest", "W", "S", lambda x, k: max(x, key=lambda w: (len(w), -x.index(w))),
        "Find the longest word.",
        ("find the longest word", "pick the word with the most letters"),
        ("max({x}, key=len)", "sorted({x}, key=len, reverse=True)[0]"),
    ),
    Operation(
        "lengths", "W", "L", lambda x, k: [len(w) for w in x], "List the length of every word.",
        ("list the length of every word", "replace each word by its length"),
        ("[len(w) for w in {x}]", "list(map(len, {x}))", "{y} = []\nfor w in {x}:\n    {y}.append(len(w))"),
    ),
    Operation(
        "word_count", "W", "I", lambda x, k: len(x), "Count the words.",
        ("count the words", "return how many words there are"),
        ("len({x})", "sum(1 for w in {x})", "{y} = 0\nfor w in {x}:\n    {y} += 1"),
    ),
)

NUMBER = (
    Operation(
        "plus", "I", "I", lambda x, k: sum((x, k)), "Add {k} to the number.",
        ("add {k} to the number", "increase the number by {k}"), ("{x} + {k}", "{k} + {x}"), ks=(1, 2, 3),
    ),
    Operation(
        "times", "I", "I", lambda x, k: sum([x] * k), "Multiply the number by {k}.",
        ("multiply the number by {k}", "make the number {k} times as large"),
        ("{x} * {k}", "{k} * {x}"), ks=(2, 3),
    ),
    Operation(
        "minus", "I", "I", lambda x, k: x - k, "Subtract {k} from the number.",
        ("subtract {k} from the number", "decrease the number by {k}"),
        ("{x} - {k}", "-{k} + {x}"), ks=(1, 2, 3),
    ),
    Operation(
        "is_even", "I", "B", lambda x, k: not x & 1, "Check whether the number is even.",
        ("check whether the number is even", "tell if the number is even"),
        ("{x} % 2 == 0", "not {x} % 2"),
    ),
    Operation(
        "is_large", "I", "B", lambda x, k: not x <= k, "Check whether the number is greater than {k}.",
        ("check whether the number is greater than {k}", "tell if the number is above {k}"),
        ("{x} > {k}", "{k} < {x}"), ks=(3, 5, 7),
    ),
)
