"""Monitoring: the Prometheus configuration and rules, and the Grafana dashboards."""
