"""The Markdown of a model card: what is known, what is not, and nothing of a name that is markup."""

from dataclasses import replace

import pytest

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.model_card import CardFacts, ClassResult, DataSplit, write_card

EMPTY = CardFacts(run_id="f" * 32, run_name="", model_uri=f"runs:/{'f' * 32}/model", is_registered=False)
FULL = CardFacts(
    run_id="a" * 32,
    run_name="pets",
    model_uri="models:/pets/3",
    is_registered=True,
    params={"recipe": "fine-tune", "filters": "64", "depth": "4", "kernel_size": "3", "patch_size": "2"}
    | {"activation": "gelu", "epochs": "20", "seed": "7", "monitor": "val_macro_f1"},
    unusual={"depth": "4"},
    changes={"epochs": ("20", "50")},
    metrics={"test_accuracy": 0.9, "test_macro_f1": 0.8, "test_loss": 0.31, "best_val_macro_f1": 0.85}
    | {"best_epoch": 18.0, "parameters": 22_474.0, "latency_ms": 1.5, "seconds": 130.0},
    lineage={"weights_from": "models:/m-1, of run b1"},
    code={"commit": "c0ffee"},
    registry={"version": "3 of pets", "aliases": "champion, when this was written"},
    classes=("cat", "dog"),
    image_shape=(8, 12, 3),
    resize="crop",
    data_name="pets",
    data_source="/data/pets",
    data_fingerprint="d0",
    splits=(DataSplit("train", "t0", {"cat": 30, "dog": 70}), DataSplit("test", "t1", {"cat": 40, "dog": 60})),
    per_class=(ClassResult("cat", 40, 0.8, 0.9, 0.85), ClassResult("dog", 60, 0.95, 0.9, 0.92)),
    interval=("test_macro_f1", Interval(0.75, 0.86)),
    evaluations={"pets-test": {"accuracy": 0.9, "ece": 0.06, "nll": 0.31, "temperature": 1.4, "scaled_ece": 0.02}},
    accesses=2,
    exports=("exports/model.onnx",),
)


def section(card, title):
    """Return the text below a heading."""
    return card.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0]


def test_write_card_says_what_is_known():
    card = write_card(FULL)
    assert card.startswith("# Model card: pets\n")
    about = section(card, "What it is")
    assert "ConvMixer-64/4, kernel 3, patch 2, gelu, 22,474 parameters" in about
    assert "images of 8×12×3 (height, width, channels), values 0 to 255, other sizes: crop" in about
    assert "a probability for each of 2 classes: cat, dog" in about and "champion, when this was written" in about
    data = section(card, "Data")
    assert "| **train images** | 100 images, digest `t0` |" in data and "| **fingerprint** | `d0` |" in data
    assert "| cat | 30 | 40 |" in section(card, "Images of each class")
    training = section(card, "Training")
    assert "| **recipe** | fine-tune, `epochs` 20 instead of 50 |" in training
    assert "| **weights_from** | models:/m-1, of run b1 |" in training and "| **weights of** | epoch 18 |" in training
    assert "| `depth` | 4 |" in section(card, "Settings")


def test_write_card_states_results_with_their_intervals():
    results = section(write_card(FULL), "Results")
    # Wilson's interval of 90 of 100 (Newcombe 1998, method 3)
    assert "| **test accuracy** | 90.00 % (95 % interval 82.56 to 94.48 %, Wilson, 100 images) |" in results
    assert "80.00 % (95 % interval 75.00 to 86.00 %, bootstrap of the images)" in results
    assert "| **test loss** | 0.3100 |" in results
    assert "views" not in results
    views = section(write_card(replace(FULL, metrics=FULL.metrics | {"test_accuracy_views": 0.915})), "Results")
    assert "| **averaged over views of each image** | accuracy 91.50 % |" in views
    assert "| **test set opened** | 2 times, training included |" in results
    assert "| **validation, by which it was chosen** | val_macro_f1 85.00 % |" in results
    assert "| cat | 90.0 % | 80.0 % (65.2 to 89.5) | 85.0 % | 40 |" in section(
        write_card(FULL), "Results of each class"
    )


def test_write_card_states_limits_that_follow_from_what_was_logged():
    limits = section(write_card(FULL), "Intended use and limits")
    assert "Intended use was not recorded" in limits
    assert "Every image gets one of its 2 classes" in limits
    assert "finds the fewest test images of these classes (recall): cat (80.0 % of 40), dog (95.0 % of 60)" in limits
    assert "The test set was evaluated 2 times" in limits and "Its probabilities are not calibrated." in limits
    calibrated = section(write_card(replace(FULL, accesses=1, temperature="1.4")), "Intended use and limits")
    assert "evaluated" not in calibrated and "not calibrated" not in calibrated


def test_write_card_has_a_row_for_each_evaluation():
    table = section(write_card(FULL), "Calibration and robustness")
    assert "| pets-test | 90.0 % | 6.0 % | 0.31 | 1.4 | 2.0 % | – | – |" in table
    assert f"`python -m pipeline evaluate {EMPTY.run_id}` measures them" in write_card(EMPTY)


@pytest.mark.parametrize("facts", [EMPTY, FULL])
def test_write_card_says_how_to_load_the_model_in_five_ways(facts):
    loading = section(write_card(facts), "How to load it")
    for start in ("mlflow.pyfunc.load_model(", "mlflow.keras.load_model(", "mlflow.tensorflow.load_model("):
        assert f'{start}"{facts.model_uri}")' in loading
    assert f"mlflow models serve -m {facts.model_uri} " in loading
    assert f"python -m pipeline predict {facts.model_uri} " in loading
    assert ("exports/model.onnx" in loading) == bool(facts.exports)
    assert ("base64" in loading) == facts.is_registered, "a registered model takes files, another one arrays"


def test_write_card_of_a_run_of_which_nothing_is_known_says_so():
    card = write_card(EMPTY)
    for row in ("input", "output", "data set", "source", "fingerprint", "license", "splits", "recipe"):
        assert f"| **{row}** | not known |" in card
    assert "| **test** | not tested |" in card and "never, as far as was recorded" in card
    assert "None" not in card and "nan" not in card


def test_write_card_shows_markup_in_names_as_text():
    name = "[cat](http://x) | <b>`*_"
    card = write_card(
        replace(
            FULL,
            run_name=name,
            classes=(name, "dog"),
            data_name=name,
            per_class=(ClassResult(name, 40, 0.8, 0.9, 0.85),),
            splits=(DataSplit("train", "t0", {name: 3}),),
            evaluations={name: {"accuracy": 0.5}},
            lineage={"weights_from": name},
        )
    )
    assert name not in card and "<b>" not in card.replace(r"\<b\>", "")
    assert card.count(r"\[cat\](http\://x) \| \<b\>\`\*") >= 7


@pytest.mark.parametrize("classes", [2, 1000])
def test_write_card_in_little_room_leaves_out_details_and_says_where_they_are(classes):
    names = tuple(f"class {number} of a long name" for number in range(classes))
    facts = replace(
        FULL,
        classes=names,
        splits=(DataSplit("train", "t0", dict.fromkeys(names, 5)),),
        per_class=tuple(ClassResult(name, 10, 0.5, 0.5, 0.5) for name in names),
        unusual=dict.fromkeys(names[:50], "x" * 90),
    )
    full, short = write_card(facts), write_card(facts, at_most=5000)
    assert len(short) <= 5000 and len(full) < 20_000
    if classes == 2:
        assert short == full
    else:
        assert "## Results\n" in short and "## Settings" not in short
        assert short.endswith(f"model_card.md among the artifacts of run `{facts.run_id}` has all of it.\n")
    assert len(write_card(facts, at_most=900)) <= 900


def test_write_card_of_many_classes_gives_the_extremes_of_their_sizes():
    names = tuple(str(number) for number in range(100))
    facts = replace(FULL, classes=names, splits=(DataSplit("train", "t0", {name: 5 + int(name) for name in names}),))
    assert section(write_card(facts), "Images of each class") == "- train: 5 to 104, median 55"
    assert "28, 29 and 70 more" in section(write_card(facts), "What it is")
