"""The stories: each file reads top to bottom as what happens, and only calls doors."""
