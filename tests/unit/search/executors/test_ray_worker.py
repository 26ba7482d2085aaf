"""What the driver and the trials of a cluster say to each other is in order, and holds no place longer than a trial."""

import asyncio

import pytest

from pipeline.search.executors.ray_worker import MessageQueue, TaskStarted


def test_a_trial_hears_what_it_was_asked_in_order_also_before_it_listens():
    async def talk():
        mailbox = MessageQueue()
        await mailbox.ask(1, "pruned")
        await mailbox.ask(1, "stopped")
        await mailbox.ask(2, "kill")
        return [await mailbox.asked(1), await mailbox.asked(1), await mailbox.asked(2)]

    assert asyncio.run(talk()) == ["pruned", "stopped", "kill"]


def test_what_was_told_is_taken_once():
    async def talk():
        mailbox = MessageQueue()
        await mailbox.tell(TaskStarted(1))
        await asyncio.wait_for(mailbox.stirred(), 5)
        taken = await mailbox.take()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(mailbox.stirred(), 0.05)
        return taken, await mailbox.take()

    assert asyncio.run(talk()) == ([TaskStarted(1)], [])


def test_nothing_waits_any_more_for_a_trial_that_is_over_and_its_number_can_be_used_again():
    async def talk():
        mailbox = MessageQueue()
        pending = asyncio.create_task(mailbox.asked(1))
        await asyncio.sleep(0)
        await mailbox.over(1)
        await asyncio.wait_for(pending, 5)
        await mailbox.over(2)  # which nobody has waited for
        await mailbox.ask(1, "stopped")
        return await mailbox.asked(1)

    assert asyncio.run(talk()) == "stopped"
