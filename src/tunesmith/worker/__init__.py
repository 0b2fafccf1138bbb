"""Jobs, worked on: taken, run as supervised processes, written down."""
