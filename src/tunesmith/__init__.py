"""tunesmith turns a person's own examples into a specialised model, and says whether it was worth it."""
