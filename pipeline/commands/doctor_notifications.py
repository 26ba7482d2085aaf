"""The doctor's check of notifications: who gets them, and what waits for a receiver on this machine."""

import os
from collections.abc import Iterator

from pipeline.commands.doctor_checks import CheckResult
from pipeline.notifications.notifier import Notifier
from pipeline.notifications.queue import EventQueue, queues
from pipeline.notifications.receivers import VARIABLES, find_receivers
from pipeline.runtime.errors import UsageError
from pipeline.runtime.shell import project_command
from pipeline.runtime.text import count

DELIVERY_SECONDS = 15.0  # for all that wait


def check_notifications(*, resend: bool = False) -> Iterator[CheckResult]:
    """Deliver the notifications that wait on this machine; nothing is sent to try a receiver.

    Args:
        resend: Deliver also those that a receiver has refused.
    """
    try:
        receivers = find_receivers(os.environ)
    except UsageError as error:
        yield CheckResult("error", str(error))
        return
    waiting = queues()
    if resend:
        for queue in waiting:
            queue.take_back()
    with Notifier(receivers) as notifier:
        notifier.flush(DELIVERY_SECONDS)
    for receiver in receivers:
        yield CheckResult("ok", f"notifications go to {receiver.name}")
    configured = {receiver.folder for receiver in receivers}
    for queue in waiting:
        yield from _describe(queue, is_configured=queue.folder in configured)


def _describe(queue: EventQueue, *, is_configured: bool) -> Iterator[CheckResult]:
    """Yield a line on the events that a receiver has refused, and one on those that wait for it."""
    if n_refused := len(queue.refused()):
        command = project_command("doctor", "--resend", "true")
        yield CheckResult(
            "warning",
            f"{count(n_refused, 'notification')} refused by {queue.receiver()} in {queue.folder}: delete it, or after "
            f"a repair `{command}` sends what it holds",
        )
    if n_pending := len(queue.pending()):
        when = "it answers" if is_configured else f"it is named in {' or '.join(VARIABLES.values())} again"
        yield CheckResult(
            "warning",
            f"{count(n_pending, 'notification')} for {queue.receiver()} in {queue.folder}: sent when {when}; or delete "
            "that",
        )
