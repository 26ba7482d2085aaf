"""Plot validation accuracy over epochs and over time, of `speedrun` and other recipes, to docs/pictures/speedrun.png.

Usage: python experiments/benchmarks/speedrun.py

speedrun.csv holds the runs of time_to_accuracy.py, the Keras example: the accuracies of its log
(https://keras.io/examples/vision/convmixer/) at the times of its steps, and runs of `accurate` and `long` without
times. The other recipes are those of ten-epochs.csv. An epoch without a time is drawn at that of `speedrun`'s second
one, which has the same network and images; one with a teacher takes longer, and is not drawn over time.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from arguments import take_no_arguments
from matplotlib.axes import Axes
from time_to_accuracy import EXAMPLE_ACCURACY

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "pictures" / "speedrun.png"
TAUGHT = "fast with a teacher"
COLOURS = {
    "Keras example": "black",
    "baseline": "tab:gray",
    "speedrun": "tab:red",
    "fast": "tab:blue",
    TAUGHT: "tab:purple",
    "accurate": "tab:green",
    "long": "tab:orange",
}


def main() -> None:
    """Plot all runs over epochs beside those with times over minutes."""
    take_no_arguments(__doc__)
    timed = pd.read_csv(HERE / "speedrun.csv")
    others = pd.read_csv(HERE / "ten-epochs.csv")
    others = others[(others["images"] == "original") & others["settings"].isin(COLOURS)]
    figure, (over_epochs, over_minutes) = plt.subplots(ncols=2, figsize=(10, 4.2), sharey=True, layout="constrained")
    runs = add_minutes(pd.concat([timed, others]))
    plot_runs(over_epochs, runs, x="epoch")
    plot_runs(over_minutes, runs[runs["settings"] != TAUGHT], x="minutes")
    over_epochs.set(title="CIFAR-10, ConvMixer-256/8", xlabel="epoch", ylabel="validation accuracy, %")
    over_minutes.set(title="the same over time, on two Zen 5 cores", xlabel="minutes since the command", ylim=(0, 100))
    figure.savefig(PICTURE, dpi=120)


def add_minutes(runs: pd.DataFrame) -> pd.DataFrame:
    """Fill in the minutes since the start of epochs that have not been timed."""
    timed = runs[runs["settings"] == "speedrun"].pivot(index="seed", columns="epoch", values="minutes")
    return runs.assign(minutes=runs["minutes"].fillna(runs["epoch"] * (timed[2] - timed[1]).mean()))


def plot_runs(axes: Axes, runs: pd.DataFrame, *, x: str) -> None:
    """Plot the validation accuracy of each run, and the accuracy that the example states."""
    for settings, colour in COLOURS.items():
        for index, (_, run) in enumerate(runs[runs["settings"] == settings].groupby("seed")):
            label = None if index else settings
            axes.plot(run[x], 100 * run["val_accuracy"], ".-", markersize=4, color=colour, label=label)
    axes.axhline(100 * EXAMPLE_ACCURACY, color="black", linewidth=1, linestyle=":", label=f"{EXAMPLE_ACCURACY:.2%}")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
