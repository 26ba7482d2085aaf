"""Errors, console, text, files, signals, processes and devices: independent of what this program is for."""
