"""Two right solutions of every part, written independently of our source and of each other.

No student gets them. Classes stand for modules: `class bert` holds bert.attention, and so on.
"""
