"""The value of trials against each setting."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.evaluation.figures.axis_scale import SettingRange
from pipeline.evaluation.figures.slices import slices
from tests.support.figures import render
from tests.support.studies import LOG, MAXIMIZED, SIX, make_study


def test_slices_have_a_panel_for_each_setting_with_finished_and_pruned_trials() -> None:
    figure = slices(SIX, **MAXIMIZED)
    kernel, patch = figure.axes[:2]
    assert [kernel.get_xlabel(), patch.get_xlabel()] == ["kernel_size", "patch_size"]
    dots = np.asarray(kernel.collections[0].get_offsets())
    assert dots[:, 1].tolist() == [0.5, 0.7, 0.6]
    assert dots[:, 0].tolist() == [0, 0, 1]  # 3, 3, 5
    assert list(kernel.lines[0].get_ydata()) == [0.9]


def test_slices_draw_later_trials_darker() -> None:
    trials, _ = make_study(50)
    figure = slices(trials, **MAXIMIZED)
    render(figure)
    brightness = figure.axes[0].collections[0].get_facecolors()[:, :3].sum(axis=1)  # type: ignore[attr-defined]
    assert (np.diff(brightness) <= 0).all() and np.ptp(brightness) > 1


def test_slices_tick_labels_do_not_touch() -> None:
    trials, _ = make_study(300, every_kind=True)
    figure = slices(trials, **MAXIMIZED | {"space": LOG})
    render(figure)
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), axes.get_xlabel()


def test_slices_show_the_values_of_the_space_that_no_trial_has_tried() -> None:
    space = {"kernel_size": SettingRange((3, 5, 7, 9)), "patch_size": SettingRange((1, 2, 4))}
    kernel, patch = slices(SIX, **MAXIMIZED | {"space": space}).axes[:2]
    assert [label.get_text() for label in kernel.get_xticklabels()] == ["3", "5", "7", "9"]
    assert [label.get_text() for label in patch.get_xticklabels()] == ["1", "2", "4"]
    assert np.asarray(kernel.collections[0].get_offsets())[:, 0] == pytest.approx([0, 0, 1 / 3])


def test_slices_have_no_key_of_two_trials() -> None:
    assert [len(slices(SIX[:number], **MAXIMIZED).axes) for number in (2, 6)] == [2, 3]
