"""HTTP surfaces of Octavo."""
