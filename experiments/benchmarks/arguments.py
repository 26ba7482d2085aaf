"""The command line of benchmarks without settings."""

import argparse


def take_no_arguments(description: str | None) -> None:
    """Answer --help with a description, which is a module's docstring, and refuse everything else."""
    argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
