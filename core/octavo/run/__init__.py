"""Running steps on a device: rows, step inputs, forward, sampling."""
