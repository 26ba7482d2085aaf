"""Errors, text, files, signals, processes and devices: nothing here knows what the program is for."""
