"""Processes that serve a model, and the way to them."""
