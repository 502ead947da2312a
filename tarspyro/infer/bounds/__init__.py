"""Bounds on the evidence."""
