import asyncio
import time

from local.x_api.clock import Clock
from tests.elastic_loop import elastic_time
from tests.virtual_loop import virtual_time


@virtual_time
async def test_it_begins_now_and_passes_at_its_speed() -> None:
    """With a speed of 60 a second of the machine is a minute."""
    clock = Clock(60)
    began = clock.now()
    assert abs(began - time.time()) < 5
    await asyncio.sleep(2)
    assert round(clock.now() - began, 3) == 120


@virtual_time
async def test_sleep_is_in_its_own_seconds() -> None:
    """A minute at a speed of 60 takes a second."""
    clock = Clock(60)
    await clock.sleep(60)
    assert round(asyncio.get_running_loop().time(), 6) == 1


@virtual_time
async def test_an_advance_ends_the_waits_that_are_over() -> None:
    """Who waits for a moment that is now past goes on at once; the others still have to wait for the rest."""
    clock = Clock()
    loop = asyncio.get_running_loop()
    short, long = (asyncio.create_task(clock.sleep(seconds)) for seconds in (60, 100))
    await asyncio.sleep(1)
    clock.advance(80)
    await short
    assert loop.time() == 1
    await long
    assert round(loop.time(), 6) == 20


@virtual_time
async def test_a_wait_ends_with_its_event() -> None:
    """Before its moment, and the event says so."""
    clock, event = Clock(), asyncio.Event()
    asyncio.get_running_loop().call_later(3, event.set)
    await clock.wait(event, clock.now() + 10)
    assert (event.is_set(), asyncio.get_running_loop().time()) == (True, 3)


@elastic_time
async def test_an_elastic_loop_moves_it_on() -> None:
    """A quarter of an hour passes in a second of a test."""
    clock, began = Clock(), time.perf_counter()
    moment = clock.now()
    await clock.sleep(900)
    assert round(clock.now() - moment, 3) == 900
    assert time.perf_counter() - began < 30
