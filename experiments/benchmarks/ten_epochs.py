"""Curves of the runs in ten-epochs.csv as one picture: `python experiments/benchmarks/ten_epochs.py`."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

HERE = Path(__file__).parent
PICTURE = HERE.parent / "pictures" / "ten-epochs.png"
DRAWN = {"baseline": "tab:gray", "fast with AdamW": "tab:orange", "fast": "tab:blue"}  # settings: colour


def main() -> None:
    """Draw a line a run: validation whole, training broken."""
    runs = pd.read_csv(HERE / "ten-epochs.csv")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for settings, colour in DRAWN.items():
        for number, (_, run) in enumerate(runs[runs["settings"] == settings].groupby("run")):
            axes.plot(run["epoch"], 100 * run["val_accuracy"], color=colour, label=None if number else settings)
            axes.plot(run["epoch"], 100 * run["accuracy"], color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="epoch", ylabel="accuracy, %", ylim=(10, 100), title="ConvMixer-256/8 on CIFAR-10 (JPEG q80)")
    axes.plot([], [], color="black", label="validation")
    axes.plot([], [], color="black", linestyle=":", linewidth=1, label="training")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
