"""The HTML report: tables, charts, overlays, features."""
