"""Watching the service: Prometheus' configuration and rules, and Grafana's dashboards."""
