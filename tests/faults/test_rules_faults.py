"""The rules of the filtered stream. Rows 13 and 14 of the checklist of faults."""

from pathlib import Path
from typing import Any

import pytest

from local.x_api.server import XApi
from local.x_api.settings import Untagged
from service.core.reconnect import Reason
from service.rules import RulesError
from tests.elastic_loop import elastic_time
from tests.faults.rig import Rig, carried


def values(rig: Rig) -> dict[str, str]:
    """Return the ids of X's rules by their values."""
    return {rule.value: rule.id for rule in rig.x.rules.in_force()}


async def have_rules(x: XApi) -> None:
    """Give X a rule that is wanted, one of ours that is not, and one of somebody else."""
    rules = [
        {"value": "millrace", "tag": "millrace:"},
        {"value": "flour", "tag": "millrace:"},
        {"value": "bread", "tag": "a baker's"},
    ]
    x.rules.change({"add": rules}, dry_run=False, delete_all=False)


@elastic_time
async def test_rules_are_brought_into_the_wanted_state(tmp_path: Path) -> None:
    """What is there keeps its id, what is missing is added, ours that is not wanted goes, others' stay."""
    before: dict[str, str] = {}

    async def prepare(x: XApi) -> None:
        await have_rules(x)
        before.update({rule.value: rule.id for rule in x.rules.in_force()})

    wanted = {"MILLRACE_RULES": "millrace\nwater lang:en"}
    async with carried(tmp_path, rate=50, before=prepare, settings=wanted) as rig:
        await rig.received(20)
        after = values(rig)
        assert set(after) == {"millrace", "water lang:en", "bread"}
        assert [after[value] for value in ("millrace", "bread")] == [before[value] for value in ("millrace", "bread")]


@elastic_time
async def test_a_changed_file_changes_the_open_stream(tmp_path: Path) -> None:
    """X needs 20 seconds, the connection stays, and nothing of what matched is lost."""
    file = tmp_path / "rules.yaml"
    file.write_text("- value: millrace lang:en\n")
    settings = {"MILLRACE_RULES": "", "MILLRACE_RULES_FILE": str(file)}
    async with carried(tmp_path / "journal", rate=20, rule_delay=20, settings=settings) as rig:
        await rig.received(20)
        unmatched = rig.x.feed.unmatched
        file.write_text("- value: millrace\n- value: '\"fast water\"'\n  tag: wet\n")
        assert rig.source is not None
        rig.source.reload()
        await rig.until(lambda: set(values(rig)) == {"millrace", '"fast water"'})
        assert unmatched
        unmatched = rig.x.feed.unmatched
        await rig.received(60)
        assert rig.x.feed.unmatched == unmatched
    assert len(rig.x.ledger.connections) == 1
    assert rig.result.missed == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("service_unavailable", Reason.SERVER_ERROR),
        ("bad_gateway_html", Reason.SERVER_ERROR),
        ("rate_limit", Reason.RATE_LIMITED),
        ("credits_depleted", Reason.PAYMENT_REQUIRED),
        ("drop", Reason.NETWORK_ERROR),
        ("hang", Reason.NETWORK_ERROR),
    ],
)
@elastic_time
async def test_rules_that_cannot_be_asked_for_are_asked_for_again(tmp_path: Path, answer: str, reason: Reason) -> None:
    """Until X answers; then the stream begins."""

    async def prepare(x: XApi) -> None:
        x.faults.inject("refuse", answer=answer, endpoint="rules", times=2)

    async with carried(tmp_path, rate=5, before=prepare) as rig:
        await rig.received(5)
        # A GET whose connection broke may be repeated at once.
        assert 1 <= rig.reconnects(reason) <= 2


async def refusal(directory: Path, rules: str, **x_settings: Any) -> str:
    """Start with rules that X refuses, and return its words."""
    words = ""
    try:
        async with carried(directory, before=have_rules, settings={"MILLRACE_RULES": rules}, **x_settings) as rig:
            before = values(rig)
            await rig.until(lambda: rig.running is None)
    except* RulesError as errors:
        assert values(rig) == before
        words = str(errors.exceptions[0])
    return words


@elastic_time
async def test_a_rule_that_x_refuses_ends_the_start_in_the_words_of_x(tmp_path: Path) -> None:
    """Before anything is changed: the dry run shows it."""
    assert "cannot be used as a standalone operator" in await refusal(tmp_path, "millrace\nlang:en")


@elastic_time
async def test_limits_of_rules_are_told(tmp_path: Path) -> None:
    """Too many rules for the access level, or one that is too long, and which."""
    assert "'water'" in await refusal(tmp_path / "one", "millrace\nwater", rules_cap=3)
    assert "'watering'" in await refusal(tmp_path / "two", "fast\nwatering", rule_length=7)


@pytest.mark.parametrize("untagged", list(Untagged))
@elastic_time
async def test_rules_without_a_tag_are_read_however_they_are_shown(tmp_path: Path, untagged: Untagged) -> None:
    """An empty tag, null, or none in the line: it is a post like any other."""

    async def prepare(x: XApi) -> None:
        x.rules.change({"add": [{"value": "millrace"}]}, dry_run=False, delete_all=False)

    async with carried(tmp_path, rate=50, untagged=untagged, before=prepare) as rig:
        await rig.received(100)
    assert rig.result.missed == 0


@elastic_time
async def test_rules_outlive_the_stand_in(tmp_path: Path) -> None:
    """A second daemon at an X that was started again finds its rules, with their ids."""
    state = tmp_path / "rules.json"
    async with carried(tmp_path / "one", rate=50, state=state) as rig:
        await rig.received(20)
        first = values(rig)
    async with carried(tmp_path / "two", rate=50, state=state) as rig:
        await rig.received(20)
        assert values(rig) == first
