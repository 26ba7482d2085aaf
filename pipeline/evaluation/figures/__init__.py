"""Figures: functions from arrays to matplotlib figures."""
