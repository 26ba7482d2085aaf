"""Start the program: `python -m pipeline COMMAND ...`, or the console script `convmixer`."""

from pipeline.runtime import interrupt


def main() -> None:
    """Run the command that this process was started with, and end the process with its exit code."""
    # before anything else is imported, so that Ctrl-C at any moment ends the process in one line
    interrupt.exit_on_interrupt()
    import sys

    from pipeline.runtime import streams

    streams.tolerate_errors()
    from pipeline.commands.main import exit_process, run

    exit_process(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
