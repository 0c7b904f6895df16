"""Configuration: the typed sections, and how a YAML file becomes one."""
