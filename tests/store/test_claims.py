"""Claims: each name has one living claimant, whatever dies."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.store.claims import Claims, _short
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import claim_record, claimed_names


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(str(tmp_path))


def quick(objects: Objects, owner: str) -> Claims:
    return Claims(objects, owner, renew_seconds=0.05, timeout_seconds=0.5)


def elsewhere(objects: Objects, names: str, **record: Any) -> None:
    """A claim of a process on another machine."""
    there = {"token": "theirs", "beat": 0, "owner": "other", "host": "elsewhere", "pid": 1, "machine": "another", "started": "1"}
    objects.put(claimed_names("theirs"), "\n".join(map(_short, names)).encode())
    objects.put_json(claim_record("theirs"), there | record)


def test_a_name_is_claimed_once(objects: Objects) -> None:
    one, other = quick(objects, "one"), quick(objects, "other")
    with one.take(["a", "b"]) as first, other.take(["b", "c"]) as second:
        assert (first, second) == ({"a", "b"}, {"c"})
        assert len(other.holders()) == 1
    with other.take(["a", "b"]) as later:
        assert later == {"a", "b"}
    assert not [path for path in objects.list("claims") if "lease" not in path]


def test_many_at_once_share_everything_out(objects: Objects) -> None:
    names = [str(number) for number in range(100)]
    together, taken = threading.Barrier(8), []

    def driver(number: int) -> None:
        claims = quick(objects, f"driver {number}")
        together.wait()
        with claims.take(names[10 * number :] + names[: 10 * number]) as mine:
            taken.append(mine)
            time.sleep(0.5)
            together.wait()

    threads = [threading.Thread(target=driver, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, taken)) == len(set().union(*taken)) == len(names)


def test_a_claim_that_is_renewed_stays_and_one_that_is_not_ends(objects: Objects) -> None:
    claims = quick(objects, "mine")
    elsewhere(objects, "ab")
    until = time.monotonic() + 1.0
    beat = 0
    while time.monotonic() < until:
        beat += 1
        elsewhere(objects, "ab", beat=beat)
        with claims.take("abc") as mine:
            assert mine == {"c"}
        time.sleep(0.05)
    time.sleep(0.6)
    with claims.take("abc") as mine:
        assert mine == {"a", "b", "c"}
    assert not objects.exists(claim_record("theirs"))


@pytest.mark.parametrize("what", ["process", "experiment", "garbage"])
def test_what_a_dead_driver_claimed_is_free(objects: Objects, what: str) -> None:
    """At once if its process was here, or if it ran the same experiment: this driver has its lease."""
    from genrep_dist.store.processes import this_process

    gone = {"process": {**this_process(), "pid": 2**30}, "experiment": {"owner": "mine"}, "garbage": {"beat": "many"}}[what]
    elsewhere(objects, "ab", **gone)
    claims = quick(objects, "mine")
    with claims.take("ab") as mine:
        assert mine == (set() if what == "garbage" else {"a", "b"})
    time.sleep(0.6)
    with claims.take("ab") as mine:
        assert mine == {"a", "b"}


def test_a_holder_renews_its_claim(objects: Objects) -> None:
    one, other = quick(objects, "one"), quick(objects, "other")
    with one.take(["a"]):
        for _ in range(10):
            with other.take(["a"]) as mine:
                assert not mine
            time.sleep(0.1)


def test_a_claim_ends_with_an_error(objects: Objects) -> None:
    with pytest.raises(KeyboardInterrupt), quick(objects, "one").take(["a"]):
        raise KeyboardInterrupt
    with quick(objects, "other").take(["a"]) as mine:
        assert mine == {"a"}
