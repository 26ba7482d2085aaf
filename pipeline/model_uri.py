"""How a person names a model in MLflow."""

import re

from pipeline.errors import UsageError
from pipeline.printable import one_line

URI = re.compile(
    r"models:/(?P<id>m-[0-9a-f]{32})"
    r"|models:/(?P<name>[^/:@]+)(?:@(?P<alias>[^/:@]+)|/(?P<version>[0-9]+|latest))"
    r"|runs:/(?P<run>[0-9a-f]{32})/(?P<of>[^/:]+)"
)
RULE = "models:/NAME@champion, models:/NAME/VERSION, runs:/RUN_ID/model or models:/m-ID"


def parts(uri: str) -> dict[str, str]:
    """What a URI names: an `id`; or a `name` with an `alias` or a `version`; or a `run` and which model `of` it.

    Raises:
        UsageError: it is no such URI.
    """
    found = URI.fullmatch(uri)
    if found is None:
        raise UsageError(f"model must be {RULE}, got {one_line(uri, most=200)}")
    return {part: value for part, value in found.groupdict().items() if value is not None}
