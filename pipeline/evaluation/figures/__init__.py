"""Figures: functions from arrays to matplotlib figures."""

from matplotlib.figure import Figure

__all__ = ["Figure"]
