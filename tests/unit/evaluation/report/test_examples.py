"""Which test images a report shows."""

import numpy as np
import pandas as pd

from pipeline.evaluation.report.examples import CONFIDENCE, Model, add_pictures, choose_examples, have_same_images

LABELS = [0, 1, 0, 1]


def make_model(name, predicted, **columns):
    names = np.array(["cat", "dog"])
    classes = {"class": names[LABELS], "predicted_class": names[predicted]}
    table = {"image": list("abcd"), "label": LABELS, "predicted": predicted, **classes}
    return Model(name, pd.DataFrame(table | {CONFIDENCE: 0.5} | columns))


def images(strip):
    return "".join(example.image for example in strip.examples)


def test_choose_examples_shows_mistakes_and_what_one_of_two_models_alone_knows():
    first = make_model("one", [1, 0, 0, 1], **{CONFIDENCE: [0.7, 0.8, 0.9, 0.9]})
    second = make_model("two", [1, 1, 1, 1], file=["", "y/b.png", "x/c.png", "y/d.png"])
    mistakes, by_first, by_second = choose_examples([first, second])
    assert (mistakes.title, images(mistakes)) == ("Most confident mistakes of one: 2 of 4 test images", "ba")
    assert mistakes.examples[0].text == "dog, taken for cat (80.0 %)"
    assert (by_first.title, images(by_first)) == ("Right by one, wrong by two: 1 of 4 test images", "c")
    assert by_first.examples[0].name == "x/c.png"
    assert (by_second.title, images(by_second)) == ("Right by two, wrong by one: 1 of 4 test images", "b")
    assert by_second.examples[0].name == "test image 1", "the first model's table has no files"


def test_choose_examples_counts_the_images_that_are_left_out():
    labels = [0] * 12
    table = pd.DataFrame({"image": [""] * 12, "label": labels, "predicted": 1})
    (strip,) = choose_examples([Model("one", table)])
    assert len(strip.examples) == 10 and strip.others == 2
    assert strip.title.startswith("Mistakes of one") and strip.examples[0].text == "class 0, taken for class 1"


def test_choose_examples_of_no_model_is_nothing():
    assert choose_examples([]) == []


def test_have_same_images_asks_for_the_same_order():
    model = make_model("one", LABELS)
    assert have_same_images(model, make_model("two", LABELS))
    assert not have_same_images(model, make_model("two", LABELS, image=list("abdc")))


def test_add_pictures_keeps_examples_of_which_there_are_none():
    (strip,) = choose_examples([make_model("one", [1, 0, 0, 1], file=["x/a.png", "y/b.png", "", ""])])
    (filled,) = add_pictures([strip], {"a": b"png"}, lambda name: f"file:///{name}" if name == "y/b.png" else "")
    assert [(example.data_uri, example.url) for example in filled.examples] == [
        ("data:image/png;base64,cG5n", ""),
        ("", "file:///y/b.png"),
    ]
