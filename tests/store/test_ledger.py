from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from genrep_dist.errors import CorruptError
from genrep_dist.store import Store
from genrep_dist.store.ledger import LEDGER_SCHEMA, Ledger, LedgerRow
from genrep_dist.store.tables import get_table, put_table


def row(key: str, removed: tuple[int, ...] = (1, 2), value: float = 0.5) -> LedgerRow:
    return LedgerRow(key, 0, "same", 0, removed, np.full((4, 1), value, dtype=np.float32), 0.25)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Store(str(tmp_path)).ledger("training")


def test_rows_come_back(ledger: Ledger) -> None:
    ledger.write([row("b"), row("a", (), 1.0)])
    ledger.write([row("c")])
    assert ledger.keys() == {"a", "b", "c"}
    found = ledger.scan().sort("key").collect()
    assert found["outputs"].to_list()[0] == [1.0] * 4
    assert found["removed"].to_list()[0] == []
    assert found["num_removed"].to_list() == [0, 2, 2]


def test_an_empty_ledger_has_the_schema(ledger: Ledger) -> None:
    assert ledger.keys() == set()
    assert ledger.scan().collect().columns == LEDGER_SCHEMA.names


def test_a_part_written_twice_is_one_part(ledger: Ledger) -> None:
    assert ledger.write([row("a"), row("b")]) == ledger.write([row("b"), row("a")])
    assert len(ledger.parts()) == 1
    ledger.write([row("b"), row("c")])
    assert ledger.keys() == {"a", "b", "c"}


def test_a_truncated_part_is_named(ledger: Ledger, tmp_path: Path) -> None:
    path = ledger.write([row("a")])
    whole = (tmp_path / path).read_bytes()
    (tmp_path / path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match=path):
        ledger.keys()


def test_a_foreign_part_is_named(ledger: Ledger, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    put_table(store.objects, f"{ledger.folder}/part-x.parquet", pa.table({"key": ["a"]}))
    with pytest.raises(CorruptError, match=r"part-x.parquet[\s\S]*another version"):
        ledger.keys()


def test_parquet_keeps_the_schema_and_its_version(ledger: Ledger, tmp_path: Path) -> None:
    path = ledger.write([row("a")])
    assert get_table(Store(str(tmp_path)).objects, path, LEDGER_SCHEMA).schema.metadata[b"genrep.version"] == b"1"
