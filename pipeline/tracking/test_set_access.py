"""Test set accesses: how often the test images of a run's data have been evaluated with its model.

Each access leaves a tag of its own, named after the run that made it: the training itself, or an evaluation. So two at
once lose none, as a number in one tag would; one that is killed counts, and one that is resumed counts once.
Evaluations cannot be counted as runs instead: theirs may be in another experiment, or be deleted. The tag
`test_set_accesses` holds the number for people to read: of two at once the last one's stays, and may be one short.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from pipeline.tracking.tags import Tag


def access_tags(tags: Mapping[str, str], *, by: str, run_id: str, tested: bool) -> dict[str, str]:
    """Return the tags that record an access to the test images of a run's data, at this moment.

    Args:
        tags: The run's.
        by: Id of the run that evaluates the images.
        run_id: The run that trained the model.
        tested: See `access_count`.
    """
    new = {f"{Tag.TEST_SET_ACCESS}.{by}": datetime.now(UTC).isoformat(timespec="seconds")}
    return new | {Tag.TEST_SET_ACCESSES: str(access_count({**tags, **new}, run_id=run_id, tested=tested))}


def access_count(tags: Mapping[str, str], *, run_id: str, tested: bool) -> int:
    """Return how often the test images have been evaluated.

    Args:
        tags: Of the run that trained the model.
        run_id: That run.
        tested: Whether it has a test accuracy, which counts as an access even without a tag.
    """
    prefix = f"{Tag.TEST_SET_ACCESS}."
    accesses = {name.removeprefix(prefix) for name in tags if name.startswith(prefix)}
    if tested:
        accesses.add(run_id)
    return len(accesses)
