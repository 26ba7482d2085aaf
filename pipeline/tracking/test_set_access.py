"""How often the test images of the data that a run was trained on have been looked at through its model.

Each look leaves a tag of its own, named after the run that took it: training itself, or an evaluation. So two at once
lose none, as a number in one tag would; one that is killed counts, and one that is resumed counts once. Evaluations
cannot be counted as runs instead: theirs may lie in another experiment, or be deleted. The tag TOTAL is for people's
eyes: of two at once the last one's number stays, and may be one short.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from pipeline.tracking.tags import Tag

TOTAL = Tag.TEST_SET_ACCESSES


def access_tags(tags: Mapping[str, str], *, by: str, run_id: str, tested: bool) -> dict[str, str]:
    """The tags that say of a run that another one, or itself, opens its test images now; see `openings`.

    Args:
        by: id of the run that opens them.
    """
    new = {f"{TOTAL}.{by}": datetime.now(UTC).isoformat(timespec="seconds")}
    return new | {TOTAL: str(access_count({**tags, **new}, run_id=run_id, tested=tested))}


def access_count(tags: Mapping[str, str], *, run_id: str, tested: bool) -> int:
    """How often, from the tags that a run has.

    Args:
        tested: whether it has a test accuracy: earlier versions left no tag of that.
    """
    seen_by = {name.removeprefix(f"{TOTAL}.") for name in tags if name.startswith(f"{TOTAL}.")}
    return len(seen_by | ({run_id} if tested else set()))
