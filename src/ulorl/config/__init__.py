"""The configuration tree. Importing it imports neither torch nor an engine."""
