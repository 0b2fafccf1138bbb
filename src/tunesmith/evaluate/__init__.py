"""Measuring arms side by side, with intervals."""
