"""The commands: one module each, its workflow from the command line to the last line it prints."""
