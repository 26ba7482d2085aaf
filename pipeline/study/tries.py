"""How often a training is tried that did not end by itself: its process died, or its node was lost."""

from pipeline.workers.jobs import Ended, Outcome

ATTEMPTS = 3  # where the process died: once and two retries
LOSSES = 5  # of a node: a spot machine taken away is no fault of the training on it, but so many hardly are


def tried_again(ended: Ended, *, attempt: int, losses: int) -> bool:
    """Whether a training is worth another try.

    Args:
        ended: how its last try went.
        attempt: which try that was, from 1; those that lost their node do not count.
        losses: how many nodes it had lost before.
    """
    if ended.outcome is Outcome.LOST:
        return losses + 1 < LOSSES
    return ended.can_pass and attempt < ATTEMPTS
