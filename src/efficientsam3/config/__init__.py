"""Typed configuration: the schema, and how YAML files, --opts and flags become it."""
