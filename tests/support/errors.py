"""What tests share that expect a refusal."""

import pytest

from pipeline.runtime.errors import UsageError


def usage_error(call, *arguments, **named):
    """Return the message of the UsageError that a call raises; it must be one line."""
    with pytest.raises(UsageError) as refused:
        call(*arguments, **named)
    assert "\n" not in str(refused.value)
    return str(refused.value)
