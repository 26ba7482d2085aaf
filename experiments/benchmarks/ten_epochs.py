"""Plot the learning curves in ten-epochs.csv to docs/pictures/ten-epochs.png.

Usage: python experiments/benchmarks/ten_epochs.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from arguments import take_no_arguments
from matplotlib.axes import Axes

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "pictures" / "ten-epochs.png"
# title of the panel for each form of the images
TITLES = {"original": "CIFAR-10", "JPEG": "CIFAR-10 as JPEG files of quality 75"}
COLOURS = {
    "baseline": "tab:gray",
    "fast with AdamW": "tab:orange",
    "fast (first form)": "tab:cyan",
    "fast": "tab:blue",
    "fast with a teacher": "tab:purple",
}


def main() -> None:
    """Plot the runs on the original images beside those on the JPEG files."""
    take_no_arguments(__doc__)
    runs = pd.read_csv(HERE / "ten-epochs.csv")
    figure, panels = plt.subplots(ncols=len(TITLES), figsize=(10, 4.2), sharey=True, layout="constrained")
    for axes, (images, title) in zip(panels, TITLES.items(), strict=True):
        plot_runs(axes, runs[runs["images"] == images])
        axes.set(title=title, xlabel="epoch", ylim=(0, 100))
    panels[0].set_ylabel("accuracy, %")
    figure.savefig(PICTURE, dpi=120)


def plot_runs(axes: Axes, runs: pd.DataFrame) -> None:
    """Plot the validation accuracy of each run as a solid line and its training accuracy as a dotted one."""
    for settings, colour in COLOURS.items():
        for index, (_, run) in enumerate(runs[runs["settings"] == settings].groupby("run")):
            axes.plot(run["epoch"], 100 * run["val_accuracy"], color=colour, label=None if index else settings)
            axes.plot(run["epoch"], 100 * run["accuracy"], color=colour, linestyle=":", linewidth=1)
    axes.plot([], [], color="black", label="validation")
    axes.plot([], [], color="black", linestyle=":", linewidth=1, label="training")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
