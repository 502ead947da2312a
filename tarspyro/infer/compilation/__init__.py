"""Steps recorded as graphs, and compiled."""
