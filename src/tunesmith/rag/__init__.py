"""Documents: read, cut into chunks, found again, and shown to a model that answers from them."""
