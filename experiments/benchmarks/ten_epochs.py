"""Curves of the runs in ten-epochs.csv as one picture: `python experiments/benchmarks/ten_epochs.py`."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

HERE = Path(__file__).parent
PICTURE = HERE.parent / "pictures" / "ten-epochs.png"
IMAGES = {"original": "CIFAR-10", "JPEG": "CIFAR-10 as JPEG files of quality 75"}  # title
DRAWN = {"baseline": "tab:gray", "fast with AdamW": "tab:orange", "fast": "tab:blue"}  # settings: colour


def main() -> None:
    """Draw the images as they are beside those that were compressed."""
    runs = pd.read_csv(HERE / "ten-epochs.csv")
    figure, axes = plt.subplots(ncols=len(IMAGES), figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, (images, title) in zip(axes, IMAGES.items(), strict=True):
        draw(panel, runs[runs["images"] == images])
        panel.set(title=title, xlabel="epoch", ylim=(0, 100))
    axes[0].set_ylabel("accuracy, %")
    figure.savefig(PICTURE, dpi=120)


def draw(axes: Axes, runs: pd.DataFrame) -> None:
    """Draw a line a run: validation whole, training dotted."""
    for settings, colour in DRAWN.items():
        for number, (_, run) in enumerate(runs[runs["settings"] == settings].groupby("run")):
            axes.plot(run["epoch"], 100 * run["val_accuracy"], color=colour, label=None if number else settings)
            axes.plot(run["epoch"], 100 * run["accuracy"], color=colour, linestyle=":", linewidth=1)
    axes.plot([], [], color="black", label="validation")
    axes.plot([], [], color="black", linestyle=":", linewidth=1, label="training")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
