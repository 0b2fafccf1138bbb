"""Scoring a text: pure functions from output and reference to numbers."""
