"""Batches that several threads share; the network is a function that each test controls."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from pipeline.serving.micro_batching import MicroBatcher

LONG = 30.0  # seconds, longer than a test may take


class Network:
    """Doubles numbers; records the size of each batch, and computes only while it is open."""

    def __init__(self, *, is_open=True):
        self.batches = []
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self, images):
        self.batches.append(len(images))
        self.started.release()
        assert self.gate.wait(LONG)
        if (images < 0).any():
            raise ValueError(f"negative: {images.min()}")
        return 2 * images


def numbers(*values):
    return np.array(values, float).reshape(-1, 1)


def build(network, **options):
    return MicroBatcher(network, **{"max_images": 8, "window_seconds": LONG, "runners": 1} | options)


def waiting(batcher, count):
    """Wait until so many requests wait for the network."""
    for _ in range(3_000):
        if len(batcher._waiting) == count:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{len(batcher._waiting)} requests wait instead of {count}")


def test_predict_of_a_request_alone_does_not_wait_for_the_window():
    """The window is longer than the test may take."""
    network = Network()
    batcher = build(network)
    with ThreadPoolExecutor(1) as pool:
        np.testing.assert_array_equal(pool.submit(batcher.predict, numbers(1, 2)).result(LONG / 3), numbers(2, 4))
    assert network.batches == [2]


def test_predict_while_the_network_is_busy_puts_the_next_requests_into_one_batch():
    network = Network(is_open=False)
    batcher = build(network)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher.predict, numbers(1))
        assert network.started.acquire(timeout=LONG)
        others = [pool.submit(batcher.predict, numbers(*values)) for values in ([2], [3, 4], [5])]
        waiting(batcher, 3)
        network.gate.set()
        assert [future.result(LONG).ravel().tolist() for future in (first, *others)] == [[2], [4], [6, 8], [10]]
    assert network.batches == [1, 4]


def test_predict_waits_for_an_announced_request_until_the_batch_is_full():
    network = Network()
    batcher = build(network, max_images=2)
    with ThreadPoolExecutor(2) as pool, batcher.announce():
        first = pool.submit(batcher.predict, numbers(1))
        assert not wait([first], timeout=0.2).done
        second = pool.submit(batcher.predict, numbers(2))
        assert [first.result(LONG).item(), second.result(LONG).item()] == [2, 4]
    assert network.batches == [2]


def test_predict_stops_waiting_when_the_announced_request_is_refused_or_the_window_has_passed():
    for window, refuse in ((LONG, True), (0.05, False)):
        network = Network()
        batcher = build(network, window_seconds=window)
        with ThreadPoolExecutor(1) as pool:
            announced = batcher.announce()
            announced.__enter__()
            first = pool.submit(batcher.predict, numbers(1))
            if refuse:
                announced.__exit__(None, None, None)
            np.testing.assert_array_equal(first.result(LONG / 3), numbers(2))


def test_predict_never_makes_a_batch_larger_than_max_images_and_answers_all():
    network = Network(is_open=False)
    batcher = build(network, max_images=4)
    sizes = [4, 3, 1, 2, 2, 4, 1, 3]
    with ThreadPoolExecutor(len(sizes)) as pool:
        futures = [pool.submit(batcher.predict, np.full((size, 1), size)) for size in sizes]
        waiting(batcher, len(sizes) - 1)
        network.gate.set()
        for size, future in zip(sizes, futures, strict=True):
            np.testing.assert_array_equal(future.result(LONG), np.full((size, 1), 2 * size))
    assert max(network.batches) <= 4 and sum(network.batches) == sum(sizes)


def test_predict_with_several_runners_computes_several_batches_at_a_time():
    network = Network(is_open=False)
    batcher = build(network, runners=2)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(batcher.predict, numbers(value)) for value in (1, 2)]
        assert network.started.acquire(timeout=LONG) and network.started.acquire(timeout=LONG)
        network.gate.set()
        wait(futures, timeout=LONG)
    assert network.batches == [1, 1]


def test_predict_of_a_bad_request_fails_alone_and_its_neighbours_are_answered():
    network = Network(is_open=False)
    batcher = build(network)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher.predict, numbers(1))
        assert network.started.acquire(timeout=LONG)
        others = [pool.submit(batcher.predict, numbers(value)) for value in (2, -3, 4)]
        waiting(batcher, 3)
        network.gate.set()
        assert [future.result(LONG).item() for future in (first, others[0], others[2])] == [2, 4, 8]
        with pytest.raises(ValueError, match="negative: -3"):
            others[1].result(LONG)
    assert network.batches == [1, 3, 1, 1, 1]


def test_predict_interrupted_in_the_thread_that_runs_the_batch_wakes_all_who_wait():
    """As at the end of the program: SystemExit is no Exception."""
    calls = []

    def fail(images):
        calls.append(len(images))
        if len(calls) == 1:
            waiting(batcher, 2)
        elif len(calls) == 2:
            raise SystemExit
        return images

    batcher = build(fail)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(batcher.predict, numbers(1)) for _ in range(3)]
        errors = [type(future.exception(LONG)) for future in futures]
    assert sorted(map(str, errors)) == sorted(map(str, [type(None), SystemExit, RuntimeError]))
    # and the network is free again
    np.testing.assert_array_equal(batcher.predict(numbers(7)), numbers(7))


def test_predict_without_a_window_gives_each_request_a_batch_of_its_own():
    network = Network(is_open=False)
    batcher = build(network, window_seconds=0)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(batcher.predict, numbers(value)) for value in (1, 2, 3)]
        assert all(network.started.acquire(timeout=LONG) for _ in futures)
        network.gate.set()
        assert sorted(future.result(LONG).item() for future in futures) == [2, 4, 6]
    assert network.batches == [1, 1, 1]


def test_predict_under_load_loses_no_request_and_mixes_none_up():
    sizes = []
    batcher = build(lambda images: 2 * images, max_images=8, window_seconds=0.0005, runners=2, on_batch=sizes.append)

    def ask(number):
        with batcher.announce():
            images = np.arange(number, number + 1 + number % 3, dtype=float).reshape(-1, 1)
        return bool((batcher.predict(images) == 2 * images).all())

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(3_000), timeout=LONG))
    assert sum(sizes) == sum(1 + number % 3 for number in range(3_000))
