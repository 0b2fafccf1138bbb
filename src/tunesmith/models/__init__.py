"""Language models: what they are, how they are spoken to, and the engine that runs them."""
