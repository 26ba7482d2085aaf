"""The message of an expected UsageError."""

import pytest

from pipeline.runtime.errors import UsageError


def usage_error(call, *arguments, **named):
    """Return the message of the UsageError that a call raises; it must be one line."""
    with pytest.raises(UsageError) as error:
        call(*arguments, **named)
    assert "\n" not in str(error.value)
    return str(error.value)
