"""Tools: each runs as `python tools/X.py` and as `python -m tools.X`."""
