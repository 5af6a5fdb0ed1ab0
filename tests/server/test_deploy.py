"""The files in `deploy/` and the Dockerfile name what there is."""

import json
import re
from pathlib import Path

import yaml


ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def test_the_dashboard_asks_for_metrics_that_there_are(server):
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "higgs_native.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"higgs_native_\w+", target["expr"])
    }
    server.speak(max_new_tokens=20)
    text = server.client.get("/metrics").text
    given = set(re.findall(r"^# TYPE (higgs_native_\w+)", text, re.MULTILINE))
    given |= {f"{name}_bucket" for name in given}
    assert asked
    assert asked <= given


def test_the_composition_mounts_files_that_there_are():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    mounted = [DEPLOY / name for name in mounted if name.startswith(".")]
    assert len(mounted) == 3
    assert [path for path in mounted if not path.exists()] == []
    targets = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {"cpu", "cuda"} <= set(targets)
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"][0]["static_configs"]
    assert scraped[0]["targets"][0].split(":")[0] in services
