"""Learning: packed forests, pure objectives, one loop."""
