"""What is on its way to the tracking server: kept on this machine, in order, until the server has it."""
