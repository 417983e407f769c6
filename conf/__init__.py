"""The job file: its schema, presets and loader."""
