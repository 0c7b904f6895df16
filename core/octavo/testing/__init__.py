"""The testing kit for plugin authors: small models, simulated engines. Public, and itself under test."""
