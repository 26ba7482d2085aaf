"""`python -m pipeline COMMAND ...`: the same as the console script `convmixer`."""

from pipeline.commands.main import main

main()
