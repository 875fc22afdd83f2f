"""Jobs that wait where nobody works on them are found by comparing nodes."""

from cluster.cli.admin import FunctionStatus
from cluster.cli.stranded import NAMED_MAX, in_words, stranded


def test_only_what_waits_on_a_node_without_a_worker_and_has_one_elsewhere_is_told() -> None:
    by_node = {
        "a": [FunctionStatus("f", 5, 0, 0), FunctionStatus("g", 5, 0, 0), FunctionStatus("h", 5, 0, 1)],
        "b": [FunctionStatus("f", 0, 0, 2), FunctionStatus("g", 5, 0, 0), FunctionStatus("h", 0, 0, 0)],
        "c": [FunctionStatus("f", 1, 0, 0), FunctionStatus("h", 2, 2, 0)],  # h runs only
    }
    assert stranded(by_node) == {"f": ["a", "c"]}


def test_of_very_many_functions_a_few_are_named_and_the_others_counted() -> None:
    lines = in_words({f"f{number}": ["a"] for number in range(NAMED_MAX + 7)})
    assert len(lines) == NAMED_MAX + 1
    assert lines[-1].startswith("the same of 7 more functions")
