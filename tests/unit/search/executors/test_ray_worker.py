"""What the driver and the trials of a cluster say to each other is in order, and holds no place longer than a trial."""

import asyncio

import pytest

from pipeline.search.executors.ray_worker import MessageQueue, TaskStarted


def test_a_trial_hears_what_it_was_asked_in_order_also_before_it_listens():
    async def talk():
        queue = MessageQueue()
        await queue.request(1, "pruned")
        await queue.request(1, "stopped")
        await queue.request(2, "kill")
        return [await queue.receive(1), await queue.receive(1), await queue.receive(2)]

    assert asyncio.run(talk()) == ["pruned", "stopped", "kill"]


def test_what_was_told_is_taken_once():
    async def talk():
        queue = MessageQueue()
        await queue.send(TaskStarted(1))
        await asyncio.wait_for(queue.wait(), 5)
        taken = await queue.drain()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.wait(), 0.05)
        return taken, await queue.drain()

    assert asyncio.run(talk()) == ([TaskStarted(1)], [])


def test_nothing_waits_any_more_for_a_trial_that_is_over_and_its_number_can_be_used_again():
    async def talk():
        queue = MessageQueue()
        pending = asyncio.create_task(queue.receive(1))
        await asyncio.sleep(0)
        await queue.close(1)
        await asyncio.wait_for(pending, 5)
        await queue.close(2)  # which nobody has waited for
        await queue.request(1, "stopped")
        return await queue.receive(1)

    assert asyncio.run(talk()) == "stopped"
