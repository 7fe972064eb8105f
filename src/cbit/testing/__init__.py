"""Builders of whole worlds, for cbit's own tests and for its users'."""
