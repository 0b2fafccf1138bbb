"""Is this data fit to learn from?"""
