"""Measures Octavo, and any server with OpenAI's API: ``octavo bench``."""
