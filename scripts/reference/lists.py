"""Operations on lists of integers and on the dictionaries that count them."""

from __future__ import annotations

from reference.operations import Operation

LIST_TO_LIST = (
    Operation(
        "sort", "L", "L", lambda x, k: sorted(x), "Sort the numbers in ascending order.",
        ("sort the numbers in ascending order", "arrange the numbers from smallest to largest",
         "put the numbers in increasing order"),
        ("sorted({x})", "sorted({x}, reverse=False)", "{y} = list({x})\n{y}.sort()"),
    ),
    Operation(
        "sort_down", "L", "L", lambda x, k: sorted(x, key=lambda v: -v), "Sort the numbers in descending order.",
        ("sort the numbers in descending order", "arrange the numbers from largest to smallest",
         "put the numbers in decreasing order"),
        ("sorted({x}, reverse=True)", "sorted({x})[::-1]", "{y} = list({x})\n{y}.sort(reverse=True)"),
    ),
    Operation(
        "reverse", "L", "L", lambda x, k: [x[-i - 1] for i in range(len(x))], "Reverse the list.",
        ("reverse the list", "turn the list around", "put the list in reverse order"),
        ("{x}[::-1]", "list(reversed({x}))", "{y} = list({x})\n{y}.reverse()"),
    ),
    Operation(
        "keep_even", "L", "L", lambda x, k: [v for v in x if not v & 1], "Keep only the even numbers.",
        ("keep only the even numbers", "remove the odd numbers", "drop every odd number"),
        ("[v for v in {x} if v % 2 == 0]", "list(filter(lambda v: v % 2 == 0, {x}))",
         "{y} = []\nfor v in {x}:\n    if v % 2 == 0:\n        {y}.append(v)"),
    ),
    Operation(
        "keep_odd", "L", "L", lambda x, k: [v for v in x if v & 1], "Keep only the odd numbers.",
        ("keep only the odd numbers", "remove the even numbers", "drop every even number"),
        ("[v for v in {x} if v % 2 == 1]", "[v for v in {x} if v % 2 != 0]",
         "{y} = []\nfor v in {x}:\n    if v % 2 == 1:\n        {y}.append(v)"),
    ),
    Operation(
        "add", "L", "L", lambda x, k: [k + v for v in x], "Add {k} to every number.",
        ("add {k} to every number", "increase each number by {k}", "raise all the numbers by {k}"),
        ("[v + {k} for v in {x}]", "list(map(lambda v: v + {k}, {x}))",
         "{y} = []\nfor v in {x}:\n    {y}.append(v + {k})"),
        ks=(1, 2, 3),
    ),
    Operation(
        "scale", "L", "L", lambda x, k: [sum([v] * k) for v in x], "Multiply every number by {k}.",
        ("multiply every number by {k}", "scale each number by {k}", "make every number {k} times as large"),
        ("[v * {k} for v in {x}]", "list(map(lambda v: v * {k}, {x}))",
         "{y} = []\nfor v in {x}:\n    {y}.append(v * {k})"),
        ks=(2, 3),
    ),
    Operation(
        "square", "L", "L", lambda x, k: [pow(v, 2) for v in x], "Square every number.",
        ("square every number", "replace each number by its square", "raise each number to the power of two"),
        ("[v * v for v in {x}]", "[v ** 2 for v in {x}]", "{y} = []\nfor v in {x}:\n    {y}.append(v * v)"),
    ),
    Operation(
        "dedupe", "L", "L", lambda x, k: [v for i, v in enumerate(x) if v not in x[:i]],
        "Remove the duplicates.",
        ("remove the duplicates", "keep only the first copy of each number", "drop repeated numbers"),
        ("list(dict.fromkeys({x}))",
         "{y} = []\nfor v in {x}:\n    if v not in {y}:\n        {y}.append(v)"),
    ),
    Operation(
        "take", "L", "L", lambda x, k: [v for i, v in enumerate(x) if i < k], "Keep the first {k} numbers.",
        ("keep the first {k} numbers", "take the first {k} elements of the list", "cut the list after {k} elements"),
        ("{x}[:{k}]", "list({x}[:{k}])", "{y} = []\nfor v in {x}[:{k}]:\n    {y}.append(v)"),
        ks=(2, 3),
    ),
    Operation(
        "skip", "L", "L", lambda x, k: [v for i, v in enumerate(x) if i >= k], "Remove the first {k} numbers.",
        ("remove the first {k} numbers", "skip the first {k} elements of the list",
         "drop {k} elements from the front of the list"),
        ("{x}[{k}:]", "list({x}[{k}:])", "{y} = []\nfor v in {x}[{k}:]:\n    {y}.append(v)"),
        ks=(2, 3),
    ),
    Operation(
        "above", "L", "L", lambda x, k: [v for v in x if not v <= k],
        "Keep only the numbers greater than {k}.",
        ("keep only the numbers greater than {k}", "keep the numbers above {k}",
         "select the numbers larger than {k}"),
        ("[v for v in {x} if v > {k}]", "list(filter(lambda v: v > {k}, {x}))",
         "{y} = []\nfor v in {x}:\n    if v > {k}:\n        {y}.append(v)"),
        ks=(2, 3, 4, 5),
    ),
    Operation(
        "every_other", "L", "L", lambda x, k: [v for i, v in enumerate(x) if i % 2 == 0],
        "Keep every second number.",
        ("keep every second number", "take every other number", "keep the numbers at even positions"),
        ("{x}[::2]", "list({x}[::2])", "{y} = []\nfor v in {x}[::2]:\n    {y}.append(v)"),
    ),
    Operation(
        "rotate", "L", "L", lambda x, k: [*x[1:], *x[:1]], "Move the first number to the end.",
        ("move the first number to the end", "rotate the list to the left by one",
         "shift the first element to the back"),
        ("{x}[1:] + {x}[:1]", "{y} = list({x}[1:])\n{y}.extend({x}[:1])"),
    ),
)

LIST_TO_OTHER = (
    Operation(
        "sum", "L", "I", lambda x, k: sum(x), "Add up the numbers.",
        ("add up the numbers", "compute the sum of the numbers", "return the total of the list"),
        ("sum({x})", "{y} = 0\nfor v in {x}:\n    {y} += v"),
    ),
    Operation(
        "largest", "L", "I", lambda x, k: sorted(x)[-1], "Find the largest number.",
        ("find the largest number", "return the maximum of the list", "pick the biggest number"),
        ("max({x})", "sorted({x})[-1]"),
    ),
    Operation(
        "smallest", "L", "I", lambda x, k: sorted(x)[0], "Find the smallest number.",
        ("find the smallest number", "return the minimum of the list", "pick the lowest number"),
        ("min({x})", "sorted({x})[0]"),
    ),
    Operation(
        "size", "L", "I", lambda x, k: len(x), "Count the numbers.",
        ("count the numbers", "return how many numbers there are", "return the length of the list"),
        ("len({x})", "sum(1 for v in {x})", "{y} = 0\nfor v in {x}:\n    {y} += 1"),
    ),
    Operation(
        "count_even", "L", "I", lambda x, k: len(x) - sum(v % 2 for v in x), "Count the even numbers.",
        ("count the even numbers", "return how many numbers are even"),
        ("sum(1 for v in {x} if v % 2 == 0)", "len([v for v in {x} if v % 2 == 0])",
         "{y} = 0\nfor v in {x}:\n    if v % 2 == 0:\n        {y} += 1"),
    ),
    Operation(
        "first", "L", "I", lambda x, k: x[0], "Take the first number.",
        ("take the first number", "return the element at the front", "return the first element"),
        ("{x}[0]", "list({x})[0]"),
    ),
    Operation(
        "last", "L", "I", lambda x, k: x[len(x) - 1], "Take the last number.",
        ("take the last number", "return the element at the back", "return the last element"),
        ("{x}[-1]", "list({x})[-1]"),
    ),
    Operation(
        "spread", "L", "I", lambda x, k: sorted(x)[-1] - sorted(x)[0],
        "Subtract the smallest number from the largest.",
        ("subtract the smallest number from the largest", "return the difference of maximum and minimum"),
        ("max({x}) - min({x})", "{y} = max({x})\n{y} -= min({x})"),
    ),
    Operation(
        "repeats", "L", "B", lambda x, k: any(x.count(v) > 1 for v in x), "Check whether a number repeats.",
        ("check whether a number repeats", "return whether some number occurs twice",
         "tell if the list has duplicates"),
        ("len(set({x})) < len({x})", "len(set({x})) != len({x})"),
    ),
    Operation(
        "tally", "L", "D", lambda x, k: {v: x.count(v) for v in x}, "Count how often each number occurs.",
        ("count how often each number occurs", "build a dictionary of counts", "map each number to its count"),
        ("{v: {x}.count(v) for v in {x}}",
         "{y} = {}\nfor v in {x}:\n    {y}[v] = {y}.get(v, 0) + 1"),
    ),
    Operation(
        "square_map", "L", "D", lambda x, k: {v: v**2 for v in x}, "Map each number to its square.",
        ("map each number to its square", "build a dictionary of squares"),
        ("{v: v * v for v in {x}}", "{y} = {}\nfor v in {x}:\n    {y}[v] = v * v"),
    ),
)

DICT = (
    Operation(
        "keys", "D", "L", lambda x, k: sorted(x), "List the keys in sorted order.",
        ("list the keys in sorted order", "return the sorted keys", "collect the keys and sort them"),
        ("sorted({x})", "sorted({x}.keys())", "{y} = list({x}.keys())\n{y}.sort()"),
    ),
    Operation(
        "values", "D", "L", lambda x, k: [x[key] for key in x], "List the values.",
        ("list the values", "collect the values in a list", "return the values as a list"),
        ("list({x}.values())", "[{x}[key] for key in {x}]",
         "{y} = []\nfor key in {x}:\n    {y}.append({x}[key])"),
    ),
    Operation(
        "value_sum", "D", "I", lambda x, k: sum(v for _, v in x.items()), "Add up the values.",
        ("add up the values", "compute the sum of the values", "return the total of all values"),
        ("sum({x}.values())", "{y} = 0\nfor key in {x}:\n    {y} += {x}[key]"),
    ),
    Operation(
        "value_max", "D", "I", lambda x, k: max(v for _, v in x.items()), "Find the largest value.",
        ("find the largest value", "return the maximum of the values", "pick the biggest value"),
        ("max({x}.values())", "sorted({x}.values())[-1]"),
    ),
    Operation(
        "entries", "D", "I", lambda x, k: len(list(x)), "Count the keys.",
        ("count the keys", "return how many keys there are", "return the size of the dictionary"),
        ("len({x})", "len({x}.keys())"),
    ),
    Operation(
        "big_values", "D", "D", lambda x, k: {key: v for key, v in x.items() if not v <= k},
        "Keep the entries with a value above {k}.",
        ("keep the entries with a value above {k}", "drop the entries whose value is {k} or less"),
        ("{key: {x}[key] for key in {x} if {x}[key] > {k}}",
         "{y} = {}\nfor key in {x}:\n    if {x}[key] > {k}:\n        {y}[key] = {x}[key]"),
        ks=(1, 2),
    ),
)
