"""The configuration tree. Importing it pulls in neither torch nor any engine."""
