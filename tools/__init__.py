"""Commands built on the modules: python tools/NAME.py, or python -m tools.NAME."""
