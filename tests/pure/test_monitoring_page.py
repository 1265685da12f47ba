"""What the page on monitoring tells people to ask and to be woken by is there."""

import re
from pathlib import Path

import yaml

from gen_worker.http.metrics import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "monitoring.md").read_text()


def test_every_metric_that_the_page_names_is_one() -> None:
    samples = {family.name for family in FAMILIES}
    samples |= {f"{each.name}{part}" for each in FAMILIES if each.kind == "histogram" for part in ("_bucket", "_sum")}
    assert set(re.findall(r"genworker_\w+", PAGE)) <= samples


def test_every_metric_is_on_the_page() -> None:
    assert all(f"| `{family.name}` | {family.kind} |" in PAGE for family in FAMILIES)


def test_the_rules_to_be_woken_by_use_labels_that_there_are() -> None:
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    (groups,) = [block["groups"] for block in blocks if "groups" in block]
    labels = {family.name: set(family.labels) for family in FAMILIES}
    for rule in groups[0]["rules"]:
        named = re.findall(r"genworker_\w+", rule["expr"])
        shown = set(re.findall(r"\$labels\.(\w+)", str(rule.get("annotations", {}))))
        assert all(shown <= labels[name] for name in named), rule["alert"]
