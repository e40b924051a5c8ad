"""How bytes come: chunks, compression, line ends. Rows 2 to 5 of the checklist of faults."""

from pathlib import Path

import pytest

from local.x_api.layout import Layout
from service.core.records import DropReason
from tests.elastic_loop import elastic_time
from tests.faults.rig import carried


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("gzip", [True, False], ids=["gzip", "identity"])
@elastic_time
async def test_chunks_may_end_anywhere(tmp_path: Path, gzip: bool, layout: Layout) -> None:
    """Whatever the layout, the lines are the same: cut in CR LF, in a character, at every byte, glued, bare LF."""
    async with carried(tmp_path, gzip=gzip, layout=layout, rate=50) as rig:
        await rig.received(10)
        assert rig.dropped(DropReason.NOT_JSON) == 0
    assert rig.result.missed == 0


@elastic_time
async def test_layout_changes_in_the_middle_of_a_connection(tmp_path: Path) -> None:
    """One connection carries all of them, one after the other."""
    async with carried(tmp_path, rate=50) as rig:
        for layout in Layout:
            rig.x.faults.inject("layout", layout=layout)
            await rig.received(5)
    assert rig.result.missed == 0
    assert len(rig.x.ledger.connections) == 1
