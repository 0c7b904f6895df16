"""The built-in attention backend: plain torch, on any device."""
