"""Containers: how encoded chunks lie in files, and which files make a store."""
