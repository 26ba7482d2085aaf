"""The kinds of change, a file each; pipeline/augment.py is the door."""
