"""The test images of a report: from the predictions of runs, the cache of decoded data sets and folders of files."""

from dataclasses import replace

import pandas as pd
import pytest

from pipeline.commands.report_examples import file_url, find_examples
from pipeline.tracking.client import TrackingClient
from tests.support.leaderboard_rows import make_row


def make_tables(*rows, images="ab", **columns):
    table = {"image": list(images), "label": [0, 1], "predicted": [1, 1], "probability_of_predicted_class": 0.9}
    return {row.group.runs[0].id: pd.DataFrame(table | columns) for row in rows}


@pytest.fixture
def find(client):
    """Return the examples of rows whose predictions have all been fetched."""
    return lambda rows, tables: find_examples(TrackingClient(), rows, tables)


def test_find_examples_compares_the_best_two_of_the_same_images(find):
    rows = [make_row(rank, [0.9]) for rank in (1, 2, 3)]
    tables = make_tables(*rows)
    found = find(rows, tables)
    assert [strip.title.split(":")[0] for strip in found.strips] == [
        "Most confident mistakes of 1 configuration 1",
        "Right by 1 configuration 1, wrong by 2 configuration 2",
        "Right by 2 configuration 2, wrong by 1 configuration 1",
    ]
    assert found.notes == ["Pixels of 1 image are not shown: no data set in this machine's cache has them."]


def test_find_examples_says_why_there_is_no_second_model(find):
    rows = [make_row(rank, [0.9]) for rank in (1, 2)]
    tables = make_tables(rows[0]) | make_tables(rows[1], images="bc")
    found = find(rows, tables)
    assert len(found.strips) == 1
    assert found.notes[0] == (
        "1 configuration 1 and 2 configuration 2 were tested on different images and not compared by image."
    )
    alone = find([rows[0]], make_tables(rows[0]))
    assert len(alone.strips) == 1 and alone.notes[0].startswith("1 configuration 1 alone has predictions")


def test_find_examples_of_no_tested_model_says_so(find):
    row = make_row(1, [0.9])
    runs = tuple(run._replace(metrics={"best_val_accuracy": 0.9}) for run in row.group.runs)
    found = find([replace(row, group=replace(row.group, runs=runs))], {})
    assert found.strips == []
    assert found.notes == ["No test images are shown: no configuration here has predictions of them."]


def test_find_examples_links_the_files_of_a_data_set_on_this_machine(find, tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a #1.png").touch()
    row = make_row(1, [0.9])
    runs = (row.group.runs[0]._replace(params={"dataset": str(tmp_path), "seed": "7"}),)
    row = replace(row, group=replace(row.group, runs=runs))
    (strip,) = find([row], make_tables(row, file=["cat/a #1.png", "cat/gone.png"])).strips
    assert strip.title.startswith("Most confident mistakes of 1 configuration 1, seed 7: 1 of 2")
    assert [(example.name, example.url) for example in strip.examples] == [
        ("cat/a #1.png", f"file://{tmp_path}/cat/a%20%231.png")
    ]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "", ".", "a\0b", "gone.png"])
def test_file_url_leads_to_files_of_the_folder_alone(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").touch()
    assert file_url(str(folder), name) == ""
