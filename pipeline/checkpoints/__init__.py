"""Where a run was at the end of its last epoch, kept on this machine and among the run's artifacts."""
