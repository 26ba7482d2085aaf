"""The lines on classes that an evaluation prints."""

from types import SimpleNamespace

import numpy as np

from pipeline.commands.evaluate_results import class_lines


def lines(counts, classes):
    return class_lines(SimpleNamespace(confusion=np.array(counts)), classes)


def test_class_lines_have_precision_recall_f1_and_the_number_of_images():
    head, cat, dog, owl = lines([[8, 2, 0], [1, 999, 0], [0, 0, 0]], ["cat", "a very long name", "owl"])
    assert head.split() == ["class", "precision", "recall", "F1", "images"]
    assert cat.split() == ["cat", "88.9", "%", "80.0", "%", "84.2", "%", "10"]
    assert dog.split()[-1] == "1,000"
    assert owl.split() == ["owl", "-", "-", "-", "0"]
    assert len({len(line) for line in (head, cat, dog, owl)}) == 1, "columns stand below each other"


def test_class_lines_of_many_classes_are_the_worst():
    counts = np.diag(np.full(40, 10))
    counts[7, 8] = 30
    found = lines(counts, [f"class {number}" for number in range(40)])
    assert len(found) == 7
    assert found[1].startswith("class 7 ") and found[2].startswith("class 8 ")
    assert found[-1] == "and 35 more of a better F1: see per_class.csv"
