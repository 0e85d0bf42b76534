"""The version database: registry, publishing lock, tables, migrations."""
