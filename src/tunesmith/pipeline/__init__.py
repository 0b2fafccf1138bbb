"""The product as named steps, each a short function that calls rooms."""
