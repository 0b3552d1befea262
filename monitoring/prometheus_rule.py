"""Build the PrometheusRule for Kubernetes; `python -m monitoring.prometheus_rule` writes its manifest.

It contains the text of `prometheus/rules.yml`: the rules are the same with and without the operator.
"""

from pathlib import Path
from textwrap import indent
from typing import Final

from monitoring.local import CONFIGURATION

MANIFEST: Final = Path(__file__).parents[1] / "deploy/kubernetes/monitoring/prometheusrule.yaml"
_HEADER: Final = """\
# Generated from monitoring/prometheus/rules.yml by `make dashboards`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: resnet-service
  labels: {app.kubernetes.io/name: resnet-service}
spec:
"""


def manifest() -> str:
    """Return the manifest as YAML."""
    return _HEADER + indent((CONFIGURATION / "rules.yml").read_text(encoding="utf-8"), "  ")


if __name__ == "__main__":
    MANIFEST.write_text(manifest(), encoding="utf-8")
